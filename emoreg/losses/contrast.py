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

        x = s_e * (F - S),  F[l,e] = mean over failing segments,
                            S[l,e] = mean over succeeding ones, without gradient
        L = mean_{l,e} [ relu(x - tau)^2 + 1/4 relu(-x - tau_lo)^2 ]
            + 1/2 mean over succeeding segments, l, e of (p - p_ref)^2

    `tau = keep * reference gap`: appropriate alarm survives. Only failing segments
    feel the first line; the second keeps success where it was, without which making
    success desperate too would be an optimum.

    `S` is where success stands *now*. Were it the reference's, a shift that failing
    and succeeding segments share would count as decoupling, and it is the first that
    a shared network finds: on the demo model it met the first line within a few steps
    and left the difference as it was (docs/log.md).

    `F` and `S` are running means in dual form: their values decide the slope of the
    hinge, the gradient flows through the present batch, so one row a batch is enough.
    They are of the optimizer steps before the present one, so that each part of an
    accumulated step meets the same slope; until there are any, of the reference. Where
    its readings of the same tokens are given, the means are of `p - p_ref` and `F`
    has the calibrated gap added, which takes the spread between tasks out of the
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
        name: str = "contrast",
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
            name: What it is logged as.

        Raises:
            ValueError: On a negative weight, or `keep` or `decay` outside [0, 1).
        """
        for setting, value in (("keep", keep), ("decay", decay)):
            if not 0 <= value < 1:
                raise ValueError(f"`{setting}` must be in [0, 1), got {value}")
        self.name, self.weight = name, checked_weight(weight)
        self.probe, self._signs, self._gap = probe, signs, gap
        self._anchor = anchor
        coupled = (signs * gap).clamp(min=0)
        self._tau = keep * coupled
        # Where the reference itself lies below zero, that is no overshoot.
        self._low = torch.minimum((signs * gap).clamp(max=0), torch.tensor(-overshoot))
        self._failing = RunningMean(gap.shape, decay)
        self._succeeding = RunningMean(gap.shape, decay)

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the penalty; its gradient is that of the dual form."""
        self._to(readings.values.device)
        if not readings.continues:
            self._failing.settle()
            self._succeeding.settle()
        shift, start = readings.values, self._gap
        if readings.reference is not None:
            shift = shift - readings.reference
        else:  # readings themselves: the gap stands in for those not yet seen
            start = torch.where(self._failing.count > 0, 0.0, self._gap)
        local = weighted_sum(shift, readings.failing)
        other = weighted_sum(shift.detach(), readings.succeeding)
        count, whole = reduce(readings.failing.sum()), reduce(readings.failing_step)
        self._failing.add(reduce(local.detach()), count)
        self._succeeding.add(reduce(other), reduce(readings.succeeding.sum()))
        x = self._signs * (start + self._failing.mean - self._succeeding.mean)
        above, below = torch.relu(x - self._tau), torch.relu(self._low - x)
        slope = (2 * above - 0.5 * below) * self._signs
        value = (above.square() + 0.25 * below.square()).mean()
        surrogate = (slope * local).mean() * share(whole, reduce)
        part = count / whole.clamp(min=1e-6)
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

    def _to(self, device: torch.device) -> None:
        if self._gap.device != device:
            for name in ("_signs", "_gap", "_tau", "_low"):
                setattr(self, name, getattr(self, name).to(device))
            self._failing.to(device)
            self._succeeding.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running means, the latest step's segments among them."""
        for mean in self._means().values():
            mean.settle()
        return {
            f"{side}_{name}": tensor.cpu()
            for side, mean in self._means().items()
            for name, tensor in (("sum", mean.sum), ("count", mean.count))
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the running means."""
        device = self._gap.device
        for side, mean in self._means().items():
            total, count = state[f"{side}_sum"], state[f"{side}_count"]
            mean.start_from(total.to(device), count.to(device))

    def _means(self) -> dict[str, "RunningMean"]:
        return {"failing": self._failing, "succeeding": self._succeeding}


@final
class RunningMean:
    """A mean over the segments of past steps, older ones counting less.

    What is added takes effect at `settle`, which comes before each step's first part:
    the parts of a step see the same mean, that of the steps before.
    """

    def __init__(self, shape: torch.Size, decay: float) -> None:
        """Start without any segment."""
        self.decay = decay
        self.start_from(torch.zeros(shape), torch.zeros(()))

    def start_from(self, total: Tensor, count: Tensor) -> None:
        """Take a decayed sum over `count` segments as the whole past."""
        self.sum, self.count = total, count
        self._sum, self._count = torch.zeros_like(total), torch.zeros_like(count)

    @property
    def mean(self) -> Tensor:
        """Return the mean; 0 before the first segment."""
        return self.sum / self.count.clamp(min=1e-6)

    def add(self, total: Tensor, count: Tensor) -> None:
        """Keep the sum of `count` segments for the next `settle`."""
        self._sum, self._count = self._sum + total, self._count + count

    def settle(self) -> None:
        """Let in what was added; a step without segments leaves the mean as it is."""
        decay = torch.where(self._count > 0, self.decay, 1.0)
        total, count = decay * self.sum + self._sum, decay * self.count + self._count
        self.start_from(total, count)

    def to(self, device: torch.device) -> None:
        """Move to `device`."""
        self.sum, self.count = self.sum.to(device), self.count.to(device)
        self._sum, self._count = self._sum.to(device), self._count.to(device)


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
