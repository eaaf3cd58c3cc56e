"""Benchmarks of `emoreg measure`: files of the user and tasks of lm-eval."""

import argparse
import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emoreg.commands.shared import refuse_idle, say, weak_sandbox_option


def benchmark_options(command: argparse.ArgumentParser) -> None:
    """Add what benchmarks take."""
    command.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="Ask gsm8k, humaneval or mbpp of a file of yours (.jsonl or .jsonl.gz) as "
        "a guard rail; may be repeated.",
    )
    command.add_argument(
        "--lm-eval",
        action="append",
        default=[],
        metavar="TASK[:METRIC]",
        help="A task or group of lm-eval as a guard rail; may be repeated.",
    )
    command.add_argument(
        "--lm-eval-tasks",
        type=Path,
        metavar="FOLDER",
        help="With --lm-eval: tasks of your own, a YAML file each.",
    )
    command.add_argument(
        "--benchmark-limit", type=int, help="The first items of each only, this many."
    )
    weak_sandbox_option(command, "a benchmark's code")
    command.add_argument(
        "--resume",
        action="store_true",
        help="Go on with the benchmarks of a run with this --out that was cut off.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The benchmarks of one command, and where their code runs."""

    benchmarks: tuple[Any, ...]
    sandbox: Any
    """None where there is no code to run."""
    tasks: tuple[Any, ...]
    """Of lm-eval."""
    harness: Any
    """None where there are no such tasks."""


def read_benchmarks(options: argparse.Namespace) -> Asked:
    """Return the benchmarks that options name, read before a model is.

    Raises:
        ValueError: If an option or a file is wrong, code can't be shut in, or a run
            with this `--out` was cut off and `--resume` does not say to go on.
    """
    from emoreg.comparison.benchmarks.formats import read_benchmark
    from emoreg.comparison.benchmarks.run import code_sandbox, runs_code

    asked = bool(options.benchmark or options.lm_eval)
    if not asked:
        refuse_idle(options, ("benchmark_limit",), "`--benchmark` or `--lm-eval`")
    found = {}
    for item in options.benchmark:
        name, _, file = item.partition("=")
        if not file or name in found:
            raise ValueError(
                "`--benchmark` must be NAME=FILE, each name once, found "
                f"{item!r}. Write for example gsm8k=test.jsonl"
            )
        limit = options.benchmark_limit
        found[name] = read_benchmark(name, Path(file), limit=limit)
    parts = _parts(options)
    if asked and any(parts.glob("*")) and not options.resume:
        raise ValueError(
            f"`--out` must be new, found replies of a run that was cut off in {parts}. "
            "Go on with --resume, or delete that folder"
        )
    sandbox = None
    if any(map(runs_code, found.values())):
        sandbox = code_sandbox(allow_weak=options.allow_weak_sandbox)
    tasks, harness = _tasks(options)
    return Asked(
        benchmarks=tuple(found.values()), sandbox=sandbox, tasks=tasks, harness=harness
    )


def _tasks(options: argparse.Namespace) -> tuple[tuple[Any, ...], Any]:
    """Return lm-eval's tasks that options name, and what runs them."""
    if not options.lm_eval:
        refuse_idle(options, ("lm_eval_tasks",), "`--lm-eval`")
        return (), None
    from emoreg.comparison.benchmarks.harness import Harness, HarnessTask

    tasks = tuple(HarnessTask.parse(item) for item in options.lm_eval)
    harness = Harness(options.lm_eval_tasks)
    harness.check(tasks)
    return tasks, harness


def run_benchmarks(
    options: argparse.Namespace, asked: Asked, loaded: Any
) -> dict[str, Any]:
    """Return a guard rail for each benchmark, and say what came of it."""
    found = _run_files(options, asked, loaded) if asked.benchmarks else {}
    return found | (_run_tasks(options, asked, loaded) if asked.tasks else {})


def _run_tasks(
    options: argparse.Namespace, asked: Asked, loaded: Any
) -> dict[str, Any]:
    from emoreg.behavior.provenance import model_meta

    # One file for each state of a model: lm-eval knows replies by what was asked alone.
    state = json.dumps(model_meta(loaded.model), sort_keys=True, default=str)
    cache = _parts(options) / f"lm-eval-{hashlib.sha256(state.encode()).hexdigest()}"
    cache.parent.mkdir(parents=True, exist_ok=True)
    found = asked.harness.run(
        loaded.model,
        loaded.tokenizer,
        asked.tasks,
        limit=options.benchmark_limit,
        cache=cache,
        quiet=options.quiet,
    )
    for name, rail in found.items():
        say(_said(name, rail))
    return found


def _run_files(
    options: argparse.Namespace, asked: Asked, loaded: Any
) -> dict[str, Any]:
    from emoreg.behavior.provenance import model_meta
    from emoreg.comparison.benchmarks.run import GREEDY, run_benchmark, runs_code
    from emoreg.writing.local import LocalWriter

    found = {}
    writer = LocalWriter(loaded.model, loaded.tokenizer, temperature=GREEDY)
    with asked.sandbox or nullcontext():
        for benchmark in asked.benchmarks:
            found[benchmark.name] = run_benchmark(
                benchmark,
                writer,
                _parts(options) / benchmark.name,
                sandbox=asked.sandbox if runs_code(benchmark) else None,
                about=model_meta(loaded.model),
                quiet=options.quiet,
            )
            say(_said(benchmark.name, found[benchmark.name]))
    return found


def forget_replies(options: argparse.Namespace) -> None:
    """Delete the replies that were kept to go on with: the table is written."""
    parts = _parts(options)
    for file in [*parts.glob("*/*"), *parts.glob("*")]:
        file.rmdir() if file.is_dir() else file.unlink()
    if parts.exists():
        parts.rmdir()


def _parts(options: argparse.Namespace) -> Path:
    return options.out.with_name(f"{options.out.name}.benchmarks")


def _said(name: str, rail: dict[str, Any]) -> str:
    left = rail["left_out"]
    without = f"; without {', '.join(left)}, whose own solution fails" if left else ""
    range_ = f"{rail['low']:.3f} to {rail['high']:.3f}"
    return f"{name}: {rail['value']:.3f} ({range_}) of {rail['n']} items{without}"
