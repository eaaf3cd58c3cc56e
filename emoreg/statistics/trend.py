"""Whether a reading rises with each dose."""

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Float
from scipy.stats import page_trend_test, rankdata

PageMethod = Literal["auto", "asymptotic", "exact"]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trends:
    """Page's trend of every figure."""

    statistic: Float[np.ndarray, "*figure"]
    """Page's L: the sum over doses of dose rank times the sum of ranks."""
    p: Float[np.ndarray, "*figure"]
    """One-sided, for a rise."""
    correlation: Float[np.ndarray, "*figure"]
    """The mean over clusters of the rank correlation with dose, -1 to 1: L, rescaled.
    Each cluster's own, for an interval by `bootstrap_mean`, is `rank_correlations`."""
    n: int
    method: str


def page_trend(
    values: Float[np.ndarray, " cluster dose *figure"],
    *,
    method: PageMethod = "auto",
) -> Trends:
    """Return Page's test that readings rise from each dose to the next.

    `L = sum_j j R_j` with `R_j` the sum over clusters of the within-cluster rank at
    dose `j` (Page 1963, https://doi.org/10.1080/01621459.1963.10500843), by scipy. The
    null is that doses are exchangeable within each cluster; against it stands a rise
    `m_1 <= m_2 <= ...` with one strict step. For a fall, reverse the doses. With ties
    "exact" is not, and errs on the side of the null.

    Args:
        values: Readings by cluster, dose from low to high, and figure.
        method: Exact for few clusters and doses with "auto", else normal.

    Raises:
        ValueError: If there are fewer than two clusters or three doses, or a number
            is not finite.

    Example:
        >>> found = page_trend(np.array([[1.0, 2, 3], [0, 1, 5], [2, 1, 4]]))
        >>> float(found.statistic), round(float(found.correlation), 3)
        (41.0, 0.833)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 2 or len(array) < 2 or array.shape[1] < 3:
        raise ValueError(
            "A trend needs at least 2 clusters at 3 doses or more, found shape "
            f"{array.shape}; for two doses use `sign_flip`."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            "A trend needs a finite reading at each dose; leave out the clusters that "
            "miss one."
        )
    n, doses, shape = len(array), array.shape[1], array.shape[2:]
    flat = array.reshape(n, doses, math.prod(shape))
    found = [
        page_trend_test(column, method=method) for column in flat.transpose(2, 0, 1)
    ]
    level = np.array([each.statistic for each in found]).reshape(shape)
    # L between its least, sum j (k + 1 - j), and its largest, sum j^2, per cluster.
    middle, reach = doses * (doses + 1) ** 2 / 4, doses * (doses**2 - 1) / 12
    return Trends(
        statistic=level,
        p=np.array([each.pvalue for each in found]).reshape(shape),
        correlation=np.asarray((level / n - middle) / reach),
        n=n,
        method=found[0].method if found else method,
    )


def rank_correlations(
    values: Float[np.ndarray, " cluster dose *figure"],
) -> Float[np.ndarray, " cluster *figure"]:
    """Return each cluster's rank correlation with dose; its mean is Page's L rescaled.

    Spearman's where nothing is tied; tied readings count as no rise.

    Example:
        >>> rank_correlations(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])).tolist()
        [1.0, -1.0]
    """
    ranks = rankdata(np.asarray(values, dtype=np.float64), axis=1)
    doses = ranks.shape[1]
    weights = np.arange(1, doses + 1) - (doses + 1) / 2
    return np.tensordot(weights, ranks, axes=(0, 1)) / (doses * (doses**2 - 1) / 12)
