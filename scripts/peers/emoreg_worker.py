"""emoreg: the mean over all tokens, at its defaults; and the last token."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import Read, run

from emoreg.residual.pooling import Passage, span_means


def _reader(model_path: str, dtype: torch.dtype, layer: int, *, last: bool) -> Read:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).eval()

    def read(texts: Sequence[str]) -> torch.Tensor:
        passages = []
        for text in texts:
            ids = tuple(tokenizer(text)["input_ids"])
            start = len(ids) - 1 if last else 0
            passages.append(Passage(ids=ids, spans=((start, len(ids)),)))
        return span_means(model, passages, (layer,), quiet=True)[:, 0]

    return read


run(
    {
        "mean": lambda *job: _reader(*job, last=False),
        "last": lambda *job: _reader(*job, last=True),
    }
)
