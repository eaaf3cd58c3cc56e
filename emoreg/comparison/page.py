"""What all pages share: the templates' environment, and how numbers are written."""

from pathlib import Path
from typing import Any

import numpy as np

from emoreg.comparison.phrases import percent, signed, span


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
        "figure": _figure_number,
        "unit": _unit,
    }
    return environment


def plotly_source() -> str:
    """Return the source of plotly, which a page carries once."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


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
