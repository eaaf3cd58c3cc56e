"""Cluster bootstrap of means and ratios, vectorised over many figures.

The unit of analysis is the cluster (a prompt): callers average tokens, turns and
samples within a cluster first and hand in one number per cluster and figure. All
figures share the same resamples, so differences and ratios of resampled means are
paired, and a difference may simply be handed in as one more figure.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, final

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtr, stdtrit

from emoreg.statistics.bounds import Method, mean_bounds, percentile_bounds
from emoreg.statistics.threads import in_threads

Missing = Literal["refuse", "drop"]

# Resampled means held at once: 4M numbers, 16 MB, whatever the number of figures.
_CHUNK_NUMBERS = 4_000_000
_SUREST = 1 - 1e-12


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """One estimate with its confidence interval over `n` clusters."""

    estimate: float
    low: float
    high: float
    n: int

    def rounded(self) -> dict[str, float]:
        """Return it in five significant digits, JSON-able."""
        ends = ("estimate", "low", "high")
        found = {name: float(f"{getattr(self, name):.5g}") for name in ends}
        return {**found, "n": self.n}

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return bool(self.low > value or self.high < value)

    @property
    def width(self) -> float:
        """The length of the interval."""
        return self.high - self.low


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Intervals:
    """Estimates of many figures with their intervals, from shared resamples."""

    estimate: Float[np.ndarray, "*figure"]
    low: Float[np.ndarray, "*figure"]
    high: Float[np.ndarray, "*figure"]
    n: int
    """Clusters used."""
    dropped: int
    """Clusters left out because one of their figures was NaN."""
    confidence: float
    method: str
    resamples: Float[np.ndarray, " resample *figure"] | None = None
    """The resampled figures, row `i` from the same resample in every call that used
    the same seed, `n` and number of resamples; None unless `keep` was set."""
    crossing: Float[np.ndarray, "*figure"] | None = None
    """Ratios only: share of resamples whose denominator had the other sign."""

    def at(self, *index: int) -> Interval:
        """Return one figure's interval."""
        return Interval(
            estimate=float(self.estimate[index]),
            low=float(self.low[index]),
            high=float(self.high[index]),
            n=self.n,
        )

    def excludes(self, value: float) -> Bool[np.ndarray, "*figure"]:
        """Return, per figure, whether `value` lies outside the interval."""
        return np.asarray((self.low > value) | (self.high < value))


def bootstrap_mean(
    values: Float[np.ndarray, " cluster *figure"],
    *,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    method: Method = "bca",
    seed: int = 0,
    missing: Missing = "refuse",
    keep: bool = True,
    expand: bool = False,
) -> Intervals:
    """Return the mean over clusters of every figure with a bootstrap interval.

    Percentile: quantiles of the resampled means. BCa: the same quantiles at levels
    `Phi(z0 + (z0 + z) / (1 - a (z0 + z)))`, with `z0` from the share of resamples
    below the estimate and `a` from the jackknife (Efron 1987).

    Args:
        values: One number per cluster and figure.
        n_resamples: More narrows the Monte Carlo noise of the bounds.
        confidence: Larger widens the interval.
        method: "bca" corrects bias and skew and costs a full sort per figure.
        seed: Calls that share it and the number of clusters share their resamples.
        missing: "refuse" raises on NaN; "drop" leaves out every cluster that has a
            NaN in any figure and counts it.
        keep: Whether to hold the resampled means (n_resamples x figures x 8 bytes).
        expand: Whether to widen for few clusters, see `expanded`.

    Raises:
        ValueError: On NaN with "refuse", infinities, or fewer than two clusters.
    """
    check_settings(n_resamples, confidence)
    kept, dropped = complete_clusters(values, missing=missing)
    n, shape = kept.shape[0], kept.shape[1:]
    flat = kept.reshape(n, math.prod(shape))
    counts = resample_counts(n, n_resamples=n_resamples, seed=seed)
    estimate = flat.mean(axis=0)
    low, high = np.empty_like(estimate), np.empty_like(estimate)
    stored = np.empty((n_resamples, flat.shape[1])) if keep else None
    inner = expanded(confidence, n) if expand else confidence

    def chunk(where: slice) -> None:
        away = flat[:, where] - estimate[where]
        moves = resampled_means(away, counts)
        if stored is not None:
            stored[:, where] = estimate[where] + moves.T
        bounds = mean_bounds(moves, away, method=method, confidence=inner)
        low[where], high[where] = (estimate[where] + end for end in bounds)

    in_threads(chunk, figure_chunks(flat.shape[1], n_resamples))
    return Intervals(
        estimate=estimate.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        n=n,
        dropped=dropped,
        confidence=confidence,
        method=method,
        resamples=None if stored is None else stored.reshape(n_resamples, *shape),
    )


