"""What a term is and what it sees: readings and outcomes, never a model."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emoreg.vectors.audit_split import AuditSplit
from emoreg.vectors.corpus import Roles
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import RANDOM
from emoreg.vectors.readers import AUDIT_READERS

Reduce = Callable[[Tensor], Tensor]
"""Sum over processes; the identity for one."""


def alone(x: Tensor) -> Tensor:
    """Return `x`: the sum over processes when there is one."""
    return x


class AbstractProbe(ABC):
    """What a term reads a residual stream with, at some layers."""

    directions: Float[Tensor, "layer direction d_model"]
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    """Whose directions these are."""
    reader: str

    @property
    @abstractmethod
    def width(self) -> int:
        """Return how many figures a reading at one layer has."""

    @abstractmethod
    def to(self, device: torch.device) -> "AbstractProbe":
        """Return the probe on `device`."""

    @abstractmethod
    def read(
        self, stream: Float[Tensor, "... d_model"], *, layer: int
    ) -> Float[Tensor, "... figure"]:
        """Return the readings of a residual stream, in float32, with its gradient."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Probe(AbstractProbe):
    """The directions a term reads with: one reader, some layers and emotions.

    Readings are `(projection - success level) / sigma_ref`, so 0 is where the
    reference model stands after passing feedback, in the one unit of thresholds.
    """

    directions: Float[Tensor, "layer emotion d_model"]
    zero: Float[Tensor, "layer emotion"]
    """Projection of the centre plus the success level, in the model's own units."""
    sigma: Float[Tensor, "layer emotion"]
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    reader: str

    @property
    def width(self) -> int:
        """Return how many emotions are read."""
        return len(self.emotions)

    def to(self, device: torch.device) -> "Probe":
        """Return the probe on `device`, so that reading needs no copies."""
        moved = (x.to(device) for x in (self.directions, self.zero, self.sigma))
        directions, zero, sigma = moved
        return replace(self, directions=directions, zero=zero, sigma=sigma)

    def read(
        self, stream: Float[Tensor, "... d_model"], *, layer: int
    ) -> Float[Tensor, "... emotion"]:
        """Return the readings of a residual stream, in float32, with its gradient."""
        row = self.layers.index(layer)
        device = stream.device
        with torch.autocast(device.type, enabled=False):
            projection = stream.float() @ self.directions[row].to(device).T
        return (projection - self.zero[row].to(device)) / self.sigma[row].to(device)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DecisionReadings:
    """Readings at decision tokens, one segment each."""

    values: Float[Tensor, "segment layer emotion"]
    """With gradient."""
    failure: Float[Tensor, " segment"]
    """In [0, 1]; NaN where unknown or where there is no segment."""
    reference: Float[Tensor, "segment layer emotion"] | None = None
    """The reference model's readings at the same tokens, where they are cached."""
    first: Bool[Tensor, " segment"] | None = None
    """Which segments open a conversation; any other one's turn before is the segment
    before it. None where that is not known."""
    continues: bool = False
    """Whether an earlier part of the same optimizer step was seen already."""

    failing_total: Float[Tensor, ""] | None = None
    """Sum of `failing` over all parts of this process's step; None: this is all."""
    succeeding_total: Float[Tensor, ""] | None = None
    """Likewise of `succeeding`."""

    @property
    def failing_step(self) -> Float[Tensor, ""]:
        """Weight of failing segments in the whole optimizer step."""
        total = self.failing_total
        return self.failing.sum() if total is None else total

    @property
    def succeeding_step(self) -> Float[Tensor, ""]:
        """Weight of succeeding segments in the whole optimizer step."""
        total = self.succeeding_total
        return self.succeeding.sum() if total is None else total

    @property
    def failing(self) -> Float[Tensor, " segment"]:
        """Weight of each segment as a failing one."""
        return self.failure.nan_to_num(0.0)

    @property
    def succeeding(self) -> Float[Tensor, " segment"]:
        """Weight of each segment as a succeeding one."""
        return (1.0 - self.failure).nan_to_num(0.0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PassageReadings:
    """Readings at every token of fixed passages, with the reference's."""

    values: Float[Tensor, "passage pos layer emotion"]
    reference: Float[Tensor, "passage pos layer emotion"]
    mask: Bool[Tensor, "passage pos"]


class AbstractTerm(ABC):
    """A loss term with its weight.

    A term reads through `probe` and is called with what its kind needs. State that a
    checkpoint must keep is in `state_dict`.
    """

    name: str
    weight: float
    _fresh: dict[str, Tensor] | None = None
    """The state in which the first run found the term."""
    _weighed: tuple[float, float] | None = None
    """The given weight, and the one that the run has set."""

    def reset(self) -> None:
        """Begin a run, with no state of another and the weight that was given.

        A weight that was changed by hand since then is a given one.
        """
        if self._fresh is None:
            self._fresh = copy.deepcopy(self.state_dict())
        self.load_state_dict(copy.deepcopy(self._fresh))
        if self._weighed is not None and self.weight == self._weighed[1]:
            self.weight = self._weighed[0]
        self._weighed = None

    def weigh(self, weight: float) -> None:
        """Set the weight for this run; `reset` takes the given one back."""
        given = self.weight if self._weighed is None else self._weighed[0]
        self.weight, self._weighed = weight, (given, weight)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what must survive a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        del state


class AbstractPassageTerm(AbstractTerm):
    """A term on texts of its own, in a forward-backward pair beside the task's."""

    every: int
    """Optimizer steps from one such pair to the next."""
    passages: int
    """Texts in it."""


class AbstractDecisionTerm(AbstractTerm):
    """A term on readings at the decision tokens of the trainer's own batch."""

    probe: AbstractProbe
    compares: ClassVar[bool] = True
    """Whether it has a use for the reference's readings of the same tokens."""

    @abstractmethod
    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the unweighted term, a scalar with gradient.

        Under gradient accumulation it is this batch's part of the step's mean (sums
        divided by `failing_step` or `succeeding_step`), so that parts add up.
        """


def checked_weight(weight: float) -> float:
    """Return `weight`.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(
            f"`weight` must be a finite number >= 0, got {weight}. To push the other "
            "way, change the sign of the term's emotions instead"
        )
    return float(weight)


def refuse_audit_items(
    roles: Roles,
    *,
    emotions: Sequence[str] = (),
    layers: Sequence[int] = (),
    audit_layers: Sequence[int] = (),
    reader: str = "",
    split: AuditSplit | None = None,
) -> None:
    """Keep what judges the training out of the training.

    Raises:
        ValueError: If a loss would use an audit emotion, layer or reader.
    """
    also: tuple[Sequence[str | int], ...] = ((), (), ())
    if split is not None:
        also = (split.audit_emotions, split.audit_layers, split.audit_readers)
    for kind, asked, kept in (
        ("emotion", emotions, {*roles.audit_lower, *roles.audit_raise, *also[0]}),
        ("layer", layers, {*audit_layers, *also[1]}),
        ("reader", [reader], {*AUDIT_READERS, *also[2]}),
    ):
        taken = [item for item in asked if item in kept]
        if taken:
            raise ValueError(
                f"a loss must not use what the audit judges by; {kind} "
                f"{', '.join(map(repr, taken))} belongs to the audit. Choose a loss "
                f"{kind} (audit {kind}s: {', '.join(sorted(map(str, kept)))})"
            )


def refuse_mixed_placebo(readers: Sequence[str]) -> None:
    """Keep random directions out of an arm that acts on real ones.

    Raises:
        ValueError: If some of `readers` are random, and not all.
    """
    if RANDOM in readers and set(readers) != {RANDOM}:
        raise ValueError(
            "a placebo must act on random directions alone, or nothing can be said of "
            f"what they did; got the readers {', '.join(map(repr, readers))}. Train an "
            f"arm of its own with `readers=({RANDOM!r},)`"
        )


def probe_of(
    vectors: EmotionVectors,
    *,
    reader: str,
    layers: Sequence[int],
    emotions: Sequence[str],
    success_level: Float[Tensor, "layer emotion"],
    sigma: Float[Tensor, "layer emotion"],
) -> Probe:
    """Return the probe of `reader` at `layers` for `emotions`."""
    rows = [vectors.layer_index(layer) for layer in layers]
    columns = list(vectors.emotion_indices(emotions))
    units = [vectors.unit_directions(layer=layer, reader=reader) for layer in layers]
    chosen = torch.stack(units)[:, columns]
    centre = torch.einsum("ld,led->le", vectors.centre[rows], chosen)
    return Probe(
        directions=chosen,
        zero=centre + success_level,
        sigma=sigma,
        layers=tuple(layers),
        emotions=tuple(emotions),
        reader=reader,
    )
