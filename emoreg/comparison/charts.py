"""The page's interactive figures as plain plotly dictionaries.

Colours are tokens such as "@fail" or "@fail/0.2": the page resolves them from its
style sheet, so one palette serves light, dark and print.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emoreg.comparison import palette
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.curves import (
    Heat,
    Sample,
    TrainingPanel,
    arm_label,
    arm_order,
    short,
)
from emoreg.comparison.figures import FigureSet
from emoreg.statistics.bootstrap import Interval

Chart = dict[str, Any]
Style = tuple[str, str, str]
"""Colour token, marker and dash."""
RIDGE = 0.72
"""Height of the tallest ridge; the rest of a row holds the points."""


def arm_styles(arms: Sequence[str]) -> dict[str, Style]:
    """Return how charts draw each arm; further ones differ by their place."""
    return {
        arm: (f"@{s.colour}", s.symbol, ",".join(f"{n}px" for n in s.dash) or "solid")
        for arm, s in palette.arm_styles(arms).items()
    }


def distribution_chart(
    comparison: Comparison, drawn: Mapping[tuple[str, str], Sample]
) -> Chart:
    """Return ridgelines of failing and passing prompts, one ridge per arm."""
    order = arm_order(comparison.arms)
    tallest = max(float(sample.density.max()) for sample in drawn.values())
    names = [plain_text(prompt) for prompt in comparison.prompts]
    data = []
    for number, arm in enumerate(reversed(order)):
        for version in ("passing", "failing"):
            sample = drawn[arm, version]
            height = number + RIDGE * sample.density / tallest
            data += ridge(sample.grid, height, number, version=version)
            data.append(_rug(sample.values, names, number, arm=arm, version=version))
    layout = base_layout(height=92 * len(order) + 62, left=74)
    grid = next(iter(drawn.values())).grid
    layout["xaxis"] |= {
        "title": axis_title("σ<sub>ref</sub> above success"),
        "range": [float(grid[0]), float(grid[-1])],
        "zeroline": True,
    }
    layout["yaxis"] |= {
        "range": [-0.28, len(order) - 0.2],
        "tickvals": list(range(len(order))),
        "ticktext": [plain_text(short(arm, 10)) for arm in reversed(order)],
        "ticklabelstandoff": 6,
        "showgrid": False,
        "zeroline": False,
    }
    return {"data": data, "layout": layout}


def slope_chart(
    figures: FigureSet,
    reader: str,
    target: str,
    *,
    plan: Mapping[str, Sequence[int]],
    limits: tuple[float, float],
) -> Chart:
    """Return the failure slope by layer with its interval, one line per arm."""
    order = arm_order(tuple(figures.arms))
    at, column = figures.readers.index(reader), figures.targets.index(target)
    data = []
    for number, (arm, style) in enumerate(arm_styles(order).items()):
        slope = figures.arms[arm].slope
        bounds = (
            slope.estimate[at, :, column],
            slope.low[at, :, column],
            slope.high[at, :, column],
        )
        shift = 0.16 * (number - (len(order) - 1) / 2)
        label = plain_text(arm_label(arm))
        hover = [
            f"{label}, layer {place}<br>{m:+.2f} ({lo:+.2f} to {hi:+.2f})"
            for place, m, lo, hi in zip(figures.places, *bounds, strict=True)
        ]
        places = [place + shift for place in range(len(figures.places))]
        data.append(interval_line(places, bounds, style, name=label, says=hover))
    layout = base_layout(height=236, left=40)
    layout["xaxis"] |= {
        "tickvals": list(range(len(figures.places))),
        "ticktext": list(figures.places),
        "range": [-0.6, len(figures.places) - 0.4],
        "title": axis_title("layer"),
        "showgrid": False,
        "zeroline": False,
    }
    layout["yaxis"] |= {"zeroline": True, "nticks": 6, "range": list(limits)}
    layout["shapes"] = _layer_bands(figures.places, plan)
    return {"data": data, "layout": layout}


def heat_chart(heat: Heat, *, largest: float) -> Chart:
    """Return a change per emotion and layer on a scale symmetric about zero."""
    rows = [plain_text(short(emotion)) for emotion in heat.emotions]
    hover = [
        [f"{plain_text(emotion)}, layer {layer}" for layer in heat.layers]
        for emotion in heat.emotions
    ]
    trace = {
        "type": "heatmap",
        "x": [str(layer) for layer in heat.layers],
        "y": list(range(len(rows))),
        "z": [listed(row) for row in heat.values],
        "zmin": -largest,
        "zmax": largest,
        "colorscale": [[0, "@cold"], [0.5, "@mid"], [1, "@warm"]],
        "xgap": 1,
        "ygap": 1,
        "text": hover,
        "hovertemplate": "%{text}: %{z:+.2f} σ<sub>ref</sub><extra></extra>",
        "colorbar": {
            "orientation": "h",
            "thickness": 8,
            "len": 0.6,
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "bottom",
            "outlinewidth": 0,
            "tickfont": {"size": 11, "color": "@muted"},
        },
    }
    layout = base_layout(height=15 * len(rows) + 78, left=92)
    layout["margin"]["t"] = 34
    layout["xaxis"] |= {
        "type": "category",
        "title": axis_title("layer"),
        "showgrid": False,
    }
    layout["yaxis"] |= {
        "autorange": "reversed",
        "showgrid": False,
        "tickfont": {"size": 11, "color": "@ink"},
        "tickvals": list(range(len(rows))),
        "ticktext": rows,
    }
    return {"data": [trace], "layout": layout}


def training_chart(panel: TrainingPanel, arms: Sequence[str]) -> Chart:
    """Return one logged quantity over the training steps; `arms` are all there are."""
    styles = arm_styles(arms)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": steps,
            "y": values,
            "name": plain_text(arm_label(arm)),
            "line": {"color": styles[arm][0], "width": 1.8, "dash": styles[arm][2]},
            "hovertemplate": plain_text(arm) + ", step %{x}: %{y:.4g}<extra></extra>",
        }
        for arm, (steps, values) in panel.lines.items()
    ]
    layout = base_layout(height=180, left=46)
    layout["xaxis"] |= {
        "title": axis_title("step"),
        "showgrid": False,
        "zeroline": False,
    }
    layout["yaxis"] |= {"nticks": 5}
    return {"data": data, "layout": layout}


def ridge(grid: Any, height: Any, floor: int, *, version: str) -> list[Chart]:
    """Return a density that stands on `floor`, filled, in the colour of a version."""
    colour = "@fail" if version == "failing" else "@pass"
    base = {"type": "scatter", "mode": "lines", "x": listed(grid), "hoverinfo": "skip"}
    return [
        base | {"y": [floor] * len(grid), "line": {"width": 0}},
        base
        | {
            "y": listed(height),
            "name": version,
            "fill": "tonexty",
            "fillcolor": f"{colour}/{0.22 if version == 'failing' else 0.10}",
            "line": {
                "color": colour,
                "width": 1.8,
                "dash": "solid" if version == "failing" else "4px,3px",
            },
        },
    ]


def _rug(values: Any, names: list[str], floor: int, *, arm: str, version: str) -> Chart:
    failing = version == "failing"
    label = f"{plain_text(arm)}, {version}"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": listed(values),
        "y": [floor - (0.08 if failing else 0.18)] * len(values),
        "text": names,
        "marker": {
            "symbol": "circle" if failing else "diamond-open",
            "size": 4.5 if failing else 5,
            "color": "@fail/0.7" if failing else "@pass/0.9",
            "line": {"width": 1 if not failing else 0, "color": "@pass/0.9"},
        },
        "hovertemplate": f"%{{text}}, {label}: %{{x:.2f}}<extra></extra>",
    }


def _layer_bands(
    places: tuple[str, ...], plan: Mapping[str, Sequence[int]]
) -> list[Chart]:
    """Shade the layers the loss acted on and those the audit reads."""
    shapes = []
    for group, colour in (("loss", "@lossband"), ("audit", "@auditband")):
        for layer in plan.get(group, ()):
            if len(plan.get(group, ())) == len(places):
                continue
            at = places.index(str(layer))
            shapes.append(
                {
                    "type": "rect",
                    "xref": "x",
                    "yref": "paper",
                    "x0": at - 0.5,
                    "x1": at + 0.5,
                    "y0": 0,
                    "y1": 1,
                    "fillcolor": colour,
                    "line": {"width": 0},
                    "layer": "below",
                }
            )
    return shapes


def base_layout(*, height: int, left: int) -> Chart:
    """Return the layout that all figures of the pages share."""
    axis = {
        "gridcolor": "@line",
        "zerolinecolor": "@zero",
        "zerolinewidth": 1,
        "tickfont": {"size": 11, "color": "@muted"},
        "fixedrange": True,
        "automargin": False,
        "ticks": "",
    }
    return {
        "height": height,
        "margin": {"l": left, "r": 10, "t": 8, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "@ink"},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "@panel", "font": {"color": "@ink", "size": 12}},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }


def interval_line(
    places: Sequence[float],
    bounds: tuple[Any, Any, Any],
    style: Style,
    *,
    name: str,
    says: Sequence[str],
) -> Chart:
    """Return a line with a marker and an interval at each place.

    Args:
        places: On the horizontal axis.
        bounds: Estimates, lower ends and upper ones.
        style: Of the line and its markers.
        name: What a legend calls it, in plotly's markup.
        says: What is shown when a marker is pointed at, likewise.
    """
    colour, symbol, dash = style
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(places),
        "y": listed(bounds[0]),
        "error_y": error_bar(*bounds, colour),
        "line": {"color": colour, "width": 1.6, "dash": dash},
        "marker": {"color": colour, "size": 6, "symbol": symbol},
        "text": list(says),
        "hovertemplate": "%{text}<extra></extra>",
    }


def error_bar(middle: Any, low: Any, high: Any, colour: str) -> Chart:
    """Return the whiskers of points, from arrays in the axis's unit."""
    return {
        "type": "data",
        "symmetric": False,
        "array": listed(high - middle),
        "arrayminus": listed(middle - low),
        "thickness": 1.2,
        "width": 0,
        "color": colour,
    }


def ends(intervals: Sequence[Interval]) -> tuple[Any, Any, Any]:
    """Return the estimates of intervals, their lower ends and their upper ones."""
    names = ("estimate", "low", "high")
    middle, low, high = (np.array([getattr(i, n) for i in intervals]) for n in names)
    return middle, low, high


def axis_title(text: str) -> Chart:
    """Return the title of an axis."""
    return {"text": text, "font": {"size": 11, "color": "@muted"}, "standoff": 6}


def plain_text(value: str) -> str:
    """Escape what plotly would read as markup."""
    return html.escape(str(value), quote=True)


def listed(values: Any) -> list[float | None]:
    """Return four significant digits, so the page stays small."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values]
