"""What all workers share: a job in, activations and their cost out.

A worker runs in an environment of its own, which has torch, transformers and one
library, and no emoreg. It is told where the model and the texts are, reads every text
at one layer, and writes the activations with the CPU-seconds that reading took.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Read = Callable[[Sequence[str]], torch.Tensor]
"""Texts to activations, one row each."""


def run(settings: Mapping[str, Callable[[str, torch.dtype, int], Read]]) -> None:
    """Do the job of the command line with the setting that it names.

    `settings` maps a name to a function of the model's folder, the dtype and the layer,
    which loads and returns how texts are read.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--setting", required=True, choices=sorted(settings))
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with open(options.texts, encoding="utf-8") as file:
        texts = json.load(file)
    dtype = getattr(torch, options.dtype)
    read = settings[options.setting](options.model, dtype, options.layer)
    read(texts[:2])  # what is loaded or built at the first call
    cpu, wall = time.process_time(), time.perf_counter()
    found = read(texts)
    seconds = time.process_time() - cpu, time.perf_counter() - wall
    torch.save(
        {
            "activations": found.float(),
            "cpu": seconds[0],
            "wall": seconds[1],
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        options.out,
    )


def batches(texts: Sequence[str], size: int) -> list[list[int]]:
    """Return rows in batches of `size`, texts of like length together."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def in_batches(read: Read, texts: Sequence[str], size: int) -> torch.Tensor:
    """Read sorted batches and put the rows back in the order of the texts."""
    rows: list[torch.Tensor] = [torch.empty(0)] * len(texts)
    for batch in batches(texts, size):
        for row, vector in zip(batch, read([texts[i] for i in batch]), strict=True):
            rows[row] = vector
    return torch.stack(rows)


def mean_over(stream: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return each row's mean over its real tokens."""
    weight = mask.to(stream.dtype).unsqueeze(-1)
    return (stream * weight).sum(1) / weight.sum(1)
