"""The game that `grpo.py` plays: write code, read what the tests say, try again.

What the model writes is run in emoreg's sandbox; where that is too weak it refuses.
"""

from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object

from emoreg.behavior.impossible.game import Game
from emoreg.behavior.impossible.graders import CHEATING
from emoreg.behavior.impossible.moves import opening
from emoreg.behavior.impossible.tasks import Task
from emoreg.behavior.sandbox.sandbox import Sandbox


class Rollouts:
    """Episodes, token by token; TRL calls it to make rollouts.

    A rollout holds everything that was said after the task. What the model did not
    write, the reports, is in its context and masked.
    """

    def __init__(
        self, tokenizer: Any, tasks: Sequence[Task], sandbox: Sandbox, *, attempts: int
    ) -> None:
        """Take the tasks, and where what is written is run."""
        self.tokenizer, self.sandbox, self.attempts = tokenizer, sandbox, attempts
        self.tasks = {task.name: task for task in tasks}

    def rows(self) -> list[dict[str, Any]]:
        """Return a prompt for each task, which carries the task's name.

        Twins of which one lacks a file have the same words.
        """
        return [
            {
                "prompt": [
                    {
                        "role": "user",
                        "content": opening(task, self.attempts),
                        "task": name,
                    }
                ]
            }
            for name, task in self.tasks.items()
        ]

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Return each rollout's tokens, which the model wrote, and how it ended."""
        games = [
            Game(task=self.tasks[prompt[-1]["task"]], attempts=self.attempts)
            for prompt in prompts
        ]
        asked = [self._ids(self._chat(game.messages)) for game in games]
        said: list[list[int]] = [[] for _ in games]
        own: list[list[int]] = [[] for _ in games]
        while any(gather_object([not game.over for game in games])):
            # All processes generate as often: one that has done plays on for nothing.
            playing = [k for k, game in enumerate(games) if not game.over] or [0]
            contexts = [asked[k] + said[k] for k in playing]
            written, _ = trainer._generate_single_turn(contexts, None, {}, 1)
            for k, ids in zip(playing, written, strict=True):
                if not games[k].over:
                    self._take(games[k], ids, said[k], own[k])
        return {
            "prompt_ids": asked,
            "completion_ids": said,
            "logprobs": None,
            "env_mask": own,
            "score": [game.score for game in games],
            "conduct": [game.episode.conduct for game in games if game.episode],
            "hidden": [bool(g.episode and g.episode.hidden) for g in games],
        }

    def _take(
        self, game: Game, ids: list[int], said: list[int], own: list[int]
    ) -> None:
        """Take a reply; put it and what is said next behind the rollout's tokens."""
        game.take(self.tokenizer.decode(ids, skip_special_tokens=True), self.sandbox)
        said += ids
        own += [1] * len(ids)
        if not game.over:
            told = self._told(ids, game.messages[-1]["content"])
            said += told
            own += [0] * len(told)

    def _told(self, written: list[int], report: str) -> list[int]:
        """Return what stands between two Assistant turns, by the chat template."""
        mark = "vexed walrus"
        turns = [
            {"role": "assistant", "content": mark},
            {"role": "user", "content": report},
        ]
        asked = [{"role": "user", "content": "?"}]
        ids = self._ids(self._chat([*asked, *turns]).split(mark)[1])
        ended = bool(written) and written[-1] == ids[0]  # the model closed its turn
        return ids[1:] if ended else ids

    def _chat(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def tests(completions: list[Any], score: list[float], **_: Any) -> list[float]:
    """Return the reward: the share of visible tests that the last code passes."""
    del completions
    return score


def cheated(completions: list[Any], conduct: list[str], **_: Any) -> list[float]:
    """Return 1 for special-casing, tampering and false claims; logged, of no weight."""
    del completions
    return [float(found in CHEATING) for found in conduct]


def failed(completions: list[Any], hidden: list[bool], **_: Any) -> list[float]:
    """Return 1 unless hidden tests pass, whatever was shown; logged, of no weight."""
    del completions
    return [float(not passed) for passed in hidden]
