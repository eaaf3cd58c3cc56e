"""What the doctor found, one line a check, and how it is printed."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from transformers import PreTrainedTokenizerBase

from emoreg.residual.tokens import TurnMarkers

Status = Literal["pass", "warn", "fail"]
_SHOWN = 160
"""Characters of a piece of text outside Assistant turns that a sample shows."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of a diagnosis."""

    name: str
    status: Status
    """`fail`: readings or terms would be wrong. `warn`: it works, or could not be
    checked, and you should know."""
    found: str
    mend: str = ""
    """What to do about it; empty where nothing needs doing."""

    def __str__(self) -> str:
        """Return status, name and what was found; below it, indented, how to mend."""
        line = f"{self.status}  {self.name}: {self.found}"
        return f"{line}\n      -> {self.mend}" if self.mend else line


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """All lines of an examination, and one row of the data with its tokens marked."""

    lines: tuple[Finding, ...]
    sample: str = ""
    """`▶` stands before a decision token, whose outcome follows in brackets; `«»`
    stand round Assistant tokens. Empty where there was no row to show."""

    @property
    def failed(self) -> bool:
        """Whether any check failed; warnings are no failures."""
        return any(line.status == "fail" for line in self.lines)

    def __str__(self) -> str:
        """Return one line a check, the marked row and a count."""
        counts = Counter(line.status for line in self.lines)
        parts = [str(line) for line in self.lines]
        if self.sample:
            parts += ["", "One row (▶ decision token [outcome], «Assistant tokens»):"]
            parts += [f"    {line}" for line in self.sample.splitlines()]
        total = ", ".join(f"{counts[kind]} {kind}" for kind in ("pass", "warn", "fail"))
        return "\n".join([*parts, "", total])


def passed(name: str, found: str) -> Finding:
    """Return a line without a complaint."""
    return Finding(name=name, status="pass", found=found)


def warned(name: str, found: str, mend: str) -> Finding:
    """Return a line that says what to know."""
    return Finding(name=name, status="warn", found=found, mend=mend)


def refused(name: str, found: str, mend: str) -> Finding:
    """Return a line that says what would go wrong."""
    return Finding(name=name, status="fail", found=found, mend=mend)


def marked(
    ids: Sequence[int],
    outcomes: Sequence[float],
    tokenizer: PreTrainedTokenizerBase,
    markers: TurnMarkers,
) -> str:
    """Return a row as text with decision tokens and Assistant tokens marked.

    Args:
        ids: The row's token ids, as the model reads them.
        outcomes: Failure per Assistant turn, NaN for unknown; missing ones count so.
        tokenizer: Decodes the ids.
        markers: Finds the tokens, as training does.
    """
    row = torch.tensor([list(ids)])
    decision = markers.decision_tokens(row)[0].tolist()
    spoken = markers.assistant_tokens(row)[0].tolist()
    known = list(outcomes)
    text, start, turn = "", 0, 0
    for end in range(1, len(ids) + 1):
        same = end < len(ids) and spoken[end] == spoken[start]
        if same and not decision[end] and not decision[start]:
            continue
        piece = str(tokenizer.decode(list(ids[start:end])))
        if decision[start]:
            said = _outcome(known[turn] if turn < len(known) else math.nan)
            text, turn = f"{text}▶{_escaped(piece)}[{said}] ", turn + 1
        else:
            text += f"«{piece}»" if spoken[start] else _shortened(piece)
        start = end
    return text


def _outcome(failure: float) -> str:
    if math.isnan(failure):
        return "unknown"
    return {0.0: "passed", 1.0: "failed"}.get(failure, f"{failure:g} failed")


def _escaped(piece: str) -> str:
    return piece.replace("\n", "\\n")


def _shortened(piece: str) -> str:
    if len(piece) <= _SHOWN:
        return piece
    half = _SHOWN // 2
    return f"{piece[:half]} ... {piece[-half:]}"
