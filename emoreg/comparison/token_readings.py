"""Readings of every token of a transcript, as a table keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenReadings:
    """One transcript, token by token.

    Tokens that are parts of one character are joined, and have their mean reading.
    """

    id: str
    style: str
    reader: str
    layer: int
    emotions: tuple[str, ...]
    pieces: tuple[str, ...]
    """The text; joined it is the conversation as the model reads it."""
    spoken: tuple[bool, ...]
    """Which pieces are the Assistant's own words."""
    decisions: dict[int, float | None]
    """By the piece of each decision token, how far the feedback before it failed."""
    values: Float[np.ndarray, "piece emotion"]
    """Z-scores: projection minus the reference's mean at passing decision tokens, over
    its standard deviation there."""

    def described(self) -> dict[str, Any]:
        """Return it JSON-able, two decimals, for a table's `meta`."""
        return {
            "id": self.id,
            "style": self.style,
            "reader": self.reader,
            "layer": self.layer,
            "emotions": list(self.emotions),
            "pieces": list(self.pieces),
            "spoken": [int(own) for own in self.spoken],
            "decisions": [[at, failed] for at, failed in self.decisions.items()],
            "values": self.values.T.round(2).tolist(),
        }

    @classmethod
    def restored(cls, found: Mapping[str, Any]) -> "TokenReadings":
        """Return what `described` wrote."""
        return cls(
            emotions=tuple(found["emotions"]),
            pieces=tuple(found["pieces"]),
            spoken=tuple(bool(own) for own in found["spoken"]),
            decisions={int(at): failed for at, failed in found["decisions"]},
            values=np.asarray(found["values"], np.float64).T,
            **{name: found[name] for name in ("id", "style", "reader", "layer")},
        )


def kept_in_both(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[tuple[TokenReadings, TokenReadings], ...]:
    """Return the transcripts that two tables' `meta` hold, in pairs, of the same text.

    What each model wrote for itself, or another tokenizer cut, is left out.
    """
    pairs = []
    others = {found["id"]: found for found in after.get("transcripts") or ()}
    same = ("pieces", "spoken", "reader", "layer", "emotions")
    for found in before.get("transcripts") or ():
        other = others.get(found["id"])
        if other and all(found[name] == other[name] for name in same):
            pair = TokenReadings.restored(found), TokenReadings.restored(other)
            pairs.append(pair)
    return tuple(pairs)
