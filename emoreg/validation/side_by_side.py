"""Readers side by side: what the other checks found, a row for each reader."""

from collections.abc import Sequence

import numpy as np

from emoreg.validation.areas import AREA
from emoreg.validation.check import Check, Figure, Matrix
from emoreg.validation.dialogues import NAME as DIALOGUES
from emoreg.validation.held_out import NAME as STORIES
from emoreg.validation.human_text import COMMENTS
from emoreg.validation.stability import HALVES
from emoreg.validation.stability import NAME as SPLIT_HALVES
from emoreg.validation.steering import NAME as STEERING
from emoreg.validation.steering import PLACE
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA, MEAN_DIFFERENCE

NAME = "readers side by side"
COLUMNS = (
    (STORIES, "top-1", "stories, top-1"),
    (DIALOGUES, AREA, "dialogues, area"),
    (COMMENTS.name, AREA, "comments, area"),
    (SPLIT_HALVES, HALVES, "cosine of halves"),
    (STEERING, PLACE, "steering, place"),
)
"""Check, figure and what the column is called."""
READ_BY = tuple(title for *_, title in COLUMNS[:3])
OFFERED = {
    "reading": (LDA, READ_BY),
    "steering": (MEAN_DIFFERENCE, ("steering, place",)),
}
"""Decided before any file was tested: which reader a file offers for what, and the
columns that could speak against it."""


def side_by_side(checks: Sequence[Check], vectors: EmotionVectors) -> Check:
    """Return a table of every reader's headline figures, from the checks before it."""
    audit = () if vectors.audit is None else vectors.audit.names
    readers = (*vectors.readers, *audit)
    found = {
        (reader, title): figure
        for check, name, title in COLUMNS
        for reader in readers
        if (figure := _figure(checks, check, name, reader)) is not None
    }
    columns = [title for *_, title in COLUMNS if any(t == title for _, t in found)]
    values = [
        [found[r, c].value if (r, c) in found else np.nan for c in columns]
        for r in readers
    ]
    table = Matrix(
        title="Readers side by side; empty where a check does not judge a reader",
        rows=readers,
        columns=tuple(columns),
        values=np.array(values, dtype=float).reshape(len(readers), len(columns)),
    )
    return Check(
        name=NAME,
        question="Which reader should one read with, and which steer with?",
        method=(
            "The figures of the other checks, each reader at the layer those use. A "
            "file offers LDA for reading and mean differences for steering, whatever "
            "is found here; the notes say where another of its own readers did better."
        ),
        pictures=(table,) if columns else (),
        notes=tuple(
            _borne_out(use, reader, titles, found, vectors.readers)
            for use, (reader, titles) in OFFERED.items()
            if reader in vectors.readers
        ),
    )


def _figure(
    checks: Sequence[Check], check: str, name: str, reader: str
) -> Figure | None:
    """Return the first figure of a check by a name and reader, over all emotions."""
    return next(
        (
            figure
            for run in checks
            if run.name == check
            for figure in run.figures
            if (figure.name, figure.reader, figure.emotion) == (name, reader, "")
        ),
        None,
    )


def _borne_out(
    use: str,
    reader: str,
    titles: Sequence[str],
    found: dict[tuple[str, str], Figure],
    rivals: Sequence[str],
) -> str:
    """Say whether another reader of the file's own did better at what this is for."""
    better = []
    for title in titles:
        own = found.get((reader, title))
        if own is None:
            continue
        others = [r for r in rivals if r != reader and (r, title) in found]
        best = max(others, key=lambda r: found[r, title].value, default=reader)
        if found[best, title].value > own.value:
            there = found[best, title].value
            better.append(f"{best} in {title} ({there:.2f} against {own.value:.2f})")
    said = f"For {use} the file offers {reader}. "
    if not any((reader, title) in found for title in titles):
        return said + "No check that judges it was run."
    if not better:
        return said + "None of its other readers did better."
    return said + f"Better did {'; '.join(better)}."
