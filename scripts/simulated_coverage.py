"""Clustered readings that are made up, and how often each interval holds the truth.

For `simulate_statistics.py`, which prints what is found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from emoreg.statistics.bands import simultaneous_band
from emoreg.statistics.bootstrap import Intervals, bootstrap_mean, bootstrap_ratio
from emoreg.statistics.effect_intervals import bootstrap_paired_effects
from emoreg.statistics.effects import bootstrap_cliffs_delta
from emoreg.statistics.equivalence import equivalence
from emoreg.statistics.fieller import fieller_ratio
from emoreg.statistics.quantiles import DECILES, quantile_shift
from emoreg.statistics.seeds import bootstrap_seeds, seed_interval
from emoreg.statistics.slopes import cluster_slopes

Law = Literal["normal", "skewed"]
LAWS: tuple[Law, ...] = ("normal", "skewed")
SIZES = (16, 32, 100)
SEEDS = (3, 5, 10, 20)
TOKENS = 12
NOISE = 1.5
SHIFT = 0.3
RATIO = 0.6
BLOCK = 200
"""Simulated data sets that share their resamples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How much is simulated."""

    repetitions: int
    resamples: int


def standard(
    generator: np.random.Generator, law: Law, shape: tuple[int, ...]
) -> np.ndarray:
    """Draw numbers of mean 0 and variance 1."""
    if law == "normal":
        return generator.normal(size=shape)
    return generator.exponential(size=shape) - 1.0


def pairs(
    generator: np.random.Generator, law: Law, n: int, sets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw both models' numbers, prompt x token x data set; all share prompts."""
    first = standard(generator, law, (n, 1, sets))
    second = SHIFT + 0.6 * first + 0.8 * standard(generator, law, (n, 1, sets))
    noise = NOISE * generator.normal(size=(2, n, TOKENS, sets))
    return first + noise[0], second + noise[1]


def covered(interval: Intervals, truth: float) -> np.ndarray:
    """Return, per data set, whether the interval holds the truth."""
    return ~interval.excludes(truth)


