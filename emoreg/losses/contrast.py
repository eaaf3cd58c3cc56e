"""The decoupler: after failure, no more desperation than a share of before."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.means import Sides, check_share, dual_form, success_anchor
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
        check_share("keep", keep)
        self.name, self.weight = name, checked_weight(weight)
        self.probe, self._signs, self._gap = probe, signs, gap
        self.keep, self.overshoot, self._anchor = keep, overshoot, anchor
        coupled = (signs * gap).clamp(min=0)
        self._tau = keep * coupled
        # Where the reference itself lies below zero, that is no overshoot.
        self._low = torch.minimum((signs * gap).clamp(max=0), torch.tensor(-overshoot))
        self._sides = Sides(gap.shape, decay)
        self._latest = torch.full_like(gap, torch.nan)

    @property
    def left(self) -> Float[Tensor, ""]:
        """Return the share of the reference's failure slope that is left.

        `sum_{l,e} x / sum_{l,e} s_e gap` over the layers and emotions that failure
        moves in the reference, by the running means that the latest batch met. Not a
        number until they hold a failing and a succeeding segment, or where failure
        moves none of them.
        """
        coupled = (self._signs * self._gap).clamp(min=0)
        found = (self._latest * (coupled > 0)).sum() / coupled.sum()
        counts = self._sides.failing.count * self._sides.succeeding.count
        return torch.where(counts > 0, found, torch.nan)

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the penalty; its gradient is that of the dual form."""
        self._to(readings.values.device)
        self._sides.begin(readings)
        shift, start = readings.values, self._gap
        if readings.reference is not None:
            shift = shift - readings.reference
        else:  # readings themselves: the gap stands in for those not yet seen
            start = torch.where(self._sides.failing.count > 0, 0.0, self._gap)
        sums = self._sides.add(shift, readings, reduce)
        failing, succeeding = self._sides.failing.mean, self._sides.succeeding.mean
        x = self._signs * (start + failing - succeeding)
        self._latest = x
        above, below = torch.relu(x - self._tau), torch.relu(self._low - x)
        slope = (2 * above - 0.5 * below) * self._signs
        loss = dual_form(
            (above.square() + 0.25 * below.square()).mean(),
            (slope * sums.failing).mean(),
            sums.failing_count,
            reduce(readings.failing_step),
            reduce,
        )
        return loss + self._anchor * success_anchor(readings, reduce)

    def _to(self, device: torch.device) -> None:
        if self._gap.device != device:
            for name in ("_signs", "_gap", "_tau", "_low"):
                setattr(self, name, getattr(self, name).to(device))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running means, the latest step's segments among them."""
        return self._sides.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the running means."""
        self._sides.load_state_dict(state)
