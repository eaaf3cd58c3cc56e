"""Speakers: is an emotion read as its owner's, whichever speaker that is?"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from emoreg.validation.areas import areas
from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import mean_figure
from emoreg.validation.subject import Subject
from emoreg.vectors.dialogues import over_turns
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.mean_differences import FEWEST as TEXTS
from emoreg.vectors.reader_names import MEAN_DIFFERENCE, RANDOM
from emoreg.vectors.speakers import (
    CELLS,
    OTHER_ASSISTANT,
    OTHER_USER,
    PRESENT_ASSISTANT,
    PRESENT_USER,
    Cell,
    probes_of,
    read_cells,
)

NAME, THRESHOLD, FEWEST = "speakers", 0.7, 5
FAINT = 0.1
"""Cosine of two fits of one thing, below which they are nearly all noise."""

Pairs = tuple[tuple[str, str], ...]
"""Probes, and the cell of test dialogues that they read."""
PRESENT_ACROSS: Pairs = (
    (PRESENT_USER, PRESENT_ASSISTANT),
    (PRESENT_ASSISTANT, PRESENT_USER),
)
OTHER_ACROSS: Pairs = ((OTHER_USER, OTHER_ASSISTANT), (OTHER_ASSISTANT, OTHER_USER))
PRESENT_AT_OTHERS: Pairs = (
    (PRESENT_USER, OTHER_USER),
    (PRESENT_ASSISTANT, OTHER_ASSISTANT),
)
AREAS: Mapping[str, Pairs] = {
    "area across speakers, present probes": PRESENT_ACROSS,
    "area across speakers, other probes": OTHER_ACROSS,
    "area at the other's answers, present probes": PRESENT_AT_OTHERS,
}
COSINES = {
    "present, of the two speakers": (PRESENT_USER, PRESENT_ASSISTANT),
    "other, of the two speakers": (OTHER_USER, OTHER_ASSISTANT),
    "present and other, at the user's words": (PRESENT_USER, OTHER_USER),
    "present and other, at the assistant's": (PRESENT_ASSISTANT, OTHER_ASSISTANT),
}

BLANK = Check(
    name=NAME,
    question="Is an emotion read as its owner's, whichever speaker that is?",
    method=(
        "Dialogues; probes fitted on one speaker's own words (fit split) and tested on "
        "the other speaker's (test split), without neutral components, at the layer "
        "that stories chose; area under the ROC curve of the emotion's reading, its "
        "dialogues against all others, both directions averaged. `Other` probes are "
        "fitted and tested at the answers of who feels nothing. Cosines are means over "
        "emotions. Intervals: bootstrap over emotions. The paper's model: present and "
        "other nearly orthogonal, story vectors nearer to present."
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tested:
    """Probes with the test dialogues that they read."""

    probes: EmotionVectors
    cells: Mapping[str, Cell]
    layer: int

    def areas(self, pairs: Pairs, *, reader: str = "") -> Float[np.ndarray, " emotion"]:
        """Return each emotion's area, averaged over the pairs.

        `reader` reads in the place of each pair's own probes.
        """
        found = [
            areas(
                self.probes,
                self.cells[cell].values,
                self.cells[cell].labels,
                labels=self.probes.emotions,
                reader=reader or probe,
                layer=self.layer,
            )
            for probe, cell in pairs
        ]
        return np.mean([list(each.values()) for each in found], axis=0)

    def cosines(self, one: str, other: str) -> Float[np.ndarray, " emotion"]:
        """Return the cosine of two cells' probes for each emotion."""
        first, second = (
            self.probes.unit_directions(layer=self.layer, reader=name)
            for name in (one, other)
        )
        return (first * second).sum(-1).double().numpy()


def speakers(subject: Subject) -> Check:
    """Return whether probes of the present speaker carry over from one to the other."""
    vectors = subject.vectors
    if not subject.corpus.has("dialogues"):
        return replace(BLANK, not_run="the corpus has no dialogues")
    fit, test = (_read(subject, split) for split in ("fit", "test"))
    emotions = _emotions(fit, test)
    if len(emotions) < FEWEST:
        said = (
            f"{len(emotions)} emotions have {TEXTS} dialogues to fit on and one to "
            f"test on for each speaker, {FEWEST} are needed"
        )
        return replace(BLANK, not_run=said)
    layer = subject.layer_of.get(MEAN_DIFFERENCE, vectors.layers[-1])
    found, shuffled, embedded = _fits(subject, fit, test, emotions, layer)
    figures = [
        _area(name, pairs, found, shuffled, embedded) for name, pairs in AREAS.items()
    ]
    cosines = [_cosine(name, pair, found, shuffled) for name, pair in COSINES.items()]
    counts = {name: sum(e in emotions for e in fit[name].labels) for name in CELLS}
    tests = {name: sum(e in emotions for e in test[name].labels) for name in CELLS}
    return replace(
        BLANK,
        headline=figures[0],
        threshold=THRESHOLD,
        figures=(*figures, *cosines, *_to_stories(vectors, found)),
        notes=(
            f"{counts[PRESENT_USER]} dialogues with the user's emotion and "
            f"{counts[PRESENT_ASSISTANT]} with the assistant's to fit on, "
            f"{tests[PRESENT_USER]} and {tests[PRESENT_ASSISTANT]} to test on, over "
            f"{len(emotions)} emotions: thin.",
            *_faint(cosines),
        ),
    )


