"""Sums and means over failing and succeeding segments, of one step and of the past."""

from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.term import DecisionReadings, Reduce


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

    def state_dict(self, side: str) -> dict[str, Tensor]:
        """Return the mean, the latest step's segments in it, named by its side."""
        self.settle()
        return {f"{side}_sum": self.sum.cpu(), f"{side}_count": self.count.cpu()}

    def load_state_dict(self, side: str, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        device = self.sum.device
        total, count = state[f"{side}_sum"], state[f"{side}_count"]
        self.start_from(total.to(device), count.to(device))

    def to(self, device: torch.device) -> None:
        """Move to `device`."""
        self.sum, self.count = self.sum.to(device), self.count.to(device)
        self._sum, self._count = self._sum.to(device), self._count.to(device)


class Sums(NamedTuple):
    """A batch's weighted sums, `[layer emotion]`, and the weights they are of."""

    failing: Tensor
    """Over this process's failing segments, with gradient."""
    succeeding: Tensor
    """Over its succeeding ones."""
    failing_count: Tensor
    """Weight of the failing segments of all processes."""
    succeeding_count: Tensor
    """Likewise of the succeeding ones."""


@final
class Sides:
    """Two running means: of failing segments and of succeeding ones."""

    def __init__(self, shape: torch.Size, decay: float) -> None:
        """Start without any segment.

        Raises:
            ValueError: If `decay` is outside [0, 1).
        """
        check_share("decay", decay)
        self.failing = RunningMean(shape, decay)
        self.succeeding = RunningMean(shape, decay)

    def begin(self, readings: DecisionReadings) -> None:
        """Go where the readings are; with a new step, let in what was added."""
        if self.failing.sum.device != readings.values.device:
            self.to(readings.values.device)
        if not readings.continues:
            self.settle()

    def add(self, shift: Tensor, readings: DecisionReadings, reduce: Reduce) -> Sums:
        """Keep this batch's sums for later steps, and return them.

        Args:
            shift: What the means are of, `[segment layer emotion]`, with gradient.
            readings: The batch it was made from.
            reduce: Sums over processes.
        """
        sums = Sums(
            failing=weighted_sum(shift, readings.failing),
            succeeding=weighted_sum(shift, readings.succeeding),
            failing_count=reduce(readings.failing.sum()),
            succeeding_count=reduce(readings.succeeding.sum()),
        )
        self.failing.add(reduce(sums.failing.detach()), sums.failing_count)
        self.succeeding.add(reduce(sums.succeeding.detach()), sums.succeeding_count)
        return sums

    @property
    def gap(self) -> Tensor:
        """Return the mean of failing minus that of succeeding segments."""
        return self.failing.mean - self.succeeding.mean

    def settle(self) -> None:
        """Let in what was added."""
        self.failing.settle()
        self.succeeding.settle()

    def to(self, device: torch.device) -> None:
        """Move to `device`."""
        self.failing.to(device)
        self.succeeding.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running means, the latest step's segments among them."""
        both = (mean.state_dict(side) for side, mean in self._means().items())
        return {name: tensor for state in both for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        for side, mean in self._means().items():
            mean.load_state_dict(side, state)

    def _means(self) -> dict[str, RunningMean]:
        return {"failing": self.failing, "succeeding": self.succeeding}


def check_share(setting: str, value: float) -> None:
    """Refuse what is no share below the whole.

    Raises:
        ValueError: If `value` is outside [0, 1).
    """
    if not 0 <= value < 1:
        raise ValueError(f"`{setting}` must be in [0, 1), got {value}")


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


def dual_form(
    value: Tensor, pull: Tensor, count: Tensor, whole: Tensor, reduce: Reduce
) -> Tensor:
    """Return a figure of past steps whose gradient is that of the present batch.

    Args:
        value: The figure, the same for all parts of a step.
        pull: Its slope at the running mean times this process's sum, with gradient.
        count: Weight of the batch's segments, over all processes.
        whole: That of the step's segments, over all processes.
        reduce: Sums over processes.
    """
    surrogate = pull * share(whole, reduce)
    return count / whole.clamp(min=1e-6) * value + surrogate - surrogate.detach()


def success_anchor(readings: DecisionReadings, reduce: Reduce) -> Tensor:
    """Return how far success has moved: the cheap way to a small failure contrast.

    `mean over succeeding segments, l, e of (p - p_ref)^2`, or of `p^2` where the
    reference's readings are not cached: 0 is its success level.
    """
    held, weight = readings.reference, readings.succeeding
    drift = readings.values if held is None else readings.values - held
    squares = weighted_sum(present(drift, weight).square(), weight).mean()
    return squares * share(reduce(readings.succeeding_step), reduce)
