"""What readings and terms cost, against the same trainer without them.

    python scripts/bench_training.py --steps 8 --repeats 3

Every arm is an SFTTrainer with the same LoRA, rows and batches. Arms take turns within
a repeat, in another order each time, so that a machine whose speed drifts slows all of
them. Printed: milliseconds a step, and the ratio to the bare trainer of the same repeat
(median over repeats). Anchors run every fourth step: take a multiple of 4.
"""

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer  # pyright: ignore

import emoreg
from emoreg.demo import load_any
from emoreg.quickstart.recipe import load_recipe

OFF = {"contrast": 0.0, "band": 0.0, "meaning": 0.0, "kl": 0.0}
ARMS: dict[str, dict[str, float] | None] = {
    "bare": None,
    "monitor": OFF,
    "contrast": {**OFF, "contrast": 1.0},
    "band": {**OFF, "band": 0.1},
    "contrast and band": {**OFF, "contrast": 1.0, "band": 0.1},
    "meaning": {**OFF, "meaning": 1.0},
    "kl": {**OFF, "kl": 0.1},
    "preset": {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 0.1},
}
"""Weights of each arm's terms; only `monitor` has a monitor, and no terms."""


class Stopwatch(TrainerCallback):
    """Times optimizer steps, without what trainers do before the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)


def build(arm: str, options: argparse.Namespace, vectors: Any, reference: Any) -> Any:
    """Return the trainer of an arm, with its stopwatch."""
    loaded, watch = load_any(options.model), Stopwatch()
    rows = load_recipe("sft").packaged_rows(options.rounds, options.twins, seed=0)
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
        model=loaded.model,  # pyright: ignore[reportArgumentType]
        args=args,
        train_dataset=rows,
        processing_class=loaded.tokenizer,
        peft_config=emoreg.lora_config(vectors),
        callbacks=[watch],
    )
    weights = ARMS[arm]
    if weights is not None:
        settings: dict[str, Any] = dict(weights)
        terms = emoreg.presets.decouple(vectors, reference, **settings)
        acting = any(weights.values())
        emoreg.attach(
            trainer,
            monitor=None if acting else emoreg.Monitor(vectors),
            terms=terms if acting else (),
            outcome="failed",
            reference=reference,
        )
    return trainer, watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--vectors", required=True, help="made by `emoreg extract`")
    parser.add_argument("--reference", required=True, help="by `emoreg calibrate`")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--twins", type=int, default=8)
    options = parser.parse_args()
    vectors = emoreg.EmotionVectors.load(options.vectors)
    reference = emoreg.Reference.load(options.reference)
    # Few passages: their caching before step 1 is not timed.
    few = {"stories": reference.stories[:8], "neutral": reference.neutral[:4]}
    reference = replace(reference, **few)
    trainers = {arm: build(arm, options, vectors, reference) for arm in ARMS}
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(options.repeats):
        order = list(ARMS)
        random.Random(repeat).shuffle(order)
        for arm in order:
            trainer, watch = trainers[arm]
            watch.seconds.clear()
            trainer.train()
            found[arm].append(statistics.fmean(watch.seconds))
    print(f"{'arm':20s} {'ms a step':>10s} {'of bare':>9s}   each repeat")
    for arm, seconds in found.items():
        shares = [own / bare for own, bare in zip(seconds, found["bare"], strict=True)]
        each = " ".join(f"{share:.3f}" for share in shares)
        milliseconds = 1000 * statistics.median(seconds)
        print(
            f"{arm:20s} {milliseconds:10.0f} {statistics.median(shares):9.3f}   {each}"
        )
    print(
        f"{options.steps} steps of 2 rows, {options.repeats} repeats, "
        f"{torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
