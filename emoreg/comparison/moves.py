"""How far failing and succeeding states moved on the emotions' plane."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.figures import Levels, Units
from emoreg.comparison.plane import Plane
from emoreg.statistics.bootstrap import Interval, bootstrap_mean


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Where one version's states lie before, in one arm, and how far they moved.

    Means over prompts at decision tokens, across and up, paired by prompt. The unit is
    the `sigma_ref` of the middle emotion, 0 the reference's mean after passing
    feedback.
    """

    arm: str
    version: str
    start: tuple[Interval, Interval]
    change: tuple[Interval, Interval]

    @property
    def head(self) -> tuple[Interval, Interval]:
        """Where the arrow ends; its interval is that of the change."""
        ends = []
        for start, change in zip(self.start, self.change, strict=True):
            at = start.estimate
            parts = (at + change.estimate, at + change.low, at + change.high)
            ends.append(
                Interval(estimate=parts[0], low=parts[1], high=parts[2], n=change.n)
            )
        return ends[0], ends[1]


def moves_on(
    plane: Plane,
    levels: Mapping[str, Levels],
    units: Units,
    *,
    readers: Sequence[str],
    layers: Sequence[int],
    n_resamples: int,
    seed: int,
) -> tuple[Move, ...]:
    """Return every arm's moves from before, failing and passing, over prompts.

    Args:
        plane: Of the same vectors.
        levels: By arm, per layer, emotions first.
        units: What the levels are in.
        readers: The levels' readers.
        layers: Their layers.
        n_resamples: Of the bootstrap.
        seed: Of it.
    """
    at = readers.index(plane.reader), layers.index(plane.layer)
    sigma = units.sigma[at]
    how: Any = {"n_resamples": n_resamples, "seed": seed, "keep": False, "expand": True}

    def positions(arm: str, version: str) -> Float[np.ndarray, "prompt axis"]:
        level = getattr(levels[arm], version)[:, *at, : len(sigma)]
        # Back to projections, all in one unit: only so are the axes those of the
        # residual stream, and not of how steady each emotion's reading is.
        return plane.positions(level * sigma / np.median(sigma))

    found = []
    for arm, version in product(levels, ("failing", "passing")):
        if arm == "before":
            continue
        before, after = positions("before", version), positions(arm, version)
        start, change = (bootstrap_mean(x, **how) for x in (before, after - before))
        found.append(
            Move(
                arm=arm,
                version=version,
                start=(start.at(0), start.at(1)),
                change=(change.at(0), change.at(1)),
            )
        )
    return tuple(found)


def plane_document(plane: Plane | None, moves: Sequence[Move]) -> dict[str, Any] | None:
    """Return both as JSON-able values; None without a plane."""
    if plane is None:
        return None
    rows = [
        {
            "arm": move.arm,
            "version": move.version,
            "start": [axis.rounded() for axis in move.start],
            "change": [axis.rounded() for axis in move.change],
        }
        for move in moves
    ]
    return {**plane.described(), "moves": rows}
