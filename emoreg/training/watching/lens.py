"""All readers at one layer, side by side: one product reads a residual stream."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sight:
    """What a lens reads, in float32."""

    scores: Float[Tensor, "batch pos column"]
    """z-scores: projections above the success level, in units of its spread."""
    cosines: Float[Tensor, "batch pos column"]
    """Of the angle between the centred stream and the direction."""
    norms: Float[Tensor, "batch pos"]
    """Length of the residual stream itself."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lens:
    """The directions of several readers and emotions at one layer.

    With `h` the residual stream, `c` the centre and `d` a direction, a score is
    `(<h - c, d> - level) / spread` and a cosine is `<h - c, d> / |h - c|`.
    """

    centre: Float[Tensor, " d_model"]
    directions: Float[Tensor, "column d_model"]
    level: Float[Tensor, " column"]
    spread: Float[Tensor, " column"]

    def to(self, device: torch.device) -> "Lens":
        """Return the lens on `device`, so that reading needs no copies."""
        return Lens(
            centre=self.centre.to(device),
            directions=self.directions.to(device),
            level=self.level.to(device),
            spread=self.spread.to(device),
        )

    def read(self, stream: Float[Tensor, "batch pos d_model"]) -> Sight:
        """Return what every direction reads at every token."""
        with torch.autocast(stream.device.type, enabled=False):
            centred = stream - self.centre  # in float32, whatever the stream is in
            projection = centred @ self.directions.T
            length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
            return Sight(
                scores=(projection - self.level) / self.spread,
                cosines=projection / length,
                norms=torch.linalg.vector_norm(stream, dim=-1, dtype=torch.float32),
            )
