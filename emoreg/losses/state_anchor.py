"""Keeping the state at decision tokens where it was, but for what terms act on."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from emoreg.losses.means import present, share, weighted_sum
from emoreg.losses.reroute import Complement, checked_size, moved_from_reference
from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    Reduce,
    alone,
    checked_weight,
)


@final
class StateAnchor(AbstractDecisionTerm):
    """Holds each decision token's state outside the trained directions.

    `L = mean over segments s, l of ||P (h_s - h_ref,s)||^2 / ||D_ref||^2`, `P` the
    projection onto what is outside the span of the directions that terms act on,
    `D_ref = E_ref[h|F] - E_ref[h|S]`.

    `RerouteAnchor` keeps the *mean* contrast where it was: each failing turn may still
    lose what told it from a passing one, and both sides may move together. Here they
    can't: what a turn's state says of the task, of failure among it, is held token by
    token, and what is left to move is the emotion directions alone.

    It holds failing and succeeding segments alike, segments of graded failure too, and
    needs the reference's cached readings of the same tokens.
    """

    def __init__(
        self, probe: Complement, size: Float[Tensor, " layer"], *, weight: float = 1.0
    ) -> None:
        """Make the term.

        Args:
            probe: What is outside the directions that other terms act on.
            size: `||D_ref||^2`, from `contrast_size`.
            weight: Factor of the term.

        Raises:
            ValueError: If a size is not above 0, or the weight negative.
        """
        self.name, self.weight = "state", checked_weight(weight)
        self.probe, self._size = probe, checked_size(size)

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return how far states moved, as a share of the contrast; see the class.

        Raises:
            ValueError: If the reference's readings are not cached.
        """
        moved = moved_from_reference(readings, by="the state anchor")
        self._size = self._size.to(moved.device)
        weight = readings.failing + readings.succeeding
        squares = present(moved, weight).square() / self._size[:, None]
        total = weighted_sum(squares, weight).sum(1).mean()
        whole = reduce(readings.failing_step) + reduce(readings.succeeding_step)
        return total * share(whole, reduce)
