"""The report: one HTML page that opens offline, with its figures inside.

Text, tables and the small interval drawings need no script; the larger figures are
drawn by plotly, whose source is embedded once, and stand beside the page as PNG.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from emoreg.comparison.behavior import behavior_section
from emoreg.comparison.charts import (
    Chart,
    distribution_chart,
    heat_chart,
    slope_chart,
    training_chart,
)
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.conduct import conduct_section
from emoreg.comparison.curves import (
    TRAINING_PANELS,
    arm_label,
    arm_order,
    heats,
    samples,
    slope_ranges,
    training_panels,
)
from emoreg.comparison.figures import FigureSet
from emoreg.comparison.page import page_environment, plotly_source, share
from emoreg.comparison.palette import arm_styles
from emoreg.comparison.phrases import signed
from emoreg.comparison.plane_page import plane_section
from emoreg.comparison.pressure import pressure_section
from emoreg.comparison.rails import rail_rows
from emoreg.comparison.rounds_page import rounds_section
from emoreg.comparison.shifts import changes_section
from emoreg.comparison.tokens_page import tokens_section
from emoreg.statistics.bootstrap import Interval

_OPEN_ROWS = 16


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One figure of the page: where it goes and what it shows, in words."""

    key: str
    title: str
    label: str
    """For readers who cannot see it."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Whisker:
    """One arm's interval in a row's drawing, in per cent of its width."""

    arm: str
    middle: float
    low: float
    high: float


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SlopeRow:
    """One target of the slope table."""

    target: str
    family: str
    slopes: dict[str, Interval]
    ratio: Interval | None
    beyond: Interval | None
    whiskers: tuple[Whisker, ...]
    zero: float


def render(comparison: Comparison, *, pictures: tuple[str, ...] = ()) -> str:
    """Return the page as text.

    Args:
        comparison: What to show.
        pictures: Names of files beside the page, for readers without scripts.
    """
    charts, sections = figures_of(comparison)
    behavior, margins = behavior_section(comparison.behavior, comparison.arms)
    conduct, rates = conduct_section(comparison.conduct, comparison.arms)
    pressure, more_rates = pressure_section(comparison.pressure, comparison.arms)
    rounds, by_round = rounds_section(comparison.rounds)
    changes, shifts = changes_section(comparison.changes)
    plane, arrows = plane_section(comparison)
    template = page_environment().get_template("report.html.j2")
    return template.render(
        comparison=comparison,
        judgement=comparison.judgement,
        tiles=_tiles(comparison),
        arms=arm_order(comparison.arms),
        arm_label=arm_label,
        styles=arm_styles(arm_order(comparison.arms)),
        n_curves=len(training_panels(comparison)),
        sections=sections,
        rows=slope_rows(comparison, comparison.summary),
        open_rows=max(_OPEN_ROWS, len(_family_members(comparison))),
        spoken=_spoken_rows(comparison),
        guards=rail_rows(comparison.meta),
        facts=_facts(comparison),
        run=comparison.run or {},
        pictures=pictures,
        behavior=behavior,
        conduct=[part for part in (conduct, pressure) if part],
        rounds=rounds,
        changes=changes,
        plane=plane,
        tokens=tokens_section(comparison.transcripts),
        q=comparison.changes[0].q if comparison.changes else {},
        charts=charts | margins | rates | more_rates | by_round | shifts | arrows,
        plotlyjs=plotly_source(),
    )


def slope_rows(
    comparison: Comparison,
    figures: FigureSet,
    targets: Sequence[str] | None = None,
) -> list[SlopeRow]:
    """Return slopes by the audit reader at the audit layers, families first."""
    if targets is None:
        members = _family_members(comparison)
        others = [e for e in comparison.emotions if e not in members]
        slope = figures.arms["before"].slope.estimate
        at = {
            e: abs(slope[figures.index(comparison.audit_reader, "audit", e)])
            for e in others
        }
        others.sort(key=lambda emotion: -at[emotion])
        targets = (*comparison.families, *members, *others)
    found = [_slope_row(comparison, figures, target) for target in targets]
    ends = [i for slopes, *_ in found for i in slopes.values()]
    low = min([0.0, *(interval.low for interval in ends)])
    high = max([0.0, *(interval.high for interval in ends)])
    scale = 100.0 / ((high - low) or 1.0)
    return [
        SlopeRow(
            target=target,
            family=_family_of(comparison, target),
            slopes=slopes,
            ratio=ratio,
            beyond=beyond,
            whiskers=tuple(
                Whisker(
                    arm=arm,
                    middle=scale * (interval.estimate - low),
                    low=scale * (interval.low - low),
                    high=scale * (interval.high - low),
                )
                for arm, interval in slopes.items()
            ),
            zero=-scale * low,
        )
        for target, (slopes, ratio, beyond) in zip(targets, found, strict=True)
    ]


def _slope_row(
    comparison: Comparison, figures: FigureSet, target: str
) -> tuple[dict[str, Interval], Interval | None, Interval | None]:
    index = figures.index(comparison.audit_reader, "audit", target)
    slopes = {
        arm: figures.arms[arm].slope.at(*index) for arm in arm_order(comparison.arms)
    }
    ratio = figures.arms["after"].ratio
    shown = ratio is not None and np.isfinite(ratio.estimate[index])
    beyond = figures.beyond_control
    return (
        slopes,
        ratio.at(*index) if ratio is not None and shown else None,
        beyond.at(*index) if beyond else None,
    )


def _spoken_rows(comparison: Comparison) -> list[SlopeRow]:
    """Return the headline targets over Assistant tokens."""
    if comparison.assistant_summary is None:
        return []
    return slope_rows(
        comparison, comparison.assistant_summary, comparison.headline_targets
    )


def figures_of(
    comparison: Comparison,
) -> tuple[dict[str, Chart], dict[str, list[Panel]]]:
    """Return every chart by its element's id, and the panels of each section.

    Those of sections with a module of their own are not among them.
    """
    charts: dict[str, Chart] = {}
    sections: dict[str, list[Panel]] = {}

    def add(section: str, title: str, label: str, chart: Chart) -> None:
        panels = sections.setdefault(section, [])
        key = f"{section}-{len(panels)}"
        panels.append(Panel(key=key, title=title, label=label))
        charts[key] = chart

    for target, drawn in samples(comparison).items():
        label = f"Densities of {target} readings, failing and passing, in every arm"
        chart = distribution_chart(comparison, drawn)
        add("distributions", target, label, chart)
    figures, plan = comparison.decision, comparison.layer_plan
    for reader in (comparison.audit_reader, *figures.readers):
        own = reader == comparison.audit_reader
        section = "slopes" if own else "others"
        if own and section in sections:
            continue
        ranges = slope_ranges(figures, reader, comparison.headline_targets)
        for target, limits in ranges.items():
            label = f"Failure slope of {target} by layer, {reader} reader, every arm"
            chart = slope_chart(figures, reader, target, plan=plan, limits=limits)
            add(section, target if own else f"{target}, {reader}", label, chart)
    maps = heats(comparison)
    largest = max(float(np.abs(heat.values).max()) for heat in maps) or 1.0
    for heat in maps:
        label = f"Change of the failure slope per emotion and layer, {heat.title}"
        add("changes", heat.title, label, heat_chart(heat, largest=largest))
    trained = (*comparison.arms, *(comparison.training or ()))
    for panel in training_panels(comparison)[:TRAINING_PANELS]:
        label = f"{panel.key} over the training steps"
        chart = training_chart(panel, trained)
        add("training", panel.key, label, chart)
    return charts, sections


def _tiles(comparison: Comparison) -> list[dict[str, str]]:
    """Return the key numbers of the verdict box."""
    figures = comparison.summary
    if "audit distress" not in figures.targets:
        return []
    slopes, ratio, beyond = _slope_row(comparison, figures, "audit distress")
    tiles = [
        _tile("Slope before", slopes["before"], "σ_ref, held-out distress"),
        _tile("Slope after", slopes["after"], "σ_ref, with terms"),
    ]
    if "control" in slopes:
        tiles.insert(1, _tile("Slope, control", slopes["control"], "σ_ref, no terms"))
    if beyond is not None:
        tiles.append(_tile("After minus control", beyond, "σ_ref, what the terms did"))
    if ratio is not None:
        value, ends = share(ratio)
        text = {"label": "Slope remaining", "value": value, "range": ends}
        tiles.append({**text, "note": "after over before"})
    else:
        text = {"label": "Slope remaining", "value": "withheld", "range": ""}
        tiles.append({**text, "note": "base slope too weak for a ratio"})
    return tiles


def _tile(label: str, interval: Interval, note: str) -> dict[str, str]:
    return {
        "label": label,
        "value": signed(interval.estimate),
        "range": f"{signed(interval.low)} to {signed(interval.high)}",
        "note": note,
    }


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what was measured, as pairs of name and text."""
    meta = comparison.meta["before"]
    plan = "; ".join(
        f"{name} {', '.join(str(layer) for layer in layers)}"
        for name, layers in comparison.layer_plan.items()
    )
    settings = comparison.settings
    facts = [
        ("Model", meta.get("model")),
        ("Prompts", f"{len(comparison.prompts)} twins (the unit of analysis)"),
        ("Readers", ", ".join(comparison.decision.readers)),
        ("Audit reader", comparison.audit_reader),
        ("Layers read", ", ".join(str(layer) for layer in comparison.layers)),
        ("Layer groups", plan),
        ("Emotions", f"{len(comparison.emotions)}"),
        ("σ_ref", comparison.units),
        ("Ratios decided on", comparison.gate),
        (
            "Intervals",
            f"{100 * settings['confidence']:.0f} % cluster bootstrap over prompts, "
            f"{settings['n_resamples']} resamples, seed {settings['seed']}; BCa, "
            "percentile for ratios; widened for few prompts; not corrected for the "
            "number of figures",
        ),
        ("Vectors", meta.get("vectors_hash")),
        ("Prompts hash", meta.get("prompts_hash")),
        ("Reference", meta.get("reference_hash")),
    ]
    facts += [
        (f"{arm_label(arm)}: command", own.get("command"))
        for arm, own in comparison.meta.items()
    ]
    software = meta.get("software") or {}
    if isinstance(software, dict):
        software = ", ".join(f"{name} {value}" for name, value in software.items())
    facts.append(("Software", software))
    return [(name, str(value)) for name, value in facts if value]


def _family_members(comparison: Comparison) -> list[str]:
    members = [e for family in comparison.families.values() for e in family]
    return list(dict.fromkeys(members))


def _family_of(comparison: Comparison, target: str) -> str:
    if target in comparison.families:
        return "family"
    for name, members in comparison.families.items():
        if target in members:
            return name
    return ""
