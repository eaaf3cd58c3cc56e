"""A batch's Assistant turns, and what each term sees of them."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emoreg.losses.spikes import SpikePenalty, hottest
from emoreg.losses.term import AbstractDecisionTerm, DecisionReadings
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.outcomes.columns import Extras
from emoreg.training.world import StepTotals


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segments:
    """One per row and turn; those that are not there have no outcome."""

    positions: Int[Tensor, "batch turn"]
    """Of decision tokens."""
    exists: Bool[Tensor, "batch turn"]
    failure: Float[Tensor, "batch turn"]
    """In [0, 1]; NaN where unknown or where there is no turn."""
    first: Bool[Tensor, "batch turn"]
    """Which open a conversation: its first turn, of each document in a row."""

    @classmethod
    def of(
        cls, markers: TurnMarkers, input_ids: Int[Tensor, "batch pos"], extras: Extras
    ) -> "Segments":
        """Return the segments of the tokens that a model read; none without outcomes.

        Nothing here depends on data on the host.
        """
        outcomes = extras.outcomes
        if outcomes is None:
            empty = input_ids[:, :0]
            return cls(
                positions=empty,
                exists=empty.bool(),
                failure=empty.float(),
                first=empty.bool(),
            )
        positions, exists = markers.decision_positions(input_ids, outcomes.shape[1])
        outcomes = outcomes.to(input_ids.device)
        nan = torch.full_like(outcomes, float("nan"))
        return cls(
            positions=positions,
            exists=exists,
            failure=torch.where(exists, outcomes, nan),
            first=_first(positions, extras.starts),
        )


def _first(
    positions: Int[Tensor, "batch turn"], starts: Bool[Tensor, "batch pos"] | None
) -> Bool[Tensor, "batch turn"]:
    """Mark the first turn of each row and, in a row of several, of each document."""
    first = torch.zeros_like(positions, dtype=torch.bool)
    first[:, :1] = True
    if starts is None:
        return first
    document = starts.long().cumsum(1).gather(1, positions)
    return first | (document != document.roll(1, dims=1))


def turns_of(
    markers: TurnMarkers,
    input_ids: Int[Tensor, "batch pos"],
    mask: Tensor | None,
    starts: Bool[Tensor, "batch pos"] | None,
) -> Int[Tensor, "batch pos"]:
    """Return which Assistant turn each token is of, from 1; 0 for none."""
    spoken = markers.assistant_tokens(input_ids, starts)
    if mask is not None and mask.shape == spoken.shape:
        spoken &= mask.bool()  # padding after a turn that was cut
    return markers.turn_of(input_ids, spoken)


def seen_by(
    term: AbstractDecisionTerm,
    streams: dict[int, Float[Tensor, "batch pos d_model"]],
    segments: Segments,
    turn: Int[Tensor, "batch pos"],
    extras: Extras,
    *,
    place: slice | None = None,
    totals: StepTotals | None = None,
    part: bool = False,
) -> DecisionReadings:
    """Return what a term sees: one segment per turn.

    Args:
        term: A spike penalty sees each turn's hottest tokens, any other its decision
            token.
        streams: By layer.
        segments: The batch's.
        turn: Which Assistant turn each token is of, from `turns_of`.
        extras: With cached readings of the reference, or none.
        place: Where the term's figures are among these.
        totals: Counts of the whole step, under accumulation.
        part: Whether an earlier batch of the step was read already.
    """
    probe = term.probe
    if isinstance(term, SpikePenalty):
        every = [probe.read(streams[i], layer=i) for i in probe.layers]
        count = segments.positions.shape[1]
        values = hottest(torch.stack(every, dim=2), turn, count)
    else:
        at = segments.positions
        rows = torch.arange(len(at), device=at.device).unsqueeze(1)
        read = [probe.read(streams[i][rows, at], layer=i) for i in probe.layers]
        values = torch.stack(read, dim=2)
    values, held = values.flatten(0, 1), None
    if extras.reference is not None and place is not None:
        flat = extras.reference[..., place].to(values.device)
        held = flat.flatten(0, 1).unflatten(1, values.shape[1:])
    return DecisionReadings(
        values=values,
        failure=segments.failure.flatten(),
        reference=held,
        first=segments.first.flatten(),
        continues=part,
        failing_total=None if totals is None else totals.failing,
        succeeding_total=None if totals is None else totals.succeeding,
    )
