"""What the training rows hold: lengths, outcomes, padding, the tokens that are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from emoreg.losses.baselines import SquaredCorrelation, SymmetricGap
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.energy import EnergyDistance
from emoreg.losses.reroute import RerouteAnchor
from emoreg.losses.term import AbstractTerm
from emoreg.residual.tokens import TurnMarkers, render, tokenizer_of
from emoreg.training.doctor.diagnosis import Finding, marked, passed, refused, warned
from emoreg.training.layouts import Layout, as_failures
from emoreg.training.outcomes.columns import OutcomeCollator
from emoreg.training.outcomes.rollouts import makes_rollouts

_MUCH_PADDING = 0.5
_COMPARE = (
    ContrastPenalty,
    EnergyDistance,
    RerouteAnchor,
    SquaredCorrelation,
    SymmetricGap,
)
"""Terms that are nothing without both failing and passing turns."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What one pass over the training rows found."""

    rows: int
    failing: float
    """Sum of the failures over all turns, as the terms weigh them."""
    passing: float
    unknown: int
    """Turns without an outcome."""
    limit: int | None
    """`max_length`, in tokens."""
    at_limit: int
    """Rows that are as long as that, and may have been cut."""
    pair: tuple[int, int]
    """The shortest row with a failing turn, and another with a passing one."""

    @classmethod
    def of(cls, trainer: Any) -> "Survey | None":
        """Look at every row of a trainer's data; None if it is a stream."""
        dataset, column = trainer.train_dataset, column_of(trainer)
        if not hasattr(dataset, "__len__"):
            return None
        layout = layout_of(trainer)
        limits = (getattr(x, "max_length", None) for x in (trainer.args, layout))
        limit = next((x for x in limits if x is not None), None)
        turns: list[float] = []
        long, failing, passing = 0, [], []
        for row, example in enumerate(dataset):
            ids = [] if layout is None else layout.ids(example)
            length = max(map(len, ids), default=0)
            long += limit is not None and length >= limit
            own = _outcomes(example, column, layout)
            turns += own
            failing += [(length, row)] if any(x > 0 for x in own) else []
            passing += [(length, row)] if any(x < 1 for x in own) else []
        first = min(failing, default=(0, 0))
        second = min((x for x in passing if x != first), default=None)
        other = min(1, len(dataset) - 1) if first[1] == 0 else 0
        known = [x for x in turns if x == x]
        return cls(
            rows=len(dataset),
            failing=float(sum(known)),
            passing=float(sum(1 - x for x in known)),
            unknown=len(turns) - len(known),
            limit=limit,
            at_limit=long,
            pair=(first[1], other if second is None else second[1]),
        )


def outcome_line(
    trainer: Any, survey: Survey | None, active: Sequence[AbstractTerm]
) -> Finding:
    """Say how many turns failed, passed and are unknown, and if `active` need more."""
    name, column = "outcomes", column_of(trainer)
    if trainer.emotions.outcome is None:
        return warned(
            name,
            "no outcome column: readings over Assistant tokens alone",
            "pass outcome='failed' to `attach` to tell failing turns from passing ones",
        )
    if survey is None or column is None:
        return _unseen(name)
    total = survey.failing + survey.passing + survey.unknown
    shares = ", ".join(
        f"{kind} {count / max(total, 1):.0%}"
        for kind, count in (
            ("failing", survey.failing),
            ("passing", survey.passing),
            ("unknown", survey.unknown),
        )
    )
    found = f"{total:g} turns in {survey.rows} rows of {column!r}: {shares}"
    for kind, count in (("failing", survey.failing), ("passing", survey.passing)):
        if count:
            continue
        said = f"{found}; none is {kind}"
        if any(isinstance(term, _COMPARE) for term in active):
            mend = f"give the terms {kind} turns as well: they compare the two kinds"
            return refused(name, said, mend)
        return warned(
            name,
            said,
            "no term compares the two kinds, so all may be well; what is read or acted "
            f"on after {kind} feedback, and slopes, will be missing",
        )
    return passed(name, found)


def length_line(trainer: Any, survey: Survey | None) -> Finding:
    """Say how many rows are as long as `max_length`, where rows are cut."""
    name = "max_length"
    if survey is None or makes_rollouts(trainer):
        return _unseen(name)
    if survey.limit is None:
        return passed(name, "no limit: no row is cut")
    if not survey.at_limit:
        return passed(name, f"no row reaches {survey.limit} tokens: none is cut")
    return warned(
        name,
        f"{survey.at_limit} of {survey.rows} rows have {survey.limit} tokens, the "
        "limit, and may have been cut",
        "raise `max_length`, or pass None: what was cut is neither read nor trained on",
    )


