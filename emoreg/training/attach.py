"""Putting monitor and terms into a trainer that already exists, and out again."""

from collections.abc import Sequence
from typing import TypeVar

from emoreg.losses.presets import Terms
from emoreg.losses.targets import Targets
from emoreg.losses.term import AbstractTerm
from emoreg.training.mixin import EmotionTrainerMixin, make_seam
from emoreg.training.outcomes.sources import Source
from emoreg.training.reference import Reference
from emoreg.training.watching.monitor import Monitor

TrainerT = TypeVar("TrainerT")


def attach(
    trainer: TrainerT,
    *,
    monitor: Monitor | None = None,
    terms: Terms | Sequence[AbstractTerm] = (),
    outcome: Source | None = None,
    reference: Reference | None = None,
    targets: Targets | None = None,
) -> TrainerT:
    """Put emotion readings and loss terms into `trainer`, before `trainer.train()`.

    The trainer's class becomes a subclass of what it was, so `isinstance` and all its
    methods hold.

    Args:
        trainer: A `transformers.Trainer` or a subclass, such as TRL's `SFTTrainer`.
        monitor: What to log; None logs nothing but the terms.
        terms: What to add to the loss, for instance `emoreg.presets.decouple(...)`.
        outcome: Dataset column with one failure per Assistant turn; or
            `emoreg.Feedback()`, which reads them from user and tool turns; or, where
            the trainer generates, `emoreg.Reward(...)`.
        reference: Units, success level and passages. None takes the terms' own, or
            calibrates on the packaged training transcripts, and says so.
        targets: From which the terms' weights are set while training. None takes the
            terms' own (`decouple(targets=...)`), or leaves the weights as given.

    Returns:
        The same trainer.

    Raises:
        TypeError: If it is not a Trainer.
        ValueError: If outcomes, vectors, data and targets don't fit each other.
    """
    methods = ("compute_loss", "training_step", "log")
    if not all(callable(getattr(trainer, name, None)) for name in methods):
        raise TypeError(
            "`trainer` must be a transformers.Trainer or a subclass of it, got "
            f"{type(trainer).__name__}"
        )
    if isinstance(trainer, EmotionTrainerMixin):
        raise ValueError(
            "`trainer` must not be attached twice, or its terms would count double; "
            "give `attach` everything in one call, or build a new trainer"
        )
    seam = make_seam(
        trainer,
        monitor=monitor,
        terms=terms,
        outcome=outcome,
        reference=reference,
        targets=targets,
    )
    base = type(trainer)
    trainer.__class__ = type(  # type: ignore[assignment]
        f"Emotion{base.__name__}", (EmotionTrainerMixin, base), {}
    )
    trainer.emotions = seam  # type: ignore[attr-defined]
    return trainer


def detach(trainer: TrainerT) -> TrainerT:
    """Take readings and terms out of `trainer`, before or while it trains.

    From its next batch on it does what it does without emoreg, from the weights and the
    optimizer state that it has then. Readings that no log line has shown are dropped;
    later checkpoints hold no state of terms. To attach again, build a new trainer.

    Raises:
        ValueError: If nothing is attached.
    """
    if not isinstance(trainer, EmotionTrainerMixin):
        raise ValueError(
            "`trainer` must have been attached to, and was not: got "
            f"{type(trainer).__name__}. There is nothing to take out"
        )
    trainer.emotions.release()
    return trainer
