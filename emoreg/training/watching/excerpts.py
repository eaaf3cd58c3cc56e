"""A few Assistant turns as they were read: only where the user asked for texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emoreg.losses.term import Probe

_LONGEST = 1000
"""Characters of a turn that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Excerpt:
    """An Assistant turn, and what was read at its decision token."""

    text: str
    outcome: float | None
    readings: dict[str, float]
    """Z-score per emotion."""


@final
class Excerpts:
    """Keeps the latest training batch of this process, on the device, until asked."""

    def __init__(self, count: int) -> None:
        """Show at most `count` turns of a batch.

        Raises:
            ValueError: If it is negative.
        """
        if count < 0:
            raise ValueError(
                f"`log_texts` must be a number of turns, at least 0, got {count}"
            )
        self.count = count
        self._latest: tuple[Tensor, ...] | None = None

    def keep(
        self,
        probe: Probe,
        streams: Mapping[int, Float[Tensor, "batch pos d_model"]],
        input_ids: Int[Tensor, "batch pos"],
        assistant: Bool[Tensor, "batch pos"],
        *,
        positions: Int[Tensor, "batch turn"],
        turns: Bool[Tensor, "batch turn"],
        failure: Float[Tensor, "batch turn"],
    ) -> None:
        """Remember a batch in place of the last one; nothing leaves the device.

        Readings are the probe's at its first layer.
        """
        layer = probe.layers[0]
        rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
        readings = probe.read(streams[layer].detach()[rows, positions], layer=layer)
        self._latest = (input_ids, assistant, positions, turns, failure, readings)

    def take(self, tokenizer: Any, emotions: tuple[str, ...]) -> list[Excerpt]:
        """Return turns of the latest batch, those with an outcome first; forget it."""
        if self._latest is None:
            return []
        parts = [x.detach().cpu() for x in self._latest]
        ids, assistant, positions, turns, failure, readings = parts
        self._latest = None
        places = [(int(row), int(turn)) for row, turn in turns.nonzero()]
        places.sort(key=lambda place: bool(failure[place].isnan()))
        found = []
        for row, turn in places[: self.count]:
            start = int(positions[row, turn]) + 1
            spoken = assistant[row, start:]
            length = int(spoken.long().cumprod(0).sum())
            text = tokenizer.decode(ids[row, start : start + length])
            outcome = float(failure[row, turn])
            values = readings[row, turn].tolist()
            found.append(
                Excerpt(
                    text=str(text).strip()[:_LONGEST],
                    outcome=None if outcome != outcome else outcome,
                    readings=dict(zip(emotions, values, strict=True)),
                )
            )
        return found
