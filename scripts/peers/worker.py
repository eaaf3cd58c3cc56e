"""What all workers share: a job in, activations and their cost out.

A worker runs in an environment of its own, which has torch, transformers and one
library, and no emoreg. It is told where the model and the texts are, reads every text
at one layer, and writes the activations with the CPU-seconds and the memory that each
reading took.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

Read = Callable[[Sequence[str], int], torch.Tensor]
"""Texts and a batch size to activations, one row each; defaults have their own size."""
Load = Callable[[str, torch.dtype, int], Read]
"""The model's folder, the dtype and the layer to how texts are read."""


def run(**settings: tuple[str, Load]) -> None:
    """Do the job in the file that the command line names.

    Each setting says in words what it is, and how it loads. The job names one, and the
    readings: files of texts, each with a batch size.
    """
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    words, load = settings[job["setting"]]
    read = load(job["model"], getattr(torch, job["dtype"]), job["layer"])
    loaded, base = _memory("VmHWM"), _memory("VmRSS")
    texts = [_texts(reading["texts"]) for reading in job["readings"]]
    read(texts[0][:4], job["readings"][0]["size"])  # what the first calls build
    done = []
    for some, reading in zip(texts, job["readings"], strict=True):
        _forget_peak()
        cpu, wall = _cpu_seconds(), time.perf_counter()
        found = read(some, reading["size"])
        cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
        peak = _memory("VmHWM")
        memory = {"peak": max(loaded, peak), "added": peak - base}
        done.append({"activations": found.float(), "cpu": cpu, "wall": wall} | memory)
    torch.save({"words": words, "readings": done}, job["out"])


def _texts(path: str) -> list[str]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


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


def _forget_peak() -> None:
    """Begin the peak of memory anew, where that can be done."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


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