def blocks(
    settings: Settings, run: Callable[[np.random.Generator, int, int], np.ndarray]
) -> np.ndarray:
    """Return the results of all data sets; each block has its own seed."""
    found = [
        run(np.random.default_rng((7, block)), BLOCK, block)
        for block in range(-(-settings.repetitions // BLOCK))
    ]
    return np.concatenate(found, axis=-1)


# -- coverage --------------------------------------------------------------------------

TOKEN_VARIANCE = NOISE**2 / TOKENS


@cache
def many_prompts(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Return prompt means of a million prompts: the truth where no formula is."""
    generator = np.random.default_rng(99)
    n = 1_000_000
    first = standard(generator, law, (n,))
    second = SHIFT + 0.6 * first + 0.8 * standard(generator, law, (n,))
    noise = np.sqrt(TOKEN_VARIANCE) * generator.normal(size=(2, n))
    return first + noise[0], second + noise[1]


@cache
def true_delta(law: Law) -> float:
    """Return the population's Cliff's delta."""
    first, second = many_prompts(law)
    wins = np.searchsorted(np.sort(second), first)
    return float(2 * wins.mean() / len(second) - 1)


@cache
def true_shifts(law: Law) -> np.ndarray:
    """Return the population's quantile shifts."""
    first, second = many_prompts(law)
    return np.quantile(second, DECILES) - np.quantile(first, DECILES)


def coverage_of_pairs(law: Law, n: int, settings: Settings) -> dict[str, float]:
    """Return the coverage of every interval of paired readings."""
    boot: dict[str, Any] = {"n_resamples": settings.resamples}
    d_z = SHIFT / np.sqrt(0.8 + 2 * TOKEN_VARIANCE)
    d_av = SHIFT / np.sqrt(1 + TOKEN_VARIANCE)

    def run(generator: np.random.Generator, sets: int, block: int) -> np.ndarray:
        first, second = pairs(generator, law, n, sets)
        one, two = first.mean(axis=1), second.mean(axis=1)
        change = two - one
        share: dict[str, Any] = boot | {"seed": block}
        effects = bootstrap_paired_effects(one, two, **share)
        shift = quantile_shift(one, two, **share)
        truth = true_shifts(law)[:, None]
        flat = (second - first).reshape(n * TOKENS, sets)
        layers = change[:, None] + 0.5 * generator.normal(size=(n, 9, sets))
        means = bootstrap_mean(layers, **share)
        assert means.resamples is not None
        band = [
            simultaneous_band(means.estimate[:, k], means.resamples[..., k], n=n)
            for k in range(sets)
        ]
        low, high = (np.stack(ends, axis=1) for ends in zip(*band, strict=True))
        tokens = bootstrap_mean(flat, method="percentile", keep=False, **share)
        return np.stack(
            [
                covered(bootstrap_mean(change, keep=False, **share), SHIFT),
                covered(
                    bootstrap_mean(change, keep=False, expand=True, **share), SHIFT
                ),
                covered(
                    bootstrap_mean(change, keep=False, method="percentile", **share),
                    SHIFT,
                ),
                covered(equivalence(change, 1.0, alpha=0.025).interval, SHIFT),
                covered(effects.d_z, d_z),
                covered(effects.d_av, d_av),
                covered(bootstrap_cliffs_delta(one, two, **share), true_delta(law)),
                ((shift.low <= truth) & (truth <= shift.high)).all(axis=0),
                ((low <= SHIFT) & (high >= SHIFT)).all(axis=0),
                covered(tokens, SHIFT),
            ]
        )

    names = (
        "mean difference, BCa",
        "mean difference, BCa, expanded",
        "mean difference, percentile",
        "mean difference, t (that of TOST)",
        "`d_z`, BCa",
        "`d_av`, BCa",
        "Cliff's delta, percentile",
        "quantile shift, nine deciles at once",
        "band of nine means at once",
        "control: single numbers as the unit",
    )
    return dict(zip(names, blocks(settings, run).mean(axis=-1), strict=True))


def coverage_of_slopes(law: Law, n: int, settings: Settings) -> dict[str, float]:
    """Return the coverage of failure slopes and of their ratio."""
    rows = 6
    failed = np.tile(np.arange(rows) % 2, n).astype(float)
    prompt = np.repeat(np.arange(n), rows)

    def run(generator: np.random.Generator, sets: int, block: int) -> np.ndarray:
        length = generator.normal(size=n * rows) + 0.5 * failed
        steep = 1.5 + standard(generator, law, (n, sets))
        later = RATIO * steep + 0.5 * standard(generator, law, (n, sets))
        found = []
        for slope in (steep, later):
            level = standard(generator, law, (n, sets))
            noise = 0.7 * generator.normal(size=(n * rows, sets))
            values = level[prompt] + slope[prompt] * failed[:, None] + noise
            values += 0.4 * length[:, None]
            found.append(
                cluster_slopes(values, failed, prompt, covariates=length[:, None])[1]
            )
        share: dict[str, Any] = {"n_resamples": settings.resamples, "seed": block}
        share |= {"keep": False}
        ratio = bootstrap_ratio(found[1], found[0], **share)
        wide = bootstrap_ratio(found[1], found[0], expand=True, **share)
        return np.stack(
            [
                covered(bootstrap_mean(found[0], **share), 1.5),
                covered(bootstrap_mean(found[0], expand=True, **share), 1.5),
                covered(ratio, RATIO),
                covered(wide, RATIO),
                covered(fieller_ratio(found[1], found[0]), RATIO),
            ]
        )

    names = (
        "failure slope with a covariate, BCa",
        "failure slope with a covariate, BCa, expanded",
        "ratio of slopes, percentile",
        "ratio of slopes, percentile, expanded",
        "ratio of slopes, Fieller",
    )
    return dict(zip(names, blocks(settings, run).mean(axis=-1), strict=True))


def coverage_of_seeds(
    seeds: int, spread: float, settings: Settings
) -> dict[str, float]:
    """Return the coverage of means over seeds of 50 prompts."""
    n = 50

    def run(generator: np.random.Generator, sets: int, block: int) -> np.ndarray:
        values = SHIFT + spread * generator.normal(size=(seeds, 1, sets))
        values = values + 0.8 * generator.normal(size=(n, sets))
        values = values + 0.6 * generator.normal(size=(seeds, n, sets))
        share: dict[str, Any] = {"n_resamples": settings.resamples, "seed": block}
        means = values.mean(axis=0)
        return np.stack(
            [
                covered(seed_interval(values).interval, SHIFT),
                covered(bootstrap_seeds(values, **share).interval, SHIFT),
                covered(bootstrap_mean(means, keep=False, **share), SHIFT),
            ]
        )

    names = ("`seed_interval`", "`bootstrap_seeds`", "control: prompts alone resampled")
    return dict(zip(names, blocks(settings, run).mean(axis=-1), strict=True))
