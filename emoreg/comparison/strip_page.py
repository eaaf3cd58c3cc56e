"""The page of a strip: distributions over training, slopes by step, a table."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from emoreg.comparison.charts import (
    Chart,
    axis_title,
    base_layout,
    ends,
    interval_line,
    listed,
    plain_text,
    ridge,
)
from emoreg.comparison.curves import density
from emoreg.comparison.page import page_environment, plotly_source
from emoreg.comparison.phrases import percent
from emoreg.comparison.round_chart import limits

if TYPE_CHECKING:
    from emoreg.comparison.strip import Frame, Strip

ROW = 34
"""Pixels of a checkpoint in the ridgeline."""
STYLE = ("@fail", "circle", "solid")


def render_strip(strip: "Strip") -> str:
    """Return the page as text."""
    charts: dict[str, Chart] = {}
    panels = []
    for number, (target, frames) in enumerate(strip.frames.items()):
        charts[f"strip-{number}"] = _ridgeline(target, frames)
        charts[f"steps-{number}"] = _by_step(target, frames)
        panels.append({"target": target, "number": number})
    return (
        page_environment()
        .get_template("strip.html.j2")
        .render(
            strip=strip,
            panels=panels,
            charts=charts,
            said=[_said(strip, target) for target in strip.frames],
            ratio_text=ratio_text,
            plotlyjs=plotly_source(),
        )
    )


def _said(strip: "Strip", target: str) -> str:
    """Return whether and when a target's slope fell to the threshold, in words."""
    share = f"{100 * strip.threshold:g} %"
    if all(frame.left is None for frame in strip.frames[target][1:]):
        return f"{target}: no share is given, since the slope before carries none."
    step = strip.crossed(target)
    if step is None:
        return f"{target}: not shown to stay at {share} of its slope or below, in size."
    return f"{target}: at {share} of its slope or below, in size, from step {step} on."


def _by_step(target: str, frames: tuple["Frame", ...]) -> Chart:
    """Return the mean slope with its interval over the steps themselves."""
    slopes = [frame.slope for frame in frames]
    says = [
        f"{plain_text(target)}, step {frame.step}<br>{own.estimate:+.2f} "
        f"({own.low:+.2f} to {own.high:+.2f})"
        for frame, own in zip(frames, slopes, strict=True)
    ]
    steps = [float(frame.step) for frame in frames]
    line = interval_line(steps, ends(slopes), STYLE, name="slope", says=says)
    layout = base_layout(height=260, left=52)
    layout["xaxis"] |= {
        "title": axis_title("step"),
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
    }
    layout["yaxis"] |= {
        "title": axis_title("σ<sub>ref</sub>"),
        "zeroline": True,
        "nticks": 6,
        "range": limits(slopes),
    }
    return {"data": [line], "layout": layout}


def _ridgeline(target: str, frames: tuple["Frame", ...]) -> Chart:
    """Return a density of prompts' slopes for each checkpoint, the first on top.

    Each is as tall as the others, or a narrow one would leave wide ones no height.
    """
    every = np.concatenate([frame.slopes for frame in frames])
    low, high = min(0.0, float(every.min())), max(0.0, float(every.max()))
    margin = 0.1 * (high - low) or 1.0
    grid = np.linspace(low - margin, high + margin, 160)
    data: list[dict[str, Any]] = []
    for place, frame in enumerate(frames):
        floor, height = -place, density(np.asarray(frame.slopes), grid)
        tall = floor + 0.9 * height / height.max()
        data += ridge(grid, tall, floor, version="failing")
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": listed(frame.slopes),
                "y": [floor - 0.07] * len(frame.slopes),
                "marker": {"color": "@fail/0.6", "size": 3.5},
                "hovertemplate": f"{plain_text(target)}, step {frame.step}: "
                "%{x:.2f}<extra></extra>",
            }
        )
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": listed([frame.slope.estimate]),
                "y": [floor],
                "marker": {"color": "@ink", "size": 7, "symbol": "line-ns-open"},
                "hovertemplate": "mean %{x:.2f}<extra></extra>",
            }
        )
    layout = base_layout(height=70 + ROW * len(frames), left=52)
    layout["xaxis"] |= {
        "zeroline": True,
        "title": axis_title("failing minus passing, σ<sub>ref</sub>"),
    }
    layout["yaxis"] |= {
        "tickvals": [-place for place in range(len(frames))],
        "ticktext": [str(frame.step) for frame in frames],
        "range": [0.6 - len(frames), 1.05],
        "title": axis_title("step"),
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
    }
    return {"data": data, "layout": layout}


def ratio_text(frame: "Frame") -> str:
    """Return the share left in percent, a dash where none is given."""
    found = frame.left
    if found is None or not math.isfinite(found.estimate):
        return "–"
    return percent(found)
