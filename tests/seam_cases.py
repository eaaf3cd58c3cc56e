"""What the tests of the trainer seam share: vectors, a reference, rows, trainers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer  # pyright: ignore

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.presets import Terms, decouple
from emoreg.losses.targets import Targets
from emoreg.losses.term import DecisionReadings, Probe
from emoreg.training.adapters import lora_config
from emoreg.training.attach import attach
from emoreg.training.reference import Reference, calibrate
from emoreg.training.watching.alerts import Alert
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.corpus import Conversation, Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.fit import VectorFitter

# The last one belongs to the audit: seen, never in a loss.
EMOTIONS = ("desperate", "panicked", "calm", "content", "upset")
LAYERS = (1, 2, 3)  # the plan of a 4-layer model: loss 2, audit 3
LOSS_LAYER = 2
FAILS, PASSES = "2 failed, still wrong.", "all is well, thanks."

disable_progress_bars()


def make_vectors(width: int = 32, depth: int | None = 4) -> EmotionVectors:
    """Vectors with two readers, fitted on made-up activations of that width."""
    generator = torch.Generator().manual_seed(7)
    fitter = VectorFitter(emotions=EMOTIONS, layers=LAYERS, d_model=width)
    for emotion in EMOTIONS:
        mean = torch.randn(len(LAYERS), width, generator=generator)
        noise = torch.randn(6, len(LAYERS), width, generator=generator)
        fitter.update(0.1 * mean + 0.05 * noise, [emotion] * 6)
    provenance = {} if depth is None else {"num_layers": depth}
    return replace(fitter.vectors(denoise=0.0), provenance=provenance)


def twins(count: int = 5) -> list[Conversation]:
    """Short conversations in pairs that differ in the feedback alone."""
    made = []
    for k in range(count):
        for variant, feedback in (("fail", FAILS), ("pass", PASSES)):
            messages = (
                {"role": "user", "content": f"sort list {k} {'x' * k}"},
                {"role": "assistant", "content": f"try {k * 7}"},
                {"role": "user", "content": feedback},
                {"role": "assistant", "content": "again"},
            )
            made.append(
                Conversation(
                    id=f"{k}-{variant}",
                    pair=str(k),
                    variant="fail" if variant == "fail" else "pass",
                    style="",
                    messages=messages,
                    failed=(None, 1.0 if variant == "fail" else 0.0),
                )
            )
    return made


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights large enough for blocks to do something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.15 * noise)
    return model


_MEASURED: dict[tuple[str, str, int], Reference] = {}


def make_reference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vectors: EmotionVectors,
) -> Reference:
    """A reference calibrated on `twins()`, once a kind of model, with short passages.

    An untrained model reacts to all twins alike, so their spread is next to nothing:
    the unit is made as large as the gap, and the gap of the sign that terms act on.
    """
    key = (vectors.hash, type(model).__name__, len(tokenizer))
    if key not in _MEASURED:
        _MEASURED[key] = calibrate(
            model, tokenizer, twins(), vectors, passages=4, quiet=True
        )
    found = _MEASURED[key]
    unit = found.gap.abs().clamp(min=0.05)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    return replace(
        found,
        sigma_ref=unit,
        gap=signs * unit,
        stories=tuple(ids[:40] for ids in found.stories),
        neutral=tuple(ids[:40] for ids in found.neutral),
    )


def make_terms(vectors: EmotionVectors, reference: Reference, **weights: Any) -> Terms:
    """The default preset with everything to be lowered, and strong enough to see."""
    return decouple(vectors, reference, keep=0.0, **weights)


def zero_terms(vectors: EmotionVectors, reference: Reference) -> Terms:
    """The default preset with all weights 0."""
    return make_terms(vectors, reference, contrast=0, band=0, meaning=0, kl=0)


def row(turns: Sequence[float | None], k: int = 0) -> dict[str, Any]:
    """One conversation with an Assistant turn per entry of `turns`.

    The first turn has seen no feedback; the others follow a failing or passing one.
    """
    messages = [{"role": "user", "content": f"job {k} {'y' * (k % 5)}"}]
    for index, failed in enumerate(turns):
        if index:
            feedback = {None: "so what now?", 1.0: FAILS, 0.0: PASSES}
            text = feedback.get(failed, "half of it is wrong.")
            messages.append({"role": "user", "content": text})
        reply = f"step {index} of {k}" + "z" * (k % 3)
        messages.append({"role": "assistant", "content": reply})
    return {
        "prompt": messages[:-1],
        "completion": messages[-1:],
        "failed": list(turns),
    }


def make_rows(count: int = 8) -> Dataset:
    """Rows of one to three feedbacks, failing, passing, halfway and unknown."""
    kinds: tuple[tuple[float | None, ...], ...] = (
        (None, 1.0),
        (None, 0.0),
        (None, 1.0, 0.0),
        (None, 0.5, None, 1.0),
    )
    return Dataset.from_list([row(kinds[k % len(kinds)], k) for k in range(count)])


def marked_rows(said: str, asked: str, count: int = 8) -> Dataset:
    """The rows with a word in every Assistant turn, and another in every user turn."""
    words = {"assistant": said, "user": asked}

    def marked(messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return [
            {**x, "content": f"{x['content']} {words[x['role']]}"} for x in messages
        ]

    sides = ("prompt", "completion")
    rows = [
        {**x, **{side: marked(x[side]) for side in sides}}
        for x in map(dict, make_rows(count))
    ]
    return Dataset.from_list(rows)


def quiet(folder: Path | str, **changes: Any) -> dict[str, Any]:
    """Settings of any trainer: quiet, on a CPU, with every step logged."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return {**settings, **changes}