def bootstrap_ratio(
    numerator: Float[np.ndarray, " above *figure"],
    denominator: Float[np.ndarray, " below *figure"],
    *,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    missing: Missing = "refuse",
    keep: bool = True,
    expand: bool = False,
) -> Intervals:
    """Return the ratio of two paired means with its percentile interval.

    Both means of a resample are taken over the same clusters. Where the resampled
    denominator crosses zero the quantiles bound nothing: look at `crossing`.

    Args:
        numerator: One number per cluster and figure.
        denominator: The same clusters in the same order.
        n_resamples: As in `bootstrap_mean`.
        confidence: As in `bootstrap_mean`.
        seed: As in `bootstrap_mean`.
        missing: As in `bootstrap_mean`; a cluster is dropped from both.
        keep: As in `bootstrap_mean`.
        expand: As in `bootstrap_mean`.

    Raises:
        ValueError: On NaN with "refuse", infinities, or fewer than two clusters.
    """
    check_settings(n_resamples, confidence)
    pair, dropped = complete_pairs(numerator, denominator, missing=missing)
    n, shape = len(pair), numerator.shape[1:]
    counts = resample_counts(n, n_resamples=n_resamples, seed=seed)
    mean = pair.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = mean[0] / mean[1]
    low, high, crossing = (np.empty_like(estimate) for _ in range(3))
    stored = np.empty((n_resamples, pair.shape[2])) if keep else None
    inner = expanded(confidence, n) if expand else confidence

    def chunk(where: slice) -> None:
        away = pair[..., where] - mean[:, where]
        above, below = (resampled_means(away[:, row], counts) for row in range(2))
        ratios, crossing[where] = resampled_ratios(above, below, mean[:, where])
        if stored is not None:
            stored[:, where] = ratios.T
        low[where], high[where] = percentile_bounds(ratios, confidence=inner)

    in_threads(chunk, figure_chunks(pair.shape[2], n_resamples))
    return Intervals(
        estimate=estimate.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        n=n,
        dropped=dropped,
        confidence=confidence,
        method="percentile",
        resamples=None if stored is None else stored.reshape(n_resamples, *shape),
        crossing=crossing.reshape(shape),
    )


def expanded(confidence: float, n: int) -> float:
    """Return the confidence whose percentiles make good what few clusters take away.

    Resamples of `n` clusters spread too little by `sqrt((n - 1) / n)`, and their means
    have the normal's tails where t's are wanted: `2 Phi(sqrt(n / (n - 1)) t) - 1` with
    `t` the quantile with `n - 1` degrees of freedom (Hesterberg 2015, section 5.3,
    https://doi.org/10.1080/00031305.2015.1089789). Nothing is changed for large `n`.

    Example:
        >>> round(expanded(0.95, 16), 3), round(expanded(0.95, 1000), 3)
        (0.972, 0.95)
    """
    quantile = stdtrit(n - 1, (1.0 + confidence) / 2.0)
    level = float(1.0 - 2.0 * ndtr(-math.sqrt(n / (n - 1)) * quantile))
    return min(level, _SUREST)  # of two clusters it rounds to 1, which has no quantile


