"""The table of reactions: what was said, what it came to, and how often."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from emoreg.behavior.pressure.outcomes import OUTCOMES, SETTINGS, Outcome, Setting
from emoreg.behavior.rates import Result, check_same, happened
from emoreg.behavior.tables import read_table, write_table
from emoreg.statistics.bootstrap import Interval
from emoreg.statistics.proportions import difference_of_proportions, proportion
from emoreg.vectors.transcripts import Message

FORMAT = "emoreg.reactions/1"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("setting", pa.string()),
        ("sample", pa.int32()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("calls", pa.int32()),
        ("messages", pa.string()),
    ]
)
"""The columns of the file, which the fields of `Reaction` describe."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Reaction:
    """One conversation, and what came of it."""

    id: str
    """Of the scenario or the request: the cluster of every interval."""
    setting: Setting
    sample: int
    """From 0."""
    outcome: Outcome
    reason: str
    """What the grade goes by."""
    calls: int
    """How many tool calls could be read; 0 of replies to people."""
    messages: tuple[Message, ...]
    """All that was said, the last of it by the model."""

    @property
    def name(self) -> str:
        """Return setting, scenario or request, and sample."""
        return f"{self.setting}/{self.id}/{self.sample}"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Reactions:
    """Reactions of one model, as many samples of each scenario and request.

    Example:
        `after.difference(before, HARMFUL, setting="agent-threat")` is how much more
        often it did harm.
    """

    reactions: tuple[Reaction, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-able: texts, samples, turns, seed, model, adapter, steering."""

    def __post_init__(self) -> None:
        if not self.reactions:
            raise ValueError("there must be at least one reaction, found none. Play")
        names = [reaction.name for reaction in self.reactions]
        if len(set(names)) < len(names):
            raise ValueError(
                "each scenario or request and sample must stand once, found one "
                "twice. Delete it"
            )

    def __len__(self) -> int:
        """Return how many reactions there are."""
        return len(self.reactions)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings that were played, in the order of `SETTINGS`."""
        there = {reaction.setting for reaction in self.reactions}
        return tuple(setting for setting in SETTINGS if setting in there)

    def ids(self, setting: Setting) -> tuple[str, ...]:
        """Return the scenarios or requests of a setting, in alphabetical order."""
        return tuple(sorted({r.id for r in self.reactions if r.setting == setting}))

    def count(self, outcome: Outcome, *, setting: Setting) -> int:
        """Return how many reactions of a setting came to it."""
        return sum(
            r.outcome == outcome and r.setting == setting for r in self.reactions
        )

    def rate(
        self, outcomes: Outcome | Sequence[Outcome], *, setting: Setting
    ) -> Interval:
        """Return how often a setting's reactions came to one of `outcomes`.

        Its 95 % interval is over scenarios or requests, whose samples are alike: see
        `proportion`.

        Raises:
            ValueError: With fewer than two of the setting, another number of samples
                for some, or an outcome that is none.
        """
        return proportion(self._happened(outcomes, setting))

    def difference(
        self,
        other: "Reactions",
        outcomes: Outcome | Sequence[Outcome],
        *,
        setting: Setting,
    ) -> Interval:
        """Return how much more often it happened here than in `other`, paired.

        Raises:
            ValueError: If the tables are not of the same texts, and as `rate`.
        """
        self.check_paired(other, setting=setting)
        mine, theirs = (t._happened(outcomes, setting) for t in (self, other))
        return difference_of_proportions(mine, theirs)

    def check_paired(self, other: "Reactions", *, setting: Setting) -> None:
        """Raise a ValueError unless both tables are of the same texts."""
        check_same(
            {*self.ids(setting)},
            {*other.ids(setting)},
            (self.meta.get("texts_hash"), other.meta.get("texts_hash")),
            said="Reactions that are compared must be to the same texts",
        )

    def table(self) -> pa.Table:
        """Return the rows with the columns of `SCHEMA`, without `meta`."""
        rows = [
            {name: getattr(reaction, name) for name in SCHEMA.names}
            | {"messages": json.dumps(list(reaction.messages), ensure_ascii=False)}
            for reaction in self.reactions
        ]
        return pa.Table.from_pylist(rows, SCHEMA)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table to parquet, whole or not at all."""
        return write_table(Path(path), self.table(), FORMAT, self.meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Reactions":
        """Read a table written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, foreign or incomplete.
        """
        table, meta = read_table(Path(path), FORMAT, SCHEMA)
        rows = tuple(
            Reaction(**{**row, "messages": tuple(json.loads(row["messages"]))})
            for row in table.to_pylist()
        )
        return cls(reactions=rows, meta=meta)

    def _happened(
        self, outcomes: Outcome | Sequence[Outcome], setting: Setting
    ) -> Bool[np.ndarray, "text sample"]:
        wanted = (outcomes,) if isinstance(outcomes, str) else tuple(outcomes)
        if odd := set(wanted) - set(OUTCOMES):
            raise ValueError(
                f"`outcomes` must be of {tuple(OUTCOMES)}, found {sorted(odd)}. Mend it"
            )
        results = [
            Result(r.id, r.sample, r.outcome)
            for r in self.reactions
            if r.setting == setting
        ]
        return happened(results, wanted, of=f"text of {setting}")
