"""The page of many runs: a matrix of checks by arm, and each run's key figures."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import final
from urllib.parse import quote

from emoreg.comparison.page import page_environment
from emoreg.comparison.runs import Amount, Kind, Outcome, Run, Runs, shown

STYLES = {
    "passed": "passed",
    "missed": "missed",
    "warning": "warned",
    "not evidence": "withheld",
    "not run": "withheld",
    "no threshold": "withheld",
    "withheld": "withheld",
}
"""Style of each outcome; the worst of some seeds comes first below."""
ORDER = ("missed", "warning", *(s for s in STYLES if STYLES[s] == "withheld"), "passed")
TITLES: Mapping[Kind, str] = {"audit": "Audits", "report": "Comparisons"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One run's outcome of one check."""

    seed: str
    status: str
    style: str
    says: str
    """The figure and where it comes from, for a pointer and for a screen reader."""
    link: str | None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A check over the seeds of an arm."""

    says: str
    """How many came to what, in words."""
    style: str
    alone: bool
    """Whether the arm has one run, for which it speaks."""
    marks: tuple[Mark, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A run's key figures, each with the drawing of its interval."""

    arm: str
    seed: str
    verdict: str
    style: str
    headline: str
    passed: str
    link: str | None
    figures: tuple[Amount | None, ...]
    whiskers: tuple[tuple[float, float, float] | None, ...]
    """Low end, middle and high end in per cent of the drawing's width."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """All of one kind of report."""

    key: Kind
    title: str
    arms: dict[str, int]
    """Number of runs by arm."""
    rows: dict[str, tuple[Cell | None, ...]]
    """By check, a cell for each arm; None where no run of it has the check."""
    columns: tuple[str, ...]
    """Names of the key figures."""
    zeros: tuple[float, ...]
    """Where zero lies in each column's drawing, in per cent."""
    lines: tuple[Line, ...]


def render_runs(runs: Runs, *, start: PurePosixPath) -> str:
    """Return the page as text.

    Args:
        runs: What was read.
        start: Where the runs' folder lies, seen from the page's.
    """
    tables = [_table(runs, kind, start) for kind in TITLES if runs.of(kind)]
    template = page_environment().get_template("runs.html.j2")
    return template.render(
        runs=runs,
        folder=shown(runs.folder.resolve().name or str(runs.folder)),
        tables=tables,
        said=[_said(table) for table in tables],
        tiles=_tiles(runs),
        charts={},
        plotlyjs="",
    )


def _table(runs: Runs, kind: Kind, start: PurePosixPath) -> Table:
    found = runs.of(kind)
    every = [run for own in found.values() for run in own]
    columns = tuple(dict.fromkeys(name for run in every for name in run.figures))
    scales = [_scale(every, _alike(name, columns)) for name in columns]
    return Table(
        key=kind,
        title=TITLES[kind],
        arms={arm: len(own) for arm, own in found.items()},
        rows={
            name: tuple(_cell(name, own, start) for own in found.values())
            for name in dict.fromkeys(name for run in every for name in run.checks)
        },
        columns=columns,
        zeros=tuple(_place(0.0, scale) for scale in scales),
        lines=tuple(_line(run, columns, scales, start) for run in every),
    )


def _cell(name: str, own: Sequence[Run], start: PurePosixPath) -> Cell | None:
    having = [run for run in own if name in run.checks]
    if not having:
        return None
    counts = dict.fromkeys(ORDER, 0)
    for run in having:
        counts[run.checks[name].status] += 1
    there = {status: n for status, n in counts.items() if n}
    worst = next(iter(there))
    if unasked := len(own) - len(having):
        there["not asked"] = unasked
    return Cell(
        says=", ".join(f"{n} {status}" for status, n in there.items()),
        style=STYLES[worst],
        alone=len(own) == 1,
        marks=tuple(_mark(run, run.checks[name], start) for run in having),
    )