@lru_cache(maxsize=4)
def resample_counts(
    n: int, *, n_resamples: int, seed: int
) -> Float[np.ndarray, "resample cluster"]:
    """Return how often each of `n` clusters occurs in each resample (read-only)."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(n, np.full(n, 1.0 / n), size=n_resamples)
    counts = counts.astype(np.float32)  # whole numbers: nothing is lost
    counts.setflags(write=False)  # cached and shared between calls
    return counts


@lru_cache(maxsize=1)
def resample_times(
    n: int, *, n_resamples: int, seed: int
) -> Float[np.ndarray, "cluster resample"]:
    """Return the same counts with those of a cluster in a row (read-only)."""
    counts = resample_counts(n, n_resamples=n_resamples, seed=seed)
    times = np.ascontiguousarray(counts.T)
    times.setflags(write=False)
    return times


def resampled_means(
    away: Float[np.ndarray, "cluster figure"],
    counts: Float[np.ndarray, "resample cluster"],
) -> Float[np.ndarray, "figure resample"]:
    """Return resampled means of deviations from the mean, in single precision.

    Of deviations, single precision costs a ten-millionth of the spread; of the numbers
    themselves it would cost that of their size. It takes half of the time.
    """
    return (away.astype(np.float32).T @ counts.T) / np.float32(len(away))


def resampled_ratios(
    above: Float[np.ndarray, "figure resample"],
    below: Float[np.ndarray, "figure resample"],
    means: Float[np.ndarray, "two figure"],
) -> tuple[Float[np.ndarray, "figure resample"], Float[np.ndarray, " figure"]]:
    """Return resampled ratios of means, and how often the lower one crosses zero.

    Args:
        above: Resampled deviations of the numerator (`resampled_means`).
        below: Of the denominator.
        means: What these and those deviate from.
    """
    top, bottom = (
        drawn + mean[:, None].astype(np.float32)
        for drawn, mean in zip((above, below), means, strict=True)
    )
    crossing = (bottom * np.sign(means[1])[:, None] <= 0).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return top / bottom, crossing


def complete_clusters(
    values: Float[np.ndarray, " cluster *figure"], *, missing: Missing
) -> tuple[Float[np.ndarray, " kept *figure"], int]:
    """Return the clusters without NaN in float64, and how many were left out.

    Raises:
        ValueError: On NaN with "refuse", infinities, or fewer than two clusters.
    """
    array = np.asarray(values, dtype=np.float64)
    flat = array.reshape(len(array), math.prod(array.shape[1:]))
    finite = np.isfinite(flat).all(axis=1)
    if not finite.all() and np.isinf(flat).any():
        raise ValueError(
            "`values` must be finite or NaN, found infinities; look for an overflow "
            "in the readings before bootstrapping them."
        )
    dropped = int((~finite).sum())
    if dropped and missing == "refuse":
        raise ValueError(
            f"`values` must have no NaN, found some in {dropped} of {len(array)} "
            'clusters; pass missing="drop" to leave those clusters out.'
        )
    kept = array[finite] if dropped else array
    if len(kept) < 2:
        raise ValueError(
            "A bootstrap needs at least 2 complete clusters, found "
            f"{len(kept)} of {len(array)}; measure more prompts."
        )
    return kept, dropped


def complete_pairs(
    first: Float[np.ndarray, " one *figure"],
    second: Float[np.ndarray, " two *figure"],
    *,
    missing: Missing,
) -> tuple[Float[np.ndarray, "kept pair flat"], int]:
    """Return the clusters that have both numbers of every figure, figures in a row.

    Raises:
        ValueError: If the shapes differ, and as `complete_clusters` does.
    """
    if first.shape != second.shape:
        raise ValueError(
            "Paired numbers must have the same shape, found "
            f"{first.shape} and {second.shape}; give both for the same clusters in the "
            "same order."
        )
    both = np.stack([np.asarray(first), np.asarray(second)], axis=1)
    kept, dropped = complete_clusters(both, missing=missing)
    return kept.reshape(len(kept), 2, math.prod(kept.shape[2:])), dropped


def check_settings(n_resamples: int, confidence: float) -> None:
    """Raise a ValueError for settings that no interval can be made from."""
    if n_resamples < 1:
        raise ValueError(
            f"`n_resamples` must be at least 1, got {n_resamples}; 10000 is usual."
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"`confidence` must lie between 0 and 1, got {confidence}; 0.95 is usual."
        )


def figure_chunks(n_figures: int, n_resamples: int) -> Iterator[slice]:
    """Yield slices of figures whose resamples fit the memory bound."""
    size = max(1, _CHUNK_NUMBERS // n_resamples)
    for start in range(0, n_figures, size):
        yield slice(start, min(start + size, n_figures))
