"""What is no number reaches W&B, Trackio and TensorBoard: distributions and tables.

Numbers go through the trainer's own `log`. What is sent here stands on the same step,
and in W&B in the same row; none of it is in `trainer.state.log_history`, which must
stay plain numbers. This is the only file that knows the clients.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    rewrite_logs,
)

from emoreg.training.watching.tallies import EDGES, Histogram

_SHOWN_IN = ("wandb", "trackio", "tensorboard")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under named columns."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


Items = Mapping[str, Histogram | Table]


def without_pictures(report_to: Iterable[str]) -> list[str]:
    """Return those trackers of a trainer to which numbers go alone."""
    return sorted({*report_to} - {*_SHOWN_IN, "none", "all"})


@contextmanager
def beside(callbacks: Sequence[Any], items: Items, *, step: int) -> Iterator[None]:
    """Send `items` with the numbers that the trainer logs inside, at its `step`.

    The main process calls it, with the trainer's callbacks. Keys get `train/` or
    `eval/` before them, as those of numbers do.
    """
    items = rewrite_logs(items)
    if not items:
        yield
        return
    wandb = next((c for c in callbacks if isinstance(c, WandbCallback)), None)
    waits = wandb is not None and _to_wandb(items, commit=False)
    yield
    for callback in callbacks:
        if callback is wandb and not waits:  # its run began inside
            _to_wandb(items, commit=True, step=step)
        elif isinstance(callback, TrackioCallback):
            _to_trackio(items)
        elif isinstance(callback, TensorBoardCallback) and callback.tb_writer:
            _to_tensorboard(callback.tb_writer, items, step)


def alert(title: str, text: str) -> None:
    """Raise an alert in W&B and Trackio, where a run is open."""
    wandb, trackio = sys.modules.get("wandb"), sys.modules.get("trackio")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.run.alert(title=title, text=text)
    if trackio is not None and (run := _trackio_run()) is not None:
        run.alert(title, text, step=run._next_step)  # of the row that is about to come


def report_to_wandb(
    run: Any,
    numbers: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    *,
    page: str,
) -> None:
    """Send a report to a W&B run: numbers into its summary, a table and the page."""
    import wandb

    columns: list[Any] = list(rows[0]) if rows else []
    cells: list[Any] = [list(row.values()) for row in rows]
    run.log(
        {
            "emoreg/figures": wandb.Table(columns=columns, data=cells),
            "emoreg/report": wandb.Html(page, inject=False),
        }
    )
    for name, value in numbers.items():
        run.summary[name] = value


def report_to_trackio(
    run: Any, numbers: Mapping[str, float], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Send a report to a Trackio run: numbers and a table, in one row."""
    import trackio

    columns = list(rows[0]) if rows else []
    cells = [list(row.values()) for row in rows]
    figures = trackio.Table(columns=columns, data=cells)
    run.log({**numbers, "emoreg/figures": figures})


def _to_wandb(items: Items, *, commit: bool, step: int | None = None) -> bool:
    """Return whether there was a run to send to."""
    import wandb

    if wandb.run is None:
        return False
    row: dict[str, Any] = {} if step is None else {"train/global_step": step}
    for key, item in items.items():
        if isinstance(item, Table):
            rows: list[Any] = [list(row) for row in item.rows]
            row[key] = wandb.Table(columns=list(item.columns), data=rows)
        else:
            pair = (np.array(item.counts), np.array(EDGES))
            row[key] = wandb.Histogram(np_histogram=pair)
    wandb.run.log(row, commit=commit)
    return True


def _trackio_run() -> Any:
    from trackio.context_vars import current_run

    return current_run.get()


def _to_trackio(items: Items) -> None:
    import trackio

    run = _trackio_run()
    if run is None:
        return
    row: dict[str, Any] = {}
    for key, item in items.items():
        if isinstance(item, Table):
            rows = [list(row) for row in item.rows]
            row[key] = trackio.Table(columns=list(item.columns), data=rows)
        else:
            pair = (np.array(item.counts), np.array(EDGES))
            row[key] = trackio.Histogram(np_histogram=pair)
    # The step of the row that the trainer just logged: its steps are its own count of
    # rows, and one of ours among them would push the others apart.
    run.log(row, step=run._next_step - 1)


def _to_tensorboard(writer: Any, items: Items, step: int) -> None:
    for key, item in items.items():
        if isinstance(item, Table):
            writer.add_text(key, _markdown(item), step)
            continue
        full = [place for place, count in enumerate(item.counts) if count > 0]
        writer.add_histogram_raw(
            key,
            min=EDGES[full[0]],
            max=EDGES[full[-1] + 1],
            num=sum(item.counts),
            sum=item.total,
            sum_squares=item.squares,
            bucket_limits=list(EDGES[1:]),
            bucket_counts=list(item.counts),
            global_step=step,
        )
    writer.flush()


def _markdown(table: Table) -> str:
    def line(cells: Iterable[Any]) -> str:
        shown = (str(x).replace("|", "\\|").replace("\n", " ") for x in cells)
        return f"| {' | '.join(shown)} |"

    rule = line("---" for _ in table.columns)
    return "\n".join([line(table.columns), rule, *map(line, table.rows)])