def sft_config(folder: Path | str, **changes: Any) -> SFTConfig:
    """The quiet settings of an `SFTTrainer` that cuts nothing."""
    return SFTConfig(**quiet(folder, **{"max_length": None, **changes}))


def attached(
    trainer: Any,
    vectors: EmotionVectors,
    reference: Reference,
    weights: dict[str, float] | None,
    *,
    seen: bool = True,
) -> Any:
    """The trainer with a monitor, if `seen`, and terms of these weights, if any."""
    return attach(
        trainer,
        monitor=Monitor(vectors) if seen else None,
        terms=make_terms(vectors, reference, **weights) if weights else (),
        outcome="failed",
        reference=reference,
    )


def make_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    rows: Dataset | None = None,
    peft: LoraConfig | None = None,
    kind: type[SFTTrainer] = SFTTrainer,
    callbacks: Sequence[TrainerCallback] = (),
    extra: dict[str, Any] | None = None,
    eval_rows: Dataset | None = None,
    **changes: Any,
) -> SFTTrainer:
    """A real SFTTrainer on the rows; equal calls make equal trainers."""
    torch.manual_seed(11)  # an adapter's first weights
    return kind(
        model=model,
        args=sft_config(folder, **changes),
        train_dataset=make_rows() if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=peft,
        callbacks=list(callbacks),
        **(extra or {}),
    )


def adapter() -> LoraConfig:
    """The LoRA that the package recommends for the tiny model."""
    return lora_config(make_vectors(), r=2, alpha=4)


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A plain collator: right padding, the whole text as labels."""
    ids = [torch.tensor(example["input_ids"]) for example in examples]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    lengths = torch.tensor([len(one) for one in ids])
    mask = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
    return {
        "input_ids": padded,
        "attention_mask": mask.long(),
        "labels": padded.masked_fill(~mask, -100),
    }


def make_plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> Trainer:
    """A `transformers.Trainer` on the same rows."""
    tokenized = [
        {
            "input_ids": tokenizer(
                str(
                    tokenizer.apply_chat_template(
                        example["prompt"] + example["completion"], tokenize=False
                    )
                ),
                add_special_tokens=False,
            )["input_ids"],
            "failed": example["failed"],
        }
        for example in map(dict, make_rows())
    ]
    return Trainer(
        model=model,
        args=TrainingArguments(**quiet(folder, **changes)),
        train_dataset=Dataset.from_list(tokenized),
        processing_class=tokenizer,
        data_collator=collate,
        callbacks=list(callbacks),
    )


class Gradients(TrainerCallback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, **kwargs: Any
    ) -> None:
        del args, state, control
        named = kwargs["model"].named_parameters()
        self.steps.append(
            {name: p.grad.clone() for name, p in named if p.grad is not None}
        )


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def losses(trainer: Any) -> list[float]:
    """The training loss at every logged step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def logged(trainer: Any, prefix: str = "emotion") -> list[dict[str, float]]:
    """Readings and terms of every logged step that has some.

    Costs and gradients are left out unless asked for by their prefix: times are the
    machine's, and gradients are measured on a part of the step, and not in every mode.
    """
    left = ("emotion_cost/", "emotion_gradient/") if prefix == "emotion" else ()
    found = [
        {
            k: v
            for k, v in entry.items()
            if k.startswith(prefix) and not k.startswith(left)
        }
        for entry in trainer.state.log_history
    ]
    return [entry for entry in found if entry]


def gap(
    a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]
) -> tuple[float, float, float]:
    """Largest and mean difference of two sets of tensors, and the mean size."""
    assert a
    assert a.keys() == b.keys()
    first = torch.cat([a[name].flatten() for name in a])
    second = torch.cat([b[name].flatten() for name in a])
    apart = (first - second).abs()
    return float(apart.max()), float(apart.mean()), float(first.abs().mean())


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contrast_gradient(
    trainer: Any,
    batches: Sequence[Any],
    read: Callable[[Any, Any, Probe], tuple[torch.Tensor, torch.Tensor]],
    *,
    cached: bool,
) -> dict[str, torch.Tensor]:
    """The gradient of a trainer's contrasts on a step's batches, by plain forwards.

    `read` returns the readings and outcomes of a batch; `cached` says whether the
    trainer knows the reference's readings, which at unmoved weights are the same.
    """
    loss = torch.zeros(())
    for place, batch in enumerate(batches):
        for term in trainer.emotions.regularizer.decision_terms:
            if term.weight:
                values, failure = read(trainer, batch, term.probe)
                held = values.detach() if cached else None
                readings = DecisionReadings(
                    values=values,
                    failure=failure,
                    reference=held,
                    continues=place > 0,
                )
                loss = loss + term.weight * term(readings) / len(batches)
    loss.backward()
    named = trainer.model.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}


