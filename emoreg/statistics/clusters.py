"""How far two clusterings of the same things agree."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np


def adjusted_rand_index(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Return the Rand index corrected for chance: 1 if the same, 0 expected by chance.

    `(pairs together in both - expected) / (mean of the two - expected)` (Hubert and
    Arabie 1985, https://doi.org/10.1007/BF01908075).

    Raises:
        ValueError: If the two are not of the same things, or of fewer than two.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(
            "both clusterings must be of the same two things or more, found "
            f"{len(one)} and {len(other)} labels"
        )
    rows = np.unique([_place(one, x) for x in one], return_inverse=True)[1]
    columns = np.unique([_place(other, x) for x in other], return_inverse=True)[1]
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    together = _pairs(table).sum()
    first, second = _pairs(table.sum(1)).sum(), _pairs(table.sum(0)).sum()
    expected = first * second / _pairs(np.array(len(one)))
    middle = (first + second) / 2
    return (
        1.0
        if middle == expected
        else float((together - expected) / (middle - expected))
    )


def _place(labels: Sequence[Hashable], label: Hashable) -> int:
    return list(labels).index(label)


def _pairs(count: Any) -> Any:
    return count * (count - 1) / 2