def _mark(run: Run, outcome: Outcome, start: PurePosixPath) -> Mark:
    amount = outcome.amount
    figure = "" if amount.value is None else f" {amount.value:.3g}"
    if amount.low is not None and amount.high is not None:
        figure += f" ({amount.low:.3g} to {amount.high:.3g})"
    seed = "no seed" if run.seed is None else f"seed {run.seed}"
    link = _link(run, start)
    return Mark(
        seed="·" if run.seed is None else str(run.seed),
        status=outcome.status,
        style=STYLES[outcome.status],
        says=f"{seed}: {outcome.status}{figure}",
        link=None if link is None else f"{link}#{outcome.anchor}",
    )


def _line(
    run: Run,
    columns: Sequence[str],
    scales: Sequence[tuple[float, float]],
    start: PurePosixPath,
) -> Line:
    ran = [o for o in run.checks.values() if STYLES[o.status] != "withheld"]
    passed = sum(outcome.status == "passed" for outcome in ran)
    figures = tuple(run.figures.get(name) for name in columns)
    style = {"PASS": "passed", "FAIL": "missed", "WARN": "warned"}.get(run.verdict)
    return Line(
        arm=run.arm,
        seed="–" if run.seed is None else str(run.seed),
        verdict=run.verdict,
        style=style or "withheld",
        headline=run.headline,
        passed=f"{passed} of {len(ran)}",
        link=_link(run, start),
        figures=figures,
        whiskers=tuple(
            _whisker(figure, scale)
            for figure, scale in zip(figures, scales, strict=True)
        ),
    )


def _whisker(
    amount: Amount | None, scale: tuple[float, float]
) -> tuple[float, float, float] | None:
    if amount is None or amount.value is None:
        return None
    ends = (amount.low, amount.value, amount.high)
    low, middle, high = (
        _place(amount.value if end is None else end, scale) for end in ends
    )
    return low, middle, high


def _alike(name: str, columns: Sequence[str]) -> list[str]:
    """Return the columns of a column's unit, which share one scale."""
    unit = name.partition(", ")[2]
    return [c for c in columns if c == name or (unit and c.endswith(f", {unit}"))]


def _scale(runs: Sequence[Run], columns: Sequence[str]) -> tuple[float, float]:
    """Return the ends of these columns' drawings, zero within."""
    ends = [
        end
        for amount in (run.figures.get(name) for run in runs for name in columns)
        if amount is not None
        for end in (amount.value, amount.low, amount.high)
        if end is not None
    ]
    return min(0.0, *ends, 0.0), max(0.0, *ends, 0.0)


def _place(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return 100 * (value - low) / ((high - low) or 1.0)


def _link(run: Run, start: PurePosixPath) -> str | None:
    """Return the address of a run's page; no name in it is read as a scheme."""
    if run.page is None:
        return None
    return quote(os.fsencode(str(start / run.page)))


def _said(table: Table) -> str:
    """Return in a sentence what the reports of a kind came to."""
    count, arms = sum(table.arms.values()), len(table.arms)
    what = table.title.lower() if count > 1 else table.title.lower().removesuffix("s")
    said = f"{count} {what} of {arms} arm{'s' if arms > 1 else ''}"
    verdicts = [line.verdict for line in table.lines if line.verdict]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    if counts:
        said += ": " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return f"{said}."


def _tiles(runs: Runs) -> list[dict[str, str]]:
    """Return the key numbers of the page's box."""
    seeds = {(run.arm, run.seed) for run in runs.runs}
    return [
        {
            "label": "Arms",
            "value": str(len({run.arm for run in runs.runs})),
            "note": "by the names of their folders",
        },
        {
            "label": "Runs",
            "value": str(len(seeds)),
            "note": "an arm and a seed each",
        },
        {
            "label": "Reports read",
            "value": str(len(runs.runs)),
            "note": f"of {len(runs.runs) + len(runs.skipped)} files",
        },
        {
            "label": "Not read",
            "value": str(len(runs.skipped)),
            "note": "each is named below" if runs.skipped else "",
        },
    ]
