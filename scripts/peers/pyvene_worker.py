"""pyvene: a CollectIntervention at a block's output; mean over tokens."""

from collections.abc import Sequence
from typing import Any

import pyvene
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import Read, in_batches, mean_over, run


def _reader(path: str, dtype: torch.dtype, layer: int) -> Read:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    config = pyvene.IntervenableConfig(
        [
            {
                "layer": layer,
                "component": "block_output",
                # Without it the tokens are laid end to end, and one is kept.
                "intervention": pyvene.CollectIntervention(keep_last_dim=True),
            }
        ]
    )
    intervenable: Any = pyvene.IntervenableModel(config, model=model)

    def read(texts: Sequence[str]) -> torch.Tensor:
        coded = tokenizer(list(texts), padding=True, return_tensors="pt")
        length = coded["input_ids"].shape[1]
        places = [[list(range(length))] * len(texts)]
        with torch.no_grad():
            (_, collected), _ = intervenable(
                base=coded, unit_locations={"base": places}
            )
        width = model.config.hidden_size
        stream = torch.cat([part.reshape(-1, length, width) for part in collected])
        return mean_over(stream.float(), coded["attention_mask"])

    return read


def defaults(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(path, dtype, layer)
    return lambda texts: torch.cat([read([text]) for text in texts])


def best(path: str, dtype: torch.dtype, layer: int) -> Read:
    read = _reader(path, dtype, layer)
    return lambda texts: in_batches(read, texts, 8)


run({"defaults": defaults, "best": best})
