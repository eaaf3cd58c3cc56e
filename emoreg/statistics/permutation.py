"""Sign-flip permutation of clusters, and the maximum over a family of figures.

The null: the two models could be exchanged prompt by prompt, so that each prompt's
difference could as well have had the other sign. All figures share the flips, so what
is correlated between figures stays so, and the largest of many has its own null.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, final

import numpy as np
from jaxtyping import Float, Int8

from emoreg.statistics.bootstrap import Missing, complete_clusters

Alternative = Literal["two-sided", "greater", "less"]

# Flipped figures held at once, as many as a core's cache holds.
_CHUNK_NUMBERS = 400_000
# What counts as equal to the observed statistic, which lies between -1 and 1: ties
# are common (whole numbers, the flip of all signs) and rounding must not break them.
_TIE = 1e-10


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SignFlips:
    """p-values of many figures from shared sign flips."""

    mean: Float[np.ndarray, "*figure"]
    """Mean over clusters, in the unit of the values."""
    t: Float[np.ndarray, "*figure"]
    """Mean over its standard error; infinite where all clusters agree."""
    p: Float[np.ndarray, "*figure"]
    """Each figure by itself."""
    p_max: Float[np.ndarray, "*figure"]
    """Adjusted for all figures of the call: rejecting where it is at most alpha makes
    one false rejection or more with probability alpha at most."""
    n: int
    """Clusters used."""
    dropped: int
    """Clusters left out because one of their figures was NaN."""
    n_flips: int
    """Flips tried; all there are if `exact`."""
    exact: bool


def sign_flip(
    values: Float[np.ndarray, " cluster *figure"],
    *,
    alternative: Alternative = "two-sided",
    n_flips: int = 10_000,
    seed: int = 0,
    missing: Missing = "refuse",
) -> SignFlips:
    """Return p-values for a mean of zero, by flipping the signs of whole clusters.

    Per figure: the share of flips whose mean is as extreme as the observed one. If all
    `2^n` flips are no more than `n_flips` they are enumerated; else `n_flips` are drawn
    and `p = (1 + reached) / (1 + n_flips)` (Phipson and Smyth 2010,
    https://doi.org/10.2202/1544-6115.1585).

    Over all figures of the call: step-down max-T (Westfall and Young 1993; Ge, Dudoit
    and Speed 2003, https://doi.org/10.1007/BF02595811, Box 2). Figures are ordered by
    |t|; the null of the k-th is the flips' maximum over it and all below it. Exact
    under exchange; if skewed differences merely have mean zero, for many clusters.

    Args:
        values: One difference per cluster and figure, in any unit.
        alternative: Whether both ends count, or means above or below zero alone.
        n_flips: The smallest p is `1 / (1 + n_flips)`.
        seed: Calls that share it and the number of clusters share their flips.
        missing: As in `bootstrap_mean`.

    Raises:
        ValueError: For `n_flips` below 1, and as `bootstrap_mean` does.

    Example:
        >>> found = sign_flip(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
        >>> found.exact, float(found.p)  # 2 of 32 flips: none and all
        (True, 0.0625)
    """
    check_flips(n_flips)
    kept, dropped = complete_clusters(values, missing=missing)
    n, shape = len(kept), kept.shape[1:]
    flat = kept.reshape(n, math.prod(shape))
    # sum / sqrt(n * sum of squares) is between -1 and 1 and rises with t.
    length = np.sqrt(n * (flat**2).sum(axis=0))
    unit = flat / np.where(length == 0, 1.0, length)
    observed = _oriented(unit.sum(axis=0), alternative)
    order = np.argsort(-observed, kind="stable")
    signs = flip_chunks(n, n_flips=n_flips, seed=seed, width=len(order))
    own, largest, tried = _reached(unit[:, order], observed[order], signs, alternative)
    exact = is_exact(n, n_flips)
    p, p_max = np.empty(len(order)), np.empty(len(order))
    p[order] = p_value(own, tried, exact=exact)
    p_max[order] = np.maximum.accumulate(p_value(largest, tried, exact=exact))
    return SignFlips(
        mean=flat.mean(axis=0).reshape(shape),
        t=_t(flat).reshape(shape),
        p=p.reshape(shape),
        p_max=p_max.reshape(shape),
        n=n,
        dropped=dropped,
        n_flips=tried,
        exact=exact,
    )


def _reached(
    unit: Float[np.ndarray, "cluster figure"],
    observed: Float[np.ndarray, " figure"],
    flips: Iterator[Float[np.ndarray, "flip cluster"]],
    alternative: Alternative,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return how many flips reach each figure, or do so in it or any below; and all.

    Figures are in order of how extreme they are.
    """
    own, largest = np.zeros(len(observed), int), np.zeros(len(observed), int)
    level, tried = observed - _TIE, 0
    for signs in flips:
        flipped = _oriented(signs @ unit, alternative)
        own += (flipped >= level).sum(axis=0)
        highest = np.maximum.accumulate(flipped[:, ::-1], axis=1)[:, ::-1]
        largest += (highest >= level).sum(axis=0)
        tried += len(signs)
    return own, largest, tried


def is_exact(n: int, n_flips: int) -> bool:
    """Return whether all flips of `n` clusters are no more than were asked for.

    Example:
        >>> is_exact(13, 10_000), is_exact(14, 10_000)
        (True, False)
    """
    return n < 63 and 2**n <= n_flips


@lru_cache(maxsize=4)
def flip_signs(n: int, *, n_flips: int, seed: int) -> Int8[np.ndarray, "flip cluster"]:
    """Return signs, one row per flip: all of them, or drawn ones (read-only).

    Example:
        >>> flip_signs(2, n_flips=4, seed=0).tolist()
        [[1, 1], [-1, 1], [1, -1], [-1, -1]]
    """
    if is_exact(n, n_flips):
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        generator = np.random.default_rng(seed)
        bits = generator.integers(0, 2, size=(n_flips, n), dtype=np.int8)
    signs = (1 - 2 * bits).astype(np.int8)
    signs.setflags(write=False)  # cached and shared between calls
    return signs


def flip_chunks(
    n: int, *, n_flips: int, seed: int, width: int
) -> Iterator[Float[np.ndarray, "flip cluster"]]:
    """Yield the flips as doubles, so many at once that `width` numbers each fit.

    Example:
        >>> [chunk.shape for chunk in flip_chunks(3, n_flips=8, seed=0, width=9)]
        [(8, 3)]
    """
    signs = flip_signs(n, n_flips=n_flips, seed=seed)
    size = max(1, _CHUNK_NUMBERS // max(n, width))
    for start in range(0, len(signs), size):
        yield signs[start : start + size].astype(np.float64)


def p_value(
    reached: np.ndarray, tried: int, *, exact: bool
) -> Float[np.ndarray, "*figure"]:
    """Return the share of flips that reached the observed; drawn ones count it too.

    Example:
        >>> p_value(np.array([0, 9]), 9, exact=False).tolist()
        [0.1, 1.0]
    """
    return reached / tried if exact else (1 + reached) / (1 + tried)


def check_flips(n_flips: int) -> None:
    """Raise a ValueError for a number of flips that gives no p-value."""
    if n_flips < 1:
        raise ValueError(
            f"`n_flips` must be at least 1, got {n_flips}; 10000 is usual."
        )


def _oriented(
    statistic: Float[np.ndarray, "*any"], alternative: Alternative
) -> Float[np.ndarray, "*any"]:
    """Return the statistic such that larger is more extreme."""
    if alternative == "two-sided":
        return np.abs(statistic)
    return statistic if alternative == "greater" else -statistic


def _t(flat: Float[np.ndarray, "cluster figure"]) -> Float[np.ndarray, " figure"]:
    mean, n = flat.mean(axis=0), len(flat)
    # The spread of equal numbers is rounding; it is nothing.
    spread = np.where(np.ptp(flat, axis=0) == 0, 0.0, flat.std(axis=0, ddof=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean == 0, 0.0, mean / (spread / np.sqrt(n)))
