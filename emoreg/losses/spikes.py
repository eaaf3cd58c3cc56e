"""A ceiling on the hottest tokens of a turn, which a mean over it would hide."""

import math
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.losses.means import present, share, weighted_sum
from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    Probe,
    Reduce,
    alone,
    checked_weight,
)

HOTTEST = 0.1
"""Share of a turn's tokens that its spike is the mean of."""


@final
class SpikePenalty(AbstractDecisionTerm):
    """One-sided hinge on spikes: what the hottest tokens of a turn read.

    `q[s,l,e]` is the mean of the `ceil(n / 10)` highest readings among the `n` tokens
    of an Assistant turn, and::

        L = mean over segments, l, e of relu(q - cap)^2

    Segments are the turns whose outcome is known, failing and succeeding alike: a
    spike is one whatever the tests say, so that it needs no contrast, and no reference
    but for `cap`. Its gradient reaches the hottest tokens alone, and is bounded by how
    far they are above.

    `emoreg.spike_penalty` measures `cap`: the 95th percentile of `q` over passing
    turns of the model before training.
    """

    compares: ClassVar[bool] = False

    def __init__(
        self, probe: Probe, cap: Float[Tensor, "layer emotion"], *, weight: float = 1.0
    ) -> None:
        """Make the term.

        Args:
            probe: How to read, for emotions that are not to spike.
            cap: Ceiling of `q`, in the probe's unit.
            weight: Factor of the term.

        Raises:
            ValueError: If a cap is not a finite number, or the weight negative.
        """
        if not bool(cap.isfinite().all()):
            raise ValueError(
                f"`cap` must be finite at every layer and emotion, got {cap.tolist()}. "
                "Measure it with `emoreg.spike_penalty`"
            )
        self.name, self.weight = "spike", checked_weight(weight)
        self.probe, self.cap = probe, cap

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the mean squared height above the cap.

        Args:
            readings: Whose `values` are spikes, as `hottest` returns them: NaN for a
                turn without tokens, which counts as no spike.
            reduce: Sums over processes.
        """
        self.cap = self.cap.to(readings.values.device)
        weight = readings.failing + readings.succeeding
        values = torch.where(readings.values.isnan(), -math.inf, readings.values)
        above = torch.relu(present(values, weight) - self.cap)
        total = weighted_sum(above.square(), weight).mean()
        whole = reduce(readings.failing_step) + reduce(readings.succeeding_step)
        return total * share(whole, reduce)


def hottest(
    readings: Float[Tensor, "batch pos layer emotion"],
    turn: Int[Tensor, "batch pos"],
    turns: int,
) -> Float[Tensor, "batch turn layer emotion"]:
    """Return the mean of each turn's hottest tokens, NaN for a turn without any.

    Args:
        readings: At every token.
        turn: Which Assistant turn a token is of, from 1; 0 for none.
        turns: How many turns to return.
    """
    found = [_mean_of_top(readings, turn == number + 1) for number in range(turns)]
    return torch.stack(found, 1) if found else readings[:, :0]


def _mean_of_top(readings: Tensor, member: Tensor) -> Tensor:
    """Return the mean of the highest tenth of the marked tokens, `[batch layer e]`."""
    size = member.sum(1)
    top = (size * HOTTEST).ceil().long()
    kept = readings.masked_fill(~member[..., None, None], -math.inf)
    ranked = kept.sort(dim=1, descending=True).values
    rank = torch.arange(member.shape[1], device=member.device)
    among = (rank[None] < top[:, None])[..., None, None]
    total = torch.where(among, ranked, 0.0).sum(1)
    return total / torch.where(top > 0, top.to(total.dtype), torch.nan)[:, None, None]
