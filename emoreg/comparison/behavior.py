"""Margins of every arm beside its readings: checked, in rows, and drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from emoreg.behavior.preferences import Preferences
from emoreg.comparison.charts import Chart, arm_styles, plain_text
from emoreg.comparison.curves import arm_label, arm_order
from emoreg.comparison.round_chart import Point, Style, round_chart
from emoreg.statistics.bootstrap import Interval

VERSIONS = {"fail": "failing", "pass": "passing"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class MarginRow:
    """One version after one round of feedback, or over all of them."""

    variant: str
    round: int | None
    """None for the mean over a prompt's rounds."""
    margins: dict[str, Interval]
    """By arm, in nat per token."""
    change: Interval
    """After minus before, paired by prompt."""
    beyond: Interval | None
    """After minus control, paired by prompt; None without a control arm."""

    @property
    def label(self) -> str:
        """What the row is of, in words."""
        when = "all rounds" if self.round is None else f"round {self.round}"
        return f"{VERSIONS[self.variant]}, {when}"


def checked_behavior(
    behavior: Mapping[str, Preferences] | None, meta: Mapping[str, Mapping[str, Any]]
) -> dict[str, Preferences]:
    """Return the arms' tables in the page's order, if they belong together.

    Args:
        behavior: By arm; "before" and "after" must be among them. None for none.
        meta: Each arm's `Readings.meta`. An arm without readings is taken as it is.

    Raises:
        ValueError: If the tables are of other texts, rounds or versions, or one is not
            of the model that its arm's readings are of, as far as that can be told.
    """
    if not behavior:
        return {}
    if missing := {"before", "after"} - set(behavior):
        raise ValueError(
            "`behavior` must have tables of `before` and `after`, found "
            f"{', '.join(behavior)} without {' and '.join(sorted(missing))}. Score "
            "both (`emoreg behave`)"
        )
    before = behavior["before"]
    for arm, table in behavior.items():
        try:
            before.check_paired(table)
        except ValueError as error:
            raise ValueError(f"behavior of `before` and `{arm}`: {error}") from error
        if arm in meta:
            check_model(arm, table.meta, meta[arm])
    return {arm: behavior[arm] for arm in arm_order(tuple(behavior))}


def margin_rows(behavior: Mapping[str, Preferences]) -> list[MarginRow]:
    """Return the margins with 95 % intervals over prompts, failing first."""
    before, after = behavior["before"], behavior["after"]
    control = behavior.get("control")
    rows = []
    for variant in before.variants:
        for number in (None, *before.rounds):
            at: Any = {"variant": variant, "round": number}
            rows.append(
                MarginRow(
                    **at,
                    margins={arm: t.mean(**at) for arm, t in behavior.items()},
                    change=after.difference(before, **at),
                    beyond=control and after.difference(control, **at),
                )
            )
    return rows


def behavior_document(behavior: Mapping[str, Preferences]) -> dict[str, Any] | None:
    """Return the margins as JSON-able values; None without any."""
    if not behavior:
        return None
    before = behavior["before"]
    return {
        "suite": before.meta.get("suite"),
        "unit": "nat per token, honest minus corner-cutting",
        "n_prompts": len(before.prompts),
        "arms": list(behavior),
        "rows": [
            {
                "variant": row.variant,
                "round": row.round,
                "margins": {arm: i.rounded() for arm, i in row.margins.items()},
                "after_minus_before": row.change.rounded(),
                "after_minus_control": row.beyond and row.beyond.rounded(),
            }
            for row in margin_rows(behavior)
        ],
        "meta": {arm: dict(table.meta) for arm, table in behavior.items()},
    }


def behavior_section(
    behavior: Mapping[str, Preferences], arms: Sequence[str]
) -> tuple[dict[str, Any] | None, dict[str, Chart]]:
    """Return what the page's template shows of them, and its charts by element.

    `arms` are those of the readings, whose colours the charts keep.
    """
    if not behavior:
        return None, {}
    rows = margin_rows(behavior)
    charts = _charts(rows, arm_styles((*arms, *(a for a in behavior if a not in arms))))
    section = {
        "rows": rows,
        "arms": {arm: arm_label(arm) for arm in behavior},
        "n": len(behavior["before"].prompts),
        "panels": {key: VERSIONS[key.removeprefix("behavior-")] for key in charts},
        "steered": [a for a, t in behavior.items() if t.meta.get("steering")],
    }
    return section, charts


def _charts(rows: list[MarginRow], styles: Mapping[str, Style]) -> dict[str, Chart]:
    """Return a chart of each version, margin by round, on one scale."""
    by_round = [row for row in rows if row.round is not None]
    charts = {}
    for variant in dict.fromkeys(row.variant for row in by_round):
        own = [row for row in by_round if row.variant == variant]
        points = {arm: [_point(row, arm) for row in own] for arm in own[0].margins}
        charts[f"behavior-{variant}"] = round_chart(
            points, styles, across="rounds of feedback", up="margin"
        )
    ranges = [chart["layout"]["yaxis"]["range"] for chart in charts.values()]
    for chart in charts.values():
        shared = [min(low for low, _ in ranges), max(high for _, high in ranges)]
        chart["layout"]["yaxis"]["range"] = shared
    return charts


def _point(row: MarginRow, arm: str) -> Point:
    found, label = row.margins[arm], plain_text(arm_label(arm))
    return Point(
        place=str(row.round),
        interval=found,
        says=f"{label}, {row.label}<br>{found.estimate:+.3f} "
        f"({found.low:+.3f} to {found.high:+.3f})",
    )


def check_model(
    arm: str,
    own: Mapping[str, Any],
    readings: Mapping[str, Any],
    *,
    steered: str = "steering",
) -> None:
    """Raise a ValueError unless a table is of the model that the readings are of.

    `steered` is the entry of its meta that says what the model was pushed by.
    """
    names = own.get("model"), readings.get("model")
    if all(names) and names[0] != names[1]:
        raise ValueError(
            f"behavior and readings of `{arm}` must be of one model, found "
            f"{names[0]!r} and {names[1]!r}. Score the model that was measured"
        )
    tuned = [bool(meta.get("adapter")) for meta in (own, readings)]
    if "adapter" in own and "adapter" in readings and tuned[0] != tuned[1]:
        words = ["with an adapter" if is_tuned else "without" for is_tuned in tuned]
        raise ValueError(
            f"behavior and readings of `{arm}` must be of one model, found it scored "
            f"{words[0]} and measured {words[1]}. Pass the same `--adapter` to both"
        )
    if own.get(steered) or own.get("readings"):
        raise ValueError(
            f"behavior of `{arm}` must be of the model as it was measured, found it "
            f"{'steered' if own.get(steered) else 'with readings set'}. Score it as "
            "it is (`emoreg behave` without `--steer`), or name an arm of its own"
        )
