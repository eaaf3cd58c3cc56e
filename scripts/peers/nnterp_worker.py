"""nnterp: `collect_token_activations_batched` of a StandardizedTransformer."""

from collections.abc import Sequence

import torch
from nnterp import StandardizedTransformer
from nnterp.nnsight_utils import collect_token_activations_batched
from worker import Read, in_batches, run

BATCH = 32


def _reader(
    path: str, dtype: torch.dtype, layer: int, size: int, *, all_layers: bool
) -> Read:
    model = StandardizedTransformer(
        path, dtype=dtype, device_map="cpu", check_renaming=False
    )
    layers = None if all_layers else [layer]

    def read(texts: Sequence[str]) -> torch.Tensor:
        found = collect_token_activations_batched(model, list(texts), size, layers)
        return found[layer if all_layers else 0].float()

    return read


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    return _reader(path, dtype, layer, BATCH, all_layers=True)


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(path, dtype, layer, 8, all_layers=False)
    return lambda texts: in_batches(read, texts, 8)


run({"defaults": defaults, "best": best})
