"""Reading conversations: projections at decision tokens and over Assistant turns."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import d_model, num_layers
from emoreg.residual.pooling import Passage, read_spans
from emoreg.residual.store import ActivationStore
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.segment import POSITIONS, Segment
from emoreg.vectors.transcripts import Conversation


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TurnReadings:
    """Projections of every segment, aligned with `segments`."""

    segments: tuple[Segment, ...]
    values: Float32[np.ndarray, "segment reader layer emotion"]
    """NaN at layers and emotions that an audit reader was not fitted on."""
    resid_norm: Float32[np.ndarray, "segment layer"]


def read_conversations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    vectors: EmotionVectors,
    *,
    readers: Sequence[str] | None = None,
    budget: int | None = None,
    description: str = "Reading conversations",
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> TurnReadings:
    """Read every Assistant turn, teacher-forced: the given text, nothing sampled.

    `readers` says with which, those of `vectors` when None; the audit's may be named.
    What `store` has is not read again.

    Raises:
        ValueError: If there is none, the vectors are another model's, or a
            conversation's Assistant turns can't all be found in its tokens.
    """
    segments, passages = turn_passages(tokenizer, conversations)
    readers = vectors.readers if readers is None else tuple(readers)
    shape = (len(readers), len(vectors.layers), len(vectors.emotions))
    values = np.full((len(segments), *shape), np.nan, dtype=np.float32)
    norms = np.full((len(segments), shape[1]), np.nan, dtype=np.float32)

    def keep(numbers: Sequence[int], found: np.ndarray, lengths: np.ndarray) -> None:
        values[numbers], norms[numbers] = found, lengths

    how: Any = {"budget": budget, "description": description, "quiet": quiet}
    project_spans(model, passages, vectors, readers, keep, store=store, **how)
    return TurnReadings(segments=segments, values=values, resid_norm=norms)


Take = Callable[
    [
        Sequence[int],
        Float32[np.ndarray, "segment reader layer emotion"],
        Float32[np.ndarray, "segment layer"],
    ],
    None,
]
"""Called with the numbers of some spans, their projections, and their norms."""


def project_spans(
    model: nn.Module,
    passages: Sequence[Passage],
    vectors: EmotionVectors,
    readers: Sequence[str],
    take: Take,
    *,
    budget: int | None = None,
    description: str = "Reading conversations",
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> None:
    """Hand on the readings of spans batch by batch, so that none of it piles up.

    Spans are numbered through, passage by passage; batches come in any order.

    Raises:
        ValueError: If the vectors are another model's.
    """
    vectors.check_model(d_model=d_model(model), num_layers=num_layers(model))

    def consume(spans: Sequence[int], means: Tensor) -> None:
        by_layer = [
            _project(vectors, means[:, column], layer, readers)
            for column, layer in enumerate(vectors.layers)
        ]
        take(spans, np.stack(by_layer, axis=2), means.norm(dim=-1).numpy())

    how: Any = {"budget": budget, "description": description, "quiet": quiet}
    read_spans(model, passages, vectors.layers, consume, store=store, **how)


def turn_passages(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]
) -> tuple[tuple[Segment, ...], list[Passage]]:
    """Return every segment, and the conversations' tokens with the segments as spans.

    Spans, numbered through, stand in the order of segments.

    Raises:
        ValueError: If there is no conversation, or one's Assistant turns can't all be
            found in its tokens.
    """
    if not conversations:
        raise ValueError("`conversations` must hold at least one, found none")
    markers = TurnMarkers.of(tokenizer)
    sequences = [conversation_ids(tokenizer, c.messages) for c in conversations]
    turns = [_spans(markers, ids) for ids in sequences]
    for conversation, found in zip(conversations, turns, strict=True):
        _check_turns(conversation, len(found))
    segments = _segments(conversations, turns)
    spans: list[list[tuple[int, int]]] = [[] for _ in conversations]
    for segment in segments:
        spans[segment.conversation].append((segment.token_start, segment.token_end))
    passages = [
        Passage(ids=tuple(ids), spans=tuple(found))
        for ids, found in zip(sequences, spans, strict=True)
    ]
    return segments, passages


def _spans(markers: TurnMarkers, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return, per Assistant turn, its decision token and the end of its text."""
    row: Int[Tensor, "one pos"] = torch.tensor([list(ids)])
    decisions = markers.decision_tokens(row)[0].nonzero().flatten().tolist()
    inside = markers.assistant_tokens(row)[0]
    ends = [*decisions[1:], len(ids)]
    return [
        (start, start + 1 + int(inside[start + 1 : end].sum()))
        for start, end in zip(decisions, ends, strict=True)
    ]


def _check_turns(conversation: Conversation, found: int) -> None:
    turns = sum(m["role"] == "assistant" for m in conversation.messages)
    if found != turns or turns != len(conversation.failed):
        raise ValueError(
            "a conversation must have as many decision tokens as Assistant turns and "
            f"outcomes; {conversation.id!r} has {found} decision tokens, {turns} "
            f"Assistant turns and {len(conversation.failed)} outcomes. Check its "
            "roles, that the chat template writes a generation prompt before every "
            "Assistant turn, and that no turn begins with blank lines, which the "
            "tokenizer may join with the prompt"
        )


def _segments(
    conversations: Sequence[Conversation], spans: list[list[tuple[int, int]]]
) -> tuple[Segment, ...]:
    segments = []
    for row, conversation in enumerate(conversations):
        for turn, (decision, end) in enumerate(spans[row]):
            failure = conversation.failed[turn]
            known = math.nan if failure is None else float(failure)
            for position in POSITIONS:
                start = decision if position == "decision" else decision + 1
                stop = decision + 1 if position == "decision" else end
                if stop > start:  # an empty Assistant turn has no tokens to average
                    segments.append(
                        Segment(
                            conversation=row,
                            turn=turn,
                            failure=known,
                            position=position,
                            token_start=start,
                            token_end=stop,
                        )
                    )
    return tuple(segments)


def _project(
    vectors: EmotionVectors, pooled: Tensor, layer: int, readers: Sequence[str]
) -> np.ndarray:
    nothing = torch.full((len(pooled), len(vectors.emotions)), math.nan)
    readings = [
        vectors.project(pooled, layer=layer, reader=reader)
        if vectors.reads(reader, layer)
        else nothing
        for reader in readers
    ]
    return torch.stack(readings, dim=1).numpy()
