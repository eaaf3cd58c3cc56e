"""Twins: the failing and the passing version of one task, paired turn by turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int

VARIANTS = ("fail", "pass")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentColumns:
    """The columns of the segments that pairing needs, as plain sequences."""

    prompt: Sequence[str]
    variant: Sequence[str]
    turn: Sequence[int]
    failure: Sequence[float]
    position: Sequence[str]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TwinDifferences:
    """Failing minus passing readings per prompt, averaged over its feedback rounds."""

    prompts: tuple[str, ...]
    failing: Float[np.ndarray, "prompt reader layer emotion"]
    """Mean reading of the failing version over the paired rounds."""
    passing: Float[np.ndarray, "prompt reader layer emotion"]
    """Mean reading of the passing version over the same rounds."""
    rounds: Int[np.ndarray, " prompt"]
    """Paired rounds of each prompt."""

    @property
    def values(self) -> Float[np.ndarray, "prompt reader layer emotion"]:
        """Per prompt the mean over its rounds of failing minus passing."""
        return self.failing - self.passing


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoundDifferences:
    """Failing minus passing readings per prompt and feedback round."""

    prompts: tuple[str, ...]
    turns: Int[np.ndarray, "prompt round"]
    """The Assistant turn of each round; -1 where a prompt has no such round."""
    values: Float[np.ndarray, "prompt round reader layer emotion"]
    """NaN where a prompt has no such round."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TwinPairs:
    """Rows of the segments table that belong together, one pair per round."""

    prompts: tuple[str, ...]
    prompt: Int[np.ndarray, " pair"]
    """Index into `prompts`."""
    turn: Int[np.ndarray, " pair"]
    failing: Int[np.ndarray, " pair"]
    """Row of the failing version."""
    passing: Int[np.ndarray, " pair"]
    """Row of the passing version."""


def pair_twins(columns: SegmentColumns, *, position: str) -> TwinPairs:
    """Pair failing and passing segments by prompt and turn.

    Only segments with a known failure count. A pair whose failing version did not
    fail more than its passing one shows no failure and is left out.

    Raises:
        ValueError: If the position is absent, one outcome class is missing, a prompt
            or a turn has only one version, or a version occurs twice.
    """
    rows = _rows_by_key(columns, position=position)
    _require_both_classes(rows, position=position)
    keys = list(dict.fromkeys((prompt, turn) for prompt, turn, _ in rows))
    _require_both_versions(rows, keys)
    # Prompts in the order of the table, turns ascending.
    names = tuple(dict.fromkeys(prompt for prompt, _ in keys))
    index = {name: number for number, name in enumerate(names)}
    keys.sort(key=lambda key: (index[key[0]], key[1]))
    pairs = [(key, rows[(*key, "fail")], rows[(*key, "pass")]) for key in keys]
    told = [
        pair for pair in pairs if columns.failure[pair[1]] > columns.failure[pair[2]]
    ]
    without = set(names) - {prompt for (prompt, _), _, _ in told}
    if without:
        raise ValueError(
            "In every twin the failing version must have a larger `failure` than the "
            f"passing one in some round, found none for {_some(without)}; check the "
            "outcomes of these prompts or leave them out."
        )
    return TwinPairs(
        prompts=names,
        prompt=np.array([index[prompt] for (prompt, _), _, _ in told], dtype=np.int64),
        turn=np.array([turn for (_, turn), _, _ in told], dtype=np.int64),
        failing=np.array([row for _, row, _ in told], dtype=np.int64),
        passing=np.array([row for _, _, row in told], dtype=np.int64),
    )


