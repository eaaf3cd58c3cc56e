"""Decision tokens of twins: the residual stream, and the words that come next."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.residual.capture import capture
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import d_model, final_norm, num_layers, unwrapped
from emoreg.residual.pooling import read_spans
from emoreg.validation.subject import Subject
from emoreg.vectors.reading import turn_passages
from emoreg.vectors.transcripts import Conversation
from emoreg.vectors.twins import SegmentColumns, average_rounds, pair_twins

READ_OUT_ERROR = 0.1
"""Mean error of log-probabilities, as a share of their spread, that is put down to the
model's precision."""

_log = logging.getLogger(__name__)


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
    """Return log-probabilities of `tokens` from the last block's output.

    By the final norm and the head, with what the configuration says is done to logits
    after it. NaN where that isn't what the model itself says (`_speaks_for`).
    """
    base: Any = unwrapped(model)
    head, norm = base.get_output_embeddings(), final_norm(base)
    if head is None or norm is None or not _speaks_for(base, head, norm):
        return torch.full((len(last), len(tokens)), torch.nan)
    found = []
    for part in last.split(64):  # a whole vocabulary for each row
        logs = _read_out(base, head, norm, part)
        found.append(logs[:, list(tokens)].cpu())
    return torch.cat(found)


def _read_out(
    base: Any, head: Any, norm: Any, last: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    """Return log-probabilities of the whole vocabulary."""
    logits = head(norm(last.to(head.weight.device, head.weight.dtype))).float()
    config: Any = base.config.get_text_config()
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
    logits = logits * (getattr(config, "logit_scale", None) or 1.0)  # Cohere
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return (cap * (logits / cap).tanh() if cap else logits).log_softmax(-1)


def _speaks_for(base: Any, head: Any, norm: Any) -> bool:
    """Whether the read-out is what the model's own forward pass gives, on a few tokens.

    Models do more to logits than can be known here.
    """
    ids = torch.arange(1, 9, device=next(base.parameters()).device)[None]
    last = num_layers(base) - 1
    with evaluating(base), capture(base, [last]) as captured:
        said = base(input_ids=ids).logits[0].float().log_softmax(-1)
        mine = _read_out(base, head, norm, captured[last][0])
    error = (mine.to(said.device) - said).abs().mean()
    alike = bool(error < READ_OUT_ERROR * said.std())
    if not alike:
        _log.warning(
            "the model's own words are left out: its logits are not what its final "
            "norm and head give"
        )
    return alike
