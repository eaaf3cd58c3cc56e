"""Baselines: terms that are known to fail, so that an audit can be seen to fail them.

Not for training a model that one means to keep. `rank_one` is routed round: the
reading it acts on goes to zero, those of other layers, other readers and the behavior
stay. `SymmetricGap` makes success desperate too. `SquaredCorrelation` can be met by
spreading readings out. The audit must fail them.
"""

from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.means import (
    RunningMean,
    Sides,
    dual_form,
    present,
    share,
)
from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    Probe,
    Reduce,
    alone,
    checked_weight,
)

_LEAST = 1e-6
"""Variances below this are those of a constant."""


def rank_one(
    probe: Probe,
    gap: Float[Tensor, "layer emotion"],
    *,
    layer: int,
    emotion: str,
    weight: float = 1.0,
) -> ContrastPenalty:
    """Return a baseline: the whole contrast of one emotion at one layer has to go.

    `L = relu(F - S)^2 + 1/4 relu(S - F)^2`, a `ContrastPenalty` that keeps nothing,
    allows no overshoot and has no success anchor. It is routed round: the audit must
    fail it.

    Args:
        probe: What it is taken from; its unit is `sigma_ref`.
        gap: The reference's failing minus passing reading.
        layer: Which of the probe's layers.
        emotion: Which of its emotions, to be lowered.
        weight: Factor of the term.

    Raises:
        ValueError: If the probe has no such layer or emotion.
    """
    if layer not in probe.layers or emotion not in probe.emotions:
        raise ValueError(
            "`layer` and `emotion` must be of the probe, which has layers "
            f"{probe.layers} and {', '.join(probe.emotions)}; got {layer} and "
            f"{emotion!r}"
        )
    row, column = probe.layers.index(layer), probe.emotions.index(emotion)
    at = (slice(row, row + 1), slice(column, column + 1))
    one = replace(
        probe,
        directions=probe.directions[at],
        zero=probe.zero[at],
        sigma=probe.sigma[at],
        layers=(layer,),
        emotions=(emotion,),
    )
    return ContrastPenalty(
        one,
        torch.ones(1, dtype=gap.dtype),
        gap[at],
        weight=weight,
        keep=0.0,
        overshoot=0.0,
        anchor=0.0,
        name="rank-one",
    )


@final
class SymmetricGap(AbstractDecisionTerm):
    """A baseline: failing and succeeding readings are pulled together, both of them.

    `L = mean_{l,e} (F - S)^2`, `F` and `S` the mean readings of failing and succeeding
    segments, with gradient through both.

    Its cheap optimum is a success that is as desperate as failure: the audit must fail
    it. The means are running ones in dual form, as in `ContrastPenalty`.
    """

    def __init__(
        self,
        probe: Probe,
        gap: Float[Tensor, "layer emotion"],
        *,
        weight: float = 1.0,
        decay: float = 0.9,
    ) -> None:
        """Make the term.

        Args:
            probe: How to read; its unit is `sigma_ref`.
            gap: The reference's failing minus passing reading.
            weight: Factor of the term.
            decay: Memory of the running means.
        """
        self.name, self.weight = "symmetric-gap", checked_weight(weight)
        self.probe, self._gap = probe, gap
        self._sides = Sides(gap.shape, decay)

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the squared gap; its gradient is that of the dual form."""
        self._gap = self._gap.to(readings.values.device)
        self._sides.begin(readings)
        shift, start = readings.values, self._gap
        if readings.reference is not None:
            shift = shift - readings.reference
        else:  # readings themselves: the gap stands in for those not yet seen
            start = torch.where(self._sides.failing.count > 0, 0.0, self._gap)
        sums = self._sides.add(shift, readings, reduce)
        x = start + self._sides.gap
        failing = dual_form(
            x.square().mean(),
            (2 * x * sums.failing).mean(),
            sums.failing_count,
            reduce(readings.failing_step),
            reduce,
        )
        pull = -(2 * x * sums.succeeding).mean()
        pull = pull * share(reduce(readings.succeeding_step), reduce)
        return failing + pull - pull.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running means, the latest step's segments among them."""
        return self._sides.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the running means."""
        self._sides.load_state_dict(state)


@final
class SquaredCorrelation(AbstractDecisionTerm):
    """A baseline: readings are to be uncorrelated with failure.

    `L = mean_{l,e} cov(p, f)^2 / (var(p) var(f))`, with gradient through all segments.

    A ratio can also be met by spreading readings out, and like the symmetric gap it
    does not care which side moves: the audit must fail it. The moments are running
    means over past steps in dual form; before the first step has passed it is 0.
    """

    def __init__(
        self, probe: Probe, *, weight: float = 1.0, decay: float = 0.9
    ) -> None:
        """Make the term.

        Args:
            probe: How to read.
            weight: Factor of the term.
            decay: Memory of the running moments.
        """
        self.name, self.weight = "squared-correlation", checked_weight(weight)
        self.probe = probe
        # Of p, p^2, p f, f, f^2.
        shape = torch.Size((5, len(probe.layers), len(probe.emotions)))
        self._moments = RunningMean(shape, decay)

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the squared correlation; its gradient is that of the dual form."""
        self._moments.to(readings.values.device)
        if not readings.continues:
            self._moments.settle()
        known = readings.failing + readings.succeeding
        values = present(readings.values, known)
        sums = _moment_sums(values, readings.failing, known)
        count = reduce(known.sum())
        self._moments.add(reduce(sums.detach()), count)
        whole = reduce(readings.failing_step + readings.succeeding_step)
        moments = self._moments.mean.detach().requires_grad_()
        with torch.enable_grad():
            value = _squared_correlation(moments).mean()
            (slope,) = torch.autograd.grad(value, moments)
        return dual_form(value.detach(), (slope * sums).sum(), count, whole, reduce)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running moments, the latest step's segments among them."""
        self._moments.settle()
        return {"sum": self._moments.sum.cpu(), "count": self._moments.count.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the running moments."""
        device = self._moments.sum.device
        self._moments.start_from(state["sum"].to(device), state["count"].to(device))


def _moment_sums(
    values: Float[Tensor, "segment layer emotion"],
    failing: Float[Tensor, " segment"],
    known: Float[Tensor, " segment"],
) -> Float[Tensor, "moment layer emotion"]:
    """Return the sums of p, p^2, p f, f and f^2 over known segments."""
    failure, weight = failing[:, None, None].expand_as(values), known[:, None, None]
    parts = (values, values.square(), values * failure, failure, failure.square())
    return torch.stack([(weight * part).sum(0) for part in parts])


def _squared_correlation(
    moments: Float[Tensor, "moment layer emotion"],
) -> Float[Tensor, "layer emotion"]:
    p, p_squared, product, f, f_squared = moments
    spread = (p_squared - p.square()) * (f_squared - f.square())
    return (product - p * f).square() / spread.clamp(min=_LEAST)
