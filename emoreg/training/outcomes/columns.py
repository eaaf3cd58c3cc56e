"""Carrying outcomes from a dataset column to the batch that the loss sees."""

import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emoreg.residual.tokens import TurnMarkers
from emoreg.training.layouts import Layout

T = TypeVar("T")
OUTCOMES, REFERENCE = "emoreg_outcomes", "emoreg_reference"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Extras:
    """What rides along with a batch."""

    outcomes: Float[Tensor, "batch turn"] | None
    """Failure per Assistant turn; NaN where unknown or absent."""
    reference: Float[Tensor, "batch turn figure"] | None
    """Cached readings of the reference model, flattened over layers and emotions."""
    starts: Bool[Tensor, "batch pos"] | None = None
    """Where documents begin in rows that hold several."""


def take_extras(inputs: MutableMapping[str, Any]) -> Extras:
    """Return what rides along, and keep it from the model.

    Rollouts keep it: they are used again in later iterations, and no model sees them
    whole.
    """
    take = inputs.pop if "input_ids" in inputs else inputs.get
    position = inputs.get("position_ids")
    return Extras(
        outcomes=take(OUTCOMES, None),
        reference=take(REFERENCE, None),
        starts=None if position is None else position == 0,
    )


@final
class OutcomeCollator:
    """Wraps a trainer's collator: pads outcomes beside the batch it makes.

    A padding-free batch is one row, so its outcomes are one row too, in order.
    """

    def __init__(
        self,
        collator: Callable[[list], MutableMapping[str, Any]],
        column: str,
        layout: Layout,
        *,
        check: TurnMarkers | None = None,
    ) -> None:
        """Wrap `collator`; outcomes are in the dataset's `column`.

        `check` compares them with the turns of each batch, where rows could not be
        looked at before.
        """
        self.collator, self.column, self.layout = collator, column, layout
        self.markers = check

    def __call__(self, examples: list[dict[str, Any]]) -> MutableMapping[str, Any]:
        """Return the wrapped collator's batch with outcomes added."""
        added = (self.column, REFERENCE)
        plain = [{k: v for k, v in e.items() if k not in added} for e in examples]
        batch = self.collator(plain)
        rows = batch["input_ids"].shape[0]
        if self.column not in examples[0]:
            return batch
        turns = _by_sequence([self.layout.outcomes(e[self.column]) for e in examples])
        if self.markers is not None:
            real = batch["attention_mask"].bool()
            for row, own in enumerate(turns):
                ids = batch["input_ids"][row][real[row]].tolist()
                check_turns(ids, own, self.markers, f"row {row} of a batch")
        batch[OUTCOMES] = padded(map(torch.tensor, turns), rows)
        if REFERENCE in examples[0]:
            # A row without Assistant turns holds one placeholder, which is cut here.
            held = zip(
                _by_sequence([e[REFERENCE] for e in examples]), turns, strict=True
            )
            batch[REFERENCE] = padded(
                (torch.as_tensor(figures)[: len(own)] for figures, own in held), rows
            )
        return batch


def _by_sequence(rows: list[list[T]]) -> list[T]:
    """Return all first sequences, then all second ones: the order in a batch."""
    return [sequence for sequences in zip(*rows, strict=True) for sequence in sequences]


def check_column(dataset: Any, column: str) -> None:
    """Refuse a dataset without the outcome column.

    Raises:
        ValueError: If it has columns and this is none of them.
    """
    names = list(getattr(dataset, "column_names", None) or [])
    if column not in names:
        hint = (
            " The dataset is packed, which drops columns: have outcomes read from the "
            "text, with `outcome=emoreg.Feedback()`, or use `packing=False`"
            if "seq_lengths" in names
            else f" Add a column {column!r} with one number per Assistant turn "
            "(1 failed, 0 passed, None unknown)"
        )
        raise ValueError(
            f"`outcome` must name a column of the training data, got {column!r}; the "
            f"columns are {', '.join(names) or 'none'}.{hint}"
        )


def check_turns(
    ids: Sequence[int], turns: Sequence[float], markers: TurnMarkers, where: str
) -> None:
    """Refuse a sequence whose outcomes would be misplaced.

    Raises:
        ValueError: If it has more or fewer decision tokens than outcomes.
    """
    found = int(markers.decision_tokens(torch.tensor([list(ids)])).sum())
    if found != len(turns):
        raise ValueError(
            f"each row must have one outcome per Assistant turn: {where} has "
            f"{len(turns)} outcomes and {found} decision tokens in {len(ids)} tokens. "
            "Transcripts cut by `max_length` lose turns (raise it, or pass None); a "
            "turn that begins with blank lines may lose its decision token to the "
            "tokenizer; rows without an outcome need None, not an empty list"
        )


def padded(tensors: Iterable[Tensor], count: int) -> Tensor:
    """Return `tensors` as a batch of `count` rows, NaN where one is shorter.

    They are one row, end to end, where the batch they belong to is.
    """
    rows = list(tensors)
    rows = [torch.cat(rows)] if count == 1 and len(rows) > 1 else rows
    return torch.nn.utils.rnn.pad_sequence(
        [row.float() for row in rows], batch_first=True, padding_value=math.nan
    )


def check_dataset(
    dataset: Any, column: str, layout: Layout, markers: TurnMarkers
) -> None:
    """Refuse a dataset whose outcomes would silently be missing or misplaced.

    Raises:
        ValueError: If the column is missing, or a row's outcomes don't match the
            decision tokens in it.
    """
    check_column(dataset, column)
    for row, example in enumerate(dataset):
        outcomes = layout.outcomes(example[column])
        for ids, turns in zip(layout.ids(example), outcomes, strict=True):
            check_turns(ids, turns, markers, f"row {row}")
