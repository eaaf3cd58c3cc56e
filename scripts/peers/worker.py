"""What all workers share: a job in, activations and their cost out.

A worker runs in an environment of its own, which has torch, transformers and one
library, and no emoreg. It is told where the model and the texts are, reads every text
at one layer, and writes the activations with the CPU-seconds and the memory that
reading took.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Read = Callable[[Sequence[str], int], torch.Tensor]
"""Texts and a batch size to activations, one row each; defaults have their own size."""
Load = Callable[[str, torch.dtype, int], Read]
"""The model's folder, the dtype and the layer to how texts are read."""


def run(**settings: tuple[str, Load]) -> None:
    """Do the job of the command line with the setting that it names.

    Each setting says in words what it is, and how it loads. Of several sizes each
    reads all texts once; the activations written are those of the last.
    """
    options = _options(sorted(settings))
    torch.set_num_threads(1)
    texts = json.loads(Path(options.texts).read_text(encoding="utf-8"))
    words, load = settings[options.setting]
    read = load(options.model, getattr(torch, options.dtype), options.layer)
    read(texts[:4], options.sizes[0])  # what is loaded or built at the first calls
    loaded, before = _memory("VmHWM"), _forget_peak()
    cpu, wall = [], []
    for size in options.sizes:
        start = _cpu_seconds(), time.perf_counter()
        found = read(texts, size)
        cpu.append(_cpu_seconds() - start[0])
        wall.append(time.perf_counter() - start[1])
    reading = _memory("VmHWM")
    memory = {"peak": max(loaded, reading), "added": reading - before}
    done = {"activations": found.float(), "words": words, "cpu": cpu, "wall": wall}
    torch.save(done | memory, options.out)


def _options(settings: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--setting", required=True, choices=settings)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def _cpu_seconds() -> float:
    """Return what this process and its children have used, in the kernel too."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _memory(key: str) -> int:
    """Return a figure of `/proc/self/status` in bytes; where there is none, the peak.

    On Linux `ru_maxrss` begins with the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (x for x in status.read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def _forget_peak() -> int:
    """Begin the peak of memory anew where that can be done; return what is in use."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _memory("VmRSS")


def in_batches(
    read: Callable[[Sequence[str]], torch.Tensor], texts: Sequence[str], size: int
) -> torch.Tensor:
    """Read batches of texts of like length; put the rows back in the texts' order."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    found = torch.cat([read([texts[row] for row in part]) for part in parts])
    return found[torch.tensor(order).argsort()]


def mean_over(stream: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return each row's mean over its real tokens, of a right-padded batch."""
    weight = mask.unsqueeze(-1)
    return (stream.float() * weight).sum(1) / weight.sum(1)
