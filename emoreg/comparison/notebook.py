"""The page's figures one by one, as plotly figures."""

from collections.abc import Callable, Mapping
from typing import Any

from emoreg.comparison.behavior import behavior_section
from emoreg.comparison.charts import Chart, axis_title, plain_text, training_chart
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.conduct import conduct_section
from emoreg.comparison.curves import training_panels
from emoreg.comparison.page import plotly_figure
from emoreg.comparison.plane_page import plane_section
from emoreg.comparison.report import figures_of
from emoreg.comparison.rounds_page import rounds_section
from emoreg.comparison.shifts import changes_section

Charts = Mapping[str, Chart]
"""By what is asked for: mostly a target."""
_UP = {
    "slopes": "failing minus passing, σ<sub>ref</sub>",
    "rounds": "failing minus passing, σ<sub>ref</sub>",
    "shifts": "shift, σ<sub>ref</sub>",
    "training": "as logged",
    "behavior": "margin, nat per token",
}
"""What the vertical axis is of, by section; a page says it in its text."""


def plot(comparison: Comparison, section: str, name: str) -> Any:
    """Return one figure of a section of the page.

    Raises:
        ValueError: If the section has no such figure, or none at all.
    """
    charts = _SECTIONS[section](comparison)
    if not charts:
        raise ValueError(
            f"the comparison must hold what its {section} are of, found nothing. Pass "
            "it to `emoreg.compare`"
        )
    if name not in charts:
        raise ValueError(
            f"`plot_{section}` must be asked for one of {'; '.join(charts)}; found "
            f"{name!r}. Pass one of these"
        )
    title = name.removesuffix(f", {comparison.audit_reader}")
    chart = charts[name]
    if section in _UP:
        titled = {"title": axis_title(_UP[section]), "automargin": True}
        chart["layout"]["yaxis"] |= titled
    return plotly_figure(chart, plain_text(title))


def _own(section: str) -> Callable[[Comparison], Charts]:
    def charts(comparison: Comparison) -> Charts:
        every, sections = figures_of(comparison)
        return {p.title: every[p.key] for p in sections.get(section, ())}

    return charts


def _slopes(comparison: Comparison) -> Charts:
    """Return them by target and reader; the audit reader's come first."""
    every, sections = figures_of(comparison)
    panels = sections.get("slopes", ())
    own = {f"{p.title}, {comparison.audit_reader}": p for p in panels}
    panels = own | {p.title: p for p in sections.get("others", ())}
    return {title: every[panel.key] for title, panel in panels.items()}


def _training(comparison: Comparison) -> Charts:
    """Return all curves, of which the page shows a few."""
    arms = (*comparison.arms, *(comparison.training or ()))
    panels = training_panels(comparison)
    return {panel.key: training_chart(panel, arms) for panel in panels}


def _rounds(comparison: Comparison) -> Charts:
    section, charts = rounds_section(comparison.rounds)
    return _named(section, charts)


def _shifts(comparison: Comparison) -> Charts:
    sections, charts = changes_section(comparison.changes)
    return {
        f"{target}, {own.arm} minus {own.against}": charts[key]
        for own in sections
        for key, target in own.panels.items()
    }


def _plane(comparison: Comparison) -> Charts:
    _, charts = plane_section(comparison)
    return {"states among the emotions": charts["plane"]} if charts else {}


def _behavior(comparison: Comparison) -> Charts:
    section, charts = behavior_section(comparison.behavior, comparison.arms)
    return _named(section, charts)


def _conduct(comparison: Comparison) -> Charts:
    section, charts = conduct_section(comparison.conduct, comparison.arms)
    return _named(section, charts)


def _named(section: Mapping[str, Any] | None, charts: Mapping[str, Chart]) -> Charts:
    panels = {} if section is None else section["panels"]
    return {title: charts[key] for key, title in panels.items()}


_SECTIONS: Mapping[str, Callable[[Comparison], Charts]] = {
    "distributions": _own("distributions"),
    "slopes": _slopes,
    "rounds": _rounds,
    "shifts": _shifts,
    "changes": _own("changes"),
    "plane": _plane,
    "training": _training,
    "behavior": _behavior,
    "conduct": _conduct,
}
