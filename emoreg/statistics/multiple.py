"""Many p-values at once: the false discovery rate within a family."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import false_discovery_control

Dependence = Literal["positive", "any"]


def false_discovery(
    p: Float[np.ndarray, "*figure"], *, dependence: Dependence = "positive"
) -> Float[np.ndarray, "*figure"]:
    """Return adjusted p-values of one family; reject where at most the rate wanted.

    Benjamini and Hochberg (1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x):
    `min_(j >= i) m p_(j) / j`, by scipy. It bounds the expected share of false ones
    among the rejected if the figures are independent or positively dependent, as
    emotions at one layer are. "any" holds whatever the dependence, at the price of a
    factor `sum_j 1 / j` (Benjamini and Yekutieli 2001); use it to claim across layers
    and readers. For "none of these is false" use `SignFlips.p_max` instead.

    Args:
        p: All p-values of the family and no others; one call per family. NaN is no
            test: it stays NaN and does not count.
        dependence: What is known of the figures' dependence.

    Raises:
        ValueError: If a p-value is not between 0 and 1.

    Example:
        >>> false_discovery(np.array([0.01, 0.02, 0.9, np.nan])).round(3).tolist()
        [0.03, 0.03, 0.9, nan]
    """
    given = np.asarray(p, dtype=np.float64)
    known = ~np.isnan(given)
    if not ((given[known] >= 0) & (given[known] <= 1)).all():
        raise ValueError("p-values must lie between 0 and 1; pass p, not statistics.")
    adjusted = np.full(given.shape, np.nan)
    if known.any():
        method = "bh" if dependence == "positive" else "by"
        adjusted[known] = false_discovery_control(given[known], method=method)
    return adjusted
