"""One direction through the layers, to be added to and taken from others."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Direction:
    """A vector per layer, in the model's own units: `calm - desperate`.

    `EmotionVectors.of(direction)` makes vectors of it, to read or to steer with.
    """

    name: str
    layers: tuple[int, ...]
    values: Float[Tensor, "layer d_model"]

    def __add__(self, other: "Direction") -> "Direction":
        """Return the sum, layer by layer."""
        self._check(other)
        return self._made(f"{self.name} + {other.name}", self.values + other.values)

    def __sub__(self, other: "Direction") -> "Direction":
        """Return the difference, layer by layer."""
        self._check(other)
        return self._made(f"{self.name} - {other.name}", self.values - other.values)

    def __mul__(self, factor: float | int) -> "Direction":
        """Return the direction `factor` times as long."""
        return self._made(f"{factor:g} {self.name}", factor * self.values)

    __rmul__ = __mul__

    def __neg__(self) -> "Direction":
        """Return the direction turned round."""
        return self._made(f"-{self.name}", -self.values)

    def cosine(self, other: "Direction") -> Float[Tensor, " layer"]:
        """Return the cosine with another direction at each layer."""
        self._check(other)
        return torch.nn.functional.cosine_similarity(self.values, other.values, dim=-1)

    def _made(self, name: str, values: Any) -> "Direction":
        return Direction(name=name, layers=self.layers, values=values)

    def _check(self, other: "Direction") -> None:
        if (self.layers, self.values.shape) != (other.layers, other.values.shape):
            raise ValueError(
                "directions must be of the same layers and width to be combined, got "
                f"layers {self.layers} of width {self.values.shape[-1]} and "
                f"{other.layers} of width {other.values.shape[-1]}"
            )
