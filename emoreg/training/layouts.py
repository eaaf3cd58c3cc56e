"""How a trainer's rows become the sequences of a batch.

Preference trainers make two sequences of a row and put all of the first kind before all
of the second. Outcomes and cached readings must follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, final

from torch import Tensor

from emoreg.training.outcomes.feedback import validate_outcome

Row = Mapping[str, Any]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which columns, joined, are the sequences of a row, in the batch's order."""

    sequences: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    """What each is called in an outcome that tells them apart."""
    max_length: int | None = None
    """Where the collator cuts a sequence."""
    keep_end: bool = False
    """Whether it cuts at the start instead of the end."""

    @classmethod
    def find(cls, dataset: Any, collator: Any) -> "Layout | None":
        """Return the layout of a prepared dataset, None if it is not a known one."""
        columns = set(getattr(dataset, "column_names", None) or ())
        for names, sequences in _KNOWN:
            if columns.issuperset(column for part in sequences for column in part):
                return cls(
                    sequences=sequences,
                    names=names,
                    max_length=getattr(collator, "max_length", None),
                    keep_end=getattr(collator, "truncation_mode", "") == "keep_end",
                )
        return None

    @classmethod
    def of(cls, dataset: Any, collator: Any) -> "Layout":
        """Return the layout of a prepared dataset.

        Raises:
            ValueError: If it is a stream, or none of the known layouts has its columns.
        """
        if not hasattr(dataset, "__len__"):
            raise ValueError(
                "the training data must have a length, since outcomes are checked and "
                "reference readings cached before step 1; got a "
                f"{type(dataset).__name__}. Load it without `streaming=True`"
            )
        found = cls.find(dataset, collator)
        if found is None:
            columns = getattr(dataset, "column_names", None) or ["none"]
            known = (_columns(sequences) for _, sequences in _KNOWN)
            raise ValueError(
                "the training data must be tokenized in a way that is known, with the "
                f"columns {' or '.join(known)}; found {', '.join(sorted(columns))}. "
                "Build the trainer first, so that it tokenizes its data, then attach"
            )
        return found

    def ids(self, row: Row) -> list[list[int]]:
        """Return the token ids of each sequence of a row, cut as the collator does."""
        whole = [
            [token for column in part for token in row[column]]
            for part in self.sequences
        ]
        if self.max_length is None:
            return whole
        if self.keep_end:
            return [ids[-self.max_length :] for ids in whole]
        return [ids[: self.max_length] for ids in whole]

    def documents(self, row: Row) -> list[list[list[int]]]:
        """Return the documents of each sequence: several where rows are packed.

        No document sees another: attention ends at its borders, and so does what a turn
        can know.
        """
        whole, lengths = self.ids(row), row.get("seq_lengths")
        if lengths is None:
            return [[ids] for ids in whole]
        ends = list(accumulate(lengths))
        return [
            [ids[end - size : end] for end, size in zip(ends, lengths, strict=True)]
            for ids in whole
        ]

    def outcomes(self, value: Any) -> list[list[float]]:
        """Return the outcomes of each sequence's Assistant turns, NaN for unknown.

        Args:
            value: A list with one number per turn, which holds for every sequence of
                the row, or a mapping from `names` to such lists.

        Raises:
            ValueError: If an outcome lies outside [0, 1], or a name is missing.
        """
        if not isinstance(value, Mapping):
            return [as_failures(value)] * len(self.sequences)
        if any(value.get(name) is None for name in self.names):
            raise ValueError(
                "an outcome that tells a row's sequences apart must have a list for "
                f"each of {self.names}, got {sorted(value)}. Write one list where they "
                "share their turns"
            )
        return [as_failures(value[name]) for name in self.names]


ONE_A_ROW: Final = Layout(sequences=((),), names=("row",))
"""Of rows that the collator tokenizes: each becomes one sequence, unknown before."""


def shows_images(dataset: Any) -> bool:
    """Return whether rows are conversations with images, tokenized by the collator.

    Not those of preference trainers, whose halves would need outcomes of their own.
    """
    columns = set(getattr(dataset, "column_names", None) or ())
    talks = columns.issuperset(("prompt", "completion")) or "messages" in columns
    tokenized = "input_ids" in columns
    return talks and not tokenized and bool(columns & {"image", "images"})


_KNOWN: Final[tuple[tuple[tuple[str, ...], tuple[tuple[str, ...], ...]], ...]] = (
    (("row",), (("input_ids",),)),
    (
        ("chosen", "rejected"),
        (("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids")),
    ),
    (("row",), (("prompt_ids", "completion_ids"),)),
    (("chosen", "rejected"), (("chosen_ids",), ("rejected_ids",))),
)


def _columns(sequences: tuple[tuple[str, ...], ...]) -> str:
    return "+".join(dict.fromkeys(column for part in sequences for column in part))


def as_failures(value: Any) -> list[float]:
    """Return outcomes as floats, NaN for unknown.

    Raises:
        ValueError: If one lies outside [0, 1].
    """
    plain = value.tolist() if isinstance(value, Tensor) else value
    turns = plain if isinstance(plain, Sequence) else [plain]
    return [validate_outcome(turn) for turn in turns]
