"""What losses came to since the last log line, by name, kept on the device."""

from typing import final

import torch
from torch import Tensor

from emoreg.losses.term import Reduce


@final
class Ledger:
    """Collects one value per name and step."""

    def __init__(self) -> None:
        """Start empty."""
        self._values: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor, *, part: bool = False) -> None:
        """Note a value; `part` adds it to the last one, of the same step."""
        kept = self._values.setdefault(name, [])
        if part and kept:
            kept[-1] = kept[-1] + value.detach()
        else:
            kept.append(value.detach())

    def take(self, name: str, reduce: Reduce, processes: int) -> float | None:
        """Return the mean over steps and processes, and forget it; None if empty."""
        values = self._values.pop(name, [])
        if not values:
            return None
        return float(reduce(torch.stack(values).mean())) / processes
