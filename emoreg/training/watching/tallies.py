"""Mean, spread and distribution of readings, kept as sums that add up.

Sums of batches, of micro-batches and of processes are the sums of the whole, so one
reduce per log line is enough, and nothing leaves the device before.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_LOW, _HIGH, _WIDTH = -6.0, 6.0, 0.25
_INNER = int((_HIGH - _LOW) / _WIDTH)
_BINS = _INNER + 2
"""Bins of a quarter standard deviation, and an open one at each end."""
_HEAD = 3
"""Weight, weighted sum, weighted sum of squares; then the bins."""
_FEWEST = 20
"""A 5th percentile of fewer readings says nothing."""
EDGES = tuple(_LOW + _WIDTH * k for k in range(-1, _INNER + 2))
"""Where bins begin and end; the first and the last also hold all that lies beyond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """How readings are distributed: their weight in each bin between `EDGES`."""

    counts: tuple[float, ...]
    total: float
    """Weighted sum of the readings themselves, not of bins."""
    squares: float
    """Weighted sum of their squares."""


def tally(
    values: Float[Tensor, "place column"], weights: Float[Tensor, "group place"]
) -> Float[Tensor, "group column sum"]:
    """Return the sums of one batch, of all groups at once."""
    bins = _histogram(values, weights)
    total, squares = totals(values, weights), totals(values, weights, power=2)
    count = weights.to(total.dtype).sum(1, keepdim=True).expand_as(total)
    moments = torch.stack([count, total, squares], dim=2)
    return torch.cat([moments, bins.to(total.dtype)], dim=2)


def totals(
    values: Float[Tensor, "place column"],
    weights: Float[Tensor, "group place"],
    *,
    power: int = 1,
) -> Float[Tensor, "group column"]:
    """Return weighted sums; values of weight 0 may hold anything."""
    # In float64: a spread is the small difference of two large sums.
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    counted = weights.to(exact).unsqueeze(2)
    kept = torch.where(counted > 0, values.to(exact), 0.0)
    return (counted * kept.pow(power)).sum(1)


def _histogram(
    values: Float[Tensor, "place column"], weights: Float[Tensor, "group place"]
) -> Float[Tensor, "group column bin"]:
    place = ((values - _LOW) / _WIDTH).floor().clamp(-1, _INNER) + 1
    # What is not finite is in no bin.
    counted = torch.where(values.isfinite().T, weights.unsqueeze(1), 0.0)
    bin_of = place.nan_to_num(0.0).long().T.expand_as(counted)
    counts = weights.new_zeros(*counted.shape[:2], _BINS)
    # Where weights are 0 and 1 the sums are exact, so that their order, which is not
    # fixed on a GPU, is no matter.
    return counts.scatter_add_(2, bin_of, counted)


def figures(sums: Float[np.ndarray, " sum"]) -> dict[str, float]:
    """Return what the sums of one reading say, with as much as their count allows.

    Returns:
        `""` the mean; from two readings on `_std`; from twenty on `_p05` and `_p95`,
        interpolated within a quarter standard deviation, at most 6 from zero.
    """
    count, total, squares = (float(x) for x in sums[:_HEAD])
    if count <= 0:
        return {}
    mean = total / count
    found = {"": mean}
    if count >= 2:
        # Not by `max`, which takes 0 over NaN.
        variance = np.maximum(0.0, squares / count - mean * mean)
        found["_std"] = float(variance) ** 0.5
    reached = sums[_HEAD:].cumsum()
    if count >= _FEWEST and reached[-1] > 0:
        found["_p05"] = _quantile(reached, 0.05)
        found["_p95"] = _quantile(reached, 0.95)
    return found


def histogram(sums: Float[np.ndarray, " sum"]) -> Histogram | None:
    """Return how the readings of one emotion lie; None where none lies anywhere.

    One that is not finite is in no bin.
    """
    _, total, squares, *counts = sums.tolist()
    if sum(counts) <= 0:
        return None
    return Histogram(counts=tuple(counts), total=total, squares=squares)


def _quantile(reached: Float[np.ndarray, " bin"], share: float) -> float:
    wanted = share * float(reached[-1])
    at = int(np.searchsorted(reached, wanted))
    if at == 0:
        return _LOW
    if at >= _BINS - 1:
        return _HIGH
    before, after = float(reached[at - 1]), float(reached[at])
    return _LOW + _WIDTH * (at - 1 + (wanted - before) / (after - before))
