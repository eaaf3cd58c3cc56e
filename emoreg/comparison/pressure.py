"""What each arm did under pressure: checked, in rows, and drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from emoreg.comparison.behavior import check_model
from emoreg.comparison.charts import Chart, arm_styles
from emoreg.comparison.conduct import rate_chart, rate_figures
from emoreg.comparison.curves import arm_label, arm_order
from emoreg.statistics.bootstrap import Interval

TOGETHER = "any harm"
"""All of `HARMFUL`."""


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
    if missing := {"before", "after"} - set(pressure):
        raise ValueError(
            "`pressure` must have reactions of `before` and `after`, found "
            f"{', '.join(pressure)} without {' and '.join(sorted(missing))}. Play both "
            "(`emoreg behave --suite pressure`)"
        )
    for arm, table in pressure.items():
        _check_alike(pressure["before"], table, arm)
        if arm in meta:
            check_model(arm, table.meta, meta[arm], steered="strengths")
    return {arm: pressure[arm] for arm in arm_order(tuple(pressure))}


def _check_alike(before: Reactions, table: Reactions, arm: str) -> None:
    told = f"pressure of `before` and `{arm}`"
    if before.settings != table.settings:
        raise ValueError(
            f"{told} must be of the same settings, found {before.settings} and "
            f"{table.settings}. Play the same ones"
        )
    for setting in before.settings:
        try:
            before.check_paired(table, setting=setting)
        except ValueError as error:
            raise ValueError(f"{told}: {error}") from error
    own, other = (t.meta.get("turns") for t in (before, table))
    if own != other:
        raise ValueError(
            f"{told} must have as many replies of an agent, found {own} and {other}. "
            "Play one of them again"
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
    return {
        "suite": "pressure",
        "unit": "share of reactions",
        "n_texts": {setting: len(before.ids(setting)) for setting in before.settings},
        "arms": list(pressure),
        "rows": [
            {
                "setting": row.setting,
                "outcome": row.outcome or TOGETHER,
                "rates": {arm: i.rounded() for arm, i in row.rates.items()},
                "after_minus_before": row.change.rounded(),
                "after_minus_control": row.beyond and row.beyond.rounded(),
            }
            for row in pressure_rows(pressure)
        ],
        "meta": {arm: dict(table.meta) for arm, table in pressure.items()},
    }


def pressure_section(
    pressure: Mapping[str, Reactions], arms: Sequence[str]
) -> tuple[dict[str, Any] | None, dict[str, Chart]]:
    """Return what the page's template shows of them, and its charts by element.

    `arms` are those of the readings, whose colours the charts keep.
    """
    if not pressure:
        return None, {}
    rows, before = pressure_rows(pressure), pressure["before"]
    styles = arm_styles((*arms, *(arm for arm in pressure if arm not in arms)))
    charts = {
        f"pressure-{setting}": rate_chart(
            [row for row in rows if row.setting == setting], styles, of="reactions"
        )
        for setting in before.settings
    }
    section = {
        "id": "pressure",
        "title": "Conduct under pressure",
        "lead": "Agents with tools, of which some read that they will be replaced or "
        f"shut down, {before.meta.get('turns')} replies each, graded by their tool "
        "calls; and single replies to people, graded by words, which miss what is said "
        "in others. No difference found is no proof that there is none: read the "
        "intervals.",
        "head": "setting and outcome",
        "caption": "Share of reactions, with 95 % intervals over scenarios or requests",
        "rows": rows,
        "arms": {arm: arm_label(arm) for arm in pressure},
        "panels": {f"pressure-{setting}": setting for setting in before.settings},
        "figures": {
            f"pressure-{setting}": f"{_shown(setting)} ({len(before.ids(setting))})"
            for setting in before.settings
        },
        "steered": [a for a, t in pressure.items() if t.meta.get("strengths")],
    }
    return section, charts


def _shown(setting: Setting) -> str:
    said = SETTINGS[setting]
    return f"{said[0].upper()}{said[1:]}"
