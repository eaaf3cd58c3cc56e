"""The doctor: what a trainer will really do, tried out before it trains."""

import hashlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from emoreg.residual.layers import d_model, model_name, num_layers, unwrapped
from emoreg.training.doctor.diagnosis import Diagnosis, Finding, passed, refused, warned
from emoreg.training.doctor.experiments import (
    Case,
    Check,
    accumulation_line,
    adapter_line,
    gradient_lines,
    hook_line,
    tried,
)
from emoreg.training.doctor.survey import (
    length_line,
    outcome_line,
    packing_line,
    padding_line,
    template_line,
)
from emoreg.training.doctor.trial import undisturbed
from emoreg.training.seam import Seam
from emoreg.training.watching.log_file import NAME as LOG_FILE

_MODULES = {"comet_ml": "comet_ml", "azure_ml": "azureml", "flyte": "flytekit"}
"""Trackers whose module has another name."""


def doctor(trainer: Any) -> Diagnosis:
    """Return what works and what does not in a trainer, and how to mend it.

    It runs the trainer's own step on its first batch, then some ten times on two rows,
    and leaves no trace: weights, random numbers, the terms' state, the log and the step
    stay as they were. Call it after `attach`, before `trainer.train()`.

    Args:
        trainer: A trainer that `emoreg.attach` was called on, or one built on
            `EmotionTrainerMixin`.
    """
    if not isinstance(getattr(trainer, "emotions", None), Seam):
        line = refused(
            "attached",
            f"{type(trainer).__name__} has neither readings nor terms",
            "call `emoreg.attach(trainer, ...)` first, with a monitor or terms",
        )
        return Diagnosis(lines=(line,))
    lines: list[Finding] = []
    sample = ""
    with undisturbed(trainer):
        case = Case(trainer)

        def template(case: Case) -> Finding:
            nonlocal sample
            line, sample = template_line(case.trainer, case.survey)
            return line

        for name, check in (*_CHECKS, ("chat template", template)):
            lines += tried(name, check, case)
    return Diagnosis(lines=tuple(lines), sample=sample)


def _stepped(name: str, check: Check) -> Check:
    """Return a check that is left out, with the reason, where no step can be tried."""

    def run(case: Case) -> Finding | list[Finding]:
        if case.untried:
            mend = "watch the first logged steps: a silent hook or term raises there"
            return warned(name, f"not checked: {case.untried}", mend)
        return check(case)

    return run


def _layers(case: Case) -> Finding:
    width, depth = d_model(case.model), num_layers(case.model)
    regularizer, monitor = case.regularizer, case.regularizer.monitor
    if monitor is not None:
        monitor.vectors.check_model(d_model=width, num_layers=depth)
    probes = [] if monitor is None else list(monitor.probes)
    probes += [t.probe for t in regularizer.terms if hasattr(t, "probe")]
    if not probes:
        return warned(
            "layers",
            "nothing is read: there is neither a monitor nor a term on readings",
            "pass `monitor=emoreg.Monitor(vectors)` to `attach`",
        )
    layers = sorted({layer for probe in probes for layer in probe.layers})
    widths = {probe.directions.shape[-1] for probe in probes}
    model = f"the model has {depth} blocks of width {width}"
    if widths != {width} or layers[-1] >= depth:
        return refused(
            "layers",
            f"directions of width {sorted(widths)} at layers {layers}; {model}",
            "extract vectors for this model with `emoreg extract`",
        )
    return passed("layers", f"reads layers {layers}; {model}")


def _vectors(case: Case) -> Finding:
    name, monitor = "vectors", case.regularizer.monitor
    reference = case.regularizer.reference
    vectors = None if monitor is None else monitor.vectors
    if vectors and reference and vectors.hash != reference.vectors_hash:
        return refused(
            name,
            f"the monitor's vectors have the hash {vectors.hash}, the reference was "
            f"calibrated with {reference.vectors_hash}",
            "calibrate again with these vectors (`emoreg calibrate`)",
        )
    config: Any = unwrapped(case.model).config
    template = str(getattr(case.trainer.processing_class, "chat_template", None))
    here = {
        "model": model_name(case.model),
        "revision": getattr(config, "_commit_hash", None),
        "template_hash": hashlib.sha256(template.encode()).hexdigest()[:16],
    }
    owners = {"vectors": vectors, "reference": reference}
    said = {name: x.provenance for name, x in owners.items() if x is not None}
    for source, provenance in said.items():
        if not provenance.get("model"):
            return warned(
                name,
                f"the {source} file does not name the model it was made with",
                "make it anew with `emoreg extract` or `emoreg calibrate`",
            )
        for key, value in here.items():
            if value and provenance.get(key, value) not in (value, None):
                return warned(
                    name,
                    f"{key} of the {source} is {provenance[key]!r}, of this run "
                    f"{value!r}",
                    "extract and calibrate with the model you train; if it is the same "
                    "under another name, all is well",
                )
    if not said:
        return passed(name, "none are used")
    of = next(iter(said.values()))["model"]
    note = "" if here["model"] else "; the model has no name to compare with"
    return passed(name, f"{' and '.join(said)} of {of!r}{note}")


