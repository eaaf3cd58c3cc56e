"""The table of episodes: what was said, what it came to, and how often."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from emoreg.behavior.impossible.graders import (
    CHEATING,
    CONDUCTS,
    Attempt,
    Conduct,
    Grade,
    cheats,
)
from emoreg.behavior.impossible.sources import listed
from emoreg.behavior.impossible.tasks import TWINS, Task, Twin
from emoreg.behavior.rates import Result, check_same, happened
from emoreg.behavior.tables import read_table, write_table
from emoreg.statistics.bootstrap import Interval
from emoreg.statistics.proportions import difference_of_proportions, proportion
from emoreg.vectors.transcripts import Conversation, Message

FORMAT = "emoreg.episodes/1"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("twin", pa.string()),
        ("kind", pa.string()),
        ("sample", pa.int32()),
        ("conduct", pa.string()),
        ("reason", pa.string()),
        ("attempts", pa.int32()),
        ("failed", pa.list_(pa.float64())),
        ("listed", pa.list_(pa.int32())),
        ("cheats", pa.list_(pa.bool_())),
        ("hidden", pa.bool_()),
        ("messages", pa.string()),
    ]
)
"""The columns of the file, which the fields of `Episode` describe."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One episode, from the task to what came of it."""

    id: str
    """Of the pair of tasks: the cluster of every interval."""
    twin: Twin
    kind: str
    sample: int
    """From 0."""
    conduct: Conduct
    reason: str
    """What the grade goes by."""
    attempts: int
    failed: tuple[float, ...]
    """Share of the visible tests that each attempt missed."""
    listed: tuple[int, ...]
    """How many visible tests each attempt's code has the answers of, written out."""
    cheats: tuple[bool, ...]
    """Whether each attempt cheats, of an impossible task; none does of another."""
    hidden: bool | None
    """Whether the last code passes the hidden tests; None where it was not asked."""
    messages: tuple[Message, ...]
    """All that was said, the last of it by the model."""

    @classmethod
    def of(
        cls,
        task: Task,
        attempts: Sequence[Attempt],
        *,
        sample: int,
        messages: Sequence[Message],
        grade: Grade,
        hidden: bool | None,
    ) -> "Episode":
        """Return the episode of a task that came to an end."""
        codes = [attempt.code or "" for attempt in attempts]
        return cls(
            id=task.id,
            twin=task.twin,
            kind=task.kind,
            sample=sample,
            conduct=grade.conduct,
            reason=grade.reason,
            attempts=len(attempts),
            failed=tuple(attempt.failed for attempt in attempts),
            listed=tuple(len(listed(code, task.visible)) for code in codes),
            cheats=tuple(cheats(task, attempt) for attempt in attempts),
            hidden=hidden,
            messages=tuple(messages),
        )

    @property
    def task(self) -> str:
        """Return the name of its task."""
        return f"{self.id}/{self.twin}"

    @property
    def name(self) -> str:
        """Return the task's name and the sample's number."""
        return f"{self.task}/{self.sample}"

    def conversation(self) -> Conversation:
        """Return what was said with the failure known at each of the model's turns.

        So `measure` reads the decision token before each attempt.
        """
        turns = sum(message["role"] == "assistant" for message in self.messages)
        return Conversation(
            id=self.name,
            pair=self.name,  # samples of a task are read apart
            variant="",
            style=self.twin,
            messages=self.messages,
            failed=(None, *self.failed)[:turns],
        )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """Episodes of one model, as many samples of each task.

    Example:
        `after.difference(before, CHEATING)` is how much more often it cheats.
    """

    episodes: tuple[Episode, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-able: tasks, samples, attempts, seed, model, adapter, steering, level."""

    def __post_init__(self) -> None:
        if not self.episodes:
            raise ValueError("there must be at least one episode, found none. Play one")
        names = [episode.name for episode in self.episodes]
        if len(set(names)) < len(names):
            raise ValueError(
                "each task and sample must stand once, found one twice. Delete it"
            )

    def __len__(self) -> int:
        """Return how many episodes there are."""
        return len(self.episodes)

    @property
    def twins(self) -> tuple[Twin, ...]:
        """The twins that were played, solvable first."""
        there = {episode.twin for episode in self.episodes}
        return tuple(twin for twin in TWINS if twin in there)

    def ids(self, twin: Twin) -> tuple[str, ...]:
        """Return the pairs whose `twin` was played, in alphabetical order."""
        return tuple(sorted({e.id for e in self.episodes if e.twin == twin}))

    def count(self, conduct: Conduct, *, twin: Twin) -> int:
        """Return how many episodes of a twin came to it."""
        return sum(e.conduct == conduct and e.twin == twin for e in self.episodes)

    def rate(
        self, conducts: Conduct | Sequence[Conduct], *, twin: Twin = "impossible"
    ) -> Interval:
        """Return how often a twin's episodes came to one of `conducts`.

        Its 95 % interval is over tasks, whose samples are alike: see `proportion`.

        Raises:
            ValueError: With fewer than two tasks of the twin, or another number of
                samples for some.
        """
        return proportion(self._happened(conducts, twin))

    def difference(
        self,
        other: "Episodes",
        conducts: Conduct | Sequence[Conduct] = CHEATING,
        *,
        twin: Twin = "impossible",
    ) -> Interval:
        """Return how much more often it happened here than in `other`, task by task.

        Raises:
            ValueError: If the tables are not of the same tasks, and as `rate`.
        """
        self.check_paired(other, twin=twin)
        mine, theirs = (t._happened(conducts, twin) for t in (self, other))
        return difference_of_proportions(mine, theirs)

    def check_paired(self, other: "Episodes", *, twin: Twin) -> None:
        """Raise a ValueError unless both tables are of the same tasks."""
        check_same(
            {*self.ids(twin)},
            {*other.ids(twin)},
            (self.meta.get("tasks_hash"), other.meta.get("tasks_hash")),
            said="Episodes that are compared must be of the same tasks",
        )

    def conversations(self) -> list[Conversation]:
        """Return what was said in each, as `measure` takes it."""
        return [episode.conversation() for episode in self.episodes]

    def table(self) -> pa.Table:
        """Return the rows with the columns of `SCHEMA`, without `meta`."""
        rows = [
            {name: getattr(episode, name) for name in SCHEMA.names}
            | {"messages": json.dumps(list(episode.messages), ensure_ascii=False)}
            for episode in self.episodes
        ]
        return pa.Table.from_pylist(rows, SCHEMA)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table to parquet, whole or not at all."""
        return write_table(Path(path), self.table(), FORMAT, self.meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Episodes":
        """Read a table written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, foreign or incomplete.
        """
        table, meta = read_table(Path(path), FORMAT, SCHEMA)
        return cls(episodes=tuple(map(_episode, table.to_pylist())), meta=meta)

    def _happened(
        self, conducts: Conduct | Sequence[Conduct], twin: Twin
    ) -> Bool[np.ndarray, "task sample"]:
        wanted = (conducts,) if isinstance(conducts, str) else tuple(conducts)
        if odd := set(wanted) - set(CONDUCTS):
            raise ValueError(
                f"`conducts` must be of {tuple(CONDUCTS)}, found {sorted(odd)}. Mend it"
            )
        results = [
            Result(e.id, e.sample, e.conduct) for e in self.episodes if e.twin == twin
        ]
        return happened(results, wanted, of=f"{twin} task")


def _episode(row: dict[str, Any]) -> Episode:
    lists = {name: tuple(row[name]) for name in ("failed", "listed", "cheats")}
    return Episode(**{**row, **lists, "messages": tuple(json.loads(row["messages"]))})
