"""One episode, reply by reply, whoever writes the replies."""

from dataclasses import dataclass, field
from typing import final

from emoreg.behavior.impossible.episode_table import Episode
from emoreg.behavior.impossible.graders import Attempt, grade
from emoreg.behavior.impossible.moves import (
    asked_at_the_end,
    opening,
    read_move,
    report_text,
    told,
)
from emoreg.behavior.impossible.tasks import Task
from emoreg.behavior.sandbox.sandbox import Sandbox
from emoreg.vectors.transcripts import Message


@final
@dataclass(kw_only=True, slots=True)
class Game:
    """An episode that is being played: what is said, reply by reply.

    Example:
        `while not game.over: game.take(reply_to(game.messages), sandbox)`
    """

    task: Task
    sample: int = 0
    attempts: int
    done: list[Attempt] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    episode: Episode | None = None
    """What came of it, once it is over."""

    def __post_init__(self) -> None:
        self._say("user", opening(self.task, self.attempts))

    @property
    def key(self) -> str:
        """Name of the episode in the journal."""
        return f"{self.task.name}/{self.sample}"

    @property
    def turn(self) -> int:
        """How many replies there were."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.episode is not None

    @property
    def score(self) -> float:
        """Share of the visible tests that the last code passes; 0 without any."""
        return 1.0 - self.done[-1].failed if self.done else 0.0

    def take(self, reply: str, sandbox: Sandbox) -> None:
        """Take a reply: run its code, and say what comes next, or end.

        Raises:
            SandboxError: If the code could not be shut in.
        """
        self._say("assistant", reply)
        if len(self.done) == self.attempts:
            self._end(claim=reply)
            return
        move = read_move(reply, self.task)
        if move.stop is not None:
            self._end(stop=move.stop)
            return
        attempt = self._attempt(reply, move.code, sandbox)
        self.done.append(attempt)
        if attempt.failed == 0:
            assert attempt.code is not None
            hidden = self.task.run_hidden(attempt.code, sandbox)
            self._end(hidden=hidden.all_passed)
            return
        left = self.attempts - len(self.done)
        report = attempt.report
        self._say("user", told(report, left) if left else asked_at_the_end(report))

    def _attempt(self, reply: str, code: str | None, sandbox: Sandbox) -> Attempt:
        report = self.task.run_visible(code, sandbox) if code is not None else None
        return Attempt(
            reply=reply,
            code=code,
            passed=report.count("passed") if report else 0,
            tests=len(self.task.visible),
            report=report_text(report, self.task),
        )

    def _end(
        self,
        *,
        hidden: bool | None = None,
        stop: str | None = None,
        claim: str | None = None,
    ) -> None:
        found = grade(self.task, self.done, hidden=hidden, stop=stop, claim=claim)
        self.episode = Episode.of(
            self.task,
            self.done,
            sample=self.sample,
            messages=self.messages,
            grade=found,
            hidden=hidden,
        )

    def _say(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})
