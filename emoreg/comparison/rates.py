"""What tables of rates have in common: checked by arm, as a document, and drawn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

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

_Table = TypeVar("_Table")


def checked_arms(
    tables: Mapping[str, _Table] | None,
    meta: Mapping[str, Mapping[str, Any]],
    check: Callable[[_Table, _Table, str], None],
    *,
    name: str,
    holds: str,
    suite: str,
) -> dict[str, _Table]:
    """Return the arms' tables in the page's order, if they belong together.

    Args:
        tables: By arm; "before" and "after" must be among them. None for none.
        meta: Each arm's `Readings.meta`. An arm without readings is taken as it is.
        check: Refuses a table that is not like that of `before`, with words for both.
        name: Of the tables, for messages.
        holds: What is in them.
        suite: What `emoreg behave` calls it.

    Raises:
        ValueError: If one of these is missing, `check` refuses one, or one is not of
            the model that its arm's readings are of, as far as that can be told.
    """
    if not tables:
        return {}
    if missing := {"before", "after"} - set(tables):
        raise ValueError(
            f"`{name}` must have {holds} of `before` and `after`, found "
            f"{', '.join(tables)} without {' and '.join(sorted(missing))}. Play both "
            f"(`emoreg behave --suite {suite}`)"
        )
    for arm, table in tables.items():
        check(tables["before"], table, f"{name} of `before` and `{arm}`")
        if arm in meta:
            own: Any = table
            check_model(arm, own.meta, meta[arm], steered="strengths")
    return {arm: tables[arm] for arm in arm_order(tuple(tables))}


def check_alike(
    before: Any,
    table: Any,
    said: str,
    *,
    part: str,
    again: str,
    counted: str,
    words: str,
) -> None:
    """Raise a ValueError unless two tables are of the same texts, asked alike.

    Args:
        before: One table.
        table: The other.
        said: Both, in words.
        part: What the tables have several of, as `twins`, each paired by itself.
        again: What to do where they have others.
        counted: The entry of their meta that must be the same.
        words: What it counts.
    """
    parts, others = (getattr(one, f"{part}s") for one in (before, table))
    if parts != others:
        raise ValueError(
            f"{said} must be of the same {part}s, found {parts} and {others}. {again}"
        )
    for name in parts:
        try:
            before.check_paired(table, **{part: name})
        except ValueError as error:
            raise ValueError(f"{said}: {error}") from error
    own, other = (one.meta.get(counted) for one in (before, table))
    if own != other:
        raise ValueError(
            f"{said} must have as many {words}, found {own} and {other}. Play one of "
            "them again"
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


def rates_document(
    tables: Mapping[str, Any], rows: Sequence[Any], head: Mapping[str, Any]
) -> dict[str, Any]:
    """Return rates as JSON-able values.

    Args:
        tables: By arm.
        rows: Each with `place`, which says what it is of, and `rate_figures`.
        head: What stands before them.
    """
    return {
        **head,
        "arms": list(tables),
        "rows": [
            {
                **row.place,
                "rates": {arm: i.rounded() for arm, i in row.rates.items()},
                "after_minus_before": row.change.rounded(),
                "after_minus_control": row.beyond and row.beyond.rounded(),
            }
            for row in rows
        ],
        "meta": {arm: dict(table.meta) for arm, table in tables.items()},
    }


def rates_section(
    tables: Mapping[str, Any],
    rows: Sequence[Any],
    arms: Sequence[str],
    words: Mapping[str, str],
    titles: Mapping[str, str],
    *,
    of: str,
) -> tuple[dict[str, Any], dict[str, Chart]]:
    """Return what the page's template shows of rates, and its charts by element.

    Args:
        tables: By arm.
        rows: All of them; a panel's have its name as `part`.
        arms: Those of the readings, whose colours the charts keep.
        words: The section's `id`, title and texts.
        titles: Of the panels.
        of: What the rates are shares of.
    """
    styles = arm_styles((*arms, *(arm for arm in tables if arm not in arms)))
    elements = {part: f"{words['id']}-{part}" for part in titles}
    charts = {
        element: rate_chart([row for row in rows if row.part == part], styles, of=of)
        for part, element in elements.items()
    }
    section = {
        **words,
        "rows": rows,
        "arms": {arm: arm_label(arm) for arm in tables},
        "panels": {element: part for part, element in elements.items()},
        "figures": {element: titles[part] for part, element in elements.items()},
        "steered": [a for a, t in tables.items() if t.meta.get("strengths")],
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
