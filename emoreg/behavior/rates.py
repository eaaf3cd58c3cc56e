"""From what happened to rates: rows in clusters, and tables that may be compared."""

from collections.abc import Collection, Iterable, Set
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class Result(NamedTuple):
    """What one sample of a task, a scenario or a prompt came to."""

    cluster: str
    """Name of the task: samples of one are alike."""
    sample: int
    outcome: str


def happened(
    results: Iterable[Result], wanted: Collection[str], *, of: str
) -> Bool[np.ndarray, "cluster sample"]:
    """Return whether each sample came to one of `wanted`, clusters by name.

    Args:
        results: In any order.
        wanted: Outcomes.
        of: What the clusters are, for the message.

    Raises:
        ValueError: If some have another number of samples than the others.
    """
    rows: dict[str, list[bool]] = {}
    for result in sorted(results, key=lambda r: (r.cluster, r.sample)):
        rows.setdefault(result.cluster, []).append(result.outcome in wanted)
    if len({len(row) for row in rows.values()}) != 1:
        raise ValueError(
            f"every {of} must have as many samples as the others, found "
            f"{sorted({len(row) for row in rows.values()})}. Play those missing"
        )
    return np.array(list(rows.values()), bool)


def check_same(
    mine: Set[str],
    theirs: Set[str],
    hashes: tuple[str | None, str | None],
    *,
    said: str,
) -> None:
    """Raise a ValueError unless two tables are of the same texts.

    Args:
        mine: Names in one table.
        theirs: Names in the other.
        hashes: Of the texts behind the names.
        said: What must be of the same what, for the message: "X must be of the same Y".
    """
    if mine != theirs:
        raise ValueError(
            f"{said}, found {len(mine & theirs)} in both, {len(mine - theirs)} in this "
            f"table alone and {len(theirs - mine)} in the other alone. Run the same "
            "ones"
        )
    own, foreign = hashes
    if own != foreign:
        raise ValueError(
            f"{said}, found texts of the hash {own} and of {foreign} under the same "
            "names. Run one of them again"
        )
