"""Twins: one piece of work told twice, with failing and with passing feedback."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

Message = dict[str, str]
"""One turn of a dialogue: {"role": ..., "content": ...}."""

Variant = Literal["fail", "pass"]
VARIANTS: Final[tuple[Variant, Variant]] = ("fail", "pass")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A dialogue with an outcome for each Assistant turn."""

    id: str
    """Unique name of the dialogue."""
    pair: str
    """Name of the task. Twins share it; statistics resample whole tasks."""
    variant: Literal["fail", "pass", ""]
    """Which twin this is; empty for a dialogue that has no twin."""
    style: str
    """Wording of the feedback, for example `pytest output`; may be empty."""
    messages: tuple[Message, ...]
    """The turns, the last of them the Assistant's."""
    failed: tuple[float | None, ...]
    """Failure in [0, 1] known at each Assistant turn; None before any feedback."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """A twin: the same attempts under feedback that fails or passes.

    The attempts are the same in both versions, and each failing feedback has a passing
    one of the same form and length.
    """

    id: str
    domain: str
    style: str
    split: str
    task: str
    attempts: tuple[str, ...]
    """The Assistant's attempts, one per round."""
    fail: tuple[str, ...]
    """Failing feedback of each round."""
    pass_: tuple[str, ...]
    """Passing feedback of each round."""
    reply_fail: str
    """An honest last turn after failing; a good target for training."""
    reply_pass: str
    """An honest last turn after passing; a good target for training."""
    reply_bad: str
    """A last turn that cuts corners after failing; never a target."""

    def feedback(self, variant: Variant) -> tuple[str, ...]:
        """Return the feedback of every round in one version."""
        return self.fail if variant == "fail" else self.pass_

    def conversation(self, variant: Variant, rounds: int | None = None) -> Conversation:
        """Return one version as a dialogue.

        Args:
            variant: `fail` or `pass`.
            rounds: Rounds of feedback to include, from 1. With all of them (the
                default) the last turn is the reply that speaks of the outcome. With
                fewer it is the next attempt, which is the same in both versions.

        Raises:
            ValueError: If `variant` or `rounds` is not possible for this twin.
        """
        self._check(variant, rounds)
        total = len(self.attempts)
        rounds = total if rounds is None else rounds
        messages = [_turn("user", self.task), _turn("assistant", self.attempts[0])]
        for index, feedback in enumerate(self.feedback(variant)[:rounds]):
            messages.append(_turn("user", feedback))
            if index + 1 < total:
                messages.append(_turn("assistant", self.attempts[index + 1]))
        if rounds == total:
            reply = self.reply_fail if variant == "fail" else self.reply_pass
            messages.append(_turn("assistant", reply))
        failure = 1.0 if variant == "fail" else 0.0
        return Conversation(
            id=f"{self.id}-{variant}",
            pair=self.id,
            variant=variant,
            style=self.style,
            messages=tuple(messages),
            failed=(None, *[failure] * rounds),
        )

    def conversations(
        self, rounds: int | None = None
    ) -> tuple[Conversation, Conversation]:
        """Return the failing and the passing version, see `conversation`."""
        return self.conversation("fail", rounds), self.conversation("pass", rounds)

    def _check(self, variant: str, rounds: int | None) -> None:
        if variant not in VARIANTS:
            raise ValueError(
                f"`variant` must be `fail` or `pass`, found `{variant}`. Choose one."
            )
        total = len(self.attempts)
        if rounds is not None and not 1 <= rounds <= total:
            raise ValueError(
                f"`rounds` must be in [1, {total}] for twin `{self.id}`, found "
                f"{rounds}. Leave it out to include every round."
            )


def shortest(twins: Sequence[Transcript], count: int) -> list[Transcript]:
    """Return `count` twins: of each style in turn, the one that is shortest."""
    rank: Counter[str] = Counter()
    ranked = []
    for twin in sorted(twins, key=lambda twin: len(twin.task + twin.attempts[0])):
        ranked.append((rank[twin.style], twin))
        rank[twin.style] += 1
    ranked.sort(key=lambda item: item[0])
    return [twin for _, twin in ranked[:count]]


def every(twins: Sequence[Transcript], step: int) -> list[Transcript]:
    """Return every `step`-th twin of each style, in the given order."""
    rank: Counter[str] = Counter()
    kept = []
    for twin in twins:
        if rank[twin.style] % step == 0:
            kept.append(twin)
        rank[twin.style] += 1
    return kept


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
