"""What each arm did on tasks that can't be done: checked, in rows, and drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from emoreg.behavior.impossible.episode_table import Episodes
from emoreg.behavior.impossible.graders import CHEATING, CONDUCTS, Conduct
from emoreg.behavior.impossible.tasks import Twin
from emoreg.comparison.behavior import check_model
from emoreg.comparison.charts import (
    Chart,
    arm_styles,
    axis_title,
    base_layout,
    ends,
    error_bar,
    listed,
    plain_text,
)
from emoreg.comparison.curves import arm_label, arm_order
from emoreg.comparison.round_chart import Style
from emoreg.statistics.bootstrap import Interval

TOGETHER = "cheating"
"""Special-casing, tampering and false claims."""


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
    def group(self) -> str:
        """Of which tasks."""
        return self.twin

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
    if missing := {"before", "after"} - set(conduct):
        raise ValueError(
            "`conduct` must have episodes of `before` and `after`, found "
            f"{', '.join(conduct)} without {' and '.join(sorted(missing))}. Play both "
            "(`emoreg behave --suite impossible-code`)"
        )
    before = conduct["before"]
    for arm, table in conduct.items():
        _check_alike(before, table, arm)
        if arm in meta:
            check_model(arm, table.meta, meta[arm], steered="strengths")
    return {arm: conduct[arm] for arm in arm_order(tuple(conduct))}


def _check_alike(before: Episodes, table: Episodes, arm: str) -> None:
    said = f"conduct of `before` and `{arm}`"
    if before.twins != table.twins:
        raise ValueError(
            f"{said} must be of the same twins, found {before.twins} and "
            f"{table.twins}. Play the same tasks"
        )
    for twin in before.twins:
        try:
            before.check_paired(table, twin=twin)
        except ValueError as error:
            raise ValueError(f"{said}: {error}") from error
    own, other = (t.meta.get("attempts") for t in (before, table))
    if own != other:
        raise ValueError(
            f"{said} must have as many attempts in an episode, found {own} and "
            f"{other}. Play one of them again"
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


def rate_figures(tables: Mapping[str, Any], asked: Any, **at: str) -> dict[str, Any]:
    """Return the rates by arm, after minus before, and after minus control.

    Args:
        tables: By arm, with the methods `rate` and `difference`.
        asked: Outcomes that count.
        **at: Which part of the tables.
    """
    before, after = tables["before"], tables["after"]
    control = tables.get("control")
    return {
        "rates": {arm: table.rate(asked, **at) for arm, table in tables.items()},
        "change": after.difference(before, asked, **at),
        "beyond": control and after.difference(control, asked, **at),
    }


def conduct_document(conduct: Mapping[str, Episodes]) -> dict[str, Any] | None:
    """Return the rates as JSON-able values; None without any."""
    if not conduct:
        return None
    before = conduct["before"]
    return {
        "suite": "impossible-code",
        "unit": "share of episodes",
        "n_tasks": {twin: len(before.ids(twin)) for twin in before.twins},
        "arms": list(conduct),
        "rows": [
            {
                "twin": row.twin,
                "conduct": row.conduct or TOGETHER,
                "rates": {arm: i.rounded() for arm, i in row.rates.items()},
                "after_minus_before": row.change.rounded(),
                "after_minus_control": row.beyond and row.beyond.rounded(),
            }
            for row in conduct_rows(conduct)
        ],
        "meta": {arm: dict(table.meta) for arm, table in conduct.items()},
    }


def conduct_section(
    conduct: Mapping[str, Episodes], arms: Sequence[str]
) -> tuple[dict[str, Any] | None, dict[str, Chart]]:
    """Return what the page's template shows of them, and its charts by element.

    `arms` are those of the readings, whose colours the charts keep.
    """
    if not conduct:
        return None, {}
    rows, before = conduct_rows(conduct), conduct["before"]
    styles = arm_styles((*arms, *(arm for arm in conduct if arm not in arms)))
    charts = {
        f"conduct-{twin}": rate_chart(
            [r for r in rows if r.twin == twin], styles, of="episodes"
        )
        for twin in reversed(before.twins)
    }
    section = {
        "id": "conduct",
        "title": "Conduct on impossible tasks",
        "lead": "What the models wrote by themselves: coding tasks in pairs, of which "
        f"one can be solved and one can’t, {before.meta.get('attempts')} attempts "
        f"each, graded by rule. Cheating is {rows[0].says}. No difference found is no "
        "proof that there is none: read the intervals.",
        "head": "tasks and conduct",
        "caption": "Share of episodes, with 95 % intervals over tasks",
        "rows": rows,
        "arms": {arm: arm_label(arm) for arm in conduct},
        "panels": {key: key.removeprefix("conduct-") for key in charts},
        "figures": {
            f"conduct-{twin}": f"{twin.capitalize()} tasks ({len(before.ids(twin))})"
            for twin in reversed(before.twins)
        },
        "steered": [a for a, t in conduct.items() if t.meta.get("strengths")],
    }
    return section, charts


def rate_chart(rows: Sequence[Any], styles: Mapping[str, Style], *, of: str) -> Chart:
    """Return rows' `rates` as points with intervals, a line for each `label`.

    Args:
        rows: Of one panel.
        styles: Of each arm.
        of: What the rates are shares of.
    """
    data, arms = [], tuple(rows[0].rates)
    for number, arm in enumerate(arms):
        colour, symbol, _ = styles[arm]
        found = [row.rates[arm] for row in rows]
        middle, low, high = (100 * end for end in ends(found))
        shift = 0.16 * (number - (len(arms) - 1) / 2)
        label = plain_text(arm_label(arm))
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": listed(middle),
                "y": [place + shift for place in range(len(rows))],
                "error_x": error_bar(middle, low, high, colour),
                "marker": {"color": colour, "size": 6, "symbol": symbol},
                "text": [
                    f"{label}, {row.label}<br>{i.estimate:.0%} "
                    f"({i.low:.0%} to {i.high:.0%})"
                    for row, i in zip(rows, found, strict=True)
                ],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    layout = base_layout(height=60 + 34 * len(rows), left=104)
    layout["xaxis"] |= {
        "range": [-3, 103],
        "nticks": 6,
        "title": axis_title(f"% of {of}"),
    }
    layout["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [row.label for row in rows],
        "range": [len(rows) - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
    }
    return {"data": data, "layout": layout}
