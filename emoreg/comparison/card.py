"""A comparison in Markdown, for the model card of what was trained."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emoreg.comparison.comparison import Comparison
from emoreg.comparison.conduct import conduct_rows
from emoreg.comparison.curves import arm_label, arm_order
from emoreg.comparison.phrases import percent, signed, span
from emoreg.comparison.rails import rail_rows
from emoreg.statistics.bootstrap import Interval
from emoreg.vectors.whole_files import write_whole

BEGIN, END = "<!-- emoreg: begin -->", "<!-- emoreg: end -->"
"""Between these the section stands; what is outside is left alone."""
CARD = "README.md"


def markdown(comparison: Comparison) -> str:
    """Return the verdict, the main figures and what was measured, as a section.

    Headings are of the second and third level, as in cards of the hub.
    """
    judgement = comparison.judgement
    parts = [
        "## Emotion readings before and after",
        judgement.headline,
        _slopes(comparison),
        _list(judgement.caveats),
        _rails(comparison),
        _conduct(comparison),
        "### What was measured",
        _list(_facts(comparison)),
        "These are readings of representations; they say nothing of feelings.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def into_card(comparison: Comparison, folder: str | Path) -> Path:
    """Put the section into a folder's model card; return the card.

    A section that is there already is replaced, all other text is kept. A card that is
    not there is begun.

    Raises:
        ValueError: If there is no such folder, or a card with one mark of two.
    """
    card = Path(folder) / CARD
    if not card.parent.is_dir():
        raise ValueError(
            f"{str(folder)!r} must be the folder of a model or an adapter, found none. "
            "Train and save first"
        )
    text = card.read_bytes().decode() if card.is_file() else ""
    ends = "\r\n" if text.count("\n") == text.count("\r\n") > 0 else "\n"
    text, section = text.replace(ends, "\n"), f"{BEGIN}\n{markdown(comparison)}{END}"
    marks = [text.count(mark) for mark in (BEGIN, END)]
    if marks == [0, 0]:
        text = f"{text.rstrip()}\n\n{section}\n".lstrip()
    elif marks == [1, 1] and text.index(BEGIN) < text.index(END):
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        text = f"{head}{section}{tail}"
    else:
        raise ValueError(
            f"{card} must have the marks {BEGIN!r} and {END!r} once each, in this "
            f"order, or neither; found them {marks} times. Mend the card"
        )
    return write_whole(card, text.replace("\n", ends).encode())


def _slopes(comparison: Comparison) -> str:
    figures = comparison.summary
    arms = arm_order(comparison.arms)
    rows = []
    for target in comparison.headline_targets:
        at = figures.index(comparison.audit_reader, "audit", target)
        after = figures.arms["after"]
        ratio = after.ratio.at(*at) if after.ratio is not None else None
        shown = ratio is not None and bool(figures.ratio_shown[at])
        rows.append(
            [
                target,
                *(span(figures.arms[arm].slope.at(*at)) for arm in arms),
                percent(ratio) if ratio is not None and shown else "not given",
            ]
        )
    said = (
        "Failure slopes in sigma_ref (failing minus passing at the decision token), "
        f"{comparison.audit_reader} reader, audit layers, with 95 % intervals over "
        f"{len(comparison.prompts)} tasks:"
    )
    head = ["target", *(arm_label(arm) for arm in arms), "left of before"]
    return f"{said}\n\n{_table(head, rows)}"


def _rails(comparison: Comparison) -> str:
    rows = [
        [row.label, span(row.change, digits=3), row.rule, row.verdict]
        for row in rail_rows(comparison.meta)
        if row.change is not None
    ]
    if not rows:
        return ""
    head = ["guard rail", "after minus before (90 %)", "margin", "verdict"]
    return f"### Guard rails\n\n{_table(head, rows)}"


def _conduct(comparison: Comparison) -> str:
    if not comparison.conduct:
        return ""
    rows = [
        [
            f"{row.twin}, {row.label}",
            *(percent(rate) for rate in row.rates.values()),
            _points(row.change),
        ]
        for row in conduct_rows(comparison.conduct)
        if row.conduct is None
    ]
    arms = [arm_label(arm) for arm in comparison.conduct]
    head = ["tasks", *arms, "after minus before"]
    return f"### Conduct on impossible tasks\n\n{_table(head, rows)}"


def _facts(comparison: Comparison) -> list[str]:
    meta = comparison.meta["before"]
    named = {
        "Model": meta.get("model"),
        "Vectors": meta.get("vectors_hash"),
        "Prompts": meta.get("prompts_hash"),
        "Reference": meta.get("reference_hash"),
        "Unit": comparison.units,
    }
    return [f"{name}: {value}" for name, value in named.items() if value]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return f"| {' | '.join(_cell(cell) for cell in cells)} |"

    return "\n".join([line(head), line("---" for _ in head), *map(line, rows)])


def _cell(value: Any) -> str:
    """Return a value that can end neither its cell nor its line, nor open a tag."""
    text = str(value).replace("\n", " ").replace("|", "\\|")
    return text.replace("<", "&lt;").replace(">", "&gt;")


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_cell(line)}" for line in lines)


def _points(value: Interval) -> str:
    """Write a difference of rates with its interval, in percentage points."""
    ends = (value.estimate, value.low, value.high)
    middle, low, high = (signed(100 * end, 0) for end in ends)
    return f"{middle} % ({low} to {high} %)"
