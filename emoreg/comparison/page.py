"""What all pages share: the templates' environment, and how numbers are written."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emoreg.comparison.palette import ARM_COLOURS, DARK, LIGHT, arm_styles
from emoreg.comparison.phrases import percent, signed, span
from emoreg.statistics.bootstrap import Interval

# As in page.html.j2, whose script resolves them for the page's colour scheme.
_TOKEN = re.compile(r"@([a-z0-9]+)(?:/([0-9.]+))?")


def page_environment() -> Any:
    """Return the environment of this folder's templates, which escapes all text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "span": span,
        "percent": percent,
        "share": share,
        "figure": _figure_number,
        "unit": _unit,
    }
    environment.globals |= {
        "light": LIGHT,
        "dark": DARK,
        "arm_colours": ARM_COLOURS,
        "arm_styles": arm_styles,
    }
    return environment


def plotly_source() -> str:
    """Return the source of plotly, which a page carries once."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def share(ratio: Interval) -> tuple[str, str]:
    """Return a ratio in per cent and its interval, as `percent` writes them."""
    value, _, ends = percent(ratio).partition(" (")
    return value, ends.removesuffix(")")


def plotly_figure(chart: Mapping[str, Any], title: str) -> Any:
    """Return a page's chart as a plotly figure, in the light colours, for notebooks.

    Args:
        chart: Data and layout, with colours by name.
        title: What stands above it, in plotly's markup; on a page its caption.
    """
    from plotly.graph_objects import Figure

    figure = Figure(_coloured(chart))
    layout: Any = figure.layout
    ground = LIGHT["panel"]
    # A page has a key of its own; here every line of a name is in the legend once.
    told = {None}
    for trace in figure.data:
        name = trace["name"]
        trace.update(showlegend=name not in told, legendgroup=name)
        told.add(name)
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0.01},
        showlegend=len(told) > 1,
        height=layout.height + 30,
        margin={"t": layout.margin.t + 30},
        paper_bgcolor=ground,
        plot_bgcolor=ground,
    )
    return figure


def _coloured(node: Any) -> Any:
    """Return a chart with its colours' names, "@fail" or "@fail/0.2", resolved."""
    if isinstance(node, Mapping):
        return {key: _coloured(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_coloured(value) for value in node]
    found = _TOKEN.fullmatch(node) if isinstance(node, str) else None
    if not found or found[1] not in LIGHT:
        return node
    colour = LIGHT[found[1]]
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{found[2]})" if found[2] else colour


def _unit(text: str) -> str:
    """Set the unit's index low and keep units with their numbers; escape the rest."""
    from markupsafe import Markup, escape

    joined = str(escape(text)).replace(" %", "\u00a0%").replace(" σ", "\u00a0σ")
    return Markup(joined.replace("σ_ref", "σ<sub>ref</sub>"))


def _figure_number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")