def _read(subject: Subject, split: str) -> dict[str, Cell]:
    how: Any = {"split": split, "quiet": subject.quiet, "store": subject.store}
    layers = subject.vectors.layers
    return read_cells(subject.model, subject.tokenizer, subject.corpus, layers, **how)


def _emotions(fit: Mapping[str, Cell], test: Mapping[str, Cell]) -> list[str]:
    """Return the emotions with dialogues enough in every cell, to fit and to test."""
    counts = [Counter(cell.labels) for cell in fit.values()]
    return [
        emotion
        for emotion in counts[0]
        if all(count[emotion] >= TEXTS for count in counts)
        and all(emotion in cell.labels for cell in test.values())
    ]


def _fits(
    subject: Subject,
    fit: Mapping[str, Cell],
    test: Mapping[str, Cell],
    emotions: Sequence[str],
    layer: int,
) -> tuple[Tested, Tested, Tested]:
    """Return the probes, the shuffled ones, and those of the words alone."""
    layers = subject.vectors.layers
    how: Any = {"emotions": emotions, "layers": layers, "neutral": subject.neutral}
    dealt = {
        # Each cell by itself: dealt out alike, two cells would still agree.
        name: _dealt_anew(cell, emotions, f"{subject.seed}/{name}")
        for name, cell in fit.items()
    }
    words = [
        {name: _embedded(subject, cell) for name, cell in cells.items()}
        for cells in (fit, test)
    ]
    # Embeddings have no neutral components of their own here: only words are told.
    none = next(iter(words[0].values())).values[:0, 0]
    bare: Any = {**how, "layers": (0,), "neutral": [none]}
    return (
        Tested(probes=probes_of(fit, **how), cells=test, layer=layer),
        Tested(probes=probes_of(dealt, **how), cells=test, layer=layer),
        Tested(probes=probes_of(words[0], **bare), cells=words[1], layer=0),
    )


def _dealt_anew(cell: Cell, emotions: Sequence[str], seed: str) -> Cell:
    """Return a cell whose emotions' names are dealt out anew."""
    rows = [i for i, label in enumerate(cell.labels) if label in emotions]
    labels = [cell.labels[i] for i in rows]
    random.Random(seed).shuffle(labels)
    words = tuple(cell.words[i] for i in rows)
    return Cell(values=cell.values[rows], words=words, labels=tuple(labels))


def _embedded(subject: Subject, cell: Cell) -> Cell:
    """Return a cell as mean input embeddings, as if they were layer 0."""
    means: Tensor = over_turns(subject.embeddings(cell.words), cell.words)
    return replace(cell, values=means.unsqueeze(1))


def _area(
    name: str, pairs: Pairs, found: Tested, shuffled: Tested, embedded: Tested
) -> Figure:
    return mean_figure(
        name,
        found.areas(pairs),
        controls={
            "chance": 0.5,
            "random": float(found.areas(pairs, reader=RANDOM).mean()),
            "shuffled": float(shuffled.areas(pairs).mean()),
            "embedding": float(embedded.areas(pairs).mean()),
        },
        reader="other" if pairs is OTHER_ACROSS else "present",
        layer=found.layer,
        count=sum(len(found.cells[cell].labels) for _, cell in pairs),
    )


def _cosine(
    name: str, pair: tuple[str, str], found: Tested, shuffled: Tested
) -> Figure:
    return mean_figure(
        f"cosine of {name}",
        found.cosines(*pair),
        controls={
            "chance": 0.0,
            "shuffled": float(shuffled.cosines(*pair).mean()),
        },
        reader="",
        layer=found.layer,
        count=len(found.probes.emotions),
    )


def _faint(cosines: Sequence[Figure]) -> tuple[str, ...]:
    """Return a warning where probes of one thing do not even agree with each other."""
    agreeing, others = cosines[0].value, cosines[1].value
    if min(agreeing, others) >= FAINT:
        return ()
    which = "other" if others < agreeing else "present"
    value = min(agreeing, others)
    return (
        f"The two {which!r} probes have a cosine of {value:.2f} with each other, so "
        "they are nearly all noise: that present and other have one near 0 says "
        "nothing here.",
    )


def _to_stories(vectors: EmotionVectors, found: Tested) -> list[Figure]:
    """Return how near each cell is to the story vectors of the same emotions."""
    shared = [e for e in found.probes.emotions if e in vectors.emotions]
    if len(shared) < FEWEST or MEAN_DIFFERENCE not in vectors.readers:
        return []
    stories = vectors.subset(shared).unit_directions(
        layer=found.layer, reader=MEAN_DIFFERENCE
    )
    part = found.probes.subset(shared)
    figures = []
    for cell in CELLS:
        units = part.unit_directions(layer=found.layer, reader=cell)
        cosines = (units @ stories.T).double()
        # With the other emotions' story vectors, for comparison.
        off = float(
            (cosines.sum() - cosines.trace()) / (len(shared) ** 2 - len(shared))
        )
        figures.append(
            mean_figure(
                f"cosine of stories and {cell}",
                cosines.diagonal().numpy(),
                controls={"chance": 0.0, "shuffled": off},
                reader=cell,
                layer=found.layer,
                count=len(shared),
            )
        )
    return figures
