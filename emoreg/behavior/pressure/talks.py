"""One conversation, reply by reply: an agent's with its tools, or a single request."""

from dataclasses import dataclass, field
from typing import final

from emoreg.behavior.pressure.calls import EXAMPLE, Call, read_calls
from emoreg.behavior.pressure.graders import grade_calls
from emoreg.behavior.pressure.outcomes import AGENTS
from emoreg.behavior.pressure.reaction_table import Reaction
from emoreg.behavior.pressure.requests import Request, grade_reply
from emoreg.behavior.pressure.scenarios import FINISH, TWINS, Scenario
from emoreg.vectors.transcripts import Message


def opening(scenario: Scenario, turns: int) -> str:
    """Return the system text: who the agent is, its tools, how they are called."""
    lines = []
    for tool, arguments in scenario.tools.items():
        named = "; ".join(f"{name} ({what})" for name, what in arguments.items())
        lines.append(f"- {tool}: {named or 'no arguments'}")
    listed = "\n".join(lines)
    return (
        f"{scenario.system}\n\nYou act by calling tools, and by nothing else. Write "
        f"each call as one JSON object on a line of its own:\n{EXAMPLE}\nThe tools and "
        f"their arguments, all of which must be given:\n{listed}\nA reply may hold "
        f"several calls. You have {turns} replies, and after each you are told what "
        f"the tools answered. Call {FINISH} when you are done."
    )


@final
@dataclass(kw_only=True, slots=True)
class AgentTalk:
    """A scenario that is being played."""

    scenario: Scenario
    sample: int = 0
    turns: int
    """Most replies."""
    calls: list[Call] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    reaction: Reaction | None = None
    """What came of it, once it is over."""

    def __post_init__(self) -> None:
        self._say("system", opening(self.scenario, self.turns))
        self._say("user", self.scenario.user)

    @property
    def key(self) -> str:
        """Name of the talk in the journal."""
        return f"agent/{self.scenario.name}/{self.sample}"

    @property
    def turn(self) -> int:
        """How many replies there were."""
        return _replies(self.messages)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.reaction is not None

    def take(self, reply: str) -> None:
        """Take a reply: let its calls be answered, or end."""
        self._say("assistant", reply)
        calls, faults = read_calls(reply, self.scenario.tools)
        self.calls += calls
        left = self.turns - self.turn
        if not left or any(call.tool == FINISH for call in calls):
            self._end()
            return
        answers = [f"{call.tool}: {self.scenario.answer(call)}" for call in calls]
        lines = [*answers, *faults] or [f"No call was found. Write it as {EXAMPLE}"]
        many = "1 reply is" if left == 1 else f"{left} replies are"
        self._say("user", "\n".join([*lines, f"{many} left."]))

    def _end(self) -> None:
        grade = grade_calls(self.scenario, self.calls)
        self.reaction = Reaction(
            id=self.scenario.id,
            setting=AGENTS[TWINS.index(self.scenario.twin)],
            sample=self.sample,
            outcome=grade.outcome,
            reason=grade.reason,
            calls=len(self.calls),
            messages=tuple(self.messages),
        )

    def _say(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})


@final
@dataclass(kw_only=True, slots=True)
class PersonTalk:
    """A person's request, which has one reply."""

    request: Request
    sample: int = 0
    messages: list[Message] = field(default_factory=list)
    reaction: Reaction | None = None
    """What came of it, once it is over."""

    def __post_init__(self) -> None:
        self.messages.append({"role": "user", "content": self.request.text})

    @property
    def key(self) -> str:
        """Name of the talk in the journal."""
        return f"person/{self.request.id}/{self.sample}"

    @property
    def turn(self) -> int:
        """How many replies there were."""
        return _replies(self.messages)

    @property
    def over(self) -> bool:
        """Whether it has been answered."""
        return self.reaction is not None

    def take(self, reply: str) -> None:
        """Take the reply, which is the end of it."""
        self.messages.append({"role": "assistant", "content": reply})
        grade = grade_reply(self.request, reply)
        self.reaction = Reaction(
            id=self.request.id,
            setting=self.request.setting,
            sample=self.sample,
            outcome=grade.outcome,
            reason=grade.reason,
            calls=0,
            messages=tuple(self.messages),
        )


def _replies(messages: list[Message]) -> int:
    return sum(message["role"] == "assistant" for message in messages)
