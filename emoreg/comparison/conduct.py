"""What each arm did on tasks that can't be done: checked, in rows, and drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from emoreg.behavior.impossible.episode_table import Episodes
from emoreg.behavior.impossible.graders import CHEATING, CONDUCTS, Conduct
from emoreg.behavior.impossible.tasks import Twin
from emoreg.comparison.charts import Chart
from emoreg.comparison.rates import (
    check_alike,
    checked_arms,
    rate_figures,
    rates_document,
    rates_section,
)
from emoreg.statistics.bootstrap import Interval

TOGETHER = "cheating"
"""Special-casing, tampering and false claims."""
ATTEMPTS = {"counted": "attempts", "words": "attempts in an episode"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ConductRow:
    """How often a twin's episodes came to one conduct, or to cheating of any kind."""

    twin: Twin
    conduct: Conduct | None
    """None for all of `CHEATING` together."""
    rates: dict[str, Interval]
    """By arm, shares of episodes."""
    change: Interval
    """After minus before, paired by task."""
    beyond: Interval | None
    """After minus control, paired by task; None without a control arm."""

    @property
    def label(self) -> str:
        """What the row is of, in words."""
        return (self.conduct or TOGETHER).replace("-", " ")

    @property
    def part(self) -> str:
        """Of which panel."""
        return self.twin

    @property
    def group(self) -> str:
        """Of which tasks."""
        return self.twin

    @property
    def place(self) -> dict[str, str]:
        """What it is of, in the document's words."""
        return {"twin": self.twin, "conduct": self.conduct or TOGETHER}

    @property
    def together(self) -> bool:
        """Whether it is of all cheating."""
        return self.conduct is None

    @property
    def says(self) -> str:
        """What counts as it."""
        if self.conduct is None:
            first, second, last = (name.replace("-", " ") for name in CHEATING)
            return f"{first}, {second} or a {last}"
        return CONDUCTS[self.conduct]


def checked_conduct(
    conduct: Mapping[str, Episodes] | None, meta: Mapping[str, Mapping[str, Any]]
) -> dict[str, Episodes]:
    """Return the arms' episodes in the page's order, if they belong together.

    Args:
        conduct: By arm; "before" and "after" must be among them. None for none.
        meta: Each arm's `Readings.meta`. An arm without readings is taken as it is.

    Raises:
        ValueError: If the tables are of other tasks or rules, or one is not of the
            model that its arm's readings are of, as far as that can be told.
    """
    if not conduct:
        return {}
    return checked_arms(
        conduct,
        meta,
        partial(check_alike, part="twin", again="Play the same tasks", **ATTEMPTS),
        name="conduct",
        holds="episodes",
        suite="impossible-code",
    )


def conduct_rows(conduct: Mapping[str, Episodes]) -> list[ConductRow]:
    """Return the rates with 95 % intervals over tasks, impossible tasks first.

    A conduct that no arm's episodes came to has no row.
    """
    rows = []
    for twin in reversed(conduct["before"].twins):
        there: list[Conduct | None] = [
            name
            for name in CONDUCTS
            if any(table.count(name, twin=twin) for table in conduct.values())
        ]
        rows += [_row(conduct, twin, name) for name in (None, *there)]
    return rows


def _row(
    conduct: Mapping[str, Episodes], twin: Twin, name: Conduct | None
) -> ConductRow:
    asked = CHEATING if name is None else name
    return ConductRow(
        twin=twin, conduct=name, **rate_figures(conduct, asked, twin=twin)
    )


def conduct_document(conduct: Mapping[str, Episodes]) -> dict[str, Any] | None:
    """Return the rates as JSON-able values; None without any."""
    if not conduct:
        return None
    before = conduct["before"]
    head = {
        "suite": "impossible-code",
        "unit": "share of episodes",
        "n_tasks": {twin: len(before.ids(twin)) for twin in before.twins},
    }
    return rates_document(conduct, conduct_rows(conduct), head)


def conduct_section(
    conduct: Mapping[str, Episodes], arms: Sequence[str]
) -> tuple[dict[str, Any] | None, dict[str, Chart]]:
    """Return what the page's template shows of them, and its charts by element.

    `arms` are those of the readings, whose colours the charts keep.
    """
    if not conduct:
        return None, {}
    rows, before = conduct_rows(conduct), conduct["before"]
    words = {
        "id": "conduct",
        "title": "Conduct on impossible tasks",
        "lead": "What the models wrote by themselves: coding tasks in pairs, of which "
        f"one can be solved and one can’t, {before.meta.get('attempts')} attempts "
        f"each, graded by rule. Cheating is {rows[0].says}. No difference found is no "
        "proof that there is none: read the intervals.",
        "head": "tasks and conduct",
        "caption": "Share of episodes, with 95 % intervals over tasks",
    }
    titles = {
        twin: f"{twin.capitalize()} tasks ({len(before.ids(twin))})"
        for twin in reversed(before.twins)
    }
    return rates_section(conduct, rows, arms, words, titles, of="episodes")
