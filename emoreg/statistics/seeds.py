"""Several training seeds: how far a mean would move with other seeds and prompts.

The same prompts are measured for every seed, so seeds and prompts are crossed: what is
peculiar to a prompt does not average out over seeds, nor what is peculiar to a seed
over prompts.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from emoreg.statistics.bootstrap import (
    Intervals,
    check_settings,
    complete_clusters,
    figure_chunks,
    resample_counts,
)
from emoreg.statistics.bounds import percentile_bounds


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeedIntervals:
    """Means over seeds and prompts, and how much each of them varies."""

    interval: Intervals
    """Its `n` are the prompts."""
    by_seed: Float[np.ndarray, "seed *figure"]
    """Each seed's own mean: show every one."""
    seed_sd: Float[np.ndarray, "*figure"]
    """SD between seeds, what prompts and noise make of it taken out."""
    prompt_sd: Float[np.ndarray, "*figure"]
    """SD between prompts, likewise."""
    degrees: Float[np.ndarray, "*figure"] | None
    """Degrees of freedom of a t interval; None for the bootstrap."""
    n_seeds: int


def seed_interval(
    values: Float[np.ndarray, " seed cluster *figure"], *, confidence: float = 0.95
) -> SeedIntervals:
    """Return the mean with an interval over both seeds and prompts, by variances.

    Two-way random effects: with mean squares `S` of seeds, `P` of prompts and `E` of
    the rest, the variance of the mean of `s` seeds and `n` prompts is `(S + P - E) /
    (s n)`, where `S` and `P` count as `E` at least. The interval is t with
    Satterthwaite's degrees of freedom (1946, https://doi.org/10.2307/3002019). With 3
    seeds that differ it is wide, as it must be: two degrees of freedom. For fewer than
    some 20 seeds prefer it to `bootstrap_seeds`.

    Args:
        values: One number per seed, prompt and figure; a difference to the one model
            before training may be handed in as it is.
        confidence: Larger widens the interval.

    Raises:
        ValueError: With fewer than two seeds or prompts, or a number is not finite.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(3, 50)) + [[0.0], [1.0], [2.0]]
        >>> found = seed_interval(rows)
        >>> bool(found.degrees < 3), found.by_seed.round(1).tolist()
        (True, [0.1, 1.0, 2.0])
    """
    flat, shape = _crossed(values, confidence)
    s, n = flat.shape[:2]
    mean, by_seed = flat.mean(axis=(0, 1)), flat.mean(axis=1)
    seeds, prompts, rest = _mean_squares(flat)
    above, beside = np.maximum(seeds, rest), np.maximum(prompts, rest)
    total = above + beside - rest
    parts = above**2 / (s - 1) + beside**2 / (n - 1) + rest**2 / ((s - 1) * (n - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.where(parts > 0, total**2 / parts, s - 1)
    reach = stdtrit(degrees, (1 + confidence) / 2) * np.sqrt(total / (s * n))
    return SeedIntervals(
        interval=Intervals(
            estimate=mean.reshape(shape),
            low=(mean - reach).reshape(shape),
            high=(mean + reach).reshape(shape),
            n=n,
            dropped=0,
            confidence=confidence,
            method="satterthwaite",
        ),
        by_seed=by_seed.reshape(s, *shape),
        seed_sd=np.sqrt((above - rest) / n).reshape(shape),
        prompt_sd=np.sqrt((beside - rest) / s).reshape(shape),
        degrees=degrees.reshape(shape),
        n_seeds=s,
    )


def bootstrap_seeds(
    values: Float[np.ndarray, " seed cluster *figure"],
    *,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SeedIntervals:
    """Return the mean with a two-level bootstrap interval: seeds, then prompts.

    Each resample draws seeds and, apart from them, prompts, and takes all numbers of
    the drawn seeds at the drawn prompts (the pigeonhole bootstrap; Owen 2007,
    https://doi.org/10.1214/07-AOAS122). Percentile bounds. It assumes nothing of how
    readings are spread, but a handful of seeds, resampled, spreads less than seeds do:
    by `sqrt((s - 1) / s)`, and without t's longer tails. With 3 or 5 seeds that differ
    it covers far less than it says (docs/numerics.md); use `seed_interval` there.

    Args:
        values: As in `seed_interval`.
        n_resamples: As in `bootstrap_mean`.
        confidence: As in `bootstrap_mean`.
        seed: Shares the prompts' resamples with `bootstrap_mean` at the same seed.

    Raises:
        ValueError: As `seed_interval` does.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(5, 50))
        >>> found = bootstrap_seeds(rows, n_resamples=500)
        >>> found.interval.at().excludes(0.0)
        False
    """
    check_settings(n_resamples, confidence)
    around = seed_interval(values, confidence=confidence)
    flat, shape = _crossed(values, confidence)
    s, n, size = flat.shape
    prompts = resample_counts(n, n_resamples=n_resamples, seed=seed)
    generator = np.random.default_rng((seed, s))
    seeds = generator.multinomial(s, np.full(s, 1.0 / s), size=n_resamples)
    low, high = np.empty(size), np.empty(size)
    for where in figure_chunks(size, 2 * n_resamples):
        drawn = np.zeros((len(low[where]), n_resamples))
        for row in range(s):
            drawn += (flat[row][:, where].T @ prompts.T) * seeds[:, row]
        drawn /= s * n
        low[where], high[where] = percentile_bounds(drawn, confidence=confidence)
    interval = replace(
        around.interval,
        low=low.reshape(shape),
        high=high.reshape(shape),
        method="percentile",
    )
    return replace(around, interval=interval, degrees=None)


def _crossed(
    values: Float[np.ndarray, " seed cluster *figure"], confidence: float
) -> tuple[Float[np.ndarray, "seed cluster figure"], tuple[int, ...]]:
    check_settings(1, confidence)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 2 or len(array) < 2:
        raise ValueError(
            "Seeds as the outer level need at least 2 of them, found shape "
            f"{array.shape}; train 3 or more, or use `bootstrap_mean`."
        )
    complete_clusters(np.moveaxis(array, 1, 0), missing="refuse")
    shape = array.shape[2:]
    return array.reshape(*array.shape[:2], math.prod(shape)), shape


def _mean_squares(
    flat: Float[np.ndarray, "seed cluster figure"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean squares of seeds, of prompts and of the rest."""
    s, n = flat.shape[:2]
    by_seed = flat.mean(axis=1, keepdims=True)
    by_prompt = flat.mean(axis=0, keepdims=True)
    mean = flat.mean(axis=(0, 1), keepdims=True)
    seeds = n * ((by_seed - mean) ** 2).sum(axis=(0, 1)) / (s - 1)
    prompts = s * ((by_prompt - mean) ** 2).sum(axis=(0, 1)) / (n - 1)
    rest = ((flat - by_seed - by_prompt + mean) ** 2).sum(axis=(0, 1))
    return seeds, prompts, rest / ((s - 1) * (n - 1))
