"""What goes beside the trainer's own log lines: pictures, a file, a progress bar."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from emoreg.residual.tokens import tokenizer_of
from emoreg.training.watching.excerpts import Excerpt
from emoreg.training.watching.log_file import LogFile
from emoreg.training.watching.monitor import Monitor
from emoreg.training.watching.tallies import EDGES
from emoreg.training.watching.trackers import Items, Table, beside, without_pictures
from emoreg.vectors.top_tokens import TopTokens, top_tokens

_IN_BAR = 3
"""Emotions in the progress bar; more don't fit a line."""

logger = logging.getLogger(__name__)


@final
class Dashboard(TrainerCallback):
    """Shows a trainer's readings; on the main process alone, others do nothing."""

    def __init__(self, trainer: Any, monitor: Monitor | None) -> None:
        """Take the top tokens of what is logged, with the model as it is now."""
        self._trainer, self._monitor = trainer, monitor
        self._file = LogFile(trainer.args.output_dir)
        self._tokens: list[TopTokens] = []
        self._told = False
        """Whether the trackers have the table of top tokens."""
        if not trainer.is_world_process_zero():
            return
        if monitor is not None and monitor.layers:
            self._tokens = _tokens(trainer, monitor)
        trainer.add_callback(self)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Begin the file where training begins; say which trackers lack pictures."""
        del control, kwargs
        self._told = False
        tokens = [
            {
                "emotion": row.emotion,
                "layer": row.layer,
                "reader": row.reader,
                "top": row.top,
                "bottom": row.bottom,
            }
            for row in self._tokens
        ]
        bins = {"first": EDGES[0], "width": EDGES[1] - EDGES[0]}
        self._file.begin(state.global_step, {"bins": bins, "tokens": tokens})
        others = without_pictures(args.report_to)
        if others and self._monitor is not None:
            logger.warning(
                "%s gets numbers alone: distributions and tables are in %s",
                " and ".join(others),
                self._file.path,
            )

    @contextmanager
    def line(self, found: Mapping[str, float], prefix: str) -> Iterator[None]:
        """Show what belongs to a log line, around the trainer's logging of it.

        Args:
            found: Readings and terms that the line holds.
            prefix: What the keys of an evaluation begin with; for training nothing.
        """
        trainer = self._trainer
        if not found or not trainer.is_world_process_zero():
            yield
            return
        step = trainer.state.global_step
        histograms = {} if self._monitor is None else self._monitor.histograms
        excerpts = [] if prefix else self._excerpts()
        shown = {f"{prefix}{key}": item for key, item in histograms.items()}
        with beside(
            trainer.callback_handler.callbacks,
            {**shown, **self._tables(step, excerpts)},
            step=step,
        ):
            yield
        line = {"step": step, "epoch": trainer.state.epoch}
        line |= {f"{prefix}{key}": value for key, value in found.items()}
        counts = {key: _short(item.counts) for key, item in shown.items()}
        texts = [
            {"text": x.text, "outcome": x.outcome, "readings": x.readings}
            for x in excerpts
        ]
        line |= {"histograms": counts} if counts else {}
        self._file.write({**line, "texts": texts} if texts else line)
        if not prefix:
            self._in_bar(found)

    def _tables(self, step: int, excerpts: list[Excerpt]) -> Items:
        tables = {}
        if self._tokens and not self._told:
            self._told = True
            columns = ("emotion", "layer", "reader", "top tokens", "bottom tokens")
            rows = [
                (x.emotion, x.layer, x.reader, _joined(x.top), _joined(x.bottom))
                for x in self._tokens
            ]
            tables["emotion_tokens"] = Table(columns=columns, rows=rows)
        if excerpts:
            columns = ("step", "outcome", *excerpts[0].readings, "text")
            rows = [
                (step, x.outcome, *(round(v, 3) for v in x.readings.values()), x.text)
                for x in excerpts
            ]
            tables["emotion_texts"] = Table(columns=columns, rows=rows)
        return tables

    def _excerpts(self) -> list[Excerpt]:
        monitor = self._monitor
        if monitor is None or monitor.excerpts is None:
            return []
        tokenizer = tokenizer_of(self._trainer.processing_class)
        return monitor.excerpts.take(tokenizer, monitor.emotions)

    def _in_bar(self, found: Mapping[str, float]) -> None:
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar:
                text = "" if self._monitor is None else summary(found, self._monitor)
                if text:
                    callback.training_bar.set_postfix_str(text)


def summary(found: Mapping[str, float], monitor: Monitor) -> str:
    """Return a short line: means over Assistant tokens, the first emotion's slope.

    It is of the first reader at its shallowest layer, by default the deepest loss
    layer; empty where there is nothing of it.
    """
    if not monitor.probes:
        return ""
    probe = monitor.probes[0]
    where = f"L{probe.layers[0]}/{probe.reader}"
    wanted = {x: f"emotion/{x}/{where}/assistant" for x in probe.emotions[:_IN_BAR]}
    wanted["slope"] = f"emotion/{probe.emotions[0]}/{where}/slope_running"
    parts = [f"{x} {found[key]:+.2f}" for x, key in wanted.items() if key in found]
    return " | ".join(parts)


def check_texts(monitor: Monitor | None, *, outcome: bool) -> None:
    """Refuse texts that would never be logged.

    Raises:
        ValueError: If texts are asked for and Assistant turns have no outcomes.
    """
    excerpts = None if monitor is None else monitor.excerpts
    if excerpts is not None and not outcome:
        raise ValueError(
            "`log_texts` must come with `outcome`, by which Assistant turns are found; "
            f"got log_texts={excerpts.count} and no outcome. Pass outcome='failed' or "
            "`emoreg.Feedback()`"
        )


def _tokens(trainer: Any, monitor: Monitor) -> list[TopTokens]:
    try:
        return top_tokens(
            trainer.model,
            tokenizer_of(trainer.processing_class),
            monitor.vectors,
            emotions=monitor.emotions,
            layers=monitor.layers,
        )
    except ValueError as error:
        logger.warning("There is no table of top tokens: %s", error)
        return []


def _joined(tokens: tuple[str, ...]) -> str:
    """Return tokens in a line, with a dot for a blank that belongs to one."""
    dotted = [x.replace(" ", "·") for x in tokens]
    return ", ".join(x if x.isprintable() else repr(x)[1:-1] for x in dotted)


def _short(counts: tuple[float, ...]) -> list[int | float]:
    """Return counts as short numbers: most are whole."""
    return [int(x) if x == int(x) else round(x, 4) for x in counts]
