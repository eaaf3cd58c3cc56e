"""The page's section on paired changes: its rows, and the shift of each decile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from emoreg.comparison.changes import ChangeRow, Changes, change_rows
from emoreg.comparison.charts import (
    Chart,
    axis_title,
    base_layout,
    listed,
    plain_text,
)

_STYLE = {
    "failing": ("@fail", "circle", "solid", 0.2),
    "passing": ("@pass", "diamond-open", "4px,3px", 0.1),
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeSection:
    """One pair of arms as the template shows it."""

    arm: str
    against: str
    n: int
    detectable: float
    """The smallest `d_z` that so many prompts show with 80 % power."""
    rows: list[ChangeRow]
    panels: dict[str, str]
    """Target by chart."""


def changes_section(
    changes: Sequence[Changes],
) -> tuple[list[ChangeSection], dict[str, Chart]]:
    """Return what the template shows of each pair of arms, and charts by element."""
    charts: dict[str, Chart] = {}
    sections = []
    for own in changes:
        low, high = shift_limits(own)
        panels = {}
        for column, target in enumerate(own.shifted):
            key = f"shift-{own.against}-{column}"
            charts[key] = _shift_chart(own, column)
            charts[key]["layout"]["yaxis"]["range"] = [low, high]
            panels[key] = target
        sections.append(
            ChangeSection(
                arm=own.arm,
                against=own.against,
                n=own.n,
                detectable=own.detectable,
                rows=change_rows(own),
                panels=panels,
            )
        )
    return sections, charts


def shift_limits(changes: Changes) -> tuple[float, float]:
    """Return one vertical axis for all shifts of a pair of arms, zero on it."""
    shifts = changes.shifts.values()
    low = min(0.0, *(float(s.low.min(initial=0.0)) for s in shifts))
    high = max(0.0, *(float(s.high.max(initial=0.0)) for s in shifts))
    pad = 0.06 * (high - low) or 1.0
    return low - pad, high + pad


def _shift_chart(changes: Changes, column: int) -> Chart:
    data = []
    for side, shift in changes.shifts.items():
        colour, symbol, dash, shade = _STYLE[side]
        place, middle, low, high = (
            getattr(shift, name)[:, column]
            for name in ("first", "shift", "low", "high")
        )
        line = {"type": "scatter", "mode": "lines", "x": listed(place)}
        data.append(
            line | {"y": listed(low), "line": {"width": 0}, "hoverinfo": "skip"}
        )
        data.append(
            line
            | {
                "y": listed(high),
                "line": {"width": 0},
                "fill": "tonexty",
                "fillcolor": f"{colour}/{shade}",
                "hoverinfo": "skip",
            }
        )
        data.append(
            line
            | {
                "mode": "lines+markers",
                "y": listed(middle),
                "line": {"color": colour, "width": 1.6, "dash": dash},
                "marker": {"color": colour, "size": 5.5, "symbol": symbol},
                "text": [
                    f"{side}, {100 * level:.0f} % point at {at:+.2f}<br>"
                    f"{m:+.2f} ({lo:+.2f} to {hi:+.2f})"
                    for level, at, m, lo, hi in zip(
                        shift.levels, place, middle, low, high, strict=True
                    )
                ],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    layout = base_layout(height=240, left=46)
    spot = plain_text(changes.against)
    layout["xaxis"] |= {"title": axis_title(f"decile {spot}"), "zeroline": False}
    layout["yaxis"] |= {"zeroline": True, "nticks": 6}
    return {"data": data, "layout": layout}
