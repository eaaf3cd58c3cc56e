"""Keeping an emotion between a floor and a ceiling on failing turns."""

from typing import final

import torch
from jaxtyping import Float
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


@final
class BandPenalty(AbstractDecisionTerm):
    """Two-sided hinge: a cost only outside `[low, high]`.

    `L = mean over failing segments, l, e of relu(low - u)^2 + relu(u - high)^2`.

    `u` is the reading, or, where the reference's reading of the same tokens is given,
    `p - p_ref + gap`: the reading with the task's own offset taken out, since a task
    that is calmer than another is no matter for a loss. The ceiling is not optional:
    more calm than after success goes with flattery and with disinhibition
    (https://transformer-circuits.pub/2026/emotions/index.html).
    """

    def __init__(
        self,
        probe: Probe,
        gap: Float[Tensor, "layer emotion"],
        *,
        low: Float[Tensor, "layer emotion"],
        high: Float[Tensor, "layer emotion"],
        weight: float = 1.0,
    ) -> None:
        """Make the term.

        Args:
            probe: How to read; its unit is `sigma_ref`.
            gap: The reference's failing minus passing reading.
            low: Floor, in the probe's unit above the success level.
            high: Ceiling, likewise.
            weight: Factor of the term.

        Raises:
            ValueError: If the floor is not below the ceiling, or the weight negative.
        """
        if not bool((low < high).all()):
            raise ValueError("`low` must be below `high` at every layer and emotion")
        self.name, self.weight = "band", checked_weight(weight)
        self.probe, self._gap, self._low, self._high = probe, gap, low, high

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the mean squared distance outside the band."""
        values, device = readings.values, readings.values.device
        if readings.reference is not None:
            values = values - readings.reference + self._gap.to(device)
        weight = readings.failing
        values = present(values, weight)
        outside = torch.relu(self._low.to(device) - values).square()
        outside = outside + torch.relu(values - self._high.to(device)).square()
        total = weighted_sum(outside, weight).mean()
        return total * share(reduce(readings.failing_step), reduce)
