"""Reading every token of a few transcripts, to keep beside a table's readings."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.comparison.token_readings import TokenReadings
from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.training.reference import Reference
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LOGISTIC
from emoreg.vectors.transcripts import Conversation

SHOWN: Final = ("desperate", "calm", "distressed", "serene")
"""Two emotions that the preset's terms act on, and one beside each that none does."""
_MOST_PARTS = 8
"""Tokens that one character may need; more are text that can't be decoded."""
_BROKEN = "\ufffd"


def chosen(conversations: Sequence[Conversation], most: int) -> list[Conversation]:
    """Return the first failing conversation of each style, `most` styles in order."""
    first: dict[str, Conversation] = {}
    for conversation in conversations:
        if any(failed is not None and failed > 0.5 for failed in conversation.failed):
            first.setdefault(conversation.style, conversation)
    return list(first.values())[:most]


def read_tokens(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    vectors: EmotionVectors,
    *,
    reference: Reference,
    budget: int | None = None,
    quiet: bool = False,
) -> list[TokenReadings]:
    """Read every token of conversations at the middle audit layer, by one reader.

    That reader is the logistic one, as in the report, or the vectors' last where they
    lack it; the emotions are those of `SHOWN`, or the first ones where there is none.

    Args:
        model: The model, with or without an adapter.
        tokenizer: Its tokenizer.
        conversations: As `chosen` returns them.
        vectors: The model's emotion vectors.
        reference: Gives the unit and, with its plan, the layer.
        budget: Tokens per batch.
        quiet: No progress bar.
    """
    layers = [layer for layer in reference.plan.audit if layer in vectors.layers]
    if not conversations or not layers:
        return []
    reader = LOGISTIC if LOGISTIC in vectors.readers else vectors.readers[-1]
    known = [emotion for emotion in SHOWN if emotion in vectors.emotions]
    emotions = tuple(known or vectors.emotions[: len(SHOWN)])
    at: Any = {"reader": reader, "layer": layers[len(layers) // 2]}
    at["emotions"] = emotions
    sequences = [conversation_ids(tokenizer, c.messages) for c in conversations]
    found: dict[int, np.ndarray] = {}

    def consume(batch: Batch, captured: Captured) -> None:
        for k, row in enumerate(batch.rows):
            stream = captured[at["layer"]][k, : len(sequences[row])].cpu()
            found[row] = _in_units(stream, vectors, reference, **at)

    read_stream(
        model,
        sequences,
        [at["layer"]],
        consume,
        budget=budget,
        description="Reading token by token",
        quiet=quiet,
    )
    markers = TurnMarkers.of(tokenizer)
    return [
        _by_piece(conversation, sequences[row], found[row], tokenizer, markers, at)
        for row, conversation in enumerate(conversations)
    ]


def _in_units(
    stream: Float[Tensor, "pos d_model"],
    vectors: EmotionVectors,
    reference: Reference,
    *,
    reader: str,
    layer: int,
    emotions: tuple[str, ...],
) -> Float[np.ndarray, "pos emotion"]:
    unit: Any = {"reader": reader, "layers": [layer], "emotions": emotions}
    read = vectors.project(stream, layer=layer, reader=reader)
    read = read[:, list(vectors.emotion_indices(emotions))]
    level = reference.unit("success_level", **unit)[0]
    return ((read - level) / reference.unit("success_std", **unit)[0]).numpy()


def _by_piece(
    conversation: Conversation,
    ids: Sequence[int],
    values: Float[np.ndarray, "pos emotion"],
    tokenizer: PreTrainedTokenizerBase,
    markers: TurnMarkers,
    at: Mapping[str, Any],
) -> TokenReadings:
    row = torch.tensor([list(ids)])
    decision = markers.decision_tokens(row)[0].tolist()
    spoken = markers.assistant_tokens(row)[0].tolist()
    spans = whole_pieces(tokenizer, ids)
    marked = [any(decision[start:end]) for _, start, end in spans]
    places = [place for place, here in enumerate(marked) if here]
    return TokenReadings(
        id=conversation.id,
        style=conversation.style,
        pieces=tuple(text for text, *_ in spans),
        spoken=tuple(spoken[start] for _, start, _ in spans),
        decisions=dict(zip(places, conversation.failed, strict=True)),
        values=np.stack([values[start:end].mean(0) for _, start, end in spans]),
        **at,
    )


def whole_pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> list[tuple[str, int, int]]:
    """Return tokens as text, each with its first token and the one past its last.

    Tokens that only together make a character are one piece. Texts are differences of
    what stands before and with a token, since tokenizers write a word's first blank
    only where another word is before it.
    """
    pieces: list[tuple[str, int, int]] = []
    before = start = 0
    for end in range(1, len(ids) + 1):
        head = _decoded(tokenizer, ids[before:start])
        text = _decoded(tokenizer, ids[before:end])[len(head) :]
        unfinished = text.endswith(_BROKEN) or not text
        if unfinished and end < len(ids) and end - start < _MOST_PARTS:
            continue
        pieces.append((text, start, end))
        before, start = start, end
    return pieces


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(ids), **how))
