"""Tasks of lm-eval, EleutherAI's evaluation harness, as guard rails."""

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.comparison.benchmarks.formats import FEWEST
from emoreg.comparison.rails import HARNESS
from emoreg.statistics.bootstrap import Interval, bootstrap_mean
from emoreg.statistics.proportions import proportion

BATCH: Final = 8
"""Requests at a time."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    """A task or a group of tasks, and which of its measures is held."""

    name: str
    metric: str = ""
    """As lm-eval names it, `acc_norm` or `exact_match,flexible-extract`; empty for the
    first that the task lists."""

    @classmethod
    def parse(cls, text: str) -> "HarnessTask":
        """Return the task that `TASK` or `TASK:METRIC` names."""
        name, _, metric = text.partition(":")
        return cls(name=name, metric=metric)


@final
class Harness:
    """The tasks that lm-eval knows, its own and those of a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        """Look for tasks.

        Args:
            folder: With tasks of your own, a YAML file each.

        Raises:
            ModuleNotFoundError: Without the package `lm-eval`.
            ValueError: If there is no such folder.
        """
        from lm_eval.tasks import TaskManager

        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"`--lm-eval-tasks` must be a folder of YAML files, found {folder}"
            )
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._manager = TaskManager(include_path=None if folder is None else folder)

    def check(self, tasks: Sequence[HarnessTask]) -> None:
        """Refuse what lm-eval does not know, before a model is loaded.

        Raises:
            ValueError: If a task is unknown or named twice.
        """
        known = set(self._manager.all_tasks)
        names = [task.name for task in tasks]
        for name in names:
            if name not in known:
                raise ValueError(
                    "`--lm-eval` must name a task or group of lm-eval, found "
                    f"{name!r}. `lm-eval ls tasks` lists them; a folder of your own "
                    "goes in with --lm-eval-tasks"
                )
            if names.count(name) > 1:
                raise ValueError(f"`--lm-eval` must name a task once, found two {name}")

    def run(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Sequence[HarnessTask],
        *,
        limit: int | None = None,
        cache: Path | None = None,
        quiet: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Return a guard rail for each task, by its name behind `HARNESS`.

        Prompts, examples and measures are the task's; no chat template, as is
        lm-eval's own default. Of a group every item of every task counts alike.

        Args:
            model: A causal language model of transformers, or one inside peft.
            tokenizer: Its tokenizer.
            tasks: Which, once each.
            limit: The first items of each task only, this many.
            cache: File that keeps replies as they come, so that a run that was cut off
                goes on; of one model.
            quiet: No progress bars.

        Raises:
            ValueError: If a task has no such measure, its measure is not one number
                from 0 to 1 an item, or it has too few items.
        """
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        asked: Any = {"pretrained": model, "tokenizer": tokenizer, "batch_size": BATCH}
        with redirect_stderr(io.StringIO()) if quiet else nullcontext():
            found: Any = simple_evaluate(
                HFLM(**asked),
                tasks=[task.name for task in tasks],
                task_manager=self._manager,
                limit=limit,
                bootstrap_iters=0,
                use_cache=None if cache is None else str(cache),
            )
        return {HARNESS + task.name: _rail(task, found) for task in tasks}


def _rail(task: HarnessTask, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return one task's measure over its items, and what they were."""
    values, settings = [], []
    for leaf in _leaves(task.name, found):
        metric, filtered = _measure(task, leaf, found)
        items = [s for s in found["samples"][leaf] if s["filter"] == filtered]
        items.sort(key=lambda item: item["doc_id"])
        values += [_number(item[metric], task, leaf, metric) for item in items]
        prompts = [[item["prompt_hash"], item["target_hash"]] for item in items]
        settings.append([leaf, metric, filtered, found["versions"][leaf], prompts])
    if len(values) < FEWEST:
        raise ValueError(
            f"{task.name} must have at least {FEWEST} items, as intervals are over "
            f"items, found {len(values)}. Raise --benchmark-limit"
        )
    texts = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()
    column = np.asarray(values, float)[:, None]
    hits = bool(np.isin(column, (0.0, 1.0)).all())
    interval = proportion(column.astype(bool)) if hits else _mean(column)
    return {
        "value": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "n": len(values),
        "values": [int(v) if hits else float(v) for v in values],
        "settings": {
            "benchmark": HARNESS + task.name,
            "measure": sorted({f"{part[1]},{part[2]}" for part in settings}),
            "items": len(values),
            "items_hash": texts[:16],
            "lm_eval": found["lm_eval_version"],
        },
        "left_out": [],
        "level": None,
    }


def _mean(column: np.ndarray) -> Interval:
    return bootstrap_mean(column, keep=False).at(0)


def _leaves(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks of a group, and of its groups; a task itself."""
    parts = found["group_subtasks"].get(name)
    if not parts:
        yield name
        return
    for part in parts:
        yield from _leaves(part, found)


def _measure(task: HarnessTask, leaf: str, found: Mapping[str, Any]) -> tuple[str, str]:
    """Return which measure of a task is held, and behind which filter."""
    known = {
        key: tuple(key.split(",", 1))
        for key in found["results"][leaf]
        if "," in key and not key.split(",")[0].endswith("_stderr")
    }
    chosen = [k for k in known if task.metric in ("", k, k.split(",")[0])]
    if not chosen:
        raise ValueError(
            f"{leaf} must have the measure {task.metric!r}, found {', '.join(known)}. "
            "Choose one of those behind the task's name and a colon"
        )
    metric, filtered = known[chosen[0]]
    if not found["higher_is_better"][leaf].get(metric, True):
        raise ValueError(
            f"{leaf}: the measure must be better where it is higher, found {metric}. "
            f"Choose another of {', '.join(known)}"
        )
    return metric, filtered


def _number(value: Any, task: HarnessTask, leaf: str, metric: str) -> float:
    """Return one item's measure, refused where it is none from 0 to 1."""
    fine = isinstance(value, bool | int | float | np.number) and 0 <= value <= 1
    if not fine:
        raise ValueError(
            f"{leaf}: the measure must be a number from 0 to 1 for each item, found "
            f"{str(value)[:60]!r} for {metric}. Choose another with "
            f"--lm-eval {task.name}:METRIC"
        )
    return float(value)
