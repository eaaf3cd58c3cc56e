"""repeng: `batched_get_hiddens`, which its ControlVector.train calls; last token."""

from collections.abc import Sequence

import torch
from repeng.extract import batched_get_hiddens
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import Read, in_batches, run

BATCH = 32
"""The default of `ControlVector.train`, which reads all layers but the first."""


def _load(path: str, dtype: torch.dtype) -> tuple:
    tokenizer = AutoTokenizer.from_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval(), tokenizer


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    model, tokenizer = _load(path, dtype)
    layers = list(range(1, model.config.num_hidden_layers))

    def read(texts: Sequence[str]) -> torch.Tensor:
        found = batched_get_hiddens(model, tokenizer, list(texts), layers, BATCH)
        return torch.from_numpy(found[layer])

    return read


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    model, tokenizer = _load(path, dtype)

    def read(texts: Sequence[str]) -> torch.Tensor:
        found = batched_get_hiddens(model, tokenizer, list(texts), [layer], len(texts))
        return torch.from_numpy(found[layer])

    return lambda texts: in_batches(read, texts, 8)


run({"defaults": defaults, "best": best})
