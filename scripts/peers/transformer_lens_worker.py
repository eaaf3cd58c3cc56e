"""TransformerLens: `run_with_cache` of a bridge; mean over tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import Read, in_batches, mean_over, run


def _load(path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    bridge = TransformerBridge.boot_transformers(
        path, hf_model=model, tokenizer=tokenizer, device="cpu", dtype=dtype
    )
    return bridge, tokenizer


def _read(bridge: Any, tokenizer: Any, layer: int, texts: Sequence[str], **how: Any):
    coded = tokenizer(list(texts), padding=True, return_tensors="pt")
    mask = coded["attention_mask"]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(
            coded["input_ids"], attention_mask=mask, prepend_bos=False, **how
        )
    return mean_over(cache[f"blocks.{layer}.hook_out"].float(), mask)


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    bridge, tokenizer = _load(path, dtype)
    return lambda texts: torch.cat(
        [_read(bridge, tokenizer, layer, [text]) for text in texts]
    )


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    bridge, tokenizer = _load(path, dtype)
    how = {
        "names_filter": f"blocks.{layer}.hook_out",
        "stop_at_layer": layer + 1,
        "return_type": None,
    }
    return lambda texts: in_batches(
        lambda part: _read(bridge, tokenizer, layer, part, **how), texts, 8
    )


run({"defaults": defaults, "best": best})
