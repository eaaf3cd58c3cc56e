"""Where every attempt fails: what the feedback did, against the turn before it."""

import logging
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.means import RunningMean, check_share, dual_form, weighted_sum
from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    Probe,
    Reduce,
    alone,
    checked_weight,
)

logger = logging.getLogger(__name__)

_LOOK = 20
"""After how many steps it is looked whether there was any jump."""


@final
class JumpPenalty(AbstractDecisionTerm):
    """Directional penalty on how far failing feedback moves a reading.

    In a conversation's k-th Assistant turn, whose feedback reported failure::

        j = p_k - stopgrad(p_{k-1}),   F[l,e] = mean over failing segments with k > 1
        L = a * mean_{l,e} relu(s_e * (F - level))^2

    with `a` the share of the step's failing segments that have `k > 1`: the others are
    no jumps, and cost nothing.

    It needs no succeeding turn and no reference: it asks that failure not move the
    reading from where this conversation stood before, which takes topics' offsets out
    as well. Data with succeeding turns is better served by `ContrastPenalty`, which
    compares levels; this term says nothing of a level that all turns share, nor of a
    conversation's first turn.

    `F` is a running mean in dual form, as in `ContrastPenalty`. The turn before has no
    gradient: desperate from the start would be an optimum otherwise.
    """

    compares: ClassVar[bool] = False

    def __init__(
        self,
        probe: Probe,
        signs: Float[Tensor, " emotion"],
        *,
        level: Float[Tensor, "layer emotion"] | None = None,
        weight: float = 1.0,
        decay: float = 0.9,
    ) -> None:
        """Make the term.

        Args:
            probe: How to read; its unit is `sigma_ref`.
            signs: +1 for emotions that failure must not raise, -1 for those that it
                must not lower.
            level: The jump that may stay, for instance that after passing feedback in
                the reference; 0 if None.
            weight: Factor of the term.
            decay: Memory of the running mean.

        Raises:
            ValueError: On a negative weight, or `decay` outside [0, 1).
        """
        check_share("decay", decay)
        self.name, self.weight = "jump", checked_weight(weight)
        self.probe, self._signs = probe, signs
        shape = torch.Size((len(probe.layers), probe.width))
        self._level = torch.zeros(shape) if level is None else level
        self._mean = RunningMean(shape, decay)
        self._steps = 0

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the penalty; its gradient is that of the dual form.

        Args:
            readings: With `first`, so that a segment knows of the one before it.
            reduce: Sums over processes.

        Raises:
            ValueError: If they don't say which segments are first.
        """
        self._to(readings.values.device)
        if not readings.continues:
            self._mean.settle()
            self._steps += 1
            if self._steps == _LOOK + 1:
                self._warn_if_idle()
        jumps, weight = jumps_of(readings)
        total, count = weighted_sum(jumps, weight), reduce(weight.sum())
        self._mean.add(reduce(total.detach()), count)
        past = self._mean.mean - self._level
        x = torch.where(self._mean.count > 0, past, 0.0) * self._signs
        above = torch.relu(x)
        return dual_form(
            above.square().mean(),
            (2 * above * self._signs * total).mean(),
            count,
            reduce(readings.failing_step),
            reduce,
        )

    def _to(self, device: torch.device) -> None:
        if self._mean.sum.device != device:
            self._mean.to(device)
            self._signs, self._level = self._signs.to(device), self._level.to(device)

    def _warn_if_idle(self) -> None:
        """Say so where there was no jump; once, since it waits for the device."""
        if not bool(self._mean.count > 0):
            logger.warning(
                "No failing turn of the first %d steps had a turn before it, so %s is "
                "0: a jump is from the turn before. Train on conversations of several "
                "turns, or use `ContrastPenalty`",
                _LOOK,
                self.name,
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running mean, the latest step's segments among them."""
        return self._mean.state_dict("jump")

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the running mean."""
        self._mean.load_state_dict("jump", state)


def jumps_of(
    readings: DecisionReadings,
) -> tuple[Float[Tensor, "segment layer emotion"], Float[Tensor, " segment"]]:
    """Return each segment minus the turn before it, and its weight as a failing one.

    The weight is 0 in a conversation's first turn.

    Raises:
        ValueError: If the readings don't say which segments are first.
    """
    if readings.first is None:
        raise ValueError(
            "`first` must say which segments open a conversation, found None: a jump "
            "is from the turn before. Train through `emoreg.attach` or `emoreg.watch`"
        )
    before = readings.values.detach().roll(1, dims=0)
    weight = torch.where(readings.first, 0.0, readings.failing)
    # Absent segments hold anything, and one may stand before a turn that is there.
    weight = torch.where(before.isfinite().all((1, 2)), weight, 0.0)
    return readings.values - before, weight
