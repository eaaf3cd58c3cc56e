r"""What readings and terms cost, against the same trainer without them.

    emoreg extract --model demo --emotions core --out vectors.safetensors
    emoreg calibrate --model demo --vectors vectors.safetensors \
        --out reference.safetensors
    python scripts/bench_training.py --vectors vectors.safetensors \
        --reference reference.safetensors

Every arm is an SFTTrainer on one model with one LoRA, the same rows and batches. Arms
take turns within a repeat, in another order each time, so that a machine whose speed
drifts slows all of them; `bare again` is the bare trainer a second time, and how far it
lies from 1 is the noise. Timed is all from the first step's start to the end of the log
line after the last. Anchors run every fourth step: take a multiple of 4.
"""

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer  # pyright: ignore

import emoreg
from emoreg.demo import load_any
from emoreg.losses.reroute import Complement
from emoreg.quickstart.recipe import load_recipe

OFF = {"contrast": 0.0, "band": 0.0, "meaning": 0.0, "kl": 0.0}
PRESET = {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 0.1}
BARE = ("bare", "bare again")
ARMS: dict[str, dict[str, float]] = {
    **dict.fromkeys(BARE, OFF),
    "monitor": OFF,
    **{name: {**OFF, name: weight} for name, weight in PRESET.items()},
    "contrast and band": {**PRESET, "meaning": 0.0, "kl": 0.0},
    "preset": PRESET,
    "all, measured": PRESET,
}
"""Weights of each arm's preset. `all, measured` has the preset and a monitor that
measures the terms' gradients once a run."""
FURTHER = ("twins", "jump", "spike", "energy", "reroute", "state", "steered")
"""Terms that are in no preset, each alone."""
WATCHED = ("monitor", "all, measured")


class Stopwatch(TrainerCallback):
    """Times a run from its first step to its first log line, in seconds a step."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start: float | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start, self.seconds = None, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self._start is None:
            self._start = now()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        if self._start is not None and not self.seconds:
            self.seconds = (now() - self._start) / state.global_step


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def terms_of(arm: str, vectors: Any, reference: Any) -> Any:
    """Return an arm's terms. Sizes and caps change no cost, so they are made up."""
    if arm not in FURTHER:
        settings: dict[str, Any] = dict(ARMS[arm])
        made = emoreg.presets.decouple(vectors, reference, **settings)
        return made if any(settings.values()) else ()
    probe, signs = emoreg.presets.loss_probe(vectors, reference)
    outside, size = Complement.outside([probe]), torch.ones(len(probe.layers))
    makers = {
        "twins": lambda: emoreg.TwinPenalty(probe),
        "jump": lambda: emoreg.JumpPenalty(probe, signs),
        "spike": lambda: emoreg.SpikePenalty(probe, torch.zeros_like(probe.sigma)),
        "energy": lambda: emoreg.EnergyDistance(probe),
        "reroute": lambda: emoreg.RerouteAnchor(outside, size),
        "state": lambda: emoreg.StateAnchor(outside, size),
        "steered": lambda: emoreg.SteeredRobustness.of(vectors, reference),
    }
    return [makers[arm]()]


def build(
    arm: str, model: Any, tokenizer: Any, options: Any, vectors: Any, reference: Any
) -> Any:
    """Return the trainer of an arm, with its stopwatch; the first one adds the LoRA."""
    first = arm == BARE[0]
    rows = load_recipe("sft").packaged_rows(options.rounds, options.twins, seed=0)
    watch = Stopwatch()
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=options.steps,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        learning_rate=1e-4,
        max_length=None,
        logging_steps=options.steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
    )
    trainer: Any = SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=emoreg.lora_config(vectors) if first else None,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)  # the table below says it all
    if arm not in BARE:
        every = options.steps if arm == "all, measured" else 0
        monitor = emoreg.Monitor(vectors, gradients_every=every)
        emoreg.attach(
            trainer,
            monitor=monitor if arm in WATCHED else None,
            terms=terms_of(arm, vectors, reference),
            outcome="failed",
            reference=reference,
        )
    return trainer, watch


def run(options: Any, vectors: Any, reference: Any) -> dict[str, list[tuple]]:
    """Return seconds a step, and what the log says of cost, per arm and repeat."""
    loaded = load_any(options.model)
    model: Any = loaded.model
    trainers: dict[str, Any] = {}
    for arm in options.arms:
        trainers[arm] = build(arm, model, loaded.tokenizer, options, vectors, reference)
        model = trainers[arm][0].model  # all arms train the one with the LoRA
    trainers["bare"][0].train()  # warm up
    found: dict[str, list[tuple]] = {arm: [] for arm in options.arms}
    for repeat in range(options.repeats):
        order = list(options.arms)
        random.Random(repeat).shuffle(order)
        for arm in order:
            trainer, watch = trainers[arm]
            trainer.train()
            said = [x.get("emotion_cost/percent") for x in trainer.state.log_history]
            found[arm].append((watch.seconds, said[0]))
        print(f"repeat {repeat + 1} of {options.repeats} is done", flush=True)
    return found


def report(found: dict[str, list[tuple]], options: Any) -> None:
    bare = [seconds for seconds, _ in found["bare"]]
    print(f"{'arm':18s} {'ms a step':>9s} {'of bare':>8s} {'logged':>8s}  each repeat")
    ratios = {}
    for arm, runs in found.items():
        shares = [own / one for (own, _), one in zip(runs, bare, strict=True)]
        ratios[arm] = statistics.median(shares)
        milliseconds = 1000 * statistics.median(seconds for seconds, _ in runs)
        logged = [percent for _, percent in runs if percent is not None]
        said = f"{statistics.median(logged):6.1f} %" if logged else ""
        each = " ".join(f"{share:.3f}" for share in shares)
        print(f"{arm:18s} {milliseconds:9.0f} {ratios[arm]:8.3f} {said:>8s}  {each}")
    if {"all, measured", "preset", "monitor"} <= {*ratios}:
        once = ratios["all, measured"] - ratios["preset"] - ratios["monitor"] + 1
        share = 100 * once * options.steps / 50
        print(f"gradients measured every 50 steps: {share:.1f} % a step")
    print(
        f"{options.steps} steps of 2 rows, {options.repeats} repeats, "
        f"{torch.get_num_threads()} threads; noise: the bare trainer against itself "
        f"{min(shares_of(found)):.3f} to {max(shares_of(found)):.3f}\n"
        "`of bare` has the way back through the terms in it, `logged` has not"
    )


def shares_of(found: dict[str, list[tuple]]) -> list[float]:
    pairs = zip(found["bare again"], found["bare"], strict=True)
    return [again[0] / first[0] for again, first in pairs]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--vectors", required=True, help="made by `emoreg extract`")
    parser.add_argument("--reference", required=True, help="by `emoreg calibrate`")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--twins", type=int, default=4)
    parser.add_argument(
        "--arms", nargs="+", choices=(*ARMS, *FURTHER), default=(*ARMS, *FURTHER)
    )
    options = parser.parse_args(arguments)
    options.arms = [*BARE, *(arm for arm in options.arms if arm not in BARE)]
    vectors = emoreg.EmotionVectors.load(options.vectors)
    reference = emoreg.Reference.load(options.reference)
    # Few passages: their caching before step 1 is not timed.
    few = {"stories": reference.stories[:8], "neutral": reference.neutral[:4]}
    report(run(options, vectors, replace(reference, **few)), options)


if __name__ == "__main__":
    main()
