"""How the gap between failing and passing grows with the number of failed attempts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.figures import Units, with_families
from emoreg.comparison.readings import Readings
from emoreg.statistics.bootstrap import Interval, bootstrap_mean
from emoreg.statistics.trend import page_trend, rank_correlations

FEWEST = 3
"""Prompts that a round must have, and rounds that a trend must."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoundGaps:
    """Failing minus passing at the decision token, by prompt and round.

    One reader, mean over the audit layers, in `sigma_ref`.
    """

    targets: tuple[str, ...]
    values: Float[np.ndarray, "prompt round target"]
    """NaN where a prompt has no such round."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RoundTrend:
    """One target of one arm: its gap after each round, and whether it rises."""

    target: str
    arm: str
    gaps: tuple[Interval, ...]
    """By number of failed attempts, from 1; over the prompts that have so many."""
    correlation: Interval | None
    """Mean rank correlation of gap and round, over the rounds that all have."""
    p: float | None
    """Page's, one-sided, for a rise (a fall, of targets that failure lowers)."""


def round_gaps(
    table: Readings,
    units: Units,
    *,
    prompts: Sequence[str],
    families: Mapping[str, Sequence[str]],
    reader: str,
    layers: Sequence[int],
    targets: Sequence[str],
) -> RoundGaps:
    """Return a table's gaps by round, of the prompts that a comparison is over."""
    found = table.by_round()
    rows = [found.prompts.index(prompt) for prompt in prompts]
    members = [[table.emotions.index(e) for e in f] for f in families.values()]
    own = table.readers.index(reader)
    places = [table.layers.index(layer) for layer in layers]
    scaled = found.values[rows][:, :, own] / units.sigma[own]
    every = with_families(scaled, members)[:, :, places].mean(axis=2)
    names = (*table.emotions, *families)
    columns = [names.index(target) for target in targets]
    return RoundGaps(targets=tuple(targets), values=every[..., columns])


def round_trends(
    gaps: Mapping[str, RoundGaps], *, seed: int = 0, n_resamples: int = 10_000
) -> tuple[RoundTrend, ...]:
    """Return every target of every arm, in the order in which arms stand."""
    how = {"seed": seed, "n_resamples": n_resamples, "keep": False, "expand": True}
    before = gaps["before"]
    return tuple(
        _trend(arm, gaps[arm], column, _sign(before, column), how)
        for column in range(len(before.targets))
        for arm in gaps
    )


def _sign(before: RoundGaps, column: int) -> float:
    """Return 1 for a target that failure raises before training, else -1."""
    return 1.0 if np.nanmean(before.values[..., column]) >= 0 else -1.0


def _trend(
    arm: str, gaps: RoundGaps, column: int, sign: float, how: Mapping[str, Any]
) -> RoundTrend:
    values = gaps.values[..., column]
    there = np.isfinite(values)
    enough = [k for k in range(values.shape[1]) if there[:, k].sum() >= FEWEST]
    intervals = tuple(
        bootstrap_mean(values[there[:, k], k, None], **how).at(0) for k in enough
    )
    common = int(there.all(axis=0).sum())
    correlation = p = None
    if common >= FEWEST and len(values) >= FEWEST:
        doses = sign * values[:, :common]
        ranks = rank_correlations(doses)
        correlation = bootstrap_mean(ranks[:, None], **how).at(0)
        p = float(page_trend(doses).p)
    return RoundTrend(
        target=gaps.targets[column],
        arm=arm,
        gaps=intervals,
        correlation=correlation,
        p=p,
    )


def rounds_document(trends: Sequence[RoundTrend]) -> list[dict[str, Any]]:
    """Return the trends as JSON-able values."""
    return [
        {
            "target": trend.target,
            "arm": trend.arm,
            "gaps": [gap.rounded() for gap in trend.gaps],
            "rank_correlation": trend.correlation and trend.correlation.rounded(),
            "p": trend.p,
        }
        for trend in trends
    ]
