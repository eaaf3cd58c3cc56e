"""TransformerLens: `run_with_cache` of a bridge, one text a call; mean over tokens."""

# The library is in an environment of its own alone.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import Read, in_batches, mean_over, run


def _reader(path: str, dtype: torch.dtype, layer: int, **how: Any) -> Read:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    bridge: Any = TransformerBridge.boot_transformers(
        path, hf_model=model, tokenizer=tokenizer, device="cpu", dtype=dtype
    )

    @torch.no_grad()
    def read(texts: Sequence[str]) -> torch.Tensor:
        coded = tokenizer(list(texts), padding=True, return_tensors="pt")
        ids, mask = coded["input_ids"], coded["attention_mask"]
        _, cache = bridge.run_with_cache(ids, attention_mask=mask, **how)
        return mean_over(cache[f"blocks.{layer}.hook_out"], mask)

    return lambda texts, size: in_batches(read, texts, size)


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(path, dtype, layer)
    return lambda texts, _size: read(texts, 1)


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    how = {"stop_at_layer": layer + 1, "return_type": None}
    return _reader(path, dtype, layer, names_filter=f"blocks.{layer}.hook_out", **how)


run(
    defaults=("one text a call, all activations kept", defaults),
    best=("stop_at_layer, names_filter, sorted batches", best),
)
