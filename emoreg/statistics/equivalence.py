"""Showing that nothing much changed, which a large p-value does not."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import stdtr, stdtrit

from emoreg.statistics.bootstrap import Intervals, Missing, complete_clusters


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Equivalence:
    """Two one-sided tests of every figure."""

    interval: Intervals
    """The mean with its `1 - 2 alpha` interval; within the margin if equivalent."""
    p: Float[np.ndarray, "*figure"]
    """The larger of both one-sided p-values."""
    margin: tuple[float, float]
    alpha: float

    @property
    def equivalent(self) -> Bool[np.ndarray, "*figure"]:
        """Whether the mean is shown to lie within the margin."""
        return np.asarray(self.p < self.alpha)


def equivalence(
    values: Float[np.ndarray, " cluster *figure"],
    margin: float | tuple[float, float],
    *,
    alpha: float = 0.05,
    missing: Missing = "refuse",
) -> Equivalence:
    """Return whether the mean over clusters is shown to lie within a margin.

    TOST: `t_low = (mean - low) / se` and `t_high = (mean - high) / se` with `se = sd /
    sqrt(n)`; `p` is the larger of `P(T_(n-1) > t_low)` and `P(T_(n-1) < t_high)`
    (Schuirmann 1987, https://doi.org/10.1007/BF01068419; Lakens 2017,
    https://doi.org/10.1177/1948550617697177). `p < alpha` if and only if the `1 - 2
    alpha` t interval lies within the margin. A large p of another test shows nothing.
    Usual margins, in points: MMLU 1, GSM8K and IFEval 2, HumanEval and MBPP 3.

    Args:
        values: One difference per cluster (item, prompt) and figure: after - before.
        margin: The largest change that does not matter, in the values' unit, or both
            ends. `(-2.0, math.inf)` asks for "not worse" alone.
        alpha: Level of each one-sided test.
        missing: As in `bootstrap_mean`.

    Raises:
        ValueError: For an empty margin, alpha not in (0, 0.5), and as `bootstrap_mean`.

    Example:
        >>> change = np.random.default_rng(0).normal(0.0, 5.0, size=400)
        >>> bool(equivalence(change, 2.0).equivalent)
        True
    """
    low, high = margin if isinstance(margin, tuple) else (-margin, margin)
    if not low < high or not 0.0 < alpha < 0.5:
        raise ValueError(
            "`margin` must be positive or a rising pair and `alpha` between 0 and 0.5, "
            f"got {margin} and {alpha}."
        )
    kept, dropped = complete_clusters(values, missing=missing)
    n, shape = kept.shape[0], kept.shape[1:]
    flat = kept.reshape(n, math.prod(shape))
    mean = flat.mean(axis=0)
    error = _standard_error(flat)
    with np.errstate(divide="ignore", invalid="ignore"):
        above = stdtr(n - 1, -_over(mean - low, error))
        below = stdtr(n - 1, _over(mean - high, error))
    reach = stdtrit(n - 1, 1 - alpha) * error
    return Equivalence(
        interval=Intervals(
            estimate=mean.reshape(shape),
            low=(mean - reach).reshape(shape),
            high=(mean + reach).reshape(shape),
            n=n,
            dropped=dropped,
            confidence=1 - 2 * alpha,
            method="t",
        ),
        p=np.maximum(above, below).reshape(shape),
        margin=(low, high),
        alpha=alpha,
    )


def _standard_error(
    flat: Float[np.ndarray, "cluster figure"],
) -> Float[np.ndarray, " figure"]:
    # The spread of equal numbers is rounding; it is nothing.
    spread = np.where(np.ptp(flat, axis=0) == 0, 0.0, flat.std(axis=0, ddof=1))
    return spread / np.sqrt(len(flat))


def _over(gap: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return a t statistic; on the margin itself it is 0 even without any spread."""
    return np.where(gap == 0, 0.0, gap / error)
