"""Decision tokens of twins: the residual stream, and the words that come next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.residual.layers import d_model, final_norm, num_layers, unwrapped
from emoreg.residual.pooling import read_spans
from emoreg.validation.subject import Subject
from emoreg.vectors.reading import turn_passages
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
    turns, passages = turn_passages(subject.tokenizer, conversations)
    decisions = [i for i, turn in enumerate(turns) if turn.position == "decision"]
    row_of = {number: row for row, number in enumerate(decisions)}
    values = np.zeros((len(decisions), len(layers), d_model(subject.model)), np.float32)

    def consume(spans: Sequence[int], means: Tensor) -> None:
        # All segments are read, so that a table of readings finds them in the store.
        for span, mean in zip(spans, means, strict=True):
            if span in row_of:
                values[row_of[span]] = mean.numpy()

    how: Any = {"description": description, "quiet": subject.quiet}
    read_spans(subject.model, passages, layers, consume, store=subject.store, **how)
    final = torch.from_numpy(values[:, layers.index(last)])
    words = log_probs(subject.model, final, tokens)
    chosen = [turns[i] for i in decisions]
    columns = SegmentColumns(
        prompt=[conversations[turn.conversation].pair for turn in chosen],
        variant=[conversations[turn.conversation].variant for turn in chosen],
        turn=[turn.turn for turn in chosen],
        failure=[turn.failure for turn in chosen],
        position=["decision"] * len(chosen),
    )
    pairs = pair_twins(columns, position="decision")
    twins = average_rounds(values[:, None], pairs)
    said = average_rounds(words[:, None, None].numpy(), pairs)
    return Decisions(
        prompts=pairs.prompts,
        layers=layers,
        streams=np.stack([twins.failing[:, 0], twins.passing[:, 0]], axis=1),
        words=np.stack([said.failing[:, 0, 0], said.passing[:, 0, 0]], axis=1),
    )


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
