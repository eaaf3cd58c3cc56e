"""emoreg: `span_means`, which `emoreg extract` calls; mean over all tokens, or last."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import Load, Read, run

from emoreg.residual.pooling import Passage, span_means


def _load(path: str, dtype: torch.dtype, layer: int, *, last: bool, budget: bool):
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def read(texts: Sequence[str], size: int) -> torch.Tensor:
        passages = []
        for text in texts:
            ids = tuple(tokenizer(text)["input_ids"])
            start = len(ids) - 1 if last else 0
            passages.append(Passage(ids=ids, spans=((start, len(ids)),)))
        how: dict[str, Any] = {"budget": size} if budget else {}
        return span_means(model, passages, (layer,), quiet=True, **how)[:, 0]

    return read


def _setting(*, last: bool = False, budget: bool = False) -> Load:
    def load(path: str, dtype: torch.dtype, layer: int) -> Read:
        return _load(path, dtype, layer, last=last, budget=budget)

    return load


run(
    defaults=("its own batches", _setting()),
    best=("tokens a batch", _setting(budget=True)),
    last=("the last token", _setting(last=True)),
)
