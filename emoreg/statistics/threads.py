"""Work on independent figures in threads: numpy computes without the interpreter."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MOST = 4
"""Each holds some ten megabytes of resamples, and beyond a few memory is the limit."""

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_threads(work: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """Return `work` of every item, in order, as a loop would, on several cores."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    cores = len(own) or os.cpu_count() or 1
    with ThreadPoolExecutor(min(MOST, cores)) as pool:
        return list(pool.map(work, items))
