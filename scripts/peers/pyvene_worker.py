"""pyvene: a CollectIntervention at a block's output; mean over tokens."""

# The library is in an environment of its own alone.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import Any

import pyvene
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from worker import Read, in_batches, mean_over, run


def _reader(kind: Any, path: str, dtype: torch.dtype, layer: int) -> Read:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = kind.from_pretrained(path, dtype=dtype).eval()
    width = model.config.hidden_size
    place = {"layer": layer, "component": "block_output"}
    # Without it the tokens are laid end to end, and one is kept.
    collect = pyvene.CollectIntervention(keep_last_dim=True)
    config = pyvene.IntervenableConfig([{**place, "intervention": collect}])
    intervenable: Any = pyvene.IntervenableModel(config, model=model)

    @torch.no_grad()
    def read(texts: Sequence[str]) -> torch.Tensor:
        coded = tokenizer(list(texts), padding=True, return_tensors="pt")
        length = coded["input_ids"].shape[1]
        places = {"base": [[list(range(length))] * len(texts)]}
        (_, parts), _ = intervenable(base=coded, unit_locations=places)
        stream = torch.cat([part.reshape(-1, length, width) for part in parts])
        return mean_over(stream, coded["attention_mask"])

    return lambda texts, size: in_batches(read, texts, size)


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(AutoModelForCausalLM, path, dtype, layer)
    return lambda texts, _size: read(texts, 1)


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    return _reader(AutoModel, path, dtype, layer)


run(
    defaults=("one text a call", defaults),
    best=("no head, sorted batches", best),
)
