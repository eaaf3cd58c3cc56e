"""What counts as failure: a number in [0, 1] per turn, and where it came from.

Outcomes come from a dataset column, a reward, or `parse_feedback`, which reads the text
of a tool or user turn. Unknown is an answer: a wrong label trains the wrong thing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

from emoreg.training.outcomes.json_reports import json_report
from emoreg.training.outcomes.rules import (
    Rule,
    crash,
    exit_status,
    plain,
    runner_counts,
    sign_of_failure,
    spoken,
    timeout,
    verdict_words,
)
from emoreg.vectors.corpus import Transcript

# In this order the first rule that finds something decides, with two exceptions that
# `parse_feedback` states. Counts come first: they say most exactly what happened.
_RULES: Final[tuple[tuple[str, Rule], ...]] = (
    ("json", json_report),
    ("test counts", runner_counts),
    ("exit status", exit_status),
    ("verdict", verdict_words),
    ("timeout", timeout),
    ("crash", crash),
    ("statement", spoken),
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Failure of one turn and its source."""

    failure: float | None
    """0 for success, 1 for failure, or between; None where it is unknown."""
    source: str
    """What said so: a rule of the parser, or `unknown`."""

    def __post_init__(self) -> None:
        """Refuse a failure outside [0, 1]."""
        validate_outcome(self.failure)


def validate_outcome(value: object) -> float:
    """Return a failure as a float, NaN for unknown.

    Args:
        value: A number in [0, 1]; None or NaN where the outcome is unknown.

    Raises:
        TypeError: If `value` is no number.
        ValueError: If `value` is outside [0, 1].
    """
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise TypeError(
            f"An outcome must be a number in [0, 1] or None, found "
            f"{type(value).__name__} {value!r}. Write 1 for failed and 0 for passed."
        )
    failure = float(value)
    if not math.isnan(failure) and not 0.0 <= failure <= 1.0:
        raise ValueError(
            f"An outcome must be in [0, 1], found {failure:g}. Write 1 for failed, 0 "
            "for passed and None for unknown; scale rewards first."
        )
    return failure


def parse_feedback(text: str) -> Outcome:
    """Return the outcome that the text of one tool or user turn states.

    Known forms are JSON reports, summaries of test runners, exit codes, verdicts of
    checkers and CI logs, timeouts, crashes, and plain sentences about a run. The first
    rule that finds something decides, but a failing exit code outweighs passing counts,
    and a passing exit code beside a failing verdict or a crash is unknown: the status
    may be that of another command in a pipe.

        >>> parse_feedback("0 failed, 5 passed in 0.05s").failure
        0.0
        >>> parse_feedback("The AssertionError is fixed.").failure is None
        True
    """
    text = plain(text)
    found = {name: rule(text) for name, rule in _RULES}
    if found["test counts"] is False and found["exit status"] is True:
        return Outcome(failure=1.0, source="exit status")
    for name, failed in found.items():
        if failed is None:
            continue
        if name == "exit status" and failed is False and _contradicted(found, text):
            return Outcome(failure=None, source="unknown")
        return Outcome(failure=float(failed), source=name)
    return Outcome(failure=None, source="unknown")


def _contradicted(found: dict[str, bool | None], text: str) -> bool:
    """Return whether anything beside a passing exit status speaks of failure."""
    ruled = any(found[name] is True for name in ("verdict", "timeout", "crash"))
    return ruled or sign_of_failure(text)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How well parsed outcomes agree with the twins' labels, for one style."""

    style: str
    turns: int
    """Feedbacks read, failing and passing together."""
    recall: float
    """Share of failing feedback that was read as failing."""
    precision: float
    """Share of what was read as failing that is failing; NaN if nothing was."""
    unknown: float
    """Share of feedback that was not read as either."""


def agreement(transcripts: Iterable[Transcript]) -> tuple[Agreement, ...]:
    """Return the parser's agreement with the twins' labels, one entry per style.

    Raises:
        ValueError: If there is no transcript.
    """
    turns: dict[str, list[tuple[bool, float | None]]] = {}
    for twin in transcripts:
        of_style = turns.setdefault(twin.style, [])
        of_style += [(True, parse_feedback(text).failure) for text in twin.fail]
        of_style += [(False, parse_feedback(text).failure) for text in twin.pass_]
    if not turns:
        raise ValueError(
            "`transcripts` must hold at least one twin, found none. Choose another "
            "split."
        )
    return tuple(_score(style, of_style) for style, of_style in sorted(turns.items()))


def _score(style: str, turns: list[tuple[bool, float | None]]) -> Agreement:
    hits = sum(failing and failure == 1.0 for failing, failure in turns)
    alarms = sum(failure == 1.0 for _, failure in turns)
    return Agreement(
        style=style,
        turns=len(turns),
        recall=hits / sum(failing for failing, _ in turns),
        precision=hits / alarms if alarms else math.nan,
        unknown=sum(failure is None for _, failure in turns) / len(turns),
    )
