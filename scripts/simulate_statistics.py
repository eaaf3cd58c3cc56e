"""Whether intervals cover, p-values are uniform under the null, and power is as told.

    python scripts/simulate_statistics.py --repetitions 2000

Prompts are clusters: what is said of one is alike. Each has 12 numbers under either
model, which share the prompt's level. Readings are normal, or skewed (exponential).
Beside each method stands, where there is one, what comes of taking the single numbers,
or the prompts of one seed, as independent. Prints markdown tables.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.stats
from simulated_coverage import (
    LAWS,
    NOISE,
    SEEDS,
    SIZES,
    TOKENS,
    Law,
    Settings,
    blocks,
    coverage_of_pairs,
    coverage_of_seeds,
    coverage_of_slopes,
    standard,
)
from tqdm import tqdm

from emoreg.statistics.distances import swapped_distances
from emoreg.statistics.equivalence import equivalence
from emoreg.statistics.multiple import false_discovery
from emoreg.statistics.permutation import sign_flip
from emoreg.statistics.power import (
    equivalence_power,
    paired_power,
    smallest_detectable_effect,
)
from emoreg.statistics.trend import page_trend

# -- p-values --------------------------------------------------------------------------


def null_of_means(law: Law, n: int, settings: Settings) -> dict[str, np.ndarray]:
    """Return p-values where no mean differs."""

    def run(generator: np.random.Generator, sets: int, block: int) -> np.ndarray:
        # Whether symmetric about zero, as the null of exchange has it, or not.
        difference = standard(generator, law, (n, 1, sets))
        noise = generator.normal(size=(n, TOKENS, sets))
        difference = difference + (NOISE if law == "normal" else 0.0) * noise
        share: dict[str, Any] = {"n_flips": settings.resamples, "seed": block}
        flat = difference.reshape(n * TOKENS, sets)
        edge = equivalence(difference.mean(axis=1) + 0.4, 0.4)
        return np.stack(
            [
                sign_flip(difference.mean(axis=1), **share).p,
                edge.p,
                sign_flip(flat, **share).p,
            ]
        )

    names = (
        "sign flips",
        "TOST, the truth on the margin",
        "control: sign flips of single numbers",
    )
    return dict(zip(names, blocks(settings, run), strict=True))


def null_of_distances(n: int, settings: Settings) -> dict[str, np.ndarray]:
    """Return p-values where no distribution differs; four samples a prompt."""

    def run(generator: np.random.Generator, sets: int, block: int) -> np.ndarray:
        level = 0.5 * generator.normal(size=(n, 1, sets))
        # Samples of one prompt under one model share something of their own as well.
        one, two = (
            level
            + 1.0 * generator.normal(size=(n, 1, sets))
            + 0.5 * generator.normal(size=(n, 4, sets))
            for _ in range(2)
        )
        found = swapped_distances(one, two, n_flips=settings.resamples // 2, seed=block)
        naive = [
            scipy.stats.ks_2samp(one[..., k].ravel(), two[..., k].ravel())[1]
            for k in range(sets)
        ]
        return np.stack([found.ks_p, found.wasserstein_p, np.array(naive)])

    names = (
        "KS, swaps within prompts",
        "Wasserstein-1, swaps within prompts",
        "control: KS's own p over single numbers",
    )
    return dict(zip(names, blocks(settings, run), strict=True))


def null_of_trends(n: int, doses: int, settings: Settings) -> np.ndarray:
    """Return Page's p-values where nothing rises."""

    def run(generator: np.random.Generator, sets: int, _: int) -> np.ndarray:
        level = generator.normal(size=(n, 1, sets))
        return page_trend(level + generator.normal(size=(n, doses, sets))).p

    return blocks(settings, run)


def families(n: int, settings: Settings) -> dict[str, float]:
    """Return family-wise error and false discovery rate of 40 related figures."""
    real = np.arange(40) < 8

    def run(generator: np.random.Generator, sets: int, block: int) -> np.ndarray:
        shared = generator.normal(size=(sets, n, 1))
        values = 0.7 * shared + 0.7 * generator.normal(size=(sets, n, 40))
        found = []
        for data in values:
            null = sign_flip(data, n_flips=999, seed=block)
            mixed = sign_flip(data + 0.6 * real, n_flips=999, seed=block)
            bh = false_discovery(mixed.p) <= 0.05
            by = false_discovery(mixed.p, dependence="any") <= 0.05
            found.append(
                [
                    null.p_max.min() <= 0.05,
                    (mixed.p_max[~real] <= 0.05).any(),
                    null.p.min() <= 0.05,
                    bh[~real].sum() / max(1, bh.sum()),
                    by[~real].sum() / max(1, by.sum()),
                ]
            )
        return np.array(found, dtype=float).T

    names = (
        "max-T, any false rejection, 40 nulls",
        "max-T, any false rejection, 32 nulls and 8 effects",
        "control: any of 40 unadjusted",
        "Benjamini-Hochberg, false share of the rejected",
        "Benjamini-Yekutieli, likewise",
    )
    return dict(zip(names, blocks(settings, run).mean(axis=-1), strict=True))


