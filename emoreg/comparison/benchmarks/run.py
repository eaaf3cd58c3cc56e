"""Asking a model the items of a benchmark, and grading what it replies."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from tqdm.auto import tqdm

from emoreg.behavior.sandbox.limits import Limits, SandboxError
from emoreg.behavior.sandbox.sandbox import Sandbox
from emoreg.comparison.benchmarks.formats import FEWEST, Benchmark
from emoreg.comparison.benchmarks.items import Item, Program
from emoreg.statistics.proportions import proportion
from emoreg.writing.journal import Journal
from emoreg.writing.replies import Asked, missing_replies
from emoreg.writing.writer import Writer

TOKENS: Final = 512
"""Longest reply. What is cut off is graded as far as it goes."""
GREEDY: Final = 1e-9
"""Temperature of a `LocalWriter` that takes the likeliest token: the next below it has
no probability left unless it is exactly as likely."""
LIMITS: Final = Limits(seconds=10.0)
"""For one item's code, with all of its tests."""
THREADS: Final = 2
"""Items whose code is run at a time."""

_T = TypeVar("_T")


def code_sandbox(*, allow_weak: bool = False) -> Sandbox:
    """Return the sandbox for what models write, as strong as this machine allows.

    Args:
        allow_weak: Whether limits alone will do, with files and network open.

    Raises:
        ValueError: If nothing stronger works here and that will not do.
    """
    try:
        return Sandbox(limits=LIMITS, allow_weak=allow_weak)
    except SandboxError as error:
        raise ValueError(
            f"{error} On the command line that is --allow-weak-sandbox"
        ) from error


def runs_code(benchmark: Benchmark) -> bool:
    """Return whether grading takes a sandbox."""
    return any(isinstance(item, Program) for item in benchmark.items)


def usable(
    benchmark: Benchmark, sandbox: Sandbox, *, quiet: bool = False
) -> tuple[Benchmark, tuple[str, ...]]:
    """Return the items whose own solution passes here, and the names of the others.

    Others are tests that take or give what is no literal, or a library. Which they are
    does not depend on the model.

    Args:
        benchmark: Of programs.
        sandbox: Where they run.
        quiet: No progress bar.

    Raises:
        ValueError: If fewer are left than an interval needs.
        SandboxError: If code could not be shut in.
    """

    def works(item: Item) -> bool:
        if not isinstance(item, Program):
            return True
        return item.run(item.solution, sandbox).status == "passed"

    said = f"Checking {benchmark.name}'s own solutions"
    found = _each(works, benchmark.items, said, quiet)
    pairs = list(zip(benchmark.items, found, strict=True))
    kept = tuple(item for item, fine in pairs if fine)
    if len(kept) < FEWEST:
        raise ValueError(
            f"{benchmark.name}: at least {FEWEST} items must pass their tests with the "
            f"file's own solution, found {len(kept)} of {len(pairs)}. Check the file"
        )
    left = tuple(item.key for item, fine in pairs if not fine)
    return replace(benchmark, items=kept), left


def run_benchmark(
    benchmark: Benchmark,
    writer: Writer,
    folder: Path,
    *,
    sandbox: Sandbox | None = None,
    about: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Return the share of items that a model gets right, as a guard rail.

    Each item is asked once, without examples before it. That is for holding a model
    against itself: figures of papers have other prompts, and are no match.

    Args:
        benchmark: What to ask (`read_benchmark`).
        writer: Who replies; `LocalWriter` with the temperature `GREEDY` for a model in
            this process.
        folder: Where replies are kept as they come, so that a run that was cut off
            goes on; new, or one of a run with the same settings.
        sandbox: Where code runs; only where the benchmark has code.
        about: What else replies depend on, JSON-able: an adapter, the precision.
        quiet: No progress bar.

    Raises:
        ValueError: If there is code and no sandbox, too few items can be used, or the
            folder has other settings.
        SandboxError: If code could not be shut in; what was written is kept.
    """
    left: tuple[str, ...] = ()
    if runs_code(benchmark):
        if sandbox is None:
            raise ValueError(
                f"`sandbox` must be given for {benchmark.name}, which has code to run, "
                "found None. Pass `code_sandbox()`"
            )
        benchmark, left = usable(benchmark, sandbox, quiet=quiet)
    settings = _settings(benchmark)
    journal = Journal(folder, {**settings, **writer.settings(), **(about or {})})
    replies = _replies(benchmark, writer, journal, quiet)
    hits = _graded(benchmark, replies, sandbox, quiet)
    share = proportion(np.array(hits)[:, None])
    return {
        "value": share.estimate,
        "low": share.low,
        "high": share.high,
        "n": len(hits),
        "values": [int(hit) for hit in hits],
        "settings": settings,
        "left_out": list(left),
        "level": None if sandbox is None else sandbox.level,
    }


def _graded(
    benchmark: Benchmark, replies: list[str], sandbox: Sandbox | None, quiet: bool
) -> list[bool]:
    """Return whether each reply is right."""

    def right(pair: tuple[Item, str]) -> bool:
        item, reply = pair
        if isinstance(item, Program):
            assert sandbox is not None
            return item.right(reply, sandbox)
        return item.right(reply)

    pairs = zip(benchmark.items, replies, strict=True)
    return _each(right, pairs, f"Grading {benchmark.name}", quiet)


def _settings(benchmark: Benchmark) -> dict[str, Any]:
    """Return what must be the same for two models to be held against each other."""
    texts = json.dumps([astuple(item) for item in benchmark.items], default=str)
    return {
        "benchmark": benchmark.name,
        "file": benchmark.file,
        "items": len(benchmark.items),
        "items_hash": hashlib.sha256(texts.encode()).hexdigest()[:16],
        "tokens": TOKENS,
    }


def _replies(
    benchmark: Benchmark, writer: Writer, journal: Journal, quiet: bool
) -> list[str]:
    """Return all replies, those that the journal holds unasked."""
    items = benchmark.items
    asked = [
        Asked(item.key, 0, [{"role": "user", "content": item.asked}]) for item in items
    ]
    missing = missing_replies(asked, writer, journal, seed=0, tokens=TOKENS)
    done = sum((item.key, 0) in journal.answers for item in items)
    said = f"Asking {benchmark.name}"
    with tqdm(total=len(items), initial=done, desc=said, disable=quiet) as bar:
        for _ in missing:
            bar.update()
    return [journal.answers[item.key, 0] for item in items]


def _each(
    test: Callable[[_T], bool], items: Iterable[_T], said: str, quiet: bool
) -> list[bool]:
    """Return what a test says of each item, some at a time."""
    given = list(items)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(test, given)
        return list(tqdm(found, total=len(given), desc=said, disable=quiet))
