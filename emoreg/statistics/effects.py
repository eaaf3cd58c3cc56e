"""Effect sizes: Cliff's delta, paired standardised differences, Wasserstein-1."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata, wasserstein_distance

from emoreg.statistics.bootstrap import (
    Intervals,
    Missing,
    complete_clusters,
    figure_chunks,
    resample_times,
)
from emoreg.statistics.threads import in_threads


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairedEffects:
    """Standardised mean differences of paired samples (Lakens 2013)."""

    d_z: Float[np.ndarray, "*figure"]
    """Mean difference over the SD of the differences; grows with the correlation of
    the pair. NaN where the differences are constant."""
    d_av: Float[np.ndarray, "*figure"]
    """Mean difference over the mean of the two SDs; blind to the pairing."""


def paired_effects(
    first: Float[np.ndarray, " one *figure"],
    second: Float[np.ndarray, " two *figure"],
) -> PairedEffects:
    """Return `d_z` and `d_av` of `second - first` over clusters."""
    _require_pairs(first.shape, second.shape)
    start = np.asarray(first, dtype=np.float64)
    end = np.asarray(second, dtype=np.float64)
    difference = end - start
    mean = difference.mean(axis=0)
    spread = np.where(
        np.ptp(difference, axis=0) == 0, np.nan, difference.std(axis=0, ddof=1)
    )
    average = (start.std(axis=0, ddof=1) + end.std(axis=0, ddof=1)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return PairedEffects(
            d_z=np.asarray(mean / spread), d_av=np.asarray(mean / average)
        )


def cliffs_delta(
    first: Float[np.ndarray, " one *figure"],
    second: Float[np.ndarray, " two *figure"],
) -> Float[np.ndarray, "*figure"]:
    """Return P(first > second) - P(first < second) per figure, in O(n log n).

    By mid-ranks of the pooled sample: `delta = 2 U / (n m) - 1` with the
    Mann-Whitney `U` of `first`. NaN in a sample makes its figure NaN.
    """
    n, m = len(first), len(second)
    if n == 0 or m == 0:
        raise ValueError(
            f"Cliff's delta needs two samples that are not empty, found {n} and {m}; "
            "check how the readings were split."
        )
    shape = first.shape[1:]
    pooled = np.concatenate([np.asarray(first), np.asarray(second)]).astype(np.float64)
    flat = pooled.reshape(n + m, math.prod(shape))

    def chunk(where: slice) -> np.ndarray:
        ranks = rankdata(flat[:, where], axis=0)
        wins = ranks[:n].sum(axis=0) - n * (n + 1) / 2
        delta = 2.0 * wins / (n * m) - 1.0
        return np.where(np.isnan(flat[:, where]).any(axis=0), np.nan, delta)

    chunks = figure_chunks(flat.shape[1], 8 * (n + m))
    return np.concatenate([np.zeros(0), *in_threads(chunk, chunks)]).reshape(shape)


def bootstrap_cliffs_delta(
    first: Float[np.ndarray, " one *figure"],
    second: Float[np.ndarray, " two *figure"],
    *,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    missing: Missing = "refuse",
) -> Intervals:
    """Return Cliff's delta of two paired samples with a percentile interval.

    A resample draws clusters, and with each cluster both its numbers, so pairs stay
    together. With the resample counts `c` the resampled delta is
    `sum_ij c_i c_j sign(first_i - second_j) / n^2`, by running sums over the sorted
    second sample: n_resamples n work per figure.

    Args:
        first: One number per cluster and figure.
        second: The same clusters in the same order.
        n_resamples: More narrows the Monte Carlo noise of the bounds.
        confidence: Larger widens the interval.
        seed: Shares resamples with `bootstrap_mean` at the same seed.
        missing: As in `bootstrap_mean`.
    """
    _require_pairs(first.shape, second.shape)
    both = np.stack([np.asarray(first), np.asarray(second)], axis=1)
    kept, dropped = complete_clusters(both, missing=missing)
    n, shape = kept.shape[0], kept.shape[2:]
    one, two = kept[:, 0].reshape(n, -1), kept[:, 1].reshape(n, -1)
    times = resample_times(n, n_resamples=n_resamples, seed=seed)
    resampled = np.empty((n_resamples, one.shape[1]))
    for k in range(one.shape[1]):
        resampled[:, k] = _resampled_delta(one[:, k], two[:, k], times)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return Intervals(
        estimate=cliffs_delta(one, two).reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        n=n,
        dropped=dropped,
        confidence=confidence,
        method="percentile",
        resamples=resampled.reshape(n_resamples, *shape),
    )


def _resampled_delta(
    first: Float[np.ndarray, " cluster"],
    second: Float[np.ndarray, " cluster"],
    times: Float[np.ndarray, "cluster resample"],
) -> Float[np.ndarray, " resample"]:
    """Return the delta of every resample of pairs, walking up the sorted numbers."""
    n, rows, columns = len(first), np.argsort(first), np.argsort(second)
    lower, upper = (
        np.searchsorted(second[columns], first[rows], side)
        for side in ("left", "right")
    )
    below, tied, total = np.zeros((3, times.shape[1]))
    done = np.zeros(2, int)
    for row, ends in zip(rows, np.stack([lower, upper], axis=1), strict=True):
        if (ends != done).any():
            below += times[columns[done[0] : ends[0]]].sum(axis=0)
            tied = times[columns[slice(*ends)]].sum(axis=0)
            done = ends
        # Pairs won less pairs lost: twice those below and half of those equal.
        total += times[row] * (2 * below + tied - n)
    return total / n**2


def wasserstein_1(
    first: Float[np.ndarray, " one"], second: Float[np.ndarray, " two"]
) -> float:
    """Return the Wasserstein-1 distance of two samples, in their own unit."""
    return float(wasserstein_distance(first, second))


def _require_pairs(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    if first != second or first[0] < 2:
        raise ValueError(
            "Paired samples must have the same shape and at least 2 clusters, found "
            f"{first} and {second}; give one number per cluster in the same order."
        )
