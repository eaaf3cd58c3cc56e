"""Everything about two paired means at once: each, their difference and ratio."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float

from emoreg.statistics.bootstrap import (
    Intervals,
    Missing,
    check_settings,
    complete_pairs,
    expanded,
    figure_chunks,
    resample_counts,
    resampled_means,
    resampled_ratios,
)
from emoreg.statistics.bounds import mean_bounds, percentile_bounds
from emoreg.statistics.threads import in_threads

_NUMBERS = ("estimate", "low", "high", "crossing")


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairIntervals:
    """Two paired means, their difference and their ratio, from shared resamples."""

    first: Intervals
    second: Intervals
    change: Intervals
    """Second minus first."""
    ratio: Intervals
    """Second over first; NaN where none was asked for."""


def bootstrap_pair(
    first: Float[np.ndarray, " one *figure"],
    second: Float[np.ndarray, " two *figure"],
    *,
    ratios: Bool[np.ndarray, "*figure"],
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    missing: Missing = "refuse",
    expand: bool = False,
) -> PairIntervals:
    """Return both means, their difference and ratio, with bootstrap intervals.

    The same as three calls of `bootstrap_mean` (BCa) and one of `bootstrap_ratio`
    (percentiles), with each sample resampled once instead of twice.

    Args:
        first: One number per cluster and figure.
        second: The same clusters in the same order.
        ratios: For which figures a ratio is wanted.
        n_resamples: This and the rest as in `bootstrap_mean`.
        confidence: Larger widens the intervals.
        seed: Shares resamples with `bootstrap_mean` at the same seed.
        missing: With "drop" a cluster is dropped from both.
        expand: Whether to widen for few clusters, see `expanded`.

    Raises:
        ValueError: As `bootstrap_ratio` does.

    Example:
        >>> before = np.array([1.0, 2.0, 3.0, 2.0])
        >>> found = bootstrap_pair(before, before / 2, ratios=np.array(True))
        >>> found.change.at().estimate, found.ratio.at().high
        (-1.0, 0.5)
    """
    check_settings(n_resamples, confidence)
    flat, dropped = complete_pairs(first, second, missing=missing)
    n, _, figures = flat.shape
    shape = first.shape[1:]
    counts = resample_counts(n, n_resamples=n_resamples, seed=seed)
    inner = expanded(confidence, n) if expand else confidence
    wanted = np.broadcast_to(ratios, shape).reshape(figures)
    found = np.empty((4, 4, figures))

    def chunk(where: slice) -> None:
        pair, some = flat[..., where], wanted[where]
        found[..., where] = _numbers(pair, some, counts, inner)

    in_threads(chunk, figure_chunks(figures, 2 * n_resamples))
    shared: dict[str, Any] = {"n": n, "dropped": dropped, "confidence": confidence}
    laid = found.reshape(4, len(_NUMBERS), *shape)
    means = (Intervals(**_named(x[:3]), method="bca", **shared) for x in laid[:3])
    one, two, change = means
    ratio = Intervals(**_named(laid[3]), method="percentile", **shared)
    return PairIntervals(first=one, second=two, change=change, ratio=ratio)


def _named(numbers: np.ndarray) -> dict[str, np.ndarray]:
    # Of one figure alone each number is a scalar.
    return {k: np.asarray(x) for k, x in zip(_NUMBERS, numbers, strict=False)}


def _numbers(
    pair: Float[np.ndarray, "cluster two figure"],
    wanted: Bool[np.ndarray, " figure"],
    counts: Float[np.ndarray, "resample cluster"],
    confidence: float,
) -> Float[np.ndarray, "interval number figure"]:
    """Return `_NUMBERS` of first, second, change and ratio; NaN where none are."""
    found = np.full((4, len(_NUMBERS), pair.shape[2]), np.nan)
    drawn = []
    for row, own in enumerate((pair[:, 0], pair[:, 1], pair[:, 1] - pair[:, 0])):
        mean = own.mean(axis=0)
        drawn.append(resampled_means(own - mean, counts))
        bounds = mean_bounds(drawn[-1], own - mean, method="bca", confidence=confidence)
        found[row, :3] = np.stack([mean, *(mean + end for end in bounds)])
    means = found[1::-1, 0][:, wanted]
    ratios, crossing = resampled_ratios(drawn[1][wanted], drawn[0][wanted], means)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = means[0] / means[1]
    bounds = percentile_bounds(ratios, confidence=confidence)
    found[3][:, wanted] = np.stack([estimate, *bounds, crossing])
    return found
