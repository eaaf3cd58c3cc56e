"""repeng: `batched_get_hiddens`, which its ControlVector.train calls; last token."""

# The library is in an environment of its own alone.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import Any

import torch
from repeng.extract import batched_get_hiddens
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from worker import Read, in_batches, run

BATCH = 32
"""The default of `ControlVector.train`."""


def _reader(kind: Any, path: str, dtype: torch.dtype, layer: int) -> Read:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = kind.from_pretrained(path, dtype=dtype).eval()

    def read(texts: Sequence[str], size: int) -> torch.Tensor:
        found = batched_get_hiddens(model, tokenizer, list(texts), [layer], size)
        return torch.from_numpy(found[layer])

    return read


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(AutoModelForCausalLM, path, dtype, layer)
    return lambda texts, _size: read(texts, BATCH)


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(AutoModel, path, dtype, layer)
    return lambda texts, size: in_batches(lambda part: read(part, size), texts, size)


run(
    defaults=(f"batches of {BATCH}", defaults),
    best=("no head, sorted batches", best),
)
