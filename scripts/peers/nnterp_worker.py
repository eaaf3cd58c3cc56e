"""nnterp: `collect_token_activations_batched`, which stops at the layer; last token."""

# The library is in an environment of its own alone.
# pyright: reportMissingImports=false

from collections.abc import Sequence

import torch
from nnterp import StandardizedTransformer
from nnterp.nnsight_utils import collect_token_activations_batched
from worker import Read, in_batches, run

BATCH = 32
"""The call has no default; repeng's, for want of another."""


def _reader(path: str, dtype: torch.dtype, layer: int) -> Read:
    model = StandardizedTransformer(
        path, dtype=dtype, device_map="cpu", check_renaming=False
    )

    def read(texts: Sequence[str], size: int) -> torch.Tensor:
        # Its tokenizer pads on the left, so that the last token is the last place.
        found = collect_token_activations_batched(model, list(texts), size, [layer])
        return found[0].float()

    return read


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(path, dtype, layer)
    return lambda texts, _size: read(texts, BATCH)


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(path, dtype, layer)
    return lambda texts, size: in_batches(lambda part: read(part, size), texts, size)


run(
    defaults=(f"batches of {BATCH}", defaults),
    best=("sorted batches", best),
)
