"""The page's section on the emotions' plane, and what its figures draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.charts import (
    Chart,
    arm_styles,
    axis_title,
    base_layout,
    ends,
    error_bar,
    listed,
    plain_text,
)
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.curves import arm_label, arm_order, short
from emoreg.comparison.moves import Move
from emoreg.comparison.plane import KNOWN, Plane
from emoreg.statistics.bootstrap import Interval

FIRST = ("desperate", "calm")
"""Named in any case."""
_LABELS = 18
_ROOM = 360.0
"""Pixels across the smallest figure, for which labels must not meet."""
_LETTER, _LINE = 6.2, 15.0


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlaneView:
    """What a figure of the plane draws, in the unit of the states."""

    reach: float
    """Half the length of both axes; 0 is in the middle."""
    emotions: Float[np.ndarray, "emotion axis"]
    """The emotions' coordinates, all stretched alike to fill the figure."""
    labels: tuple[tuple[int, bool], ...]
    """Emotions that have room for their name, and whether it stands to the left."""
    moves: tuple[Move, ...]


def plane_section(
    comparison: Comparison,
) -> tuple[dict[str, Any] | None, dict[str, Chart]]:
    """Return what the page's template shows, and its chart by element."""
    plane = comparison.plane
    if plane is None:
        return None, {}
    section = {
        "key": "plane",
        "axes": axis_titles(plane),
        "named": [name for name in plane.names if name],
        "shares": plane.shares,
        "order": plane.order,
        "known": {" and ".join(poles): words for poles, words in KNOWN.items()},
        "reader": plane.reader,
        "layer": plane.layer,
        "rows": _ordered(comparison),
    }
    return section, {"plane": _plane_chart(comparison, plane)}


def axis_titles(plane: Plane) -> tuple[str, str]:
    """Return each axis's component, what it follows where told, and its share."""
    across, up = (
        f"component {number}{f', {name}' if name else ''} "
        f"({100 * share:.0f} % of the spread)"
        for number, name, share in zip(
            plane.components, plane.names, plane.shares, strict=True
        )
    )
    return across, up


def plane_view(comparison: Comparison, plane: Plane) -> PlaneView:
    """Return the states' extent, the emotions stretched to it, and their labels."""
    moves = _ordered(comparison)
    bounds = [
        bound
        for move in moves
        for axis in (*move.start, *move.head)
        for bound in (axis.estimate, axis.low, axis.high)
    ]
    reach = 1.12 * float(np.abs(bounds).max(initial=0.0)) or 1.0
    longest = float(np.abs(plane.coordinates).max()) or 1.0
    spots = plane.coordinates * (0.9 * reach / longest)
    return PlaneView(
        reach=reach,
        emotions=spots,
        labels=_labels(plane.emotions, spots, moves, reach),
        moves=moves,
    )


def _ordered(comparison: Comparison) -> tuple[Move, ...]:
    """Return the moves with failing ones first, arms as figures show them."""
    order = arm_order(comparison.arms)
    versions = ("failing", "passing")
    return tuple(
        sorted(
            comparison.moves,
            key=lambda move: (versions.index(move.version), order.index(move.arm)),
        )
    )


def _labels(
    emotions: Sequence[str],
    spots: Float[np.ndarray, "emotion axis"],
    moves: Sequence[Move],
    reach: float,
) -> tuple[tuple[int, bool], ...]:
    """Return which emotions are named: those that one looks for, if they have room.

    Desperate and calm always are, then the words that name the axes, then those that
    lie furthest out.
    """
    known = [words[k] for k in range(4) for words in KNOWN.values()]
    far = np.argsort(-np.abs(spots).max(axis=1), kind="stable")
    wanted = dict.fromkeys([*FIRST, *known, *(emotions[int(k)] for k in far)])
    scale = _ROOM / (2 * reach)
    taken = [box for move in moves for box in _marks(move, scale)]
    found: list[tuple[int, bool]] = []
    for name in wanted:
        if name not in emotions or len(found) == _LABELS:
            continue
        row = emotions.index(name)
        width = _LETTER * len(short(name)) + 8
        sides = []
        for left in (bool(spots[row, 0] > 0), not spots[row, 0] > 0):
            middle = scale * spots[row] + ((-1 if left else 1) * width / 2, 0.0)
            box = _box(middle, width, _LINE)
            outside = np.abs(box).max() > _ROOM / 2
            meets = any(_meet(box, other) for other in taken)
            sides.append((outside or meets, left, box))
        crowded, left, box = min(sides, key=lambda side: side[0])
        if not crowded or name in FIRST:
            taken.append(box)
            found.append((row, left))
    return tuple(found)


