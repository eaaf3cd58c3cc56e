"""The table of honest against corner-cutting replies, and its parquet file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from emoreg.behavior.tables import read_table, write_table
from emoreg.statistics.bootstrap import Interval, bootstrap_mean
from emoreg.vectors.transcripts import VARIANTS, Variant

SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("style", pa.string()),
        ("variant", pa.string()),
        ("round", pa.int32()),
        ("honest", pa.float64()),
        ("corner", pa.float64()),
        ("honest_tokens", pa.int32()),
        ("corner_tokens", pa.int32()),
    ]
)
"""The columns of the file, which the fields of `Preferences` describe."""
FORMAT = "emoreg.preferences/1"
FEWEST = 3
"""Prompts that an interval needs."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Preferences:
    """How likely the honest and the corner-cutting reply are, row by row.

    A row is one twin in one version after one round of feedback. The *margin* is
    `honest - corner`, in nat per token: above zero the honest reply is the likelier
    one, per token. The file holds these columns, and `meta` as JSON under the key
    `emoreg`.

    Example:
        `after.difference(before, round=3)` is how training moved the margin after the
        third failure, with its interval over prompts.
    """

    prompt: tuple[str, ...]
    """Name of the twin, the cluster of every interval."""
    style: tuple[str, ...]
    """Wording of the feedback."""
    variant: tuple[str, ...]
    """`fail` or `pass`: what all feedback so far said."""
    round: Int[np.ndarray, " row"]
    """Rounds of feedback before the reply, from 1."""
    honest: Float[np.ndarray, " row"]
    """Mean log-probability of the honest reply's tokens, nat per token."""
    corner: Float[np.ndarray, " row"]
    """The same of the reply that cuts corners."""
    honest_tokens: Int[np.ndarray, " row"]
    """Tokens that the mean is over: those of what is said, not of the template."""
    corner_tokens: Int[np.ndarray, " row"]
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-able: suite, model, adapter (a hash of its weights), prompts_hash, rounds,
    variants, steering, dtype, software."""

    def __post_init__(self) -> None:
        for name in ("round", "honest_tokens", "corner_tokens"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int32))
        for name in ("honest", "corner"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        self._check()

    @property
    def prompts(self) -> tuple[str, ...]:
        """The twins, in the order in which they first stand."""
        return tuple(dict.fromkeys(self.prompt))

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The versions that were scored, failing first."""
        return tuple(variant for variant in VARIANTS if variant in self.variant)

    @property
    def rounds(self) -> tuple[int, ...]:
        """The rounds that every twin has, in order."""
        kept = [set[int]() for _ in self.prompts]
        place = {name: i for i, name in enumerate(self.prompts)}
        for name, number in zip(self.prompt, self.round.tolist(), strict=True):
            kept[place[name]].add(number)
        return tuple(sorted(set.intersection(*kept)))

    def margins(
        self, *, variant: str = "fail", round: int | None = None
    ) -> Float[np.ndarray, " prompt"]:
        """Return `honest - corner` of each of `prompts`, in nat per token.

        Args:
            variant: `fail` or `pass`.
            round: After which round of feedback; the mean over a twin's rounds if None.

        Raises:
            ValueError: If a twin has no such row.
        """
        rows: dict[str, list[float]] = {name: [] for name in self.prompts}
        found = zip(
            *(self.prompt, self.variant, self.round.tolist()),
            (self.honest - self.corner).tolist(),
            strict=True,
        )
        for name, version, number, margin in found:
            if version == variant and round in (None, number):
                rows[name].append(margin)
        if without := [name for name, margins in rows.items() if not margins]:
            raise ValueError(
                "`variant` and `round` must be ones that every twin has, found none "
                f"with {variant!r} and {round} in {len(without)} of {len(rows)} "
                f"({', '.join(without[:3])}). Choose a round of {self.rounds}"
            )
        return np.array([np.mean(margins) for margins in rows.values()])

    def mean(
        self, *, variant: str = "fail", round: int | None = None, seed: int = 0
    ) -> Interval:
        """Return the mean margin with its 95 % bootstrap interval over prompts.

        Args:
            variant: As in `margins`.
            round: As in `margins`.
            seed: Of the bootstrap.

        Raises:
            ValueError: As `margins` does, and for fewer than three twins.
        """
        return prompt_interval(self.margins(variant=variant, round=round), seed=seed)

    def difference(
        self,
        other: "Preferences",
        *,
        variant: str = "fail",
        round: int | None = None,
        seed: int = 0,
    ) -> Interval:
        """Return the mean of this table's margin minus the other's, paired by prompt.

        Args:
            other: What is taken off, for example the model before training.
            variant: As in `margins`.
            round: As in `margins`.
            seed: Of the bootstrap.

        Raises:
            ValueError: If the tables are not of the same texts, rounds and versions,
                or of fewer than three twins.
        """
        self.check_paired(other)
        theirs = other.margins(variant=variant, round=round)
        at = {name: i for i, name in enumerate(other.prompts)}
        theirs = theirs[[at[name] for name in self.prompts]]
        mine = self.margins(variant=variant, round=round)
        return prompt_interval(mine - theirs, seed=seed)

    def check_paired(self, other: "Preferences") -> None:
        """Raise a ValueError unless both tables are of the same texts and rounds."""
        mine, theirs = set(self.prompts), set(other.prompts)
        if mine != theirs:
            raise ValueError(
                "Tables that are compared must be of the same twins, found "
                f"{len(mine & theirs)} in both, {len(mine - theirs)} in this one alone "
                f"and {len(theirs - mine)} in the other alone. Score the same prompts"
            )
        own, foreign = (t.meta.get("prompts_hash") for t in (self, other))
        if own != foreign:
            raise ValueError(
                "Tables that are compared must be of the same texts, found prompts of "
                f"the hash {own} and of {foreign} under the same names. Score one of "
                "them again with the other's texts"
            )
        if set(self._keys()) != set(other._keys()):
            raise ValueError(
                "Tables that are compared must be of the same rounds and versions, "
                f"found {self.rounds} of {self.variants} and {other.rounds} of "
                f"{other.variants}. Score the same ones"
            )

    def table(self) -> pa.Table:
        """Return the rows with the columns of `SCHEMA`, without `meta`."""
        return pa.table({n: list(getattr(self, n)) for n in SCHEMA.names}, SCHEMA)

    @classmethod
    def of_rows(
        cls, rows: Sequence[dict[str, Any]], meta: dict[str, Any]
    ) -> "Preferences":
        """Return the preferences of rows that have the columns of `SCHEMA`."""
        columns: dict[str, Any] = {n: [row[n] for row in rows] for n in SCHEMA.names}
        for name, column in columns.items():
            text = pa.types.is_string(SCHEMA.field(name).type)
            columns[name] = tuple(column) if text else np.array(column)
        return cls(**columns, meta=meta)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table to parquet, whole or not at all."""
        return write_table(Path(path), self.table(), FORMAT, self.meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Preferences":
        """Read a table written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, foreign or incomplete.
        """
        table, meta = read_table(Path(path), FORMAT, SCHEMA)
        return cls.of_rows(table.to_pylist(), meta)

    def _keys(self) -> list[tuple[str, str, int]]:
        rounds = self.round.tolist()
        return list(zip(self.prompt, self.variant, rounds, strict=True))

    def _check(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in SCHEMA.names}
        if len(set(sizes.values())) > 1 or not self.prompt:
            raise ValueError(
                f"All columns must have the same number of rows, and one, found {sizes}"
            )
        if odd := set(self.variant) - set(VARIANTS):
            raise ValueError(f"`variant` must be `fail` or `pass`, found {sorted(odd)}")
        keys = self._keys()
        if len(set(keys)) < len(keys):
            raise ValueError(
                "Each twin, version and round must stand once, found "
                f"{len(keys) - len(set(keys))} repeated. Delete the repeats"
            )
        if not bool(np.isfinite(self.honest).all() and np.isfinite(self.corner).all()):
            raise ValueError(
                "Log-probabilities must be finite, found NaN or infinity. Load the "
                "model in float32 or bfloat16"
            )
        for name in ("round", "honest_tokens", "corner_tokens"):
            if getattr(self, name).min() < 1:
                raise ValueError(f"`{name}` must be at least 1, found a smaller number")


def prompt_interval(values: Float[np.ndarray, " prompt"], *, seed: int) -> Interval:
    """Return the mean over prompts with its 95 % bootstrap interval.

    Raises:
        ValueError: With fewer than three prompts. Two spread too little for resamples
            to tell anything: the level that makes up for it (`expanded`) rounds to 1.
    """
    if len(values) < FEWEST:
        raise ValueError(
            f"an interval over prompts must have at least {FEWEST} of them, found "
            f"{len(values)}. Score more"
        )
    return bootstrap_mean(values[:, None], seed=seed, keep=False, expand=True).at(0)
