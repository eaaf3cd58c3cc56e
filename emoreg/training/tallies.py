"""Mean, spread and distribution of readings, kept as sums that add up.

Sums of batches, of micro-batches and of processes are the sums of the whole, so one
reduce per log line is enough, and nothing leaves the device before.
"""

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


def tally(
    values: Float[Tensor, "batch place emotion"], weight: Float[Tensor, "batch place"]
) -> Float[Tensor, "emotion sum"]:
    """Return the sums of one batch; values of weight 0 may hold anything."""
    # In float64: a spread is the small difference of two large sums.
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    kept = torch.where((weight > 0).unsqueeze(-1), values, 0.0).flatten(0, 1).to(exact)
    flat = weight.flatten().to(exact)
    count = flat.sum().expand(kept.shape[1])
    moments = [count, flat @ kept, flat @ kept.square()]
    place = ((kept - _LOW) / _WIDTH).floor().clamp(-1, _INNER) + 1
    # By comparison: a scatter's order of additions is not fixed on a GPU.
    bins = place.unsqueeze(-1) == torch.arange(_BINS, device=kept.device)
    counts = torch.einsum("peb,p->eb", bins.to(exact), flat)
    return torch.cat([torch.stack(moments, dim=1), counts], dim=1)


def figures(sums: Float[Tensor, " sum"]) -> dict[str, float]:
    """Return what the sums of one emotion say, with as much as their count allows.

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
        found["_std"] = max(0.0, squares / count - mean * mean) ** 0.5
    if count >= _FEWEST:
        found["_p05"] = _quantile(sums[_HEAD:], 0.05)
        found["_p95"] = _quantile(sums[_HEAD:], 0.95)
    return found


def _quantile(counts: Float[Tensor, " bin"], share: float) -> float:
    reached = counts.cumsum(0)
    wanted = share * float(reached[-1])
    at = int(torch.searchsorted(reached, reached.new_tensor(wanted)))
    if at == 0:
        return _LOW
    if at >= _BINS - 1:
        return _HIGH
    before, within = float(reached[at - 1]), float(counts[at])
    return _LOW + _WIDTH * (at - 1 + (wanted - before) / within)
