"""What pages of checks share: a section for each check, its figures and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emoreg.comparison.charts import Chart, axis_title, base_layout, listed, plain_text
from emoreg.comparison.page import page_environment, plotly_source
from emoreg.validation.check import Check, Curves, Figure, Matrix

LINES = ("@before", "@after", "@control", "@extra1", "@extra2", "@extra3")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
CONTROLS = ("chance", "random", "shuffled", "embedding")
"""Control columns of a table come in this order, then any others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One check as the page shows it."""

    key: str
    check: Check
    figures: tuple[Figure, ...]
    """Those of all emotions together."""
    details: tuple[Figure, ...]
    """Those of one emotion each."""
    panels: tuple[tuple[str, str], ...]
    """Element ids and titles of its pictures."""


def render_checks(
    template: str,
    checks: Sequence[Check],
    *,
    page: Any,
    tiles: Sequence[Mapping[str, str]],
    **more: Any,
) -> str:
    """Return a page of checks as text.

    Args:
        template: Its file; it extends `checks.html.j2`.
        checks: In the order in which they stand on the page.
        page: What the template calls `page`; it has `facts` and `headline`.
        tiles: Key numbers of the verdict box: label, value and note.
        more: What else the template needs.
    """
    charts: dict[str, Chart] = {}
    sections = [_section(i, check, charts) for i, check in enumerate(checks)]
    return (
        page_environment()
        .get_template(template)
        .render(
            page=page,
            sections=sections,
            tiles=tiles,
            controls_of=controls_of,
            statuses=STATUSES,
            charts=charts,
            plotlyjs=plotly_source() if charts else "",
            **more,
        )
    )


STATUSES = {
    "passed": "passed",
    "missed": "missed",
    "not evidence": "withheld",
    "not run": "withheld",
    "no threshold": "withheld",
}
"""Style of each verdict."""


def controls_of(figures: tuple[Figure, ...]) -> list[str]:
    """Return the controls that any of the figures has, in the pages' order."""
    named = {name for figure in figures for name in figure.controls}
    return [n for n in CONTROLS if n in named] + sorted(named - set(CONTROLS))


def _section(number: int, check: Check, charts: dict[str, Chart]) -> Section:
    key, panels = f"check-{number}", []
    for place, picture in enumerate(check.pictures):
        name = f"{key}-{place}"
        matrix = isinstance(picture, Matrix)
        charts[name] = matrix_chart(picture) if matrix else curves_chart(picture)
        panels.append((name, picture.title))
    return Section(
        key=key,
        check=check,
        figures=tuple(f for f in check.figures if not f.emotion),
        details=tuple(f for f in check.figures if f.emotion),
        panels=tuple(panels),
    )


def matrix_chart(matrix: Matrix) -> Chart:
    """Return a heat map; red and blue around zero where values have both signs."""
    values = np.asarray(matrix.values, dtype=float)
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 1.0
    signed = bool((finite < 0).any())
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": [listed(row) for row in values],
        "x": [plain_text(name) for name in matrix.columns],
        "y": [plain_text(name) for name in matrix.rows],
        "zmin": -largest if signed else 0.0,
        "zmax": largest or 1.0,
        "colorscale": _scale(signed=signed),
        "hovertemplate": "%{y}, %{x}: %{z:.3g}<extra></extra>",
        "colorbar": {
            "thickness": 8,
            "outlinewidth": 0,
            "tickfont": {"size": 11, "color": "@muted"},
        },
    }
    tall = len(matrix.rows)
    layout = base_layout(height=min(900, max(150, 13 * tall + 110)), left=110)
    layout["margin"] |= {"b": 90, "r": 50}
    # The names may be long: the figure makes room for them.
    names = {"type": "category", "showgrid": False, "automargin": True}
    layout["xaxis"] |= names | {"tickangle": -60}
    layout["yaxis"] |= names | {"autorange": "reversed"}
    return {"data": [trace], "layout": layout}


def curves_chart(curves: Curves) -> Chart:
    """Return lines over a common axis, told apart by colour and dash."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": listed(np.asarray(curves.x, dtype=float)),
            "y": listed(np.asarray(values, dtype=float)),
            "name": plain_text(name),
            "line": {
                "color": LINES[place % len(LINES)],
                "dash": DASHES[place % len(DASHES)],
                "width": 1.8,
            },
            "marker": {"size": 5},
            "hovertemplate": f"{plain_text(name)}: %{{x}}, %{{y:.3g}}<extra></extra>",
        }
        for place, (name, values) in enumerate(curves.series.items())
    ]
    layout = base_layout(height=270, left=54)
    layout["showlegend"] = True
    layout["legend"] = {"orientation": "h", "y": -0.28, "font": {"size": 11}}
    layout["margin"]["b"] = 84
    layout["xaxis"] |= {"title": axis_title(curves.x_title), "showgrid": False}
    layout["yaxis"] |= {"title": axis_title(curves.y_title), "nticks": 6}
    return {"data": data, "layout": layout}


def _scale(*, signed: bool) -> list[list[Any]]:
    if signed:
        return [[0, "@pass"], [0.5, "@bg"], [1, "@fail"]]
    return [[0, "@bg"], [1, "@accent"]]
