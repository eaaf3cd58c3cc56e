"""A chart of every arm by round of feedback, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emoreg.comparison.charts import (
    Chart,
    Style,
    axis_title,
    base_layout,
    ends,
    interval_line,
    plain_text,
)
from emoreg.comparison.curves import arm_label
from emoreg.statistics.bootstrap import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One arm after one round."""

    place: str
    """What stands below it."""
    interval: Interval
    says: str
    """What is shown when it is pointed at, in plotly's markup."""


def round_chart(
    arms: Mapping[str, Sequence[Point]],
    styles: Mapping[str, Style],
    *,
    across: str,
    up: str,
) -> Chart:
    """Return lines with intervals, arms side by side at each round, zero on the axis.

    Args:
        arms: By arm, its points.
        styles: By arm.
        across: Title of the horizontal axis.
        up: Of the vertical one.
    """
    data = []
    for number, (arm, points) in enumerate(arms.items()):
        shift = 0.09 * (number - (len(arms) - 1) / 2)
        data.append(
            interval_line(
                [place + shift for place in range(len(points))],
                ends([point.interval for point in points]),
                styles[arm],
                name=plain_text(arm_label(arm)),
                says=[point.says for point in points],
            )
        )
    places = max(arms.values(), key=len)
    layout = base_layout(height=260, left=52)
    layout["xaxis"] |= {
        "tickvals": list(range(len(places))),
        "ticktext": [point.place for point in places],
        "range": [-0.5, len(places) - 0.5],
        "title": axis_title(across),
        "showgrid": False,
        "zeroline": False,
    }
    layout["yaxis"] |= {
        "zeroline": True,
        "nticks": 6,
        "title": axis_title(up),
        "range": limits([p.interval for points in arms.values() for p in points]),
    }
    return {"data": data, "layout": layout}


def limits(intervals: Sequence[Interval]) -> list[float]:
    """Return an axis on which intervals and zero have room."""
    _, lows, highs = ends(intervals)
    low, high = min(0.0, float(lows.min())), max(0.0, float(highs.max()))
    pad = 0.06 * (high - low) or 1.0
    return [low - pad, high + pad]
