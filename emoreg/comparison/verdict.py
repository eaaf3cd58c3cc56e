"""The checks and the verdict: plain words that say no more than the numbers.

The primary figures are the failure slopes of the two families no loss may see, by the
audit reader, averaged over the audit layers. Everything said is about representations
on these prompts, never about feelings, and an absence is "none found by these checks".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from emoreg.comparison.figures import RATIO_STANDARD_ERRORS, FigureSet
from emoreg.comparison.phrases import HALF, Family, caveats, headline, sentences
from emoreg.statistics.bootstrap import Interval, Intervals

PRIMARY = {"audit distress": 1, "audit composure": -1}
"""The primary targets and the sign of their failure slope before training."""
MINIMUM_PROMPTS = 8
KL_BUDGET = 0.05
STORY_RATIO = 0.95
ELSEWHERE_RATIO = 0.6

Status = Literal["passed", "missed", "withheld"]
Guards = Mapping[str, Mapping[str, Any]]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Which reader and group of layers the primary figures come from."""

    reader: str
    place: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that must hold, and what was found."""

    name: str
    requirement: str
    value: float | None
    low: float | None
    high: float | None
    status: Status
    detail: str = ""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The verdict, from one line to the full checks."""

    headline: str
    groups: dict[str, tuple[str, ...]]
    """What was found, by family and for the guard rails."""
    caveats: tuple[str, ...]
    checks: tuple[Check, ...]
    withheld: bool

    @property
    def findings(self) -> tuple[str, ...]:
        """The sentences of all groups."""
        return tuple(said for group in self.groups.values() for said in group)

    @property
    def verdict(self) -> str:
        """Headline, findings and caveats as one text."""
        return " ".join([self.headline, *self.findings, *self.caveats])


def judge(figures: FigureSet, question: Question, *, guards: Guards) -> Judgement:
    """Return verdict and checks from figures averaged over groups of layers."""
    families = [
        _family(figures, question, name, sign)
        for name, sign in PRIMARY.items()
        if name in figures.targets
    ]
    checks = [check for family in families for check in _family_checks(family)]
    checks += [_elsewhere(figures), _kl_check(guards), _story_check(guards)]
    guards_missed = [check for check in checks[-3:] if check.status == "missed"]
    n = figures.arms["before"].slope.n
    reason = _reason_to_withhold(n, families)
    if reason:
        held = tuple(_withheld(check, reason) for check in checks)
        return Judgement(
            headline=f"Verdict withheld: {reason}",
            groups={},
            caveats=("The figures below stand as they are, without a claim.",),
            checks=held,
            withheld=True,
        )
    groups = {family.name: tuple(sentences(family)) for family in families}
    groups["guard rails"] = tuple(_check_sentence(check) for check in checks[-3:])
    return Judgement(
        headline=headline(families[0], missed=[c.name for c in guards_missed]),
        groups=groups,
        caveats=caveats(families, reader=question.reader, place=question.place),
        checks=tuple(checks),
        withheld=False,
    )


def _family(figures: FigureSet, question: Question, name: str, sign: int) -> Family:
    index = figures.index(question.reader, question.place, name)
    after, control = figures.arms["after"], figures.arms.get("control")
    assert after.change is not None
    return Family(
        name=name,
        sign=sign,
        before=figures.arms["before"].slope.at(*index),
        after=after.slope.at(*index),
        change=after.change.at(*index),
        remaining=_shown(after.ratio, index),
        control=control.slope.at(*index) if control else None,
        control_remaining=_shown(control.ratio, index) if control else None,
        beyond=figures.beyond_control.at(*index) if figures.beyond_control else None,
        others={
            arm: own.after_minus.at(*index)
            for arm, own in figures.arms.items()
            if own.after_minus is not None and arm != "control"
        },
    )


def _shown(ratio: Intervals | None, index: tuple[int, int, int]) -> Interval | None:
    """Return a ratio, or None where it was withheld."""
    if ratio is None or not np.isfinite(ratio.estimate[index]):
        return None
    return ratio.at(*index)


def _reason_to_withhold(n: int, families: list[Family]) -> str:
    if n < MINIMUM_PROMPTS:
        return f"{n} prompts were compared and at least {MINIMUM_PROMPTS} are needed."
    if not families or families[0].name != "audit distress":
        return "the readings hold no emotion of the audit distress family."
    return ""


def _withheld(check: Check, reason: str) -> Check:
    return Check(
        name=check.name,
        requirement=check.requirement,
        value=check.value,
        low=check.low,
        high=check.high,
        status="withheld",
        detail=_upper(reason),
    )


def _check(
    name: str,
    requirement: str,
    interval: Interval | None,
    held: bool,
    *,
    detail: str = "",
) -> Check:
    """Return a check; without an interval it is withheld."""
    if interval is None:
        return Check(
            name=name,
            requirement=requirement,
            value=None,
            low=None,
            high=None,
            status="withheld",
            detail=detail,
        )
    return Check(
        name=name,
        requirement=requirement,
        value=interval.estimate,
        low=interval.low,
        high=interval.high,
        status="passed" if held else "missed",
        detail=detail,
    )