def _marks(move: Move, scale: float) -> list[Float[np.ndarray, "end axis"]]:
    """Return what a move's markers and the whiskers at its head take up, in pixels."""
    bounds = np.array([(axis.low, axis.high) for axis in move.head])
    middle, across, up = bounds.mean(axis=1), *(bounds[:, 1] - bounds[:, 0])
    ends = [_box(scale * _spot(at), 16.0, 16.0) for at in (move.start, move.head)]
    whiskers = ((scale * across, 4.0), (4.0, scale * up))
    head = scale * _spot(move.head)
    middles = ((scale * middle[0], head[1]), (head[0], scale * middle[1]))
    return ends + [
        _box(np.array(at), *size) for at, size in zip(middles, whiskers, strict=True)
    ]


def _spot(at: Sequence[Interval]) -> Float[np.ndarray, " axis"]:
    return np.array([axis.estimate for axis in at])


def _box(
    middle: Float[np.ndarray, " axis"], width: float, height: float
) -> Float[np.ndarray, "end axis"]:
    half = np.array([width / 2, height / 2])
    return np.stack([middle - half, middle + half])


def _meet(
    one: Float[np.ndarray, "end axis"], other: Float[np.ndarray, "end axis"]
) -> bool:
    return bool((one[0] < other[1]).all() and (other[0] < one[1]).all())


def _plane_chart(comparison: Comparison, plane: Plane) -> Chart:
    """Return the emotions as points, and an arrow for each arm and version."""
    view = plane_view(comparison, plane)
    styles = arm_styles(arm_order(comparison.arms))
    data, arrows = [_points(plane, view), *_named(plane, view)], []
    for move in view.moves:
        colour, symbol, _ = styles[move.arm]
        data += [
            _end(move, styles["before"], "before"),
            _end(move, (colour, symbol, ""), move.arm),
        ]
        arrows.append(_arrow(move, colour))
    layout = base_layout(height=520, left=46)
    for key, title in zip(("xaxis", "yaxis"), axis_titles(plane), strict=True):
        layout[key] |= {
            "range": [-view.reach, view.reach],
            "zeroline": True,
            "nticks": 7,
            "title": axis_title(title),
        }
    # One unit is as long up as across, or arrows would point elsewhere.
    layout["yaxis"] |= {"scaleanchor": "x", "scaleratio": 1}
    layout["annotations"] = arrows
    return {"data": data, "layout": layout}


def _points(plane: Plane, view: PlaneView) -> Chart:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": listed(view.emotions[:, 0]),
        "y": listed(view.emotions[:, 1]),
        "text": [plain_text(name) for name in plane.emotions],
        "marker": {"size": 4, "color": "@muted/0.45"},
        "hovertemplate": "%{text}<extra></extra>",
    }


def _named(plane: Plane, view: PlaneView) -> list[Chart]:
    """Return the labels, desperate and calm in the ink of the page."""
    traces = []
    for first in (False, True):
        own = [
            (row, left)
            for row, left in view.labels
            if (plane.emotions[row] in FIRST) == first
        ]
        rows = [row for row, _ in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": listed(view.emotions[rows, 0]),
                "y": listed(view.emotions[rows, 1]),
                "text": [plain_text(short(plane.emotions[row])) for row in rows],
                "textposition": [
                    f"middle {'left' if left else 'right'}" for _, left in own
                ],
                "textfont": {
                    "size": 12 if first else 11,
                    "color": "@ink" if first else "@muted",
                },
                "marker": {
                    "size": 6 if first else 4,
                    "color": "@ink" if first else "@muted",
                },
                "hoverinfo": "skip",
            }
        )
    return traces


def _end(move: Move, style: tuple[str, str, str], arm: str) -> Chart:
    """Return where a move begins, or its head with the interval of the change."""
    colour, symbol, _ = style
    failing = move.version == "failing"
    x, y = move.start if arm == "before" else move.head
    label = plain_text(f"{arm_label(arm)}, {move.version}")
    mark: Chart = {
        "type": "scatter",
        "mode": "markers",
        "x": listed([x.estimate]),
        "y": listed([y.estimate]),
        "text": [f"{label}<br>{x.estimate:+.2f} across, {y.estimate:+.2f} up"],
        "marker": {
            "size": 10,
            "symbol": symbol,
            "color": colour if failing else "@panel",
            "line": {"width": 2, "color": colour},
        },
        "hovertemplate": "%{text}<extra></extra>",
    }
    if arm != "before":
        mark["error_x"] = error_bar(*ends([x]), colour)
        mark["error_y"] = error_bar(*ends([y]), colour)
    return mark


def _arrow(move: Move, colour: str) -> Chart:
    (x, y), (x0, y0) = (_spot(at).tolist() for at in (move.head, move.start))
    return {
        **{"x": x, "y": y, "ax": x0, "ay": y0, "text": "", "showarrow": True},
        **{"xref": "x", "yref": "y", "axref": "x", "ayref": "y"},
        **{"arrowhead": 2, "arrowsize": 1, "arrowwidth": 1.8, "arrowcolor": colour},
        **{"standoff": 6, "startstandoff": 6},
    }