def check_added(
    with_terms: dict[str, torch.Tensor],
    without: dict[str, torch.Tensor],
    wanted: dict[str, torch.Tensor],
    *,
    tolerance: float,
) -> None:
    """What terms added to a gradient is `wanted`, to a share of its largest entry."""
    added = {name: with_terms[name] - without[name] for name in without}
    wanted = {name: wanted[name] for name in added if name in wanted}
    size = max(float(g.abs().max()) for g in wanted.values())
    assert size > 1e-3
    apart = max(float((added[name] - wanted[name]).abs().max()) for name in wanted)
    assert apart < tolerance * size
    # Control: half of it, or twice, would be seen.
    half = max(float((added[n] / 2 - wanted[n]).abs().max()) for n in wanted)
    assert half > 0.1 * size


def small_corpus(folder: Path, kept: int = 4) -> Corpus:
    """The packaged corpus with only its shortest training twins."""
    packaged = Corpus.packaged().root
    lines: list[str] = []
    for path in packaged.rglob("*.json*"):
        if path.parent.name == "transcripts":
            if path.name.startswith("train"):
                lines += path.read_text(encoding="utf-8").splitlines()
            continue
        target = folder / path.relative_to(packaged)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    twins = folder / "transcripts" / "train.jsonl"
    twins.parent.mkdir()
    twins.write_text("\n".join(sorted(lines, key=len)[:kept]), encoding="utf-8")
    return Corpus(folder)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run in a process of its own: `python tests/seam_cases.py FOLDER NAME`."""

    rows: list[dict[str, Any]]
    weights: dict[str, float]
    peft: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    log_texts: int = 0
    kl_budget: float | None = None
    """With one, weights are set by targets; None: they stay."""


def write_files(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write what a job needs: model, tokenizer, vectors, reference."""
    vectors = make_vectors()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    vectors.save(folder / "vectors.safetensors")
    make_reference(model, tokenizer, vectors).save(folder / "reference.safetensors")


def run_job(
    folder: Path,
    name: str,
    job: Job,
    *,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    seconds: float = 240,
) -> dict[str, Any]:
    """Run a job and return what it left.

    Several processes are launched as a user would; a single one, unless it needs an
    environment of its own, is this one, whose imports are there already.

    Raises:
        subprocess.TimeoutExpired: If processes wait for each other for ever.
    """
    (folder / f"{name}.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    if processes == 1 and environment is None:
        main(folder, name)
        return torch.load(folder / f"{name}.pt", weights_only=False)
    here = Path(__file__).resolve()
    config = here.parent.parent / "recipes" / "accelerate" / "ddp_cpu.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    launch += ["--num_processes", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else [])]
    own = os.environ.get("PYTHONPATH")
    folders = [str(here.parent.parent), str(here.parent), *([own] if own else [])]
    path = os.pathsep.join(folders)
    done = subprocess.run(
        [*command, str(here), str(folder), name],
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / f"{name}.pt", weights_only=False)


def main(folder: Path, name: str) -> None:
    """Train as the job says; the main process writes log and weights."""
    job = Job(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    vectors = EmotionVectors.load(folder / "vectors.safetensors")
    reference = Reference.load(folder / "reference.safetensors")
    terms = make_terms(vectors, reference, **job.weights)
    targets = None
    if job.kl_budget is not None:  # the terms keep nothing of the slope
        targets = Targets(slope_reduction=1.0, kl_budget=job.kl_budget)
    for term in terms:
        if isinstance(term, MeaningAnchor | ReferenceKL):
            # All passages each time, so that the number of processes is no matter.
            term.every, term.passages = 2, 8
    trainer: Any = attach(
        make_sft(
            AutoModelForCausalLM.from_pretrained(folder / "model"),
            AutoTokenizer.from_pretrained(folder / "model"),
            folder / name,
            rows=Dataset.from_list(job.rows),
            peft=adapter() if job.peft else None,
            **job.changes,
        ),
        monitor=Monitor(
            vectors,
            alerts=[Alert(**alert) for alert in job.alerts],
            log_texts=job.log_texts,
            gradients_every=1,
        ),
        terms=terms,
        outcome="failed",
        reference=reference,
        targets=targets,
    )
    start = weights(trainer)
    trainer.train()
    own = torch.tensor([[term.weight for term in terms]], dtype=torch.float64)
    all_weights = trainer.accelerator.gather(own)
    if trainer.is_world_process_zero():
        result = {
            "log": trainer.state.log_history,
            "weights": weights(trainer),
            "start": start,
            "processes": trainer.accelerator.num_processes,
            "term_weights": all_weights,  # a row per process
        }
        torch.save(result, folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
