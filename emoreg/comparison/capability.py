"""Can it still do simple things? Asked by likelihood, without generating."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from emoreg.behavior.likelihood import likelihoods, rendered
from emoreg.residual.evaluating import evaluating
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.transcripts import Message


@torch.no_grad()
def capability(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    *,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Return how often the right answer is likelier than three wrong ones.

    Arithmetic, copying, formats and instructions, 20 each, written for this project;
    likelihood is per token, since answers differ in length. Chance is 0.25. It is no
    benchmark: it is there to be the same before and after.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        corpus: Where the questions are.
        limit: At most this many of each kind; None for all.
        quiet: No progress bar.
    """
    hits = defaultdict[str, list[bool]](list)
    items = tqdm(corpus.records("capability"), desc="Capability", disable=quiet)
    with evaluating(model), items:
        for item in items:
            if limit is not None and len(hits[item["kind"]]) >= limit:
                continue
            said: list[Message] = [{"role": "user", "content": item["prompt"]}]
            answers = (item["answer"], *item["wrong"])
            replies = [rendered(tokenizer, said, answer) for answer in answers]
            right, *wrong = likelihoods(model, replies, use_cache=False)
            hits[item["kind"]].append(right > max(wrong))
    every = [hit for kind in hits.values() for hit in kind]
    return {
        "value": float(np.mean(every)),
        "n": len(every),
        "chance": 0.25,
        "by_kind": {kind: float(np.mean(found)) for kind, found in hits.items()},
        "values": [int(hit) for hit in every],
    }
