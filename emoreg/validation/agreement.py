"""How far two files of vectors agree: for drift, and for vectors of another origin."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import subspace_angles

from emoreg.vectors.emotion_vectors import EmotionVectors


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Agreement:
    """Agreement of the directions that two files share."""

    reader: str
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    cosines: Float[np.ndarray, "layer emotion"]
    """Of each direction with its namesake."""
    angles: Float[np.ndarray, "layer angle"]
    """Principal angles between the spans of all shared directions, in radians,
    largest first: 0 where the spans share a direction, pi/2 where one is orthogonal
    to all of the other."""

    def __str__(self) -> str:
        """Return a line per layer."""
        lines = [
            f"layer {layer}: cosine {row.mean():.3f} (lowest {row.min():.3f}, "
            f"{self.emotions[int(row.argmin())]}), largest angle "
            f"{np.degrees(angles[0]):.0f} degrees"
            for layer, row, angles in zip(
                self.layers, self.cosines, self.angles, strict=True
            )
        ]
        return "\n".join(lines)


def agreement(
    one: EmotionVectors, other: EmotionVectors, *, reader: str | None = None
) -> Agreement:
    """Return how far `one` and `other` agree, where both have a direction.

    Args:
        one: Vectors, for instance of a model before training.
        other: Vectors of the same width, for instance of it after.
        reader: Which directions; the first that both have when None.

    Raises:
        ValueError: If the widths differ, or no reader, layer or emotion is shared.
    """
    if one.d_model != other.d_model:
        raise ValueError(
            "both files must have one width (d_model) to be compared, got "
            f"{one.d_model} and {other.d_model}"
        )
    readers = [r for r in one.readers if r in other.readers]
    layers = tuple(layer for layer in one.layers if layer in other.layers)
    emotions = tuple(e for e in one.emotions if e in other.emotions)
    shares = (("a reader", readers), ("a layer", layers), ("an emotion", emotions))
    for what, shared in shares:
        if not shared:
            raise ValueError(
                f"both files must share {what} to be compared; they share none"
            )
    reader = readers[0] if reader is None else reader
    cosines, angles = [], []
    for layer in layers:
        a, b = (
            v.subset(emotions).unit_directions(layer=layer, reader=reader).double()
            for v in (one, other)
        )
        cosines.append((a * b).sum(-1).numpy())
        angles.append(subspace_angles(a.T.numpy(), b.T.numpy()))
    return Agreement(
        reader=reader,
        layers=layers,
        emotions=emotions,
        cosines=np.stack(cosines),
        angles=np.stack(angles),
    )
