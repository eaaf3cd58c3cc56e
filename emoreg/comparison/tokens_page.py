"""The page's section that shows transcripts token by token, coloured by a reading."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.phrases import signed
from emoreg.comparison.token_readings import TokenReadings

SHADES = 5
"""On each side of nought."""
LEAST_CHANGE = 0.5
"""Where colours of a change end at least: readings are told to a tenth."""
_VERSIONS = ("before", "after")
_SHARE = 0.98
"""Of the tokens shown, how many lie within the ends of the scale."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One piece of text, as it is shown for the first emotion."""

    text: str
    shade: str
    """Its style: `w3` three shades above nought, `c3` below, empty for nought."""
    says: str
    decision: bool


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Text that the Assistant said, or that it read, before and after training."""

    who: str
    versions: dict[str, list[Cell]]


def tokens_section(
    pairs: Sequence[tuple[TokenReadings, TokenReadings]],
) -> dict[str, Any] | None:
    """Return what the page's template shows; None where no transcript was kept."""
    if not pairs:
        return None
    first = pairs[0][0]
    limit = scale_end([x.values for pair in pairs for x in pair])
    moved = scale_end([y.values - x.values for x, y in pairs], least=LEAST_CHANGE)
    return {
        "emotions": first.emotions,
        "reader": first.reader,
        "layer": first.layer,
        "limit": f"{limit:g}",
        "change_limit": f"{moved:g}",
        "shades": range(1, SHADES + 1),
        "texts": [
            {
                "id": pair[0].id,
                "style": pair[0].style,
                "turns": _turns(pair, limit),
                "rows": _decision_rows(pair),
            }
            for pair in pairs
        ],
        # Numbers and emotions alone: the texts stand in the page once, as text.
        "data": {
            "limit": limit,
            "changeLimit": moved,
            "shades": SHADES,
            "values": [
                {
                    version: own.values.T.round(1).tolist()
                    for version, own in zip(_VERSIONS, pair, strict=True)
                }
                for pair in pairs
            ],
        },
    }


def scale_end(
    values: Sequence[Float[np.ndarray, "_ emotion"]], *, least: float = 1.0
) -> float:
    """Return where the colours end: a round number that nearly all values are below.

    One scale for all texts and emotions, the same above nought as below.
    """
    every = np.concatenate([np.abs(x).ravel() for x in values])
    wanted = max(least, float(np.quantile(every, _SHARE)))
    ten = 10.0 ** np.floor(np.log10(wanted))
    ends = (float(f"{ten * step:.6g}") for step in (1, 2, 3, 5, 8, 10))
    return min(end for end in ends if end >= wanted)


def shade(value: float, limit: float) -> str:
    """Return the style of a reading on a scale that ends at `limit`."""
    steps = min(SHADES, int(np.floor(SHADES * abs(value) / limit + 0.5)))
    return f"{'w' if value > 0 else 'c'}{steps}" if steps else ""


def _turns(pair: tuple[TokenReadings, TokenReadings], limit: float) -> list[Turn]:
    first = pair[0]
    values = [own.values[:, 0].round(1) for own in pair]

    def cells(own: Float[np.ndarray, " piece"], places: Sequence[int]) -> list[Cell]:
        return [
            Cell(
                text=first.pieces[at],
                shade=shade(own[at], limit),
                says=signed(float(own[at]), 1),
                decision=at in first.decisions,
            )
            for at in places
        ]

    turns = []
    for spoken, run in groupby(range(len(first.pieces)), key=first.spoken.__getitem__):
        places = list(run)
        shown = {v: cells(x, places) for v, x in zip(_VERSIONS, values, strict=True)}
        turns.append(Turn(who="Assistant" if spoken else "read", versions=shown))
    return turns


def _decision_rows(pair: tuple[TokenReadings, TokenReadings]) -> list[dict[str, Any]]:
    """Return each decision token's readings in words and numbers, before and after."""
    rows = []
    for turn, (at, failed) in enumerate(pair[0].decisions.items(), start=1):
        said = "no feedback yet" if failed is None else f"{100 * failed:.0f} % failed"
        said = {0.0: "passed", 1.0: "failed"}.get(failed, said)  # pyright: ignore
        readings = [
            tuple(float(own.values[at, column]) for own in pair)
            for column in range(len(pair[0].emotions))
        ]
        rows.append({"turn": turn, "feedback": said, "readings": readings})
    return rows