def padding_line(batch: Mapping[str, Any]) -> Finding:
    """Say on which side a batch is padded, and how much of it is padding."""
    name, mask = "padding", batch.get("attention_mask")
    rows, width = batch["input_ids"].shape
    if not isinstance(mask, Tensor):
        if rows == 1:
            return passed(name, f"none: a batch is one row, of {width} tokens")
        return warned(
            name,
            f"the batch of {rows} rows has no attention mask",
            "have the collator return `attention_mask`, or padding counts as speech "
            "after a turn that was cut",
        )
    padded = mask == 0
    sides = [
        side
        for side, column in (("left", 0), ("right", -1))
        if bool(padded[:, column].any())
    ]
    share = float(padded.float().mean())
    where = f"on the {' and the '.join(sides)}" if sides else "none"
    found = f"{where}, {share:.0%} of a batch of {rows} x {width} tokens"
    if share > _MUCH_PADDING:
        return warned(
            name,
            found,
            "batch rows of like length together, or pass `padding_free=True`: padding "
            "costs as much as text",
        )
    return passed(name, found)


def packing_line(trainer: Any, batch: Mapping[str, Any]) -> Finding:
    """Say whether rows are packed, or joined without padding."""
    name = "packing"
    columns = getattr(trainer.train_dataset, "column_names", None) or ()
    if "seq_lengths" in columns:
        return passed(name, "rows are packed; outcomes are read from their documents")
    rows, width = batch["input_ids"].shape
    joined = [key for key in ("position_ids", "cu_seq_lens_q") if key in batch]
    if rows == 1 and joined:
        return passed(name, f"padding-free: rows are joined into one of {width} tokens")
    return passed(name, f"neither packed nor padding-free: {rows} rows in a batch")


def template_line(trainer: Any, survey: Survey | None) -> tuple[Finding, str]:
    """Say how turns are found, and show the tokens of one row.

    Returns:
        The line, and the row with its tokens marked; empty where there is none.
    """
    name, tokenizer = "chat template", tokenizer_of(trainer.processing_class)
    markers = trainer.emotions.regularizer.markers
    if TurnMarkers.of(tokenizer) != markers:
        return refused(
            name,
            "it is not the one that `attach` saw: decision tokens would be missed",
            "set `tokenizer.chat_template` before the trainer is built, then attach",
        ), ""
    opening, closing = (
        tokenizer.decode(list(part)) for part in (markers.opening, markers.closing)
    )
    found = f"Assistant turns open with {opening!r} and close with {closing!r}"
    if survey is None:
        return passed(name, found), ""
    ids, outcomes = _row(trainer, survey.pair[0])
    if ids is None:
        return passed(name, found), ""
    sample = marked(ids, outcomes, tokenizer, markers)
    row = torch.tensor([ids])
    turns = int(markers.decision_tokens(row).sum())
    spoken = int(markers.assistant_tokens(row).sum())
    found += (
        f"; row {survey.pair[0]} has {turns} decision tokens and {spoken} Assistant "
        "tokens"
    )
    column = column_of(trainer)
    if not turns or (column is not None and turns != len(outcomes)):
        return refused(
            name,
            f"{found}, and {len(outcomes)} outcomes",
            "render rows with the tokenizer's own chat template, one outcome per "
            "Assistant turn",
        ), sample
    return passed(name, found), sample


def layout_of(trainer: Any) -> Layout | None:
    """Return how rows become sequences; None where that is not known."""
    collator = trainer.data_collator
    if isinstance(collator, OutcomeCollator):
        return None if collator.markers is not None else collator.layout
    return Layout.find(trainer.train_dataset, collator)


def column_of(trainer: Any) -> str | None:
    """Return the column that outcomes are in; None if they come while training."""
    if isinstance(trainer.data_collator, OutcomeCollator):
        return trainer.data_collator.column
    outcome = trainer.emotions.outcome
    return outcome if isinstance(outcome, str) else None


def _outcomes(
    example: Mapping[str, Any], column: str | None, layout: Layout | None
) -> list[float]:
    """Return a row's outcomes; one list that two sequences share counts once."""
    if column is None:
        return []
    value = example[column]
    if layout is None or not isinstance(value, Mapping):
        return as_failures(value)
    return [x for turns in layout.outcomes(value) for x in turns]


def _row(trainer: Any, row: int) -> tuple[list[int] | None, list[float]]:
    """Return the token ids of a row's first sequence, and its outcomes."""
    example, layout = trainer.train_dataset[row], layout_of(trainer)
    column = column_of(trainer)
    tokenizer = tokenizer_of(trainer.processing_class)
    if layout is not None:
        outcomes = [] if column is None else layout.outcomes(example[column])[0]
        return layout.ids(example)[0], outcomes
    if "prompt" not in example or isinstance(example["prompt"], str):
        return None, []
    text = render(tokenizer, example["prompt"], generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids), _outcomes(example, column, None)


def _unseen(name: str) -> Finding:
    return warned(
        name,
        "not checked: the rows are made or streamed while training",
        "look at a few of them yourself",
    )
