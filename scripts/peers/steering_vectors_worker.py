"""steering-vectors: `extract_activations` on pairs of texts; last token."""

from collections.abc import Sequence

import torch
from steering_vectors.train_steering_vector import extract_activations
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from worker import Read, in_batches, run


def _reader(path: str, dtype: torch.dtype, layer: int, size: int) -> Read:
    # The transformers that it runs with has older names, of classes and arguments.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=dtype).eval()

    def read(texts: Sequence[str]) -> torch.Tensor:
        # It reads pairs: the second half of the texts against the first.
        half = (len(texts) + 1) // 2
        pairs = [(texts[i], texts[min(i + half, len(texts) - 1)]) for i in range(half)]
        with torch.no_grad():
            one, other = extract_activations(
                model, tokenizer, pairs, layers=[layer], batch_size=size
            )
        rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in one[layer]])
        also = torch.cat([part.reshape(-1, part.shape[-1]) for part in other[layer]])
        return torch.cat([rows, also])[: len(texts)].float()

    return read


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    return _reader(path, dtype, layer, 1)


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(path, dtype, layer, 4)
    return lambda texts: in_batches(read, texts, 8)


run({"defaults": defaults, "best": best})
