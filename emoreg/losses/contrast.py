"""The decoupler: after failure, no more desperation than a share of before."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    Probe,
    Reduce,
    alone,
    checked_weight,
)


@final
class ContrastPenalty(AbstractDecisionTerm):
    """Directional, success-anchored penalty on the failure contrast.

    In readings where 0 is the reference's success level::

        x = s_e * G,  G[l,e] = mean over failing segments (running mean)
        L = mean_{l,e} [ relu(x - tau)^2 + 1/4 relu(-x - tau_lo)^2 ]
            + 1/2 mean over succeeding segments, l, e of (p - p_ref)^2

    `tau = keep * reference gap`: appropriate alarm survives. Only failing segments
    feel the first line; the second keeps success where it was, without which making
    success desperate too would be an optimum.

    `G` is a running mean in dual form: its value decides the slope of the hinge, the
    gradient flows through the present batch, so one row a batch is enough. Where the
    reference's readings of the same tokens are given, `G` is the calibrated gap plus
    the running mean of `p - p_ref`, which takes the spread between tasks out of the
    estimate.
    """

    def __init__(
        self,
        probe: Probe,
        signs: Float[Tensor, " emotion"],
        gap: Float[Tensor, "layer emotion"],
        *,
        weight: float = 1.0,
        keep: float = 0.25,
        overshoot: float = 0.25,
        decay: float = 0.9,
        anchor: float = 0.5,
    ) -> None:
        """Make the term.

        Args:
            probe: How to read; its unit is `sigma_ref`.
            signs: +1 for emotions to be lowered, -1 for those to be raised.
            gap: The reference's failing minus passing reading.
            weight: Factor of the whole term.
            keep: Share of the reference gap that may stay; 0 asks for all of it to go.
            overshoot: How far past zero a reading may go before it is pulled back.
            decay: Memory of the running mean; longer is smoother and reacts later.
            anchor: Factor of the success anchor; 0 leaves success free to drift.

        Raises:
            ValueError: On a negative weight, or `keep` or `decay` outside [0, 1).
        """
        for name, value in (("keep", keep), ("decay", decay)):
            if not 0 <= value < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {value}")
        self.name, self.weight = "contrast", checked_weight(weight)
        self.probe, self._signs, self._gap = probe, signs, gap
        self._decay, self._anchor, self._overshoot = decay, anchor, overshoot
        coupled = (signs * gap).clamp(min=0)
        self._tau = keep * coupled
        # Where the reference itself lies below zero, that is no overshoot.
        self._low = torch.minimum((signs * gap).clamp(max=0), torch.tensor(-overshoot))
        self._sum, self._count = torch.zeros_like(gap), torch.zeros(())

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the penalty; its gradient is that of the dual form."""
        self._to(readings.values.device)
        shift = readings.values
        start = torch.zeros_like(self._gap)
        if readings.reference is not None:
            shift, start = shift - readings.reference, self._gap
        failing = readings.failing
        local = weighted_sum(shift, failing)
        count, whole = reduce(failing.sum()), reduce(readings.failing_step)
        part = count / whole.clamp(min=1e-6)
        self._update(reduce(local.detach()), count, part)
        x = self._signs * (start + self._sum / self._count.clamp(min=1e-6))
        above, below = torch.relu(x - self._tau), torch.relu(self._low - x)
        slope = (2 * above - 0.5 * below) * self._signs
        value = (above.square() + 0.25 * below.square()).mean()
        surrogate = (slope * local).mean() * share(whole, reduce)
        loss = part * value + surrogate - surrogate.detach()
        return loss + self._anchor * self._success(readings, reduce)

    def _success(self, readings: DecisionReadings, reduce: Reduce) -> Tensor:
        held = readings.reference
        if held is None:
            held = torch.zeros_like(self._gap)  # the success level itself
        weight = readings.succeeding
        drift = present(readings.values - held, weight)
        squares = weighted_sum(drift.square(), weight).mean()
        return squares * share(reduce(readings.succeeding_step), reduce)

    def _update(self, total: Tensor, count: Tensor, part: Tensor) -> None:
        # The parts of one step decay about as much as the whole; a batch without
        # failures, on any rank, leaves the running mean as it is.
        decay = self._decay**part
        self._sum = decay * self._sum + total
        self._count = decay * self._count + count

    def _to(self, device: torch.device) -> None:
        if self._gap.device != device:
            for name in ("_signs", "_gap", "_tau", "_low", "_sum", "_count"):
                setattr(self, name, getattr(self, name).to(device))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running mean."""
        return {"sum": self._sum.cpu(), "count": self._count.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the running mean."""
        device = self._gap.device
        self._sum, self._count = state["sum"].to(device), state["count"].to(device)


def weighted_sum(
    values: Float[Tensor, "segment layer emotion"], weight: Float[Tensor, " segment"]
) -> Float[Tensor, "layer emotion"]:
    """Return the weighted sum over segments; those of weight 0 may hold anything."""
    return torch.einsum("sle,s->le", present(values, weight), weight)


def present(
    values: Float[Tensor, "segment layer emotion"], weight: Float[Tensor, " segment"]
) -> Float[Tensor, "segment layer emotion"]:
    """Return `values`, zero where a segment has weight 0.

    Absent segments hold NaN, and NaN times zero is NaN, in the gradient of a square
    too: this comes before anything that is not linear.
    """
    return torch.where((weight > 0)[:, None, None], values, 0.0)


def share(total: Tensor, reduce: Reduce) -> Tensor:
    """Return what a local sum is multiplied by so that averaged gradients are right.

    Trainers average gradients over processes; the mean over all segments of all
    processes is `processes / total` times each local sum.
    """
    processes = reduce(torch.ones_like(total))
    return torch.where(total > 0, processes / total.clamp(min=1e-6), 0.0)
