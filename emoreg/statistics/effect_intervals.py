"""Intervals of standardised paired differences: the bootstrap of smooth functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float

from emoreg.statistics.bootstrap import (
    Intervals,
    Missing,
    check_settings,
    complete_pairs,
    figure_chunks,
    resample_counts,
)
from emoreg.statistics.bounds import bca_bounds
from emoreg.statistics.effects import paired_effects

# Of a pair: means of first, second, and of the squares of first, second, difference.
_Moments = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairedEffectIntervals:
    """The standardised differences of `paired_effects` with BCa intervals."""

    d_z: Intervals
    d_av: Intervals


def bootstrap_paired_effects(
    first: Float[np.ndarray, " one *figure"],
    second: Float[np.ndarray, " two *figure"],
    *,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    missing: Missing = "refuse",
) -> PairedEffectIntervals:
    """Return `d_z` and `d_av` of `second - first` with cluster BCa intervals.

    `d_z = mean(d) / sd(d)` and `d_av = mean(d) / ((sd(first) + sd(second)) / 2)` with
    `d = second - first` (Lakens 2013, https://doi.org/10.3389/fpsyg.2013.00863). `d_z`
    grows with the correlation of the pair; report both. A resample draws whole pairs
    and computes the effect anew; the acceleration is from the effect's jackknife.

    Args:
        first: One number per cluster and figure, in any one unit.
        second: The same clusters in the same order.
        n_resamples: This and the rest as in `bootstrap_mean`.
        confidence: Larger widens the interval.
        seed: Shares resamples with `bootstrap_mean` at the same seed.
        missing: With "drop" a cluster is dropped from both.

    Raises:
        ValueError: For fewer than 3 clusters, and as `bootstrap_ratio` does.

    Example:
        >>> before = np.random.default_rng(0).normal(size=40)
        >>> after = before + np.random.default_rng(1).normal(0.5, 0.5, size=40)
        >>> found = bootstrap_paired_effects(before, after)
        >>> found.d_z.at().excludes(0.0)
        True
    """
    check_settings(n_resamples, confidence)
    flat, dropped = complete_pairs(first, second, missing=missing)
    n, shape = len(flat), first.shape[1:]
    if n < 3:
        raise ValueError(
            f"Intervals of effects need 3 clusters, found {n}; measure more prompts."
        )
    effects = paired_effects(flat[:, 0], flat[:, 1])
    low, high = (np.empty((2, flat.shape[2])) for _ in range(2))
    counts = resample_counts(n, n_resamples=n_resamples, seed=seed)
    for where in figure_chunks(flat.shape[2], 5 * n_resamples):
        bounds = _bounds(flat[..., where], counts, confidence)
        low[:, where], high[:, where] = bounds
    d_z, d_av = (
        Intervals(
            estimate=estimate.reshape(shape),
            low=low[row].reshape(shape),
            high=high[row].reshape(shape),
            n=n,
            dropped=dropped,
            confidence=confidence,
            method="bca",
        )
        for row, estimate in enumerate((effects.d_z, effects.d_av))
    )
    return PairedEffectIntervals(d_z=d_z, d_av=d_av)


def _bounds(
    pair: Float[np.ndarray, "cluster two figure"],
    counts: Float[np.ndarray, "resample cluster"],
    confidence: float,
) -> tuple[Float[np.ndarray, "effect figure"], Float[np.ndarray, "effect figure"]]:
    """Return bounds of both effects from the same resampled moments."""
    n = len(pair)
    first, second = pair[:, 0], pair[:, 1]
    effects = paired_effects(first, second)
    # Centred, so that mean squares do not cancel; the mean difference comes back.
    away = second.mean(axis=0) - first.mean(axis=0)
    one, two = first - first.mean(axis=0), second - second.mean(axis=0)
    numbers = (one, two, one**2, two**2, (two - one) ** 2)
    means = tuple(column.T @ counts.T / n for column in numbers)
    left = tuple(((column.sum(axis=0) - column) / (n - 1)).T for column in numbers)
    ends = []
    for spread, estimate in (
        (_sd_of_differences, effects.d_z),
        (_mean_sd, effects.d_av),
    ):
        drawn = _effect(spread, means, away, n)
        jackknife = _effect(spread, left, away, n - 1).T
        pseudo = estimate + (n - 1) * (jackknife.mean(axis=0) - jackknife)
        ends.append(bca_bounds(drawn, pseudo, confidence=confidence))
    return np.stack([low for low, _ in ends]), np.stack([high for _, high in ends])


def _effect(
    spread: Callable[[_Moments, int], np.ndarray],
    moments: _Moments,
    away: Float[np.ndarray, " figure"],
    n: int,
) -> Float[np.ndarray, "figure any"]:
    """Return the mean difference, `away` given back to it, over its spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (moments[1] - moments[0] + away[:, None]) / spread(moments, n)


def _sd_of_differences(moments: _Moments, n: int) -> np.ndarray:
    first, second, _, _, square = moments
    return _spread(second - first, square, n)


def _mean_sd(moments: _Moments, n: int) -> np.ndarray:
    first, second, first_square, second_square, _ = moments
    return (_spread(first, first_square, n) + _spread(second, second_square, n)) / 2


def _spread(mean: np.ndarray, square: np.ndarray, n: int) -> np.ndarray:
    return np.sqrt(np.maximum(square - mean**2, 0.0) * n / (n - 1))
