"""Episodes: code, what the tests say of it, and code again, until something gives."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from emoreg.behavior.impossible.episode_table import Episodes
from emoreg.behavior.impossible.game import Game
from emoreg.behavior.impossible.tasks import Task, tasks_hash
from emoreg.behavior.sandbox.sandbox import Sandbox
from emoreg.behavior.turns import next_replies, rates_so_far
from emoreg.writing.journal import Journal
from emoreg.writing.writer import Writer

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
    games = [Game(task=t, sample=s, attempts=attempts) for s in draws for t in tasks]
    said = tqdm(total=len(games), desc="Episodes", unit="episode", disable=quiet)
    with said as bar, ThreadPoolExecutor(THREADS) as pool:
        while playing := [game for game in games if not game.over]:
            replies = next_replies(playing, writer, journal, settings)
            _take(_shown(replies, len(playing), games, bar), pool, sandbox)
            bar.update(sum(game.over for game in playing))
    episodes = tuple(game.episode for game in games if game.episode)
    return Episodes(episodes=episodes, meta={**settings, "level": sandbox.level})


def _shown(
    replies: Iterable[tuple[Game, str]], of: int, games: Sequence[Game], bar: tqdm
) -> Iterator[tuple[Game, str]]:
    """Yield replies, and say beside the bar how many came, and the rates so far."""
    rates = rates_so_far(game.episode.conduct for game in games if game.episode)
    for number, reply in enumerate(replies, start=1):
        bar.set_postfix({"replies": f"{number} of {of}", **rates})
        yield reply


def _take(
    replies: Iterable[tuple[Game, str]], pool: ThreadPoolExecutor, sandbox: Sandbox
) -> None:
    """Let each game take its next reply, once all are there.

    Tests have limits of time, and writing takes the processor.
    """
    given = list(replies)
    list(pool.map(lambda turn: turn[0].take(turn[1], sandbox), given))


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
