"""How far two distributions are apart, with p-values that respect clusters.

Textbook p-values of the Kolmogorov-Smirnov statistic take all numbers as independent.
Here the models' labels are swapped within whole clusters instead.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int, Int8, Shaped

from emoreg.statistics.bootstrap import (
    Intervals,
    Missing,
    check_settings,
    complete_pairs,
    resample_times,
)
from emoreg.statistics.bounds import percentile_bounds
from emoreg.statistics.permutation import (
    check_flips,
    flip_signs,
    is_exact,
    p_value,
)

_TIE = 1e-10
"""By what share a flip's distance may fall short of an observed one that it equals."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Distances:
    """Distances of two distributions per figure, and their nulls."""

    ks: Float[np.ndarray, "*figure"]
    """Kolmogorov-Smirnov: the largest gap of the distribution functions, 0 to 1."""
    ks_p: Float[np.ndarray, "*figure"]
    wasserstein: Float[np.ndarray, "*figure"]
    """Wasserstein-1: the area between them, in the unit of the values."""
    wasserstein_p: Float[np.ndarray, "*figure"]
    wasserstein_null: Float[np.ndarray, "*figure"]
    """Its mean over the swaps: what to expect of two equal models. A distance is
    never below zero, so it is to be read against this."""
    n: int
    """Clusters."""
    n_flips: int
    exact: bool


def swapped_distances(
    first: Float[np.ndarray, " cluster one *figure"],
    second: Float[np.ndarray, " other two *figure"],
    *,
    n_flips: int = 10_000,
    seed: int = 0,
) -> Distances:
    """Return both distances with p-values from swapping models within clusters.

    With `F_i` and `G_i` the two empirical distribution functions of cluster `i`, and
    each cluster counted once, `D(x) = mean_i s_i (F_i(x) - G_i(x))`; all `s_i` are 1
    as observed, and random signs under the null. KS is `max |D|`, Wasserstein-1 the
    integral of `|D|`. A swap takes all numbers of a cluster, so samples or tokens of
    one cluster may depend on each other in any way. Exact enumeration, and the 1 that
    is added otherwise, as in `sign_flip`.

    Per figure the work is `n_flips` times all numbers: for headline figures rather
    than for every layer.

    Args:
        first: Numbers of each cluster under one model; NaN where there are fewer. For
            one number per cluster `values[:, None]`.
        second: Under the other model; it may have more or fewer per cluster.
        n_flips: As in `sign_flip`.
        seed: Shares flips with `sign_flip` at the same seed.

    Raises:
        ValueError: If clusters or figures do not match, there are fewer than two
            clusters, one has no number at all, or a number is infinite.

    Example:
        >>> x = np.arange(6.0)[:, None]
        >>> found = swapped_distances(x, x + 2.0)
        >>> float(found.wasserstein), float(found.wasserstein_p)  # 2 of 64 swaps
        (2.0, 0.03125)
    """
    check_flips(n_flips)
    _check(first, second)
    n, shape = first.shape[0], first.shape[2:]
    one = np.asarray(first, dtype=np.float64).reshape(n, first.shape[1], -1)
    two = np.asarray(second, dtype=np.float64).reshape(n, second.shape[1], -1)

    exact = is_exact(n, n_flips)
    signs = np.ascontiguousarray(flip_signs(n, n_flips=n_flips, seed=seed).T)
    found = np.empty((5, one.shape[2]))
    for k in range(one.shape[2]):
        found[:, k] = _one_figure(one[..., k], two[..., k], signs, exact=exact)
    ks, ks_p, area, area_p, null = (row.reshape(shape) for row in found)
    return Distances(
        ks=ks,
        ks_p=ks_p,
        wasserstein=area,
        wasserstein_p=area_p,
        wasserstein_null=null,
        n=n,
        n_flips=2**n if exact else n_flips,
        exact=exact,
    )


