"""steering-vectors: `extract_activations` on pairs of texts; last token."""

# The library is in an environment of its own alone.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import Any

import torch
from steering_vectors.train_steering_vector import extract_activations
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast
from worker import Read, in_batches, run


def _reader(kind: Any, path: str, dtype: torch.dtype, layer: int, **how: Any) -> Read:
    # The transformers that it runs with has older names, of classes and arguments.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    model = kind.from_pretrained(path, torch_dtype=dtype).eval()

    def read(texts: Sequence[str], size: int) -> torch.Tensor:
        # It reads pairs: the second half of the texts against the first. Of an odd
        # number the last is read twice.
        half = (len(texts) + 1) // 2
        pairs = [(texts[i], texts[min(i + half, len(texts) - 1)]) for i in range(half)]
        one, other = extract_activations(
            model, tokenizer, pairs, layers=[layer], batch_size=size, **how
        )
        return torch.cat([*one[layer], *other[layer]])[: len(texts)].float()

    return read


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(AutoModelForCausalLM, path, dtype, layer)
    return lambda texts, _size: read(texts, 1)


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    where = {"decoder_block": "layers.{num}"}
    read = _reader(AutoModel, path, dtype, layer, layer_config=where)
    # A batch of pairs is two forward passes, over the firsts and over the seconds.
    return lambda texts, size: in_batches(
        lambda part: read(part, size), texts, 2 * size
    )


run(
    defaults=("batches of 1", defaults),
    best=("no head, sorted batches", best),
)
