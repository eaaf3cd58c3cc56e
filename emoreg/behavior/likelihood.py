"""How likely a reply is that somebody else wrote, in nat per token."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from emoreg.residual.layers import unwrapped
from emoreg.residual.spans import message_spans
from emoreg.vectors.transcripts import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A dialogue with its reply: token ids, and from where to where the reply is."""

    ids: tuple[int, ...]
    start: int
    end: int


def rendered(
    tokenizer: PreTrainedTokenizerBase, said: Sequence[Message], reply: str
) -> Reply:
    """Return a dialogue and a reply to it, as the model will read them."""
    messages = [*said, {"role": "assistant", "content": reply}]
    ids, spans = message_spans(tokenizer, messages)
    start, end = spans[-1]
    return Reply(ids=ids, start=start, end=end)


def likelihoods(
    model: nn.Module, replies: Sequence[Reply], *, shared: int = 0, **inputs: Any
) -> list[float]:
    """Return each reply's mean log-probability, in nat per token, from one pass.

    `1/n sum_t log p(y_t | y_<t, x)` over the `n` tokens of what is said. Softmax and
    sums are in float32 or better, whatever the model's own precision.

    Rows are padded on the right, where a causal model doesn't look, so that no mask is
    needed. Logits are made where a reply is predicted, and nowhere else.

    Args:
        model: A causal language model.
        replies: Replies, alike in their first `shared` tokens.
        shared: Tokens that a cache in `inputs` holds already.
        inputs: Further inputs of the model: a cache, and whether to use one.
    """
    device, width = device_of(model), max(reply.end for reply in replies) - 1 - shared
    first = min(reply.start for reply in replies) - 1
    ids = torch.zeros((len(replies), width), dtype=torch.long)
    for row, reply in enumerate(replies):
        fed = reply.ids[shared : reply.end - 1]
        ids[row, : len(fed)] = torch.tensor(fed)
    keep = torch.arange(first - shared, width, device=device)
    logits = model(input_ids=ids.to(device), logits_to_keep=keep, **inputs).logits
    means = []
    for row, reply in enumerate(replies):
        at = logits[row, reply.start - 1 - first : reply.end - 1 - first]
        at = at if at.dtype == torch.float64 else at.float()
        said = torch.tensor(reply.ids[reply.start : reply.end], device=at.device)
        picked = at.gather(-1, said[:, None])[:, 0] - at.logsumexp(-1)
        means.append(picked.double().mean())
    return torch.stack(means).tolist()


def scores(model: nn.Module, groups: Sequence[Sequence[Reply]]) -> list[list[float]]:
    """Return each group's mean log-probabilities of its replies, in nat per token.

    A group's replies answer the same words. Groups are of one dialogue, rounds of it
    for instance: what stands before a reply is the beginning of the longest of them,
    up to what the template writes differently, and is read once.
    """
    longest = max(groups, key=lambda group: group[0].start)
    trunk = longest[0].ids[: _shared(longest, longest[0].ids)]
    # A cache of its own: those that models make drop what a sliding window left. A
    # recurrent state can't go back to an earlier round: such a model reads all anew.
    cache = None
    if trunk and not getattr(unwrapped(model), "_is_stateful", False):
        cache = DynamicCache()
        ids = torch.tensor([trunk], device=device_of(model))
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    found = []
    for group in groups:
        shared = 0 if cache is None else _shared(group, trunk)
        if cache is not None and shared:
            past = copy.deepcopy(cache)
            if shared < len(trunk):  # up to transformers 5.19, 0 would drop it all
                past.crop(shared - len(trunk))
            past.batch_repeat_interleave(len(group))
            inputs = {"past_key_values": past, "use_cache": True}
        else:
            inputs = {"use_cache": False}
        found.append(likelihoods(model, group, shared=shared, **inputs))
    return found


def _shared(group: Sequence[Reply], ids: Sequence[int]) -> int:
    """Return how many tokens all dialogues begin with as `ids` does, less one.

    The token before a reply is left out: it is the one that predicts the first.
    """
    most = min(reply.start - 1 for reply in group)
    rows = zip(ids[:most], *(reply.ids[:most] for reply in group), strict=False)
    return sum(1 for _ in takewhile(lambda row: len(set(row)) == 1, rows))


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter is."""
    return next(model.parameters()).device
