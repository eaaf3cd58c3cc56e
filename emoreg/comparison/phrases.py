"""The words of a verdict: numbers with intervals, and sentences built from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from emoreg.statistics.bootstrap import Interval

HALF = 0.5
"""The remaining ratio at which a slope counts as halved."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The primary figures of one family."""

    name: str
    sign: int
    before: Interval
    after: Interval
    change: Interval
    remaining: Interval | None
    """After over before; None where the base slope carries no ratio."""
    control: Interval | None
    control_remaining: Interval | None
    beyond: Interval | None
    """After minus control."""
    others: dict[str, Interval]
    """After minus each further arm."""

    @property
    def present(self) -> bool:
        """Whether the slope before is there, with the expected sign."""
        return self.before.excludes(0.0) and self.before.estimate * self.sign > 0

    @property
    def reduced(self) -> bool:
        """Whether the slope moved towards zero, zero change excluded."""
        return self.change.excludes(0.0) and self.change.estimate * self.sign < 0

    @property
    def beyond_control(self) -> bool:
        """Whether the terms moved it further than the control arm moved."""
        gap = self.beyond
        return gap is not None and self.helped(gap)

    def helped(self, gap: Interval) -> bool:
        """Whether after lies nearer to none than the arm it is held against.

        A slope that was turned over by more than the arm's is not nearer.
        """
        arm = self.after.estimate - gap.estimate
        lower = gap.excludes(0.0) and gap.estimate * self.sign < 0
        return lower and abs(self.after.estimate) < abs(arm)


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign, a true minus, and no negative zero."""
    text = f"{value:+.{digits}f}"
    zero = f"{0:.{digits}f}"
    return zero if text[1:] == zero else text.replace("-", "−")


def span(interval: Interval, digits: int = 2) -> str:
    """Write an estimate with its interval."""
    low, high = signed(interval.low, digits), signed(interval.high, digits)
    return f"{signed(interval.estimate, digits)} ({low} to {high})"


def percent(interval: Interval) -> str:
    """Write a ratio with its interval in per cent."""
    parts = (interval.estimate, interval.low, interval.high)
    # An end that rounds to one half must not look as if it were one half.
    close = any(0 < abs(abs(part) - HALF) < 0.005 for part in parts)
    digits = 1 if close else 0
    value, low, high = (signed(100 * p, digits).removeprefix("+") for p in parts)
    return f"{value} % ({low} to {high} %)"


def headline(family: Family, *, missed: Sequence[str]) -> str:
    """Return one sentence on the primary family, and the guard rails it broke."""
    if not family.present:
        return (
            f"No {family.name} slope to reduce was found before training by these "
            f"checks: {span(family.before)} σ_ref."
        )
    text = f"{_upper(_reduction(family))}; {_against_control(family)}."
    if missed:
        text += f" Missed: {', '.join(missed)}."
    return text


def sentences(family: Family) -> list[str]:
    """Return what was found before, after, in the control arm, and beyond it."""
    name = _upper(family.name)
    said = [f"{name} before: {span(family.before)} σ_ref, {_before(family)}."]
    if family.present:
        said.append(f"After: {span(family.after)} σ_ref, {_remaining(family)}.")
    else:
        said.append(f"After: {span(family.after)} σ_ref.")
    if family.control is None or family.beyond is None:
        said.append("Training and terms cannot be told apart without a control arm.")
    else:
        said.append(f"Control arm: {span(family.control)} σ_ref{_control(family)}.")
        said.append(_after_minus(family, "control", family.beyond))
    said += [_after_minus(family, arm, gap) for arm, gap in family.others.items()]
    return said


def caveats(families: Sequence[Family], *, reader: str, place: str) -> tuple[str, ...]:
    """Return what the figures cannot say."""
    n = families[0].before.n
    widths = " and ".join(
        f"{family.after.width:.2f} σ_ref wide for {family.name}" for family in families
    )
    return (
        f"Over n = {n} prompts the 95 % interval of the slope after is {widths}.",
        "One seed was run per arm, so differences between seeds are in no interval.",
        f"These are readings of representations by the {reader} reader at the {place} "
        "layers; they say nothing of feelings.",
    )


def _reduction(family: Family) -> str:
    ratio = family.remaining
    where = f"the {family.name} slope"
    if ratio is not None and ratio.estimate < -HALF:
        return f"{where} turned over: {percent(ratio)} of it remains"
    if ratio is not None and abs(ratio.estimate) <= HALF:
        if max(-ratio.low, ratio.high) <= HALF:
            return f"{where} is at least halved, {percent(ratio)} of it remains"
        return (
            f"{where} is halved by the estimate but not for certain, "
            f"{percent(ratio)} of it remains"
        )
    if family.reduced and ratio is not None:
        return f"{where} is lower but not halved, {percent(ratio)} of it remains"
    if family.reduced:
        return f"{where} moved towards zero by {span(family.change)} σ_ref"
    if family.change.excludes(0.0):
        return f"{where} grew by {span(family.change)} σ_ref"
    return f"no reduction of {where} was found by these checks"


def _against_control(family: Family) -> str:
    if family.beyond is None:
        return "without a control arm this cannot be credited to the terms"
    if family.beyond_control:
        return f"the terms moved it {span(family.beyond)} σ_ref beyond the control arm"
    if family.beyond.excludes(0.0):
        return (
            f"after lies {span(family.beyond)} σ_ref from the control arm, which is no "
            "nearer to none"
        )
    return "no difference from the control arm was found by these checks"


def _before(family: Family) -> str:
    if family.present:
        return "the effect is there"
    if family.before.excludes(0.0):
        return "the opposite of the expected sign"
    return "no effect was found by these checks"


def _remaining(family: Family) -> str:
    ratio = family.remaining
    if ratio is None:
        verb = "excludes" if family.change.excludes(0.0) else "does not exclude"
        return (
            f"a change of {span(family.change)}, which {verb} zero (no ratio: the "
            "base slope is too weak for one)"
        )
    told = f"{percent(ratio)} remains"
    if ratio.estimate < -HALF:
        return f"{told}: it turned over by more than half"
    if abs(ratio.estimate) > HALF:
        return f"{told}: not halved"
    if max(-ratio.low, ratio.high) <= HALF:
        return f"{told}: at least halved, and the interval excludes less"
    return f"{told}: halved by the estimate, but the interval does not exclude less"


def _control(family: Family) -> str:
    ratio = family.control_remaining
    if ratio is None:
        return ""
    halved = "halved by the estimate" if abs(ratio.estimate) <= HALF else "not halved"
    return f", {percent(ratio)} remains: {halved}"


def _after_minus(family: Family, arm: str, gap: Interval) -> str:
    said = "away from what the terms are for"
    if not gap.excludes(0.0):
        said = "no difference was found by these checks"
    elif family.helped(gap):
        said = "what the terms added" if arm == "control" else "further than that arm"
    return f"After minus {arm}: {span(gap)} σ_ref, {said}."


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
