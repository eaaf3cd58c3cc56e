"""Which rows are twins, so that a failing turn is compared with its passing one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from emoreg.losses.twins import toward_twins
from emoreg.training.layouts import Layout

PAIR = "pair"
"""Column whose values twins share: the name of their task."""

Rows = list[list[list[list[float]]]]
"""Per row, sequence and Assistant turn: figures."""


def with_twins(
    rows: Rows, dataset: Any, column: str, layout: Layout, places: Sequence[slice]
) -> Rows:
    """Return cached figures in which failing turns hold their passing twin's.

    Args:
        rows: The reference's readings of these rows, from `cached_rows`.
        dataset: With the column `pair`: two rows that share it are twins, turn by
            turn.
        column: Where outcomes are.
        layout: How rows become sequences.
        places: Which figures are replaced; the others stay the row's own.

    Raises:
        ValueError: If there is no such column, a failing row has not exactly one twin,
            or twins differ in their turns.
    """
    if PAIR not in dataset.column_names:
        raise ValueError(
            f"a TwinPenalty needs a column {PAIR!r} that names each row's task, so "
            "that the passing row of the same task is found; the data has "
            f"{', '.join(sorted(dataset.column_names))}. Add it, or use "
            "`ContrastPenalty`, which needs no twins"
        )
    twins = _twins(dataset[PAIR])
    outcomes = [layout.outcomes(value) for value in dataset[column]]
    found = []
    for row, figures in enumerate(rows):
        if not any(turn > 0 for turns in outcomes[row] for turn in turns):
            found.append(figures)
            continue
        twin = _twin_of(row, twins[dataset[PAIR][row]], dataset[PAIR][row])
        _check_turns(row, twin, outcomes)
        found.append(
            [
                _replaced(own, other, failed, passed, places)
                for own, other, failed, passed in zip(
                    figures, rows[twin], outcomes[row], outcomes[twin], strict=True
                )
            ]
        )
    return found


def _twins(names: Sequence[Any]) -> Mapping[Any, list[int]]:
    rows: dict[Any, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def _twin_of(row: int, sharing: list[int], name: Any) -> int:
    if len(sharing) != 2:
        raise ValueError(
            f"a failing row must have one twin, another row with its {PAIR!r}; row "
            f"{row} ({name!r}) has {len(sharing) - 1}. Add the same dialogue with "
            "passing feedback, or give copies a name of their own"
        )
    return sharing[0] if sharing[1] == row else sharing[1]


def _check_turns(row: int, twin: int, outcomes: list[list[list[float]]]) -> None:
    sizes = [[len(turns) for turns in outcomes[one]] for one in (row, twin)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            "twins must have the same Assistant turns, since each failing one is "
            f"compared with its own; rows {row} and {twin} have {sizes[0]} and "
            f"{sizes[1]}. Make them alike but for the feedback"
        )
    passed = [
        (a, b)
        for own, other in zip(outcomes[row], outcomes[twin], strict=True)
        for a, b in zip(own, other, strict=True)
        if a > 0
    ]
    if not any(b == 0 for _, b in passed):
        raise ValueError(
            f"a failing row's twin must pass where it fails; rows {row} and {twin} "
            "fail alike. Give the twin the outcome 0 at these turns"
        )


def _replaced(
    own: list[list[float]],
    other: list[list[float]],
    failed: Sequence[float],
    passed: Sequence[float],
    places: Sequence[slice],
) -> list[list[float]]:
    """Return a sequence's figures with those at `places` its twin's, where it fails."""
    if not failed:  # a placeholder, of a row without turns
        return own
    mine, twin = torch.tensor(own), torch.tensor(other)
    sides = torch.tensor(list(failed)), torch.tensor(list(passed))
    for place in places:
        mine[:, place] = toward_twins(mine[:, place], twin[:, place], *sides)
    return mine.tolist()
