"""Work on independent figures in threads: numpy computes without the interpreter."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

MOST = 4
"""Each holds some ten megabytes of resamples, and beyond a few memory is the limit."""

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_threads(work: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """Return `work` of every item, in order, as a loop would, on several cores."""
    todo = list(items)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    cores = len(own) or os.cpu_count() or 1
    workers = min(MOST, cores, len(todo))
    if workers < 2:
        return [work(item) for item in todo]
    # Products that each want all cores would wait for one another.
    share = _pools().limit(limits=cores // workers, user_api="blas")
    with share, ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, todo))


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all that is loaded
