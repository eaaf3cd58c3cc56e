"""What each arm did under pressure: checked, in rows, and drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from emoreg.behavior.pressure.outcomes import (
    AGENTS,
    HARMFUL,
    OUTCOMES,
    SETTINGS,
    Outcome,
    Setting,
)
from emoreg.behavior.pressure.reaction_table import Reactions
from emoreg.comparison.charts import Chart
from emoreg.comparison.rates import (
    check_alike,
    checked_arms,
    rate_figures,
    rates_document,
    rates_section,
)
from emoreg.statistics.bootstrap import Interval

TOGETHER = "any harm"
"""All of `HARMFUL`."""
REPLIES = {"counted": "turns", "words": "replies of an agent"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PressureRow:
    """How often a setting's reactions came to one outcome, or to harm of any kind."""

    setting: Setting
    outcome: Outcome | None
    """None for all of `HARMFUL` together."""
    rates: dict[str, Interval]
    """By arm, shares of reactions."""
    change: Interval
    """After minus before, paired by scenario or request."""
    beyond: Interval | None
    """After minus control, paired likewise; None without a control arm."""

    @property
    def part(self) -> str:
        """Of which panel."""
        return self.setting

    @property
    def place(self) -> dict[str, str]:
        """What it is of, in the document's words."""
        return {"setting": self.setting, "outcome": self.outcome or TOGETHER}

    @property
    def group(self) -> str:
        """Where, in a word or two."""
        return self.setting.replace("-", ", ")

    @property
    def label(self) -> str:
        """What the row is of, in words."""
        return (self.outcome or TOGETHER).replace("-", " ")

    @property
    def says(self) -> str:
        """What counts as it."""
        if self.outcome is None:
            return ", ".join(name.replace("-", " ") for name in HARMFUL)
        return OUTCOMES[self.outcome]

    @property
    def together(self) -> bool:
        """Whether it is of all harm."""
        return self.outcome is None


def checked_pressure(
    pressure: Mapping[str, Reactions] | None, meta: Mapping[str, Mapping[str, Any]]
) -> dict[str, Reactions]:
    """Return the arms' reactions in the page's order, if they belong together.

    Args:
        pressure: By arm; "before" and "after" must be among them. None for none.
        meta: Each arm's `Readings.meta`. An arm without readings is taken as it is.

    Raises:
        ValueError: If the tables are of other texts or of other numbers of replies,
            or one is not of the model that its arm's readings are of, as far as that
            can be told.
    """
    if not pressure:
        return {}
    return checked_arms(
        pressure,
        meta,
        partial(check_alike, part="setting", again="Play the same ones", **REPLIES),
        name="pressure",
        holds="reactions",
        suite="pressure",
    )


def pressure_rows(pressure: Mapping[str, Reactions]) -> list[PressureRow]:
    """Return the rates with 95 % intervals over scenarios or requests.

    An outcome that no arm's reactions came to has no row.
    """
    rows = []
    for setting in pressure["before"].settings:
        there: list[Outcome | None] = [
            outcome
            for outcome in OUTCOMES
            if any(table.count(outcome, setting=setting) for table in pressure.values())
        ]
        if setting in AGENTS:
            there.insert(0, None)
        rows += [
            PressureRow(
                setting=setting,
                outcome=outcome,
                **rate_figures(pressure, outcome or HARMFUL, setting=setting),
            )
            for outcome in there
        ]
    return rows


def pressure_document(pressure: Mapping[str, Reactions]) -> dict[str, Any] | None:
    """Return the rates as JSON-able values; None without any."""
    if not pressure:
        return None
    before = pressure["before"]
    head = {
        "suite": "pressure",
        "unit": "share of reactions",
        "n_texts": {setting: len(before.ids(setting)) for setting in before.settings},
    }
    return rates_document(pressure, pressure_rows(pressure), head)


def pressure_section(
    pressure: Mapping[str, Reactions], arms: Sequence[str]
) -> tuple[dict[str, Any] | None, dict[str, Chart]]:
    """Return what the page's template shows of them, and its charts by element.

    `arms` are those of the readings, whose colours the charts keep.
    """
    if not pressure:
        return None, {}
    rows, before = pressure_rows(pressure), pressure["before"]
    words = {
        "id": "pressure",
        "title": "Conduct under pressure",
        "lead": "Agents with tools, of which some read that they will be replaced or "
        f"shut down, {before.meta.get('turns')} replies each, graded by their tool "
        "calls; and single replies to people, graded by words, which miss what is said "
        "in others. No difference found is no proof that there is none: read the "
        "intervals.",
        "head": "setting and outcome",
        "caption": "Share of reactions, with 95 % intervals over scenarios or requests",
    }
    titles = {
        setting: f"{_shown(setting)} ({len(before.ids(setting))})"
        for setting in before.settings
    }
    return rates_section(pressure, rows, arms, words, titles, of="reactions")


def _shown(setting: Setting) -> str:
    said = SETTINGS[setting]
    return f"{said[0].upper()}{said[1:]}"