# -- power -----------------------------------------------------------------------------


def power_row(n: int, settings: Settings) -> list[str]:
    """Return formula and simulation at the smallest detectable effect of `n`."""
    effect = smallest_detectable_effect(n)
    margin = 3.2 / np.sqrt(n)

    def run(generator: np.random.Generator, sets: int, block: int) -> np.ndarray:
        values = generator.normal(size=(n, sets))
        moved = values + effect
        flips = sign_flip(moved, n_flips=settings.resamples, seed=block)
        return np.stack(
            [
                np.asarray(scipy.stats.ttest_1samp(moved, 0.0)[1]) <= 0.05,
                flips.p <= 0.05,
                equivalence(values, margin).equivalent,
            ]
        )

    t, flips, tost = blocks(settings, run).mean(axis=-1)
    formula = float(paired_power(effect, n))
    told = float(equivalence_power(n, margin=margin))
    numbers = (effect, formula, t, flips, margin, told, tost)
    return [str(n), *(f"{number:.3f}" for number in numbers)]


# -- tables ----------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def percent(share: float, low: float = 0.93, high: float = 0.97) -> str:
    """Return a share in percent, bold where it is not within what is asked."""
    text = f"{100 * share:.1f}"
    return text if low <= share <= high else f"**{text}**"


def coverage(settings: Settings) -> Iterator[str]:
    """Yield the tables of coverage."""
    cells: dict[str, list[str]] = {}
    for law in LAWS:
        for n in tqdm(SIZES, desc=f"coverage, {law}"):
            found = coverage_of_slopes(law, n, settings)
            for name, share in {**found, **coverage_of_pairs(law, n, settings)}.items():
                cells.setdefault(name, []).append(percent(share))
    head = [f"{law}, {n}" for law in LAWS for n in SIZES]
    yield from table(["95 % interval", *head], [[k, *v] for k, v in cells.items()])
    yield ""
    cells = {}
    for spread in (0.3, 0.0):
        for seeds in tqdm(SEEDS, desc=f"seeds that differ by {spread}"):
            for name, share in coverage_of_seeds(seeds, spread, settings).items():
                cells.setdefault(name, []).append(percent(share))
    head = [f"SD {sd}, {seeds} seeds" for sd in (0.3, 0) for seeds in SEEDS]
    yield from table(["95 % interval", *head], [[k, *v] for k, v in cells.items()])


def null(settings: Settings) -> Iterator[str]:
    """Yield the tables of p-values under the null."""
    found: list[tuple[str, str, np.ndarray]] = []
    for n in tqdm((10, 32, 100), desc="means"):
        found += [
            (k, str(n), p) for k, p in null_of_means("normal", n, settings).items()
        ]
    for n in tqdm(SIZES, desc="skewed means"):
        p = null_of_means("skewed", n, settings)["sign flips"]
        found.append(("sign flips, mean zero but skewed", str(n), p))
    for n in tqdm((10, 32), desc="distances"):
        found += [(k, str(n), p) for k, p in null_of_distances(n, settings).items()]
    for n, doses in tqdm(((6, 4), (32, 5), (100, 5)), desc="trends"):
        p = null_of_trends(n, doses, settings)
        found.append(("Page's trend", f"{n}, {doses} doses", p))
    rows = []
    for name, where, p in found:
        at = [(p <= level).mean() for level in (0.01, 0.05, 0.1)]
        away = scipy.stats.kstest(p, "uniform").statistic
        rows.append([name, where, *(f"{100 * a:.1f}" for a in at), f"{away:.3f}"])
    head = ["p-value", "prompts", "≤ 1 %", "≤ 5 %", "≤ 10 %", "from uniform"]
    yield from table(head, rows)
    yield ""
    shares = families(32, settings)
    rows = [[name, f"{100 * share:.1f}"] for name, share in shares.items()]
    yield from table(["32 prompts, 40 figures, at 5 %", "%"], rows)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    own = parser.parse_args()
    settings = Settings(repetitions=own.repetitions, resamples=own.resamples)
    for part in (coverage, null):
        print("\n".join(part(settings)), flush=True)
        print()
    head = ["prompts", "`d_z`", "power", "t-test", "sign flips"]
    head += ["margin in SD", "power of TOST", "TOST"]
    rows = [power_row(n, settings) for n in (10, *SIZES)]
    print("\n".join(table(head, rows)))


if __name__ == "__main__":
    main()
