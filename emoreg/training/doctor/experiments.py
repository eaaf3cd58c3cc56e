"""Experiments on a trainer's own step: hooks, gradients, accumulation, the adapter."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from emoreg.losses.energy import EnergyDistance
from emoreg.losses.term import AbstractDecisionTerm, AbstractPassageTerm, AbstractTerm
from emoreg.losses.twins import TwinPenalty
from emoreg.training.checks import trains_below
from emoreg.training.doctor.diagnosis import Finding, passed, refused, warned
from emoreg.training.doctor.survey import Survey, column_of, layout_of
from emoreg.training.doctor.trial import Trial, counted_passes, is_checkpointed
from emoreg.training.gradients import AT_REST, cosine, length
from emoreg.training.outcomes.columns import REFERENCE
from emoreg.training.outcomes.rollouts import makes_rollouts
from emoreg.training.rows import cached_rows

_SAME_READING = 0.1
"""In sigma_ref: what batches of another shape may move a reading in bfloat16."""
_SAME_GRADIENT = 0.1
"""Relative; a factor lost to accumulation would be 0.5 or more."""


@final
class Case:
    """A trainer with what several checks need of it, made when first used."""

    def __init__(self, trainer: Any) -> None:
        """Take an attached trainer, inside `undisturbed`."""
        self.trainer, self.regularizer = trainer, trainer.emotions.regularizer
        self.model = trainer.model
        self.active = [t for t in self.regularizer.terms if t.weight > 0]
        """Terms with a weight, before any is switched off to try the others."""

    @cached_property
    def survey(self) -> Survey | None:
        """What one pass over the rows found; None for a stream."""
        return Survey.of(self.trainer)

    @cached_property
    def trial(self) -> Trial:
        """Steps on chosen rows."""
        return Trial(self.trainer)

    @cached_property
    def first(self) -> Any:
        """The first batch that training would see."""
        return self.trial.first_batch()

    @property
    def untried(self) -> str:
        """Why no step can be tried; empty if it can."""
        if makes_rollouts(self.trainer):
            return "the trainer generates its rows, and only `train` runs it"
        if self.survey is None:
            return "the rows are streamed"
        for engine in ("deepspeed", "fsdp"):
            if getattr(self.trainer, f"is_{engine}_enabled", False):
                return f"{engine} wraps the model in `train`; try it in one process"
        return ""

    @property
    def pair(self) -> tuple[int, int]:
        """Two rows, a failing and a passing one where there are such."""
        return (0, 0) if self.survey is None else self.survey.pair

    @property
    def decision(self) -> list[AbstractDecisionTerm]:
        """The active terms that act on the trainer's own batches."""
        return [t for t in self.active if isinstance(t, AbstractDecisionTerm)]


Check = Callable[[Case], Finding | list[Finding]]


def tried(name: str, check: Check, case: Case) -> list[Finding]:
    """Run a check; what it raises is what it found."""
    try:
        found = check(case)
    except Exception as error:  # a diagnosis says what broke and goes on
        said = " ".join(str(error).split())
        return [
            refused(
                name,
                f"{type(error).__name__}: {said}",
                "mend what the message says; training would stop there as well",
            )
        ]
    return found if isinstance(found, list) else [found]


def hook_line(case: Case) -> Finding:
    """Count how often the captured blocks run with gradients in one loss."""
    name, layers = "hooks", case.regularizer.layers
    if not layers:
        return passed(name, "no layer is captured in the task's forward pass")
    with counted_passes(case.trainer, layers) as counts:
        case.trial.step([case.first], case.decision, task=True)
    wrong = {layer: inside for layer, (inside, _) in counts.items() if inside != 1}
    if wrong:
        return refused(
            name,
            "passes with gradients in one loss, by layer: "
            f"{', '.join(f'{k}: {n}' for k, n in wrong.items())}; must be 1",
            "terms read the last pass alone: compute the loss from one forward pass",
        )
    again = any(outside for _, outside in counts.values())
    note = "; gradient checkpointing is on" if is_checkpointed(case.model) else ""
    note += " and runs blocks again in the backward pass, which is not read" * again
    return passed(name, f"layers {list(layers)} fired once with gradients{note}")


def gradient_lines(case: Case) -> list[Finding]:
    """Say what each active term does to the gradient, beside the task."""
    trial = case.trial
    if not trial.trained:
        return [
            refused(
                "gradient",
                "no parameter is trained",
                "pass `peft_config=emoreg.lora_config(vectors)`, or unfreeze some",
            )
        ]
    if not case.active:
        return [passed("gradient", "no term has a weight: the loss is the trainer's")]
    batch = trial.batch(case.pair)
    trial.step([batch], (), task=True)
    task = trial.gradient()
    size, lines = float(length(task)), []
    if not 0 < size < math.inf:
        mend = "look at the labels of a batch: is any token trained on?"
        lines.append(refused("gradient of the task", f"norm {size}", mend))
    pulling = AbstractDecisionTerm | AbstractPassageTerm  # others have no loss
    for term in (term for term in case.active if isinstance(term, pulling)):
        title = f"gradient of {case.regularizer.names[id(term)]}"

        def reach(case: Case, term: AbstractTerm = term, title: str = title) -> Finding:
            return _reach(case, batch, term, title, task)

        lines += tried(title, reach, case)
    return lines


