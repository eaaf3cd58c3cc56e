"""Extraction speed against the bare truncated forward over the same batches.

    python scripts/bench_extract.py --emotions 36 --repeats 3

Both sides run in one process, alternately, on the same length-sorted batches, so that
a machine whose speed drifts slows both. Printed: tokens/s of each and their ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from emoreg.demo import load_any
from emoreg.residual.batches import token_batches
from emoreg.residual.capture import run_truncated, truncated
from emoreg.residual.layers import LayerPlan, backbone, num_layers
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.pooled import pool_stories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--emotions", type=int, default=36, help="171 is all of them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=int, default=768)
    options = parser.parse_args()
    loaded = load_any(options.model)
    model, tokenizer = loaded.model, loaded.tokenizer
    corpus = Corpus.packaged()
    stories = corpus.stories(corpus.emotions()[: options.emotions], split="all")
    sequences = [tokenizer(story.text)["input_ids"] for story in stories]
    layers = LayerPlan.for_depth(num_layers(model)).monitor
    tokens = sum(map(len, sequences))

    dtype = next(model.parameters()).dtype

    def bare() -> None:
        forward(model, sequences, layers[-1], budget=options.budget)

    def ours() -> None:
        pool_stories(
            model, tokenizer, stories, layers, budget=options.budget, quiet=True
        )

    ratios = []
    for repeat in range(options.repeats):
        first, second = seconds(bare), seconds(ours)
        ratios.append(first / second)
        print(
            f"{repeat}: bare {tokens / first:7.0f} tokens/s, extraction "
            f"{tokens / second:7.0f} tokens/s, share {first / second:.3f}"
        )
    print(
        f"{len(stories)} stories, {tokens} tokens, layers {layers}, {dtype}, "
        f"{torch.get_num_threads()} threads: median share "
        f"{statistics.median(ratios):.3f} of the bare truncated forward"
    )


def forward(
    model: Any, sequences: Sequence[Sequence[int]], last: int, *, budget: int
) -> None:
    """Run the stack up to a layer over batches, and keep nothing of it."""
    device, decoder = next(model.parameters()).device, backbone(model)
    with truncated(model, last):
        for batch in token_batches(sequences, budget=budget, pad_id=0):
            inputs = {"input_ids": batch.input_ids.to(device)}
            if not bool(batch.attention_mask.all()):
                inputs["attention_mask"] = batch.attention_mask.to(device)
            run_truncated(decoder, **inputs)


def seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
