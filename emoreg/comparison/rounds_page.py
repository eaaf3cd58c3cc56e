"""The page's section on the number of failed attempts."""

from collections.abc import Sequence
from typing import Any

from emoreg.comparison.charts import Chart, arm_styles, plain_text
from emoreg.comparison.curves import arm_label, arm_order
from emoreg.comparison.round_chart import Point, round_chart
from emoreg.comparison.rounds import RoundTrend


def rounds_section(
    trends: Sequence[RoundTrend],
) -> tuple[dict[str, Any] | None, dict[str, Chart]]:
    """Return what the page's template shows, and its charts by element."""
    arms = arm_order(tuple(dict.fromkeys(trend.arm for trend in trends)))
    targets = dict.fromkeys(trend.target for trend in trends)
    there = {(t.target, t.arm): t for t in trends if len(t.gaps) > 1}
    shown = [there[t, arm] for t in targets for arm in arms if (t, arm) in there]
    if not shown:
        return None, {}
    styles, charts, panels = arm_styles(arms), {}, {}
    for number, target in enumerate(dict.fromkeys(t.target for t in shown)):
        key = f"rounds-{number}"
        own = {t.arm: t for t in shown if t.target == target}
        charts[key] = round_chart(
            {arm: _points(trend) for arm, trend in own.items()},
            styles,
            across="failed attempts",
            up="σ<sub>ref</sub>",
        )
        panels[key] = target
    counts = [gap.n for gap in shown[0].gaps]
    section = {"rows": shown, "panels": panels, "counts": counts}
    return section, charts


def _points(trend: RoundTrend) -> list[Point]:
    label = plain_text(f"{arm_label(trend.arm)}, {trend.target}")
    return [
        Point(
            place=str(number),
            interval=gap,
            says=f"{label}<br>after {number}: {gap.estimate:+.2f} "
            f"({gap.low:+.2f} to {gap.high:+.2f}), {gap.n} tasks",
        )
        for number, gap in enumerate(trend.gaps, start=1)
    ]