def _reach(
    case: Case, batch: Any, term: AbstractTerm, title: str, task: dict[str, Tensor]
) -> Finding:
    """Say whether a term's gradient reaches what is trained, and how large it is."""
    trial, size = case.trial, float(length(task))
    own = _pull(case, batch, term)
    pull = float(length(own))
    found = f"{pull / max(size, 1e-12):.2g} times the task's, {size:.2g}"
    if not math.isfinite(pull):
        return refused(title, f"norm {pull}", "use bf16 or float32")
    if pull > AT_REST * size:
        return passed(title, f"{found}, cosine {float(cosine(own, task)):+.2f}")
    del own  # it takes room that the copy of the weights needs
    with trial.nudged():
        moved = float(length(_pull(case, batch, term, seen=True)))
    if moved:
        return passed(
            title,
            f"{found}, where it asks for nothing yet; {moved / max(size, 1e-12):.2g} "
            "times with the trained weights moved by 1 %",
        )
    reads = isinstance(term, AbstractDecisionTerm) and term.probe.layers
    if reads and trains_below(case.model, max(reads)):
        if isinstance(term, EnergyDistance):
            return warned(
                title,
                f"not checked: it asks for nothing before it has seen {term.size} "
                f"failing and {term.size} passing turns",
                "look at `emotion_loss` in the log once it has",
            )
        return warned(
            title,
            "none, nor with the trained weights moved by 1 %: the readings lie where "
            "it wants them",
            "look at `emotion_loss` in the first steps; at 0 throughout, it is idle",
        )
    return refused(
        title,
        "none, nor with the trained weights moved by 1 %",
        "train parameters at or below its layers (emoreg.lora_config places them)",
    )


def _pull(
    case: Case, batch: Any, term: AbstractTerm, *, seen: bool = False
) -> dict[str, Tensor]:
    """Return a term's gradient; `seen`: in the second of two steps on the batch.

    Terms on running means are zero in a first step, which has no past.
    """
    if isinstance(term, AbstractDecisionTerm):
        case.trial.step([batch], [term], task=False)
        if seen:
            case.trial.step([batch], [term], task=False, fresh=False)
    else:
        case.trial.anchor(term)
    return case.trial.gradient()


def accumulation_line(case: Case) -> Finding:
    """Compare a step of one batch with the same rows in two."""
    name, trial, pair = "accumulation", case.trial, case.pair
    if not case.decision:
        return passed(name, "no term on the trainer's batches, so nothing to scale")
    trial.step([trial.batch(pair)], case.decision, task=False)
    whole = trial.gradient()
    if not (size := float(length(whole))):
        return warned(
            name,
            "not checked: no term has a gradient on the rows tried",
            "look at the gradients above",
        )
    trial.step([trial.batch([row]) for row in pair], case.decision, task=False)
    parts = trial.gradient()
    apart = float(length({k: whole[k] - parts.get(k, 0.0) for k in whole})) / size
    found = f"two batches of 1 row against one of 2: gradients differ by {apart:.1g}"
    if apart > _SAME_GRADIENT:
        return refused(
            name,
            f"{found} of their size",
            "have a trainer of your own call the mixin's `get_batch_samples` and "
            "`training_step`, or train with gradient_accumulation_steps=1",
        )
    return passed(name, f"{found} of their size")


def adapter_line(case: Case) -> Finding:
    """Compare the reference's cached readings with the model without its adapter."""
    name, trainer, held = "adapter off", case.trainer, case.trainer.emotions._held
    layout, markers = layout_of(trainer), case.regularizer.markers
    columns = getattr(trainer.train_dataset, "column_names", None) or ()
    if layout is None or REFERENCE not in columns:
        return passed(name, "no term holds the rows against the reference's readings")
    terms = [t for t in case.regularizer.decision_terms if id(t) in held]
    terms.sort(key=lambda term: held[id(term)].start)
    rows = trainer.train_dataset.select(sorted(set(case.pair)))
    inner: Any = trainer.accelerator.unwrap_model(case.model)
    tuned = hasattr(inner, "disable_adapter")
    with inner.disable_adapter() if tuned else nullcontext():
        probes = [term.probe for term in terms]
        now = cached_rows(inner, rows, layout, probes, markers, quiet=True)
    twins = [held[id(term)] for term in terms if isinstance(term, TwinPenalty)]
    column = column_of(trainer)
    apart = max(
        _apart(*pair, twins)
        for found, row in zip(now, rows, strict=True)
        for pair in zip(
            found, row[REFERENCE], layout.outcomes(row[column]), strict=True
        )
    )
    found = f"{apart:.2g} sigma_ref from the readings that `attach` cached"
    if apart > _SAME_READING:
        return refused(
            name,
            f"the model without an adapter lies {found}",
            "attach while the model is still the reference, before an adapter is "
            "trained or weights are loaded",
        )
    if tuned:
        return passed(name, f"the model without its adapter lies {found}")
    return warned(
        name,
        f"there is no adapter to switch off; the model as it is now lies {found}",
        "once the weights have moved the reference is gone: keep a copy of it, or "
        "train a LoRA (emoreg.lora_config)",
    )


def _apart(
    now: Sequence[Sequence[float]],
    cached: Sequence[Sequence[float]],
    failures: Sequence[float],
    twins: Sequence[slice],
) -> float:
    """Return the largest difference over a sequence's turns.

    Figures at `twins` are left out where a turn fails: its passing twin's are cached.
    """
    apart = (torch.tensor(now) - torch.tensor(cached)).abs().nan_to_num(0.0)
    for place in twins if failures else ():  # a row without turns has a placeholder
        apart[torch.tensor(failures) > 0, place] = 0.0
    return float(apart.max())
