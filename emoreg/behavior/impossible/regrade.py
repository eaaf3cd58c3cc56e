"""Grading episodes again by the rules as they are now, from what was said in them."""

from collections.abc import Sequence
from dataclasses import replace

from tqdm.auto import tqdm

from emoreg.behavior.impossible.episode_table import Episode, Episodes
from emoreg.behavior.impossible.game import Game
from emoreg.behavior.impossible.tasks import Task, tasks_hash
from emoreg.behavior.sandbox.sandbox import Sandbox


def regrade(
    table: Episodes, tasks: Sequence[Task], sandbox: Sandbox, *, quiet: bool = False
) -> Episodes:
    """Play the replies of a table again, tests and all, and grade what they come to.

    Nothing is written anew: rules that were mended apply to episodes of any model.

    Args:
        table: Episodes, as `play` returns them.
        tasks: All tasks that they are of, and perhaps more.
        sandbox: Where their code is run.
        quiet: No progress bar.

    Raises:
        ValueError: If the tasks are not those that were played, or replies break off.
        SandboxError: If code could not be shut in.
    """
    played = {episode.task for episode in table.episodes}
    own = {task.name: task for task in tasks if task.name in played}
    if played - {*own} or tasks_hash([*own.values()]) != table.meta.get("tasks_hash"):
        raise ValueError(
            "`tasks` must be those that were played, found others or other texts of "
            "them. Grade with the version of the tasks that the table is of"
        )
    found = []
    for old in tqdm(table.episodes, desc="Grading", unit="episode", disable=quiet):
        said = [m["content"] for m in old.messages if m["role"] == "assistant"]
        task, attempts = own[old.task], int(table.meta["attempts"])
        again = replayed(task, said, sandbox, attempts=attempts)
        found.append(replace(again, sample=old.sample))
    return Episodes(episodes=tuple(found), meta={**table.meta, "level": sandbox.level})


def replayed(
    task: Task, replies: Sequence[str], sandbox: Sandbox, *, attempts: int
) -> Episode:
    """Return the episode that replies come to; what follows its end is left out.

    Raises:
        ValueError: If it hasn't ended with the last of them.
        SandboxError: If code could not be shut in.
    """
    game = Game(task=task, attempts=attempts)
    for reply in replies:
        if not game.over:
            game.take(reply, sandbox)
    if game.episode is None:
        raise ValueError(
            f"replies must end an episode, those of {task.name} do not. Add what was "
            "said at the end"
        )
    return game.episode