def _precision(case: Case) -> Finding:
    dtypes = sorted({str(p.dtype).split(".")[1] for p in case.model.parameters()})
    args = case.trainer.args
    mixed = next((name for name in ("fp16", "bf16") if getattr(args, name, False)), "")
    found = f"weights in {', '.join(dtypes)}" + (f", autocast to {mixed}" * bool(mixed))
    if mixed == "fp16" or "float16" in dtypes:
        return warned(
            "precision",
            found,
            "use bf16 or float32: float16 overflows in models with massive "
            "activations, and readings of them raise",
        )
    return passed("precision", found)


def _trackers(case: Case) -> Finding:
    args, name = case.trainer.args, "trackers"
    asked = [x for x in args.report_to or () if x != "none"]
    if not asked:
        return warned(
            name,
            f"none: readings are in {LOG_FILE} of the output folder alone",
            "pass --report_to wandb, trackio, tensorboard or mlflow to see them live",
        )
    for tracker in asked:
        module = _MODULES.get(str(tracker), str(tracker))
        if importlib.util.find_spec(module) is None:
            return refused(
                name,
                f"{tracker} can't be imported",
                f"pip install {module}, or take it out of `report_to`",
            )
        callbacks = case.trainer.callback_handler.callbacks
        wanted = INTEGRATION_TO_CALLBACK.get(tracker)
        if wanted is None or not any(isinstance(c, wanted) for c in callbacks):
            return refused(
                name,
                f"{tracker} is in `report_to`, but the trainer has no callback for it",
                "set `report_to` before the trainer is built",
            )
    if args.logging_strategy == "no":
        return warned(
            name, "logging_strategy='no': nothing is logged", "set it to 'steps'"
        )
    offline = os.environ.get("WANDB_MODE") == "offline" and "wandb" in asked
    note = " (offline: `wandb sync` sends it later)" if offline else ""
    steps = args.logging_strategy == "steps"
    every = f"every {args.logging_steps:g} steps" if steps else "every epoch"
    return passed(name, f"{', '.join(asked)}{note}, {every}")


def _padding(case: Case) -> list[Finding]:
    return [
        padding_line(case.first),
        packing_line(case.trainer, case.first),
    ]


def _length(case: Case) -> Finding:
    return length_line(case.trainer, case.survey)


def _outcomes(case: Case) -> Finding:
    return outcome_line(case.trainer, case.survey, case.active)


_CHECKS: tuple[tuple[str, Check], ...] = (
    ("layers", _layers),
    ("vectors", _vectors),
    ("precision", _precision),
    ("hooks", _stepped("hooks", hook_line)),
    ("gradient", _stepped("gradient", gradient_lines)),
    ("accumulation", _stepped("accumulation", accumulation_line)),
    ("adapter off", _stepped("adapter off", adapter_line)),
    ("padding", _stepped("padding and packing", _padding)),
    ("max_length", _length),
    ("outcomes", _outcomes),
    ("trackers", _trackers),
)


class _Examined(BaseException):
    """Carries a diagnosis out of a script, past its `except Exception`."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self.diagnosis = diagnosis
        super().__init__()


def doctor_script(script: str | Path, arguments: Sequence[str] = ()) -> Diagnosis:
    """Run a training script up to its first `trainer.train()`; examine that trainer.

    Nothing is trained, and what the script does afterwards is not run.

    Args:
        script: A program whose training goes through `transformers.Trainer.train`.
        arguments: Its command line.

    Raises:
        ValueError: If there is no such file, or it ends without training.
    """
    path = Path(script)
    if not path.is_file():
        raise ValueError(f"the training script must be a file; there is no {path}")
    with _as_a_program(path, arguments), _intercepted():
        try:
            runpy.run_path(str(path), run_name="__main__")
        except _Examined as examined:
            return examined.diagnosis
    raise ValueError(
        f"{path} must call `trainer.train()` of a transformers Trainer, where it is "
        "examined; it ended without. Is training behind a flag?"
    )


@contextmanager
def _intercepted() -> Iterator[None]:
    """Have every `Trainer.train` examine its trainer instead."""
    own = transformers.Trainer.train

    def examine(trainer: Any, *_: Any, **__: Any) -> None:
        raise _Examined(doctor(trainer))

    transformers.Trainer.train = examine  # type: ignore[method-assign]
    try:
        yield
    finally:
        transformers.Trainer.train = own  # type: ignore[method-assign]


@contextmanager
def _as_a_program(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Give a script the command line and the import path it has when run."""
    argv, search = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, search
