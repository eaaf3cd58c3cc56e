"""Keeping an emotion between a floor and a ceiling on failing turns."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.means import RunningMean, present, share, weighted_sum
from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    Probe,
    Reduce,
    alone,
    checked_weight,
)

_DECAY = 0.9
"""Memory of `outside` from one optimizer step to the next; the loss has none."""


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
        self._mean = RunningMean(gap.shape, _DECAY)

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """Return floor and ceiling, in the probe's unit above the success level."""
        return self._low, self._high

    @property
    def outside(self) -> Float[Tensor, ""]:
        """Return how far outside the band `u` is, in widths of the band.

        `mean_{l,e} max(low - u, u - high) / (high - low)` of the running mean of `u`
        over failing segments, which is below 0 inside, -1/2 in the middle; not a
        number before the first one.
        """
        low, high = self.limits
        u = torch.where(self._mean.count > 0, self._mean.mean, torch.nan)
        return (torch.maximum(low - u, u - high) / (high - low)).mean()

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the mean squared distance outside the band."""
        self._to(readings.values.device)
        values = readings.values
        if readings.reference is not None:
            values = values - readings.reference + self._gap
        weight = readings.failing
        values = present(values, weight)
        self._keep(values.detach(), readings, reduce)
        outside = torch.relu(self._low - values).square()
        outside = outside + torch.relu(values - self._high).square()
        total = weighted_sum(outside, weight).mean()
        return total * share(reduce(readings.failing_step), reduce)

    def _keep(self, values: Tensor, readings: DecisionReadings, reduce: Reduce) -> None:
        """Let a batch into the running mean, which the step's first part settles."""
        if not readings.continues:
            self._mean.settle()
        weight = readings.failing
        self._mean.add(reduce(weighted_sum(values, weight)), reduce(weight.sum()))

    def _to(self, device: torch.device) -> None:
        if self._mean.sum.device != device:
            self._mean.to(device)
            for name in ("_gap", "_low", "_high"):
                setattr(self, name, getattr(self, name).to(device))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running mean, the latest step's segments among them."""
        return self._mean.state_dict("failing")

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the running mean; one of an earlier version had none."""
        if state:
            self._mean.load_state_dict("failing", state)