def average_rounds(
    values: Float[np.ndarray, "segment reader layer emotion"], pairs: TwinPairs
) -> TwinDifferences:
    """Average each version over a prompt's rounds; every prompt counts once."""
    rounds = np.bincount(pairs.prompt, minlength=len(pairs.prompts))
    means = []
    for rows in (pairs.failing, pairs.passing):
        total = np.zeros((len(pairs.prompts), *values.shape[1:]))
        np.add.at(total, pairs.prompt, values[rows].astype(np.float64))
        means.append(total / rounds[:, None, None, None])
    return TwinDifferences(
        prompts=pairs.prompts, failing=means[0], passing=means[1], rounds=rounds
    )


def split_rounds(
    values: Float[np.ndarray, "segment reader layer emotion"], pairs: TwinPairs
) -> RoundDifferences:
    """Lay out the differences by prompt and round, first round first."""
    rounds = np.bincount(pairs.prompt, minlength=len(pairs.prompts))
    shape = (len(pairs.prompts), int(rounds.max()))
    turns = np.full(shape, -1, dtype=np.int64)
    laid = np.full((*shape, *values.shape[1:]), np.nan)
    seen = np.zeros(len(pairs.prompts), dtype=np.int64)
    for pair in range(len(pairs.prompt)):
        prompt = pairs.prompt[pair]
        place = prompt, seen[prompt]
        turns[place] = pairs.turn[pair]
        laid[place] = values[pairs.failing[pair]].astype(np.float64)
        laid[place] -= values[pairs.passing[pair]]
        seen[prompt] += 1
    return RoundDifferences(prompts=pairs.prompts, turns=turns, values=laid)


def _rows_by_key(
    columns: SegmentColumns, *, position: str
) -> dict[tuple[str, int, str], int]:
    """Map (prompt, turn, variant) to its row among segments with known failure."""
    if position not in set(columns.position):
        raise ValueError(
            f"`position` must be one of {sorted(set(columns.position))}, which this "
            f"table holds, got {position!r}."
        )
    rows: dict[tuple[str, int, str], int] = {}
    for row, variant in enumerate(columns.variant):
        failure = columns.failure[row]
        known = failure is not None and not np.isnan(failure)
        if columns.position[row] != position or variant not in VARIANTS or not known:
            continue
        key = (columns.prompt[row], int(columns.turn[row]), variant)
        if key in rows:
            raise ValueError(
                "Each prompt, turn and variant must occur once per position, found "
                f"`{key[0]}`, turn {key[1]}, {variant!r} twice (rows {rows[key]} and "
                f"{row}); average samples before building the table."
            )
        rows[key] = row
    if not rows:
        raise ValueError(
            f"The table must hold twins with a known `failure` at position "
            f"{position!r}, found none; measure conversations in a failing and a "
            'passing version (`variant` "fail" and "pass").'
        )
    return rows


def _require_both_classes(
    rows: dict[tuple[str, int, str], int], *, position: str
) -> None:
    found = {variant for _, _, variant in rows}
    if found != set(VARIANTS):
        raise ValueError(
            "A failure slope needs both outcome classes, found only "
            f"{found.pop()!r} segments at position {position!r}; measure the failing "
            "and the passing version of every task."
        )


def _require_both_versions(
    rows: dict[tuple[str, int, str], int], keys: list[tuple[str, int]]
) -> None:
    lonely = {key for key in keys if not all((*key, v) in rows for v in VARIANTS)}
    if not lonely:
        return
    names = {
        prompt
        for prompt, _ in lonely
        if len({variant for name, _, variant in rows if name == prompt}) == 1
    }
    if names:
        raise ValueError(
            "Every prompt must have a failing and a passing version, found only one "
            f"for {_some(names)}; measure the other version or leave them out."
        )
    turns = sorted(f"{prompt} turn {turn}" for prompt, turn in lonely)
    raise ValueError(
        "Both versions of a prompt must have the same turns with known `failure`, "
        f"found turns in one version only: {_some(turns)}; cut both to the same "
        "number of rounds."
    )


def _some(names: set[str] | list[str]) -> str:
    """List up to five names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(f"`{name}`" for name in listed[:5]) + more
