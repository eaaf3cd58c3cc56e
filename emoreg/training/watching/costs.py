"""What emoreg costs: its own time in a step, and its share of the whole step."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from transformers import TrainerCallback

from emoreg.losses.term import Reduce

Mark = float | torch.cuda.Event
"""A point in time: seconds, or an event in a GPU's queue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Interval:
    """From one mark to another, counted with `own` and `whole` as factors."""

    start: Mark
    end: Mark
    own: int
    whole: int


@final
class Costs:
    """Adds up what emoreg does and what steps take, between two log lines.

    Own time is that of reading, terms, gradients that are measured, auxiliary batches
    (forward and backward) and log lines. Not in it, since they can't be told apart
    from the task's: the part of the backward pass that goes through the terms, and the
    hooks, which store a reference. Wall time on a CPU; on a GPU the time between
    events in its queue, which are only waited for at a log line.
    """

    def __init__(self, device: torch.device) -> None:
        """Count the time of `device`."""
        self._device = device
        self._open: Mark | None = None
        self._intervals: list[_Interval] = []
        self._own = self._whole = 0.0
        self._steps = 0

    def begin(self) -> None:
        """Begin a step; one that is still open ends here."""
        if self._open is not None:
            self.end()
        self._open = self._now()

    def end(self) -> None:
        """End the step."""
        if self._open is not None:
            self._add(self._open, own=0, whole=1)
            self._open = None
            self._steps += 1
            self._fold()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Count what happens inside as emoreg's.

        What it does between steps, at a log line, makes the step longer by as much.
        """
        start = self._now()
        try:
            yield
        finally:
            self._add(start, own=1, whole=int(self._open is None))

    def others(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` so that inside `own` it is not counted as emoreg's."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._add(start, own=-1, whole=0)

        return call

    def metrics(self, reduce: Reduce, processes: int) -> dict[str, float]:
        """Return `emotion_cost/*` of the steps since the last call, over processes.

        What this log line costs is in the next one.
        """
        if not self._steps:
            return {}
        self._fold(wait=True)
        local = torch.tensor([self._own, self._whole], device=self._device)
        own, whole = (float(x) / processes for x in reduce(local))
        steps, self._steps = self._steps, 0
        self._own = self._whole = 0.0
        return {
            "emotion_cost/ms_per_step": 1000 * own / steps,
            "emotion_cost/percent": 100 * own / max(whole, 1e-9),
        }

    def _add(self, start: Mark, *, own: int, whole: int) -> None:
        self._intervals.append(
            _Interval(start=start, end=self._now(), own=own, whole=whole)
        )

    def _now(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _fold(self, *, wait: bool = False) -> None:
        """Add up the intervals that have passed; those still in the queue stay."""
        left = []
        for interval in self._intervals:
            if wait or _has_passed(interval.end):
                seconds = _seconds(interval.start, interval.end)
                self._own += interval.own * seconds
                self._whole += interval.whole * seconds
            else:
                left.append(interval)
        self._intervals = left


@final
class StepEnd(TrainerCallback):
    """Tells where a trainer's step ends: before it logs, evaluates or saves."""

    def __init__(self, costs: Costs) -> None:
        """End the steps of `costs`."""
        self._costs = costs

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End the step."""
        self._costs.end()


def _has_passed(mark: Mark) -> bool:
    return mark.query() if isinstance(mark, torch.cuda.Event) else True


def _seconds(start: Mark, end: Mark) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    event: Any = end
    event.synchronize()
    return start.elapsed_time(event) / 1000  # type: ignore[union-attr]
