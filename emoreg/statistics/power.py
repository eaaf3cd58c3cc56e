"""What a number of clusters can show: power, and the smallest effect to be found.

Of a two-sided paired t-test over clusters, which the sign-flip test and the intervals
agree with but for little. Effects are `d_z`: mean difference over the SD of the
differences between clusters.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import nct


def paired_power(
    d_z: Any, n: Any, *, alpha: float = 0.05
) -> Float[np.ndarray, "*figure"]:
    """Return the probability that `n` clusters show a true effect `d_z`.

    `P(|T| > t)` with `T` noncentral t with `n - 1` degrees of freedom and noncentrality
    `d_z sqrt(n)`, `t` the two-sided critical value; what G*Power gives for "difference
    between two dependent means" (Faul et al. 2007,
    https://doi.org/10.3758/BF03193146).

    Args:
        d_z: True effects, broadcast against `n`; their sign does not matter.
        n: Numbers of clusters, 2 or more.
        alpha: Level of the test.

    Raises:
        ValueError: If `n` is below 2 or alpha is not between 0 and 1.

    Example:
        >>> float(paired_power(1 / 3, 25).round(3))
        0.36
    """
    size, effect = np.asarray(n, dtype=float), np.abs(np.asarray(d_z, dtype=float))
    _check(size, alpha)
    critical = stdtrit(size - 1, 1 - alpha / 2)
    away = np.minimum(effect * np.sqrt(size), 1e3)
    above = nct.sf(critical, size - 1, away)
    below = nct.cdf(-critical, size - 1, away)
    return np.asarray(np.clip(above + np.nan_to_num(below), 0.0, 1.0))


def smallest_detectable_effect(
    n: int, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the `d_z` that `n` clusters show with the given power.

    Times the SD of the differences it is in their unit. For many clusters `(z_power +
    z_(1 - alpha / 2)) / sqrt(n)`, that is `sqrt(7.85 / n)` at 80 %.

    Raises:
        ValueError: If `n` is below 2 or power is not between alpha and 1.

    Example:
        >>> round(smallest_detectable_effect(34), 3)
        0.495
    """
    _check(np.asarray(n), alpha, power)
    top = 1.0
    while paired_power(top, n, alpha=alpha) < power:
        top *= 2
    root: Any = brentq(lambda d: paired_power(d, n, alpha=alpha) - power, 0.0, top)
    return float(root)


def clusters_needed(d_z: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many clusters show an effect `d_z` with the given power.

    Raises:
        ValueError: If the effect is zero or power is not between alpha and 1.

    Example:
        >>> clusters_needed(0.5), clusters_needed(0.2)
        (34, 199)
    """
    _check(np.asarray(2), alpha, power)
    if not abs(d_z) > 0:
        raise ValueError("`d_z` must not be zero: no number of clusters shows nothing.")
    enough = 2
    while paired_power(d_z, enough, alpha=alpha) < power:
        enough *= 2
    low = enough // 2
    while enough - low > 1:
        middle = (low + enough) // 2
        reached = middle >= 2 and paired_power(d_z, middle, alpha=alpha) >= power
        low, enough = (low, middle) if reached else (middle, enough)
    return enough


def equivalence_power(
    n: Any, *, margin: Any, true: Any = 0.0, alpha: float = 0.05
) -> Float[np.ndarray, "*figure"]:
    """Return the probability that TOST shows a mean to lie within `-margin..margin`.

    `P(T < -t) - P(T' < t)` with `T`, `T'` noncentral t about either end and `t` the
    one-sided critical value, at least 0: Phillips's approximation (1990,
    https://doi.org/10.1007/BF01063556), close where the power is worth having.

    Args:
        n: Numbers of clusters, 2 or more.
        margin: In SDs of the differences between clusters.
        true: The true mean difference, in the same unit.
        alpha: Level of each one-sided test.

    Raises:
        ValueError: If `n` is below 2 or alpha is not between 0 and 1.

    Example:
        >>> float(equivalence_power(36, margin=0.5).round(2))
        0.81
    """
    size = np.asarray(n, dtype=float)
    _check(size, alpha)
    critical = stdtrit(size - 1, 1 - alpha)
    edge, shift = np.asarray(margin, dtype=float), np.asarray(true, dtype=float)
    upper = nct.cdf(-critical, size - 1, (shift - edge) * np.sqrt(size))
    lower = nct.cdf(critical, size - 1, (shift + edge) * np.sqrt(size))
    return np.asarray(np.clip(upper - lower, 0.0, 1.0))


def _check(n: np.ndarray, alpha: float, power: float | None = None) -> None:
    if (n < 2).any() or not 0.0 < alpha < 1.0:
        raise ValueError(
            f"Power needs 2 clusters or more and alpha between 0 and 1, got {n.min()} "
            f"and {alpha}."
        )
    if power is not None and not alpha < power < 1.0:
        raise ValueError(f"`power` must lie between alpha and 1, got {power}.")
