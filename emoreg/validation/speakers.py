"""Speakers: is an emotion read as its owner's, whoever that is?"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from emoreg.validation.areas import areas
from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import mean_figure
from emoreg.validation.subject import Subject
from emoreg.vectors.dialogues import OWN, over_turns, words_of
from emoreg.vectors.emotion_vectors import MEAN_DIFFERENCE, EmotionVectors
from emoreg.vectors.random_directions import random_directions
from emoreg.vectors.speakers import (
    CELLS,
    OTHER_ASSISTANT,
    OTHER_USER,
    PRESENT_ASSISTANT,
    PRESENT_USER,
    speaker_probes,
)

NAME, THRESHOLD, FEWEST = "speakers", 0.7, 5
CROSSED = ((PRESENT_USER, "assistant"), (PRESENT_ASSISTANT, "user"))
"""Probes of one speaker's own words, tested on the other's own words."""
PAIRS = {
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
        "the other speaker's (test split); area under the ROC curve of the emotion's "
        "reading, its dialogues against all others. Interval: bootstrap over emotions. "
        "Cosines are means over emotions, at the layer that stories chose."
    ),
)


def speakers(subject: Subject) -> Check:
    """Return whether probes of the present speaker carry over from one to the other."""
    vectors = subject.vectors
    if not subject.corpus.has("dialogues"):
        return replace(BLANK, not_run="the corpus has no dialogues")
    probes = speaker_probes(
        subject.model,
        subject.tokenizer,
        subject.corpus,
        layers=vectors.layers,
        quiet=subject.quiet,
        store=subject.store,
    )
    if len(probes.emotions) < FEWEST:
        return replace(BLANK, not_run=f"fewer than {FEWEST} emotions have dialogues")
    layer = subject.layer_of.get(MEAN_DIFFERENCE, vectors.layers[-1])
    crossed, controls = [], []
    for probe, speaker in CROSSED:
        values, own = _own_words(subject, speaker)
        crossed.append(_areas(probes, values, own, probe, layer))
        rolled = replace(probes, directions=probes.directions.roll(1, dims=2))
        controls.append(_areas(rolled, values, own, probe, layer).mean())
    headline = mean_figure(
        "area across speakers, present probes",
        np.mean(crossed, axis=0),
        controls={"chance": 0.5, "shuffled": float(np.mean(controls))},
        reader="present",
        layer=layer,
        count=sum(probes.provenance["texts"].values()) // 4,
    )
    texts = probes.provenance["texts"]
    return replace(
        BLANK,
        headline=headline,
        threshold=THRESHOLD,
        figures=(
            headline,
            *_cosines(probes, layer),
            *_to_stories(vectors, probes, layer),
        ),
        notes=(
            f"{texts[PRESENT_USER]} dialogues with the user's emotion and "
            f"{texts[PRESENT_ASSISTANT]} with the assistant's to fit on, over "
            f"{len(probes.emotions)} emotions: thin, and noise draws cosines to 0.",
        ),
    )


def _own_words(subject: Subject, speaker: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return test dialogues at the words of `speaker`, whose emotion it is."""
    rows = [
        row
        for row in subject.corpus.records("dialogues", split="test")
        if row["speaker"] == speaker
    ]
    passages = words_of(subject.tokenizer, rows, OWN)
    means = subject.means(passages, description=f"Reading {speaker}s")
    return over_turns(means, passages), tuple(row["emotion"] for row in rows)


def _areas(
    probes: EmotionVectors,
    values: Tensor,
    own: tuple[str, ...],
    probe: str,
    layer: int,
) -> np.ndarray:
    labels = [e for e in probes.emotions if e in own]
    found = areas(probes, values, own, labels=labels, reader=probe, layer=layer)
    return np.array(list(found.values()))


def _cosines(probes: EmotionVectors, layer: int) -> list[Figure]:
    units = {c: probes.unit_directions(layer=layer, reader=c) for c in CELLS}
    drawn = random_directions(probes.d_model, layer, probes.emotions)
    return [
        Figure(
            name=f"cosine of {what}",
            value=float((units[one] * units[other]).sum(-1).mean()),
            controls={"random": float((units[one] * drawn).sum(-1).mean())},
            count=len(probes.emotions),
            layer=layer,
        )
        for what, (one, other) in PAIRS.items()
    ]


def _to_stories(
    vectors: EmotionVectors, probes: EmotionVectors, layer: int
) -> list[Figure]:
    """Return how near each cell is to the story vectors of the same emotions."""
    shared = [e for e in probes.emotions if e in vectors.emotions]
    if not shared or MEAN_DIFFERENCE not in vectors.readers:
        return []
    stories = vectors.subset(shared).unit_directions(
        layer=layer, reader=MEAN_DIFFERENCE
    )
    part = probes.subset(shared)
    return [
        Figure(
            name=f"cosine of stories and {cell}",
            value=float(
                (part.unit_directions(layer=layer, reader=cell) * stories)
                .sum(-1)
                .mean()
            ),
            controls={"chance": 0.0},
            count=len(shared),
            layer=layer,
        )
        for cell in CELLS
    ]
