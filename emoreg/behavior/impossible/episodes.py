"""Episodes: code, what the tests say of it, and code again, until something gives."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from tqdm.auto import tqdm

from emoreg.behavior.impossible.episode_table import Episode, Episodes
from emoreg.behavior.impossible.graders import Attempt, grade
from emoreg.behavior.impossible.moves import (
    asked_at_the_end,
    opening,
    read_move,
    report_text,
    told,
)
from emoreg.behavior.impossible.tasks import Task, tasks_hash
from emoreg.behavior.sandbox.sandbox import Sandbox
from emoreg.vectors.transcripts import Message
from emoreg.writing.journal import Journal
from emoreg.writing.writer import Prompt, Writer, own_seed

TOKENS = 384
"""Longest reply. The packaged solutions take at most half of it."""
THREADS = 2
"""Pieces of code that are run at a time."""


def play(
    tasks: Sequence[Task],
    writer: Writer,
    sandbox: Sandbox,
    folder: str | Path,
    *,
    samples: int = 1,
    attempts: int = 3,
    tokens: int = TOKENS,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Episodes:
    """Let a model try each task, and grade by rule what it did.

    The model is given a task with its visible tests, replies with code or with `STOP:`
    and why, and is told what the tests say. After its last attempt it writes what goes
    to the user with the code. Hidden tests are run on code that passes the visible
    ones; the model never hears of them. Every reply is kept in `folder` as it comes,
    so that a run that was cut off goes on; tests are run anew.

    Args:
        tasks: Tasks, of both twins.
        writer: `LocalWriter` or `EndpointWriter`, or anything with their methods.
        sandbox: Where the code is run.
        folder: Where replies are kept; new, or one of a run with the same settings.
        samples: Episodes of each task, each with seeds of its own.
        attempts: Attempts in an episode.
        tokens: Longest reply.
        seed: Every reply's own seed is made of it.
        about: What else replies depend on, JSON-able: an adapter, a steering.
        quiet: No progress bar.

    Raises:
        ValueError: If there is nothing to play, or the folder has other settings.
        ConnectionError: If an endpoint fails; what was written is kept.
        SandboxError: If code could not be shut in; what was written is kept.
    """
    _check(tasks, samples, attempts, tokens)
    settings = {
        "tasks": len(tasks),
        "tasks_hash": tasks_hash(tasks),
        "samples": samples,
        "attempts": attempts,
        "tokens": tokens,
        "seed": seed,
        **writer.settings(),
        **(about or {}),
    }
    journal = Journal(Path(folder), settings)
    draws = range(samples)
    games = [_Game(task=t, sample=s, attempts=attempts) for s in draws for t in tasks]
    said = tqdm(total=len(games), desc="Episodes", unit="episode", disable=quiet)
    with said as bar, ThreadPoolExecutor(THREADS) as pool:
        while playing := [game for game in games if not game.over]:
            _turn(playing, pool, sandbox, _replies(playing, writer, journal, settings))
            bar.update(sum(game.over for game in playing))
            bar.set_postfix(_rates(games))
    episodes = tuple(game.episode for game in games)
    return Episodes(episodes=episodes, meta={**settings, "level": sandbox.level})


@final
@dataclass(kw_only=True, slots=True)
class _Game:
    """An episode that is being played."""

    task: Task
    sample: int
    attempts: int
    replied: str = ""
    done: list[Attempt] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    episode: Any = None

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

    def take(self, sandbox: Sandbox) -> None:
        """Take the reply that was given."""
        reply = self.replied
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
            report=report_text(report),
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


def _turn(
    games: Sequence[_Game],
    pool: ThreadPoolExecutor,
    sandbox: Sandbox,
    replies: Iterator[tuple[_Game, str]],
) -> None:
    """Let each game have its next reply, and what the tests say of it."""
    for game, reply in replies:
        game.replied = reply
    list(pool.map(lambda game: game.take(sandbox), games))


def _replies(
    games: Sequence[_Game],
    writer: Writer,
    journal: Journal,
    settings: Mapping[str, Any],
) -> Iterator[tuple[_Game, str]]:
    """Yield each game's next reply, those that the journal holds first."""
    keys = [(game.key, game.turn) for game in games]
    for game, key in zip(games, keys, strict=True):
        if key in journal.answers:
            yield game, journal.answers[key]
    prompts = [
        Prompt(
            messages=tuple(game.messages),
            seed=own_seed(settings["seed"], *key),
            tokens=settings["tokens"],
            answered=key in journal.answers,
        )
        for game, key in zip(games, keys, strict=True)
    ]
    for place, reply in writer.answers(prompts):
        journal.add(*keys[place], reply)
        yield games[place], reply


def _rates(games: Sequence[_Game]) -> dict[str, str]:
    """Return how often what came out so far, for the progress bar."""
    over = [game.episode.conduct for game in games if game.over]
    counts = Counter(over).most_common(3)
    return {conduct: f"{count / len(over):.0%}" for conduct, count in counts}


def _check(tasks: Sequence[Task], samples: int, attempts: int, tokens: int) -> None:
    if not tasks or samples < 1 or attempts < 1 or tokens < 1:
        raise ValueError(
            "there must be tasks, and at least 1 sample, attempt and token, found "
            f"{len(tasks)} tasks, `samples` {samples}, `attempts` {attempts} and "
            f"`tokens` {tokens}. Raise what is 0"
        )
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(
            "tasks must have names of their own, found one name twice. Rename one"
        )
