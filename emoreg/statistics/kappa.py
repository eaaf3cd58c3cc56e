"""How far two readers agree beyond chance."""

from collections.abc import Sequence

import numpy as np

from emoreg.statistics.bootstrap import Interval, resample_counts


def kappa(
    labels: Sequence[tuple[str, str]],
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return Cohen's kappa of two readers' labels, with a bootstrap interval.

    `(p_o - p_e) / (1 - p_e)`, `p_o` the share of alike labels, `p_e` that of two
    readers who draw labels as often as these did (Cohen 1960,
    https://doi.org/10.1177/001316446002000104). Percentiles over items; resamples in
    which both readers give one label alone say nothing and are left out.

    Args:
        labels: Each item's label by the first and by the second reader.
        confidence: Of the interval.
        n_resamples: How many.
        seed: Of the resamples.

    Raises:
        ValueError: With fewer than two items.

    Example:
        >>> same = [("a", "a"), ("b", "b"), ("a", "a"), ("b", "a")]
        >>> kappa(same).estimate
        0.5
    """
    if len(labels) < 2:
        raise ValueError(
            f"agreement must be over at least 2 items, found {len(labels)}. Add some"
        )
    names = sorted({name for pair in labels for name in pair})
    codes = np.array([[names.index(name) for name in pair] for pair in labels])
    # Items by pair of labels: a resample's table is its counts of these.
    cell = codes[:, 0] * len(names) + codes[:, 1]
    items = np.eye(len(names) ** 2)[cell]
    counts = resample_counts(len(labels), n_resamples=n_resamples, seed=seed)
    tables = np.concatenate([np.ones((1, len(labels))), counts]) @ items
    found = _kappa(tables.reshape(-1, len(names), len(names)))
    tail = (1 - confidence) / 2
    drawn = found[1:][np.isfinite(found[1:])]
    low, high = np.quantile(drawn, (tail, 1 - tail)) if len(drawn) else (np.nan,) * 2
    return Interval(
        estimate=float(found[0]), low=float(low), high=float(high), n=len(labels)
    )


def _kappa(tables: np.ndarray) -> np.ndarray:
    """Return kappa of tables of counts; NaN where it is 0 by 0."""
    total = tables.sum(axis=(1, 2))
    alike = np.trace(tables, axis1=1, axis2=2) / total
    margins = tables.sum(axis=2) * tables.sum(axis=1)
    chance = margins.sum(axis=1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1, (alike - chance) / (1 - chance), np.nan)
