"""States on the plane of the emotion vectors' first two principal components."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:  # it brings torch along, which tables are compared without
    from emoreg.vectors.emotion_vectors import EmotionVectors

FEWEST: Final = 8
"""Emotions that a plane must have: two components hold nearly all of fewer."""
APART: Final = 0.9
"""An axis bears a name where that share of pairs of known words is in order."""
KNOWN: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("pleasant", "aroused"): ("excited", "thrilled", "ecstatic", "enthusiastic"),
    ("pleasant", "quiet"): ("calm", "peaceful", "relaxed", "serene"),
    ("unpleasant", "aroused"): ("panicked", "terrified", "furious", "outraged"),
    ("unpleasant", "quiet"): ("gloomy", "depressed", "listless", "weary"),
}
"""Words whose valence and arousal are plain; they name and turn the axes, and place
nothing."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plane:
    """Where the emotions lie on their vectors' first two principal components.

    With `D` the unit directions of one reader at one layer, centred over emotions, and
    `D = U S V'` its singular value decomposition, an emotion's coordinates are its row
    of the first two columns of `U S`. In the paper these two follow valence and
    arousal (https://transformer-circuits.pub/2026/emotions/index.html); whether they
    do so here is what `names` says.
    """

    reader: str
    layer: int
    emotions: tuple[str, ...]
    coordinates: Float[np.ndarray, "emotion axis"]
    components: tuple[int, int]
    """Which component, from 1, each axis is: across, then up."""
    shares: tuple[float, float]
    """Share of the spread of the directions that each axis holds."""
    names: tuple[str, str]
    """`valence`, `arousal`, or empty where the axis orders neither."""
    order: Mapping[str, tuple[float, float]]
    """By name, the share of pairs of known words in that order on each axis, in the
    worse one of two groups: 1 is always, 0.5 is chance."""

    def positions(
        self, projections: Float[np.ndarray, "*state emotion"]
    ) -> Float[np.ndarray, "*state axis"]:
        """Return where states lie, from their projections on all emotions.

        The least-squares solution `b` of `p_e - mean(p) = <c_e, b>` over emotions `e`,
        with `p` the projections and `c` the coordinates. As projections are inner
        products with the same directions, `b` is the state's own coordinates on the
        two components, in the unit of `projections`.
        """
        centred = projections - projections.mean(axis=-1, keepdims=True)
        return centred @ np.linalg.pinv(self.coordinates).T

    def described(self) -> dict[str, Any]:
        """Return it JSON-able, rounded, for a table's `meta`."""
        return {
            "reader": self.reader,
            "layer": self.layer,
            "emotions": list(self.emotions),
            "coordinates": self.coordinates.round(5).tolist(),
            "components": list(self.components),
            "shares": [round(share, 4) for share in self.shares],
            "names": list(self.names),
            "order": {k: [round(x, 3) for x in v] for k, v in self.order.items()},
        }

    @classmethod
    def restored(cls, found: Mapping[str, Any]) -> "Plane":
        """Return what `described` wrote."""
        names = ("emotions", "components", "shares", "names")
        return cls(
            reader=found["reader"],
            layer=found["layer"],
            coordinates=np.asarray(found["coordinates"], np.float64),
            order={name: tuple(pair) for name, pair in found["order"].items()},
            **{name: tuple(found[name]) for name in names},
        )


def plane_of(vectors: "EmotionVectors", layers: Sequence[int]) -> Plane | None:
    """Return the plane of the emotion vectors proper at the middle one of `layers`.

    Args:
        vectors: The first of their readers gives the directions.
        layers: Those an audit reads, of which the vectors may lack some.

    Returns:
        None for fewer than `FEWEST` emotions, or where there is no such layer.
    """
    held = [layer for layer in layers if layer in vectors.layers]
    if len(vectors.emotions) < FEWEST or not held:
        return None
    reader, layer = vectors.readers[0], held[len(held) // 2]
    units = vectors.unit_directions(layer=layer, reader=reader).double().numpy()
    left, sizes, _ = np.linalg.svd(units - units.mean(0), full_matrices=False)
    shares = sizes**2 / (sizes**2).sum()
    columns = [_turned(left[:, k] * sizes[k], vectors.emotions) for k in (0, 1)]
    names = _names(columns, vectors.emotions)
    # Valence lies across and arousal up, as it is drawn everywhere.
    across = 1 if names[0] == "arousal" or names[1] == "valence" else 0
    axes = (across, 1 - across)
    x, y = (columns[k] for k in axes)
    poles = ("valence", "arousal")
    return Plane(
        reader=reader,
        layer=layer,
        emotions=vectors.emotions,
        coordinates=np.stack([x, y], axis=1),
        components=(axes[0] + 1, axes[1] + 1),
        shares=(float(shares[axes[0]]), float(shares[axes[1]])),
        names=(names[axes[0]], names[axes[1]]),
        order={
            n: (_order(x, vectors.emotions, n), _order(y, vectors.emotions, n))
            for n in poles
        },
    )


def _order(
    column: Float[np.ndarray, " emotion"], emotions: tuple[str, ...], name: str
) -> float:
    """Return how well an axis orders valence, or arousal, in the worse half.

    The share of pairs (one word of each pole) in which the first lies higher: for
    valence among aroused words and among quiet ones, for arousal among pleasant and
    unpleasant ones, so that neither can stand in for the other. The share nearer to
    chance is returned; 0.5 where words are missing or the halves disagree.
    """
    side = 0 if name == "valence" else 1
    poles = (("pleasant", "unpleasant"), ("aroused", "quiet"))
    shares = []
    for other in poles[1 - side]:
        groups = []
        for pole in poles[side]:
            key = (pole, other) if side == 0 else (other, pole)
            words = [emotions.index(w) for w in KNOWN[key] if w in emotions]
            groups.append(column[words])
        if min(map(len, groups)) < 2:
            return 0.5
        shares.append(float((groups[0][:, None] > groups[1]).mean()))
    if (shares[0] - 0.5) * (shares[1] - 0.5) <= 0:
        return 0.5
    return min(shares, key=lambda share: abs(share - 0.5))


def _names(
    columns: Sequence[Float[np.ndarray, " emotion"]], emotions: tuple[str, ...]
) -> list[str]:
    """Return what each axis follows; empty where none orders the words well enough.

    Where both follow one thing, the one that orders it less well goes without.
    """

    def earned(names: Sequence[str]) -> list[float]:
        pairs = zip(columns, names, strict=True)
        found = [_order(column, emotions, name) for column, name in pairs]
        return [order if order >= APART else 0.0 for order in found]

    ways = permutations(("valence", "arousal"), len(columns))
    best = max(ways, key=lambda names: sum(earned(names)))
    return [n if at else "" for n, at in zip(best, earned(best), strict=True)]


def _turned(
    column: Float[np.ndarray, " emotion"], emotions: tuple[str, ...]
) -> Float[np.ndarray, " emotion"]:
    """Return an axis with its sign fixed, which a decomposition leaves open.

    Towards valence or arousal, whichever it orders better; where it orders neither,
    so that the longest coordinate is positive.
    """
    leans = [_order(column, emotions, name) - 0.5 for name in ("valence", "arousal")]
    lean = max(leans, key=abs)
    if lean == 0:
        lean = column[np.abs(column).argmax()]
    return column if lean > 0 else -column
