"""Guard rails with margins: what is shown to have stayed, and what isn't."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from emoreg.statistics.bootstrap import Interval
from emoreg.statistics.equivalence import equivalence
from emoreg.statistics.proportions import difference_of_proportions

Verdict = Literal["kept", "not kept", "not shown", "not paired"]
CONFIDENCE = 0.9
"""Of the change's interval: two one-sided tests at 0.05."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Rail:
    """A measure that must not get worse by more than a margin."""

    label: str
    margin: float
    unit: str
    """Of the change and its margin, in words."""
    higher_is_better: bool = False
    share: bool = False
    """Values are 0 or 1, a text's each."""
    from_zero: bool = False
    """The measure is a change already: it has no value before."""
    relative: bool = False
    """The margin is a share of the value before."""


RAILS = {
    "kl": Rail(
        label="KL from the reference, nat per token",
        margin=0.05,
        unit="nat per token",
        from_zero=True,
    ),
    "loss": Rail(
        label="Loss on other text, nat per token",
        margin=math.log(1.02),
        unit="nat per token, 2 % of perplexity",
    ),
    "capability": Rail(
        label="Simple skills, right answer likeliest",
        margin=0.05,
        unit="of the questions",
        higher_is_better=True,
        share=True,
    ),
    "story_top1": Rail(
        label="Story accuracy, top 1",
        margin=0.05,
        unit="of the stories, 5 % of that before",
        higher_is_better=True,
        share=True,
        relative=True,
    ),
    "gsm8k": Rail(
        label="GSM8K, last number right",
        margin=0.02,
        unit="of the questions",
        higher_is_better=True,
        share=True,
    ),
    "humaneval": Rail(
        label="HumanEval, first try passes",
        margin=0.03,
        unit="of the functions",
        higher_is_better=True,
        share=True,
    ),
    "mbpp": Rail(
        label="MBPP, first try passes",
        margin=0.03,
        unit="of the functions",
        higher_is_better=True,
        share=True,
    ),
}
"""By name in `guard_rails`, and the benchmarks', with margins fixed before anything was
measured."""


HARNESS = "lm-eval:"
"""Before the name of a task of lm-eval."""
HARNESS_MARGIN = 0.02
"""Of every task of lm-eval: no margin was fixed for each of hundreds."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RailRow:
    """One guard rail of every arm, and whether it held."""

    name: str
    label: str
    values: dict[str, dict[str, Any]]
    """By arm, as `guard_rails` gave them, without their single values."""
    change: Interval | None
    """After minus before over texts, 90 %; None where texts can't be paired."""
    margin: float | None
    """What the change must stay above or below, in its unit."""
    unit: str
    verdict: Verdict | None

    @property
    def rule(self) -> str:
        """The margin in words."""
        if self.margin is None:
            return ""
        side = "at least" if self.margin < 0 else "at most"
        return f"{side} {self.margin:.3f} {self.unit}".replace("-", "−")


def rail_rows(meta: Mapping[str, Mapping[str, Any]]) -> list[RailRow]:
    """Return one row per guard rail that an arm has.

    *Kept*: the 90 % interval of the change lies on the right side of the margin, which
    is TOST's one-sided half at 0.05 (Lakens 2017,
    https://doi.org/10.1177/1948550617697177). *Not kept*: all of it lies beyond.
    Otherwise *not shown*: too few texts to say, whatever the estimate. *Not paired*:
    asked of other files or with other settings, so nothing can be said. Losses by the t
    interval over texts, shares by that of paired proportions.

    Args:
        meta: Each arm's `Readings.meta`.
    """
    guards = {arm: found.get("guards") or {} for arm, found in meta.items()}
    names = dict.fromkeys(name for found in guards.values() for name in found)
    ordered = [*(n for n in RAILS if n in names), *(n for n in names if n not in RAILS)]
    return [_row(name, guards) for name in ordered]


def rails_document(meta: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as JSON-able values."""
    return [
        {
            "name": row.name,
            "values": row.values,
            "change": None
            if row.change is None
            else {e: getattr(row.change, e) for e in ("estimate", "low", "high", "n")},
            "margin": row.margin,
            "unit": row.unit,
            "verdict": row.verdict,
        }
        for row in rail_rows(meta)
    ]


def _row(name: str, guards: Mapping[str, Mapping[str, Any]]) -> RailRow:
    values = {arm: dict(found.get(name) or {}) for arm, found in guards.items()}
    single = {arm: found.pop("values", None) for arm, found in values.items()}
    rail = _harness_rail(name, single) if name.startswith(HARNESS) else RAILS.get(name)
    if rail is None:
        return RailRow(
            name=name,
            label=name,
            values=values,
            change=None,
            margin=None,
            unit="",
            verdict=None,
        )
    alike = _same_settings(values)
    change = _change(rail, single.get("before"), single.get("after")) if alike else None
    level = values.get("before", {}).get("value") if rail.relative else 1.0
    margin = None if change is None or not level else rail.margin * level
    if margin is not None and rail.higher_is_better:
        margin = -margin
    return RailRow(
        name=name,
        label=rail.label,
        values=values,
        change=change,
        margin=margin,
        unit=rail.unit,
        verdict=_verdict(rail, change, margin) if alike else "not paired",
    )


def _harness_rail(name: str, single: Mapping[str, Any]) -> Rail:
    """Return what a task of lm-eval is held to; of its items by arm."""
    items = [item for found in single.values() for item in found or ()]
    return Rail(
        label=name,
        margin=HARNESS_MARGIN,
        unit="of the task's measure",
        higher_is_better=True,
        share=set(items) <= {0, 1},
    )


def _same_settings(values: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether both arms were asked the same, where both were asked."""
    before, after = values.get("before"), values.get("after")
    if not before or not after:
        return True
    return before.get("settings") == after.get("settings")


def _change(rail: Rail, before: Any, after: Any) -> Interval | None:
    """Return after minus before over texts; None where they are not the same texts."""
    if after is None or len(after) < 2:
        return None
    if not rail.from_zero and (before is None or len(before) != len(after)):
        return None
    new = np.asarray(after, float)
    old = np.zeros_like(new) if rail.from_zero else np.asarray(before, float)
    if rail.share:
        pair = [values.astype(bool)[:, None] for values in (new, old)]
        return difference_of_proportions(*pair, confidence=CONFIDENCE)
    if not np.ptp(new - old):  # every text alike: no spread to test against
        moved = float(new[0] - old[0])
        return Interval(estimate=moved, low=moved, high=moved, n=len(new))
    return equivalence((new - old)[:, None], 1.0).interval.at(0)


def _verdict(
    rail: Rail, change: Interval | None, margin: float | None
) -> Verdict | None:
    if change is None or margin is None:
        return None
    ends = (change.low, change.high)
    if rail.higher_is_better:
        margin, ends = -margin, (-change.high, -change.low)
    if ends[1] < margin:
        return "kept"
    return "not kept" if ends[0] > margin else "not shown"
