"""Area under the ROC curve where rows come in clusters."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from emoreg.statistics.bootstrap import Intervals, resample_counts


def clustered_auroc(
    scores: Float[np.ndarray, "row figure"],
    positive: Bool[np.ndarray, " row"],
    clusters: Sequence[str],
    *,
    n_resamples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Return how often a positive row's score exceeds a negative one's, ties half.

    `A = sum_ij c_i c_j [s_i > s_j] / sum_ij c_i c_j` over positive `i` and negative
    `j`, with `c` the number of times that a row's cluster was drawn; the interval is
    the percentiles over draws of clusters. 0.5 is chance, below it the score points
    the other way.

    Args:
        scores: Any number per row and figure.
        positive: Which rows are what is to be told.
        clusters: Each row's cluster, whose rows are alike.
        n_resamples: More narrows the Monte Carlo noise of the bounds.
        confidence: Larger widens the interval.
        seed: Of the draws.

    Raises:
        ValueError: If there is no positive or no negative row, fewer than three
            clusters, or a score that is not finite.

    Example:
        >>> scores = np.array([[1.0], [2.0], [3.0], [0.0], [4.0], [2.0]])
        >>> positive = np.array([False, False, True, False, True, True])
        >>> found = clustered_auroc(scores, positive, list("aabbcc"))
        >>> float(found.estimate[0].round(3))
        0.944
    """
    names = list(dict.fromkeys(clusters))
    _check(scores, positive, len(names))
    place = np.array([names.index(name) for name in clusters])
    first, second = np.flatnonzero(positive), np.flatnonzero(~positive)
    gaps = scores[first][:, None] - scores[second][None]
    wins = np.heaviside(gaps, 0.5)  # positive negative figure
    counts = resample_counts(len(names), n_resamples=n_resamples, seed=seed)
    one, two = (counts[:, place[rows]].astype(float) for rows in (first, second))
    drawn = np.einsum("rp,pnf,rn->rf", one, wins, two, optimize=True)
    pairs = one.sum(1) * two.sum(1)
    kept = pairs > 0  # a draw without a row of either kind says nothing
    found = drawn[kept] / pairs[kept, None]
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, (tail, 1 - tail), axis=0)
    return Intervals(
        estimate=wins.mean((0, 1)),
        low=low,
        high=high,
        n=len(names),
        dropped=0,
        confidence=confidence,
        method="percentile",
    )


def _check(scores: np.ndarray, positive: np.ndarray, clusters: int) -> None:
    if not positive.any() or positive.all() or clusters < 3:
        raise ValueError(
            "an area under the ROC curve must be over rows of both kinds, in at least "
            f"3 clusters, found {int(positive.sum())} of {len(positive)} rows positive "
            f"in {clusters}. Add rows"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite, found others. Leave those rows out")
