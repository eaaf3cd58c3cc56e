"""Targets instead of weights: what a user asks for, and how weights follow from it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import final

PROPORTIONAL, INTEGRAL = 0.1, 0.02
"""Log-weight per unit of error: of its change, and of itself at each update."""
CLIP = 0.2
"""Largest error that the integral takes in one update."""
RANGE = 20.0
"""A weight stays within this factor of where it started, up and down."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What training is to reach, from which the terms' weights are set.

    >>> Targets(slope_reduction=0.75, calm_band=(0.0, 1.0), kl_budget=0.05)

    Each target has a normalized error, 0 where it is just met and above 0 where it is
    missed, and every ten optimizer steps each weight follows its own (see `updated`).
    The KL outranks the others: while it is over its budget the weights of contrast and
    band fall, however much of the slope is left.
    """

    slope_reduction: float = 0.75
    """Share of the failure slope that is to go, in (0, 1]; `keep` of the contrast is
    the rest."""
    calm_band: tuple[float, float] = (0.0, 1.0)
    """Floor and ceiling of calm after failure, in `success_std` above the success
    level."""
    kl_budget: float = 0.05
    """Most that `ReferenceKL` may come to, in nat per token, above 0. What the task's
    own loss moves counts too; lower keeps the output nearer the reference's."""

    def __post_init__(self) -> None:
        """Refuse targets that can't be met, or not together."""
        if not 0 < self.slope_reduction <= 1:
            raise ValueError(
                "`slope_reduction` must be a share in (0, 1], got "
                f"{self.slope_reduction}. 0.75 takes three quarters of the failure "
                "slope away; to leave it as it is, train without targets"
            )
        low, high = self.calm_band
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                "`calm_band` must be a finite floor below a finite ceiling, got "
                f"{self.calm_band}. (0, 1) is from the success level to one "
                "`success_std` above it"
            )
        if high < 0:
            raise ValueError(
                "`calm_band` must reach up to 0, the level after success, to which "
                "`slope_reduction` brings calm back after failure; got the ceiling "
                f"{high}. Raise it to 0 or above"
            )
        if self.kl_budget == 0:
            raise ValueError(
                "`kl_budget` must be above 0, got 0: with no change allowed to what "
                "the model says, every step breaks the budget and the other terms are "
                "held at their least. Allow a little, for instance 0.005"
            )
        if not 0 < self.kl_budget < math.inf:
            raise ValueError(
                "`kl_budget` must be a finite number of nat per token above 0, got "
                f"{self.kl_budget}"
            )

    @property
    def keep(self) -> float:
        """Return the share of the slope that may stay."""
        return 1 - self.slope_reduction

    def slope_error(self, left: float) -> float:
        """Return how much more than `keep` is left, as a share of the reference's."""
        return left - self.keep

    def kl_error(self, kl: float) -> float:
        """Return how far the KL is over its budget, as a share of it."""
        return (kl - self.kl_budget) / self.kl_budget


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TargetWeight:
    """A weight that is set by its target's error `e`.

    `log weight = log start + 0.1 e + sum over updates of 0.02 clip(e, -0.2, 0.2)`,
    within a factor of 20 of its start (a PI controller on the log weight; damping pure
    dual ascent in this way is Stooke et al., https://arxiv.org/abs/2007.03964, the
    clipped multiplicative step Ziegler et al., https://arxiv.org/abs/1909.08593).
    While the weight is at a limit and the error pushes further, the sum stands still:
    otherwise it would grow all the time, and the weight would stay at its limit long
    after the target is met.
    """

    start: float
    """The first weight, above 0."""
    error: float = 0.0
    """That of the latest update, as the weight followed it; 0 before the first."""
    integral: float = 0.0
    """The sum over updates."""
    stuck: int = 0
    """Updates in a row that could not help: at a limit with the target missed, or
    without a finite error."""

    @property
    def weight(self) -> float:
        """Return the weight, within its limits."""
        most = math.log(RANGE)
        return self.start * math.exp(min(max(self._offset, -most), most))

    @property
    def at_limit(self) -> bool:
        """Return whether the limits hold the weight back."""
        return abs(self._offset) >= math.log(RANGE)

    @property
    def _offset(self) -> float:
        """Return the log of how many times the start it would be without limits."""
        return PROPORTIONAL * self.error + self.integral

    def moved(self, error: float, *, missed: bool) -> "TargetWeight":
        """Return the weight after an update.

        Args:
            error: What it follows; without a finite one it stays as it is.
            missed: Whether the target is missed, whatever the weight follows.
        """
        if not math.isfinite(error):
            return replace(self, stuck=self.stuck + 1)
        found = replace(self, error=error)
        if not (found.at_limit and found._offset * error > 0):
            step = INTEGRAL * min(max(error, -CLIP), CLIP)
            found = replace(found, integral=self.integral + step)
        stuck = self.stuck + 1 if found.at_limit and missed else 0
        return replace(found, stuck=stuck)


def updated(
    weights: Mapping[str, TargetWeight],
    errors: Mapping[str, float],
    *,
    guards: Collection[str],
) -> dict[str, TargetWeight]:
    """Return the weights after an update.

    Args:
        weights: By name.
        errors: Each target's error; not a number where it was not measured.
        guards: Names whose targets outrank the others'. While one is missed, a weight
            that is no guard's follows minus the guard's error where that is less than
            its own, so it falls. While one is not known, no other weight grows.
    """
    guarding = [errors[name] for name in weights if name in guards]
    known = all(map(math.isfinite, guarding))
    over = max([0.0, *filter(math.isfinite, guarding)])
    moved = {}
    for name, weight in weights.items():
        own = followed = errors[name]
        if name not in guards:
            followed = _yielding(own, weight.error, over=over, known=known)
        moved[name] = weight.moved(followed, missed=not own <= 0)
    return moved


def _yielding(own: float, before: float, *, over: float, known: bool) -> float:
    """Return what a weight follows that gives way to the guards.

    Args:
        own: Its target's error.
        before: What it followed last, above which is growth.
        over: How far the guards' targets are missed.
        known: Whether all of them were measured.
    """
    if over > 0:
        return min(own, -over) if math.isfinite(own) else -over
    if known or not math.isfinite(own):
        return own
    return min(own, before, 0.0)


def first_weight(
    ratio: float, task: Collection[float], term: Collection[float]
) -> float:
    """Return the weight at which a term pulls `ratio` times as hard as the task.

    `ratio * sum ||g_task|| / sum ||g_term||` over the same batches.

    Args:
        ratio: Of the norms of the two gradients.
        task: Norms of the task's gradient.
        term: Norms of the unweighted term's, each above 0.
    """
    return ratio * math.fsum(task) / math.fsum(term)
