"""Samples: several replies to one prompt, told apart in a table and counted as one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from emoreg.vectors.segment import Segment
from emoreg.vectors.transcripts import Conversation

SAMPLE_FIELDS = (("sample", pa.int32()), ("seed", pa.int64()))
"""The columns that a table of sampled replies has besides `SEGMENT_SCHEMA`."""
_SPOT = ("prompt", "variant", "turn", "position")


class Sample(NamedTuple):
    """Which of a prompt's replies a conversation ends with."""

    sample: int
    """From 0."""
    seed: int
    """What the reply was drawn with."""


def sampled_turns(
    segments: Sequence[Segment], conversations: Sequence[Conversation]
) -> tuple[tuple[Segment, ...], dict[int, int]]:
    """Return the segments of last turns alone, which were sampled, and where they were.

    The turns before are given and the same in all samples of a prompt. A reply without
    a word has no Assistant tokens: it has a segment there all the same, which nothing
    can be read of, so that it is counted.

    Returns:
        The segments; for the number of each that was there, its number among them.
    """
    last = [sum(m["role"] == "assistant" for m in c.messages) for c in conversations]
    rows = [i for i, s in enumerate(segments) if s.turn == last[s.conversation] - 1]
    kept = [segments[i] for i in rows]
    spoke = {s.conversation for s in kept if s.position == "assistant"}
    silent = [_silent(s) for s in kept if s.conversation not in spoke]
    return (*kept, *silent), {row: place for place, row in enumerate(rows)}


def average_samples(
    segments: pa.Table, *readings: Float[np.ndarray, "segment ..."]
) -> tuple[pa.Table, list[np.ndarray]]:
    """Return one row per prompt, version, turn and position: the mean over samples.

    Samples without a reading are left out of the mean; NaN where none has one. What
    else a row says is that of its first sample.

    Raises:
        ValueError: If a sample stands twice in the same place.
    """
    spots = [segments[name].to_pylist() for name in _SPOT]
    places = list(zip(*spots, strict=True))
    each = list(zip(places, segments["sample"].to_pylist(), strict=True))
    if len(set(each)) < len(each):
        twice = next(key for key in each if each.count(key) > 1)
        raise ValueError(
            f"each sample must stand once in the table, found {twice} twice. Give "
            "conversations of one `pair` and `variant` samples of their own"
        )
    order = {place: number for number, place in enumerate(dict.fromkeys(places))}
    of = np.array([order[place] for place in places])
    first = np.unique(of, return_index=True)[1]
    names = [name for name, _ in SAMPLE_FIELDS]
    return segments.take(first).drop_columns(names), [_means(x, of) for x in readings]


def _means(
    values: Float[np.ndarray, "segment ..."], of: np.ndarray
) -> Float[np.ndarray, "place ..."]:
    known = np.isfinite(values)
    total = np.zeros((int(of.max()) + 1, *values.shape[1:]))
    count = np.zeros(total.shape)
    np.add.at(total, of, np.where(known, values, 0.0))
    np.add.at(count, of, known)
    with np.errstate(invalid="ignore"):
        return total / count


def _silent(decision: Segment) -> Segment:
    end = decision.token_end
    return replace(decision, position="assistant", token_start=end, token_end=end)
