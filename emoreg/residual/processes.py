"""Sharing out work among the processes of a launch, through a folder that all see."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which of several processes this one is."""

    process: int = 0
    processes: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.process == 0

    def owns(self, number: int) -> bool:
        """Whether piece `number` of the work is this process's."""
        return number % self.processes == self.process

    def wait(self) -> None:
        """Wait until all processes have come this far."""
        if self.processes > 1:
            dist.barrier()


@contextmanager
def launched() -> Iterator[Share]:
    """Join the other processes of `accelerate launch` or `torchrun`, if there are any.

    Each takes the accelerator of its own number. What they wait for each other with is
    gloo, on the CPU: tensors go through files.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield Share()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo")
    try:
        yield Share(process=dist.get_rank(), processes=processes)
    finally:
        dist.destroy_process_group()
