"""Decision tokens of twins: the residual stream, and the words that come next."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.residual.layers import final_norm, num_layers, unwrapped
from emoreg.residual.pooling import Passage, span_means
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.validation.subject import Subject
from emoreg.vectors.transcripts import Conversation
from emoreg.vectors.twins import SegmentColumns, average_rounds, pair_twins


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decisions:
    """Both versions of every prompt, failing first, averaged over its rounds."""

    prompts: tuple[str, ...]
    layers: tuple[int, ...]
    streams: Float[np.ndarray, "prompt version layer d_model"]
    words: Float[np.ndarray, "prompt version word"]


def read_decisions(
    subject: Subject,
    conversations: Sequence[Conversation],
    *,
    tokens: Sequence[int],
    description: str,
) -> Decisions:
    """Return the stream at decision tokens, and `tokens`' log-probabilities there.

    The vectors' layers and the last block are read; the words' log-probabilities are
    the model's own, by its final norm and head. Where there is no norm that is known,
    they are NaN.
    """
    last = num_layers(subject.model) - 1
    layers = tuple(sorted({*subject.vectors.layers, last}))
    markers = TurnMarkers.of(subject.tokenizer)
    passages, owners = [], []
    for row, conversation in enumerate(conversations):
        ids = conversation_ids(subject.tokenizer, conversation.messages)
        found = markers.decision_tokens(torch.tensor([ids]))[0].nonzero().flatten()
        spans = tuple((int(i), int(i) + 1) for i in found)
        passages.append(Passage(ids=tuple(ids), spans=spans))
        owners += [(row, turn) for turn in range(len(spans))]
    how: Any = {"description": description, "quiet": subject.quiet}
    values = span_means(subject.model, passages, layers, **how, store=subject.store)
    words = log_probs(subject.model, values[:, layers.index(last)], tokens)
    columns = SegmentColumns(
        prompt=[conversations[row].pair for row, _ in owners],
        variant=[conversations[row].variant for row, _ in owners],
        turn=[turn for _, turn in owners],
        failure=[_known(conversations[row].failed[turn]) for row, turn in owners],
        position=["decision"] * len(owners),
    )
    pairs = pair_twins(columns, position="decision")
    twins = average_rounds(values.unsqueeze(1).numpy(), pairs)
    said = average_rounds(words[:, None, None].numpy(), pairs)
    return Decisions(
        prompts=pairs.prompts,
        layers=layers,
        streams=np.stack([twins.failing[:, 0], twins.passing[:, 0]], axis=1),
        words=np.stack([said.failing[:, 0, 0], said.passing[:, 0, 0]], axis=1),
    )


def _known(failure: float | None) -> float:
    return math.nan if failure is None else float(failure)


@torch.no_grad()
def log_probs(
    model: Any, last: Float[Tensor, "segment d_model"], tokens: Sequence[int]
) -> Float[Tensor, "segment token"]:
    """Return log-probabilities of `tokens` from the last block's output."""
    base: Any = unwrapped(model)
    head, norm = base.get_output_embeddings(), final_norm(base)
    if head is None or norm is None:
        return torch.full((len(last), len(tokens)), torch.nan)
    found = []
    for part in last.split(64):  # a whole vocabulary for each row
        given = part.to(head.weight.device, head.weight.dtype)
        logits = head(norm(given)).float()
        found.append(logits.log_softmax(-1)[:, list(tokens)].cpu())
    return torch.cat(found)