def _family_checks(family: Family) -> list[Check]:
    side = "above" if family.sign > 0 else "below"
    towards = "below" if family.sign > 0 else "above"
    ratio = family.remaining
    why = "" if ratio else _no_ratio(family)
    return [
        _check(
            f"{family.name}: there before",
            f"interval of the slope before lies {side} zero",
            family.before,
            family.present,
        ),
        _check(
            f"{family.name}: halved",
            f"remaining ratio between −{HALF} and {HALF}",
            ratio,
            ratio is not None and abs(ratio.estimate) <= HALF,
            detail=why,
        ),
        _check(
            f"{family.name}: halved for certain",
            f"interval of the remaining ratio between −{HALF} and {HALF}",
            ratio,
            ratio is not None and max(-ratio.low, ratio.high) <= HALF,
            detail=why,
        ),
        _check(
            f"{family.name}: beyond control",
            f"interval of after minus control lies {towards} zero",
            family.beyond if family.present else None,
            family.beyond_control,
            detail=_beyond_detail(family),
        ),
    ]


def _beyond_detail(family: Family) -> str:
    if family.beyond is None:
        return "No control arm was given."
    if not family.present:
        return "No slope was found before, so there was nothing to reduce."
    return ""


def _no_ratio(family: Family) -> str:
    if not family.present:
        return "No slope was found before, so there is no ratio."
    return (
        f"The base slope is not above {RATIO_STANDARD_ERRORS:.0f} standard errors, "
        "so a ratio would be noise."
    )


def _elsewhere(figures: FigureSet) -> Check:
    """Look for a reader and group outside the loss that still sees the slope."""
    name, limit = "reduced for every reader", ELSEWHERE_RATIO
    requirement = (
        f"largest remaining ratio of a primary family, over readers and the audit and "
        f"near layers, at most {limit}"
    )
    ratio = figures.arms["after"].ratio
    targets = [t for t in PRIMARY if t in figures.targets]
    places = [place for place in ("audit", "near") if place in figures.places]
    found = [
        (shown, f"{reader}, {place} layers, {target}")
        for reader in figures.readers
        for place in places
        for target in targets
        if (shown := _shown(ratio, figures.index(reader, place, target)))
    ]
    if not found:
        return _check(
            name, requirement, None, False, detail="No base slope carries a ratio."
        )
    largest, where = max(found, key=lambda item: abs(item[0].estimate))
    detail = f"Largest of {len(found)}: {where}."
    held = abs(largest.estimate) <= limit
    return _check(name, requirement, largest, held, detail=detail)


def _check_sentence(check: Check) -> str:
    """Say in one sentence how a check that is no family's came out."""
    if check.value is None:
        return f"{_upper(check.name)}: not checked. {check.detail}"
    found = f"{check.value:.2f}" if abs(check.value) >= 0.1 else f"{check.value:.3f}"
    return (
        f"{_upper(check.name)}: {check.status} ({found.replace('-', '−')}; "
        f"{check.requirement})."
    )


def _kl_check(guards: Guards) -> Check:
    name = "KL within budget"
    after = _guard(guards, "after", "kl")
    control = _guard(guards, "control", "kl")
    requirement = (
        f"KL from the reference, after minus control, at most {KL_BUDGET} nat per token"
    )
    if after is None:
        detail = "No KL was measured after training."
        return _check(name, requirement, None, False, detail=detail)
    if control is None:
        requirement = f"KL from the reference at most {KL_BUDGET} nat per token"
        detail = "No control arm: the whole KL is held against the budget."
        return _check(
            name, requirement, after, after.estimate <= KL_BUDGET, detail=detail
        )
    # The two arms' errors are not known jointly: the widest difference is given.
    excess = Interval(
        estimate=after.estimate - control.estimate,
        low=after.low - control.high,
        high=after.high - control.low,
        n=after.n,
    )
    detail = (
        f"After {after.estimate:.3f}, control {control.estimate:.3f}; the interval is "
        "the widest that theirs allow."
    )
    return _check(
        name, requirement, excess, excess.estimate <= KL_BUDGET, detail=detail
    )


def _story_check(guards: Guards) -> Check:
    name = "meaning kept"
    requirement = f"story accuracy after over before at least {STORY_RATIO}"
    before = _guard(guards, "before", "story_top1")
    after = _guard(guards, "after", "story_top1")
    if before is None or after is None or before.estimate <= 0:
        detail = "Story accuracy was not measured before and after."
        return _check(name, requirement, None, False, detail=detail)
    ratio = Interval(
        estimate=after.estimate / before.estimate,
        low=after.low / before.estimate,
        high=after.high / before.estimate,
        n=after.n,
    )
    detail = (
        f"Before {before.estimate:.3f}, after {after.estimate:.3f}; the interval "
        "takes the accuracy before as given."
    )
    return _check(
        name, requirement, ratio, ratio.estimate >= STORY_RATIO, detail=detail
    )


def _guard(guards: Guards, arm: str, name: str) -> Interval | None:
    """Return a guard's value; bounds that are missing become NaN."""
    found = (guards.get(arm) or {}).get(name) or {}
    if found.get("value") is None:
        return None
    low, high = (
        float("nan") if found.get(end) is None else float(found[end])
        for end in ("low", "high")
    )
    return Interval(
        estimate=float(found["value"]), low=low, high=high, n=int(found.get("n") or 0)
    )


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
