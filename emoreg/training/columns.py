"""Carrying outcomes from a dataset column to the batch that the loss sees."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.residual.tokens import TurnMarkers
from emoreg.training.outcomes import validate_outcome

OUTCOMES, REFERENCE = "emoreg_outcomes", "emoreg_reference"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Extras:
    """What rides along with a batch."""

    outcomes: Float[Tensor, "batch turn"] | None
    """Failure per Assistant turn; NaN where unknown or absent."""
    reference: Float[Tensor, "batch turn figure"] | None
    """Cached readings of the reference model, flattened over layers and emotions."""


def take_extras(inputs: dict[str, Any]) -> Extras:
    """Remove and return what the collator added, before the model sees the batch."""
    return Extras(
        outcomes=inputs.pop(OUTCOMES, None), reference=inputs.pop(REFERENCE, None)
    )


@final
class OutcomeCollator:
    """Wraps a trainer's collator: pads outcomes beside the batch it makes.

    A padding-free batch is one row, so its outcomes are one row too, in order.
    """

    def __init__(self, collator: Callable[[list], dict[str, Any]], column: str) -> None:
        """Wrap `collator`; outcomes are in the dataset's `column`."""
        self.collator, self.column = collator, column

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the wrapped collator's batch with outcomes added."""
        added = (self.column, REFERENCE)
        plain = [{k: v for k, v in e.items() if k not in added} for e in examples]
        batch = self.collator(plain)
        rows = batch["input_ids"].shape[0]
        if self.column not in examples[0]:
            return batch
        values = [as_failures(e[self.column]) for e in examples]
        batch[OUTCOMES] = _padded([torch.tensor(turns) for turns in values], rows)
        if REFERENCE in examples[0]:
            # A row without Assistant turns holds one placeholder, which is cut here.
            held = [
                torch.as_tensor(e[REFERENCE])[: len(turns)]
                for e, turns in zip(examples, values, strict=True)
            ]
            batch[REFERENCE] = _padded(held, rows)
        return batch


def as_failures(value: Any) -> list[float]:
    """Return a row's outcomes as floats, NaN for unknown.

    Raises:
        ValueError: If one lies outside [0, 1].
    """
    plain = value.tolist() if isinstance(value, Tensor) else value
    turns = plain if isinstance(plain, Sequence) else [plain]
    return [validate_outcome(turn) for turn in turns]


def _padded(rows: list[Tensor], count: int) -> Tensor:
    rows = [torch.cat(rows)] if count == 1 and len(rows) > 1 else rows
    return torch.nn.utils.rnn.pad_sequence(
        [row.float() for row in rows], batch_first=True, padding_value=math.nan
    )


def check_dataset(dataset: Any, column: str, markers: TurnMarkers) -> None:
    """Refuse a dataset whose outcomes would silently be missing or misplaced.

    Raises:
        ValueError: If the column is missing, or a row's outcomes don't match the
            decision tokens in it.
    """
    names = list(getattr(dataset, "column_names", None) or [])
    if column not in names:
        hint = (
            " The dataset is packed, which drops columns: build the trainer with "
            "`packing=False`"
            if "seq_lengths" in names
            else f" Add a column {column!r} with one number per Assistant turn "
            "(1 failed, 0 passed, None unknown)"
        )
        raise ValueError(
            f"`outcome` must name a column of the training data, got {column!r}; the "
            f"columns are {', '.join(names) or 'none'}.{hint}"
        )
    for row, example in enumerate(dataset):
        ids = torch.as_tensor(example["input_ids"]).reshape(1, -1)
        found = int(markers.decision_tokens(ids).sum())
        given = len(as_failures(example[column]))
        if found != given:
            raise ValueError(
                f"each row must have one outcome per Assistant turn: row {row} has "
                f"{given} in {column!r} and {found} decision tokens in "
                f"{ids.shape[1]} tokens. Transcripts cut by `max_length` lose their "
                "last turns (raise it, or pass None); a turn that begins with blank "
                "lines may lose its decision token to the tokenizer; rows without an "
                "outcome need None, not an empty list"
            )
