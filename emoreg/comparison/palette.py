"""The colours of pages and figures, by what they stand for, and how arms are drawn.

Okabe and Ito's, darker or lighter where their contrast asks for it. Text has 4.5 to 1
against its ground, lines and markers 3 to 1. Nothing is told by colour alone: versions
and arms also differ by marker and dash.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

LIGHT = {
    "bg": "#fbfaf7",
    "panel": "#ffffff",
    "ink": "#1b1d20",
    "muted": "#5c636c",
    "line": "#e6e4de",
    "zero": "#a9a8a2",
    "accent": "#1b1d20",
    "fail": "#d55e00",
    "pass": "#0072b2",
    "before": "#6f7681",
    "control": "#b0518a",
    "after": "#007a5e",
    "extra1": "#9a6a00",
    "extra2": "#56527e",
    "extra3": "#3f7f93",
    "lossband": "#faefd4",
    "auditband": "#e2f0fa",
    "cold": "#0072b2",
    "mid": "#f3f2ee",
    "warm": "#d55e00",
    "good": "#00694f",
    "bad": "#a83c00",
    "care": "#7a5300",
}
DARK = {
    "bg": "#131518",
    "panel": "#1a1d21",
    "ink": "#e9e8e3",
    "muted": "#a2a8b1",
    "line": "#2b2f35",
    "zero": "#5c626b",
    "accent": "#e9e8e3",
    "fail": "#f58b4c",
    "pass": "#5fb4ea",
    "before": "#a6adb8",
    "control": "#e29bc6",
    "after": "#3ecba6",
    "extra1": "#e6b24a",
    "extra2": "#a9a4dc",
    "extra3": "#8fd0e2",
    "lossband": "#30291a",
    "auditband": "#182a37",
    "cold": "#4aa3df",
    "mid": "#212429",
    "warm": "#f07f3c",
    "good": "#4ed3ae",
    "bad": "#ff9d66",
    "care": "#ecc06a",
}
TEXT = ("ink", "muted", "good", "bad", "care")
"""Those in which words are written."""
DRAWN = ("fail", "pass", "before", "control", "after", "extra1", "extra2", "extra3")
"""Those of lines and markers."""


@final
@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How an arm is drawn: in charts, in keys and tables, and in picture files."""

    colour: str
    """Its name in `LIGHT` and `DARK`."""
    symbol: str
    """Its marker, as plotly calls it."""
    marker: str
    """As matplotlib does."""
    path: str
    """As SVG draws it about 0, 0."""
    dash: tuple[int, ...]
    """Lengths of its line's dashes and gaps; none if it is solid."""


_ARMS = {
    "before": ArmStyle(
        "before",
        "circle",
        "o",
        "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",
        (2, 3),
    ),
    "control": ArmStyle("control", "square", "s", "M-2.8 -2.8h5.6v5.6h-5.6z", (6, 3)),
    "after": ArmStyle("after", "diamond", "D", "M0 -4l4 4l-4 4l-4 -4z", ()),
}
_FURTHER = (
    ArmStyle("extra1", "triangle-up", "^", "M0 -4l4 7h-8z", (7, 3, 2, 3)),
    ArmStyle(
        "extra2",
        "x",
        "X",
        "M-4 -2.2l1.8 -1.8l2.2 2.2l2.2 -2.2l1.8 1.8l-2.2 2.2l2.2 2.2l-1.8 1.8"
        "l-2.2 -2.2l-2.2 2.2l-1.8 -1.8l2.2 -2.2z",
        (11, 4),
    ),
    ArmStyle(
        "extra3",
        "cross",
        "P",
        "M-1.3 -4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
        (11, 3, 2, 3),
    ),
    ArmStyle("extra1", "triangle-down", "v", "M0 4l4 -7h-8z", (4, 2)),
    ArmStyle("extra2", "triangle-left", "<", "M-4 0l7 4v-8z", (8, 2, 2, 2, 2, 2)),
    ArmStyle("extra3", "triangle-right", ">", "M4 0l-7 4v-8z", (3, 6)),
)
ARM_COLOURS = tuple(dict.fromkeys(s.colour for s in (*_ARMS.values(), *_FURTHER)))


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """Return how arms are drawn; further ones get their styles in the order given."""
    names = list(dict.fromkeys(arms))
    further = iter(_FURTHER * len(names))
    return {arm: _ARMS.get(arm) or next(further) for arm in names}