def bootstrap_wasserstein(
    first: Float[np.ndarray, " one *figure"],
    second: Float[np.ndarray, " two *figure"],
    *,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    missing: Missing = "refuse",
) -> Intervals:
    """Return the Wasserstein-1 distance of paired samples with a percentile interval.

    A resample draws whole pairs; with its counts `c` the distance is the integral of
    `|sum_i c_i (1[a_i <= x] - 1[b_i <= x])| / n`. A distance is never below zero, so
    resamples lie above the distance and the interval never reaches zero: whether there
    is a difference at all is for `swapped_distances` to say.

    Args:
        first: One number per cluster and figure.
        second: The same clusters in the same order.
        n_resamples: This and the rest as in `bootstrap_mean`.
        confidence: Larger widens the interval.
        seed: Shares resamples with `bootstrap_mean` at the same seed.
        missing: With "drop" a cluster is dropped from both.

    Raises:
        ValueError: As `bootstrap_ratio` does.

    Example:
        >>> x = np.arange(6.0)
        >>> found = bootstrap_wasserstein(x, x + 2.0).at()
        >>> [round(end, 6) for end in (found.estimate, found.low, found.high)]
        [2.0, 2.0, 2.0]
    """
    check_settings(n_resamples, confidence)
    flat, dropped = complete_pairs(first, second, missing=missing)
    n, shape = len(flat), first.shape[1:]
    times = resample_times(n, n_resamples=n_resamples, seed=seed)
    estimate, low, high = np.empty((3, flat.shape[2]))
    for figure in range(flat.shape[2]):
        walk = _steps(flat[:, :1, figure], flat[:, 1:, figure])
        [estimate[figure]] = _walked(*walk, np.ones((n, 1)))[1]
        drawn = _walked(*walk, times)[1]
        ends = percentile_bounds(drawn[None], confidence=confidence)
        low[figure], high[figure] = (end[0] for end in ends)
    return Intervals(
        estimate=estimate.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        n=n,
        dropped=dropped,
        confidence=confidence,
        method="percentile",
    )


def _one_figure(
    one: Float[np.ndarray, "cluster one"],
    two: Float[np.ndarray, "cluster two"],
    signs: Int8[np.ndarray, "cluster flip"],
    *,
    exact: bool,
) -> tuple[float, float, float, float, float]:
    """Return KS, its p, Wasserstein-1, its p and its mean under the null."""
    walk = _steps(one, two)
    [ks], [area] = _walked(*walk, np.ones((len(one), 1)))
    heights, areas = _walked(*walk, signs)
    reached = (heights >= ks * (1 - _TIE)).sum(), (areas >= area * (1 - _TIE)).sum()
    p = p_value(np.array(reached), len(areas), exact=exact)
    return float(ks), float(p[0]), float(area), float(p[1]), float(areas.mean())


def _walked(
    values: Float[np.ndarray, " number"],
    steps: Float[np.ndarray, " number"],
    owner: Int[np.ndarray, " number"],
    times: Shaped[np.ndarray, "cluster draw"],
) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Return the largest `|D|` and the area below it, of every draw.

    From number to number, all draws at once: ten thousand running sums stay in a
    core's cache, where their whole paths would not.

    Args:
        values: All numbers in order, with the two that follow, by `_steps`.
        steps: By how much each moves `D`.
        owner: Its cluster.
        times: How often a draw has each cluster; -1 where its models are swapped.
    """
    height, size, largest, area = np.zeros((4, times.shape[1]))
    moves = zip(steps.tolist(), owner.tolist(), np.diff(values).tolist(), strict=False)
    for step, cluster, gap in moves:
        np.multiply(times[cluster], step, out=size)
        height += size
        if gap > 0:  # within a tie the functions have not stepped in full
            np.abs(height, out=size)
            np.maximum(largest, size, out=largest)
            size *= gap
            area += size
    return largest, area


def _steps(
    one: Float[np.ndarray, "cluster one"], two: Float[np.ndarray, "cluster two"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all numbers in order, by how much each moves `D`, and its cluster."""
    values, steps, owner = [], [], []
    for sample, sign in ((one, 1.0), (two, -1.0)):
        there = ~np.isnan(sample)
        weight = sign / (len(sample) * there.sum(axis=1))
        clusters = np.nonzero(there)[0]
        values.append(sample[there])
        steps.append(weight[clusters])
        owner.append(clusters)
    pooled = np.concatenate(values)
    order = np.argsort(pooled, kind="stable")
    return pooled[order], np.concatenate(steps)[order], np.concatenate(owner)[order]


def _check(first: np.ndarray, second: np.ndarray) -> None:
    same = len(first) == len(second) and first.shape[2:] == second.shape[2:]
    if not same or len(first) < 2:
        raise ValueError(
            "Both models need the same figures of the same 2 clusters or more, found "
            f"shapes {first.shape} and {second.shape}; order both by prompt."
        )
    for sample in (first, second):
        if np.isinf(sample).any():
            raise ValueError(
                "The numbers must be finite, or NaN for padding, found infinities; "
                "look for an overflow in the readings."
            )
        if np.isnan(sample).all(axis=1).any():
            raise ValueError(
                "Each cluster needs a number under both models, found one without; "
                "leave out prompts that one model has no reading of."
            )
