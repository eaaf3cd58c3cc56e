"""Masking: where one emotion is felt and another shown, which one is read?"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.validation.areas import areas
from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import mean_figure
from emoreg.validation.ranks import Ranked, rank_figures, standing_out
from emoreg.validation.subject import Subject
from emoreg.vectors.deflection import (
    By,
    MaskedTexts,
    read_masked,
    story_space,
    without_stories,
)
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.mean_differences import FEWEST as TEXTS
from emoreg.vectors.mean_differences import mean_vectors
from emoreg.vectors.pooled import text_passage
from emoreg.vectors.reader_names import LDA, MEAN_DIFFERENCE, RANDOM

NAME, THRESHOLD, FEWEST = "masking", 0.7, 5
DEFLECTION = "deflection"
AREA = "area of what is {}, by {}"

BLANK = Check(
    name=NAME,
    question="Do deflection vectors say what is felt where something else is shown?",
    method=(
        "Masked texts, test split, tokens from the 50th on; area under the ROC curve "
        "of the felt emotion's reading, its texts against all others. Deflection "
        "vectors are fitted on the fit split, without neutral components and without "
        "the space of the story vectors, at the layer that stories chose. Ranks and "
        "comparisons use readings standardized over the texts. Intervals: bootstrap "
        "over emotions. The paper's model: cosines with story vectors near 0, 80 % of "
        "the norm outside their space."
    ),
)

Texts = tuple[Tensor, Sequence[str]]
"""Activations (text, layer, d_model), and the emotion of each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fits:
    """Vectors of what is felt or shown, with directions that mean nothing."""

    whole: EmotionVectors
    """With the story space in them."""
    left: EmotionVectors
    shuffled: EmotionVectors
    """As `left`, the emotions' names dealt out anew."""
    embedded: EmotionVectors
    """As `whole`, of mean input embeddings, as if they were layer 0."""


def masking(subject: Subject) -> Check:
    """Return what story readers and deflection vectors make of masked texts."""
    vectors, corpus = subject.vectors, subject.corpus
    if MEAN_DIFFERENCE not in vectors.readers or not corpus.has("masked"):
        return replace(BLANK, not_run="there are no story vectors or no masked texts")
    counts = {
        split: Counter(row["felt"] for row in corpus.records("masked", split=split))
        for split in ("fit", "test")
    }
    labels = [e for e in counts["test"] if counts["fit"][e] >= TEXTS]
    if len(labels) < FEWEST:
        said = f"{len(labels)} emotions have masked texts, {FEWEST} are needed"
        return replace(BLANK, not_run=said)
    neutral = subject.neutral
    ranks = [len(base) for base in story_space(vectors)]
    taken = max(a + len(b) for a, b in zip(ranks, neutral, strict=True))
    if taken >= vectors.d_model:
        said = (
            f"story vectors and neutral components fill {taken} of the stream's "
            f"{vectors.d_model} dimensions, so that nothing is left"
        )
        return replace(BLANK, not_run=said)
    return _checked(subject, neutral)


def _checked(subject: Subject, neutral: list[Tensor]) -> Check:
    vectors = subject.vectors
    layer = subject.layer_of[MEAN_DIFFERENCE]
    sets = {split: _read(subject, split) for split in ("fit", "test")}
    words = {split: _words(subject, split) for split in ("fit", "test")}
    test, read = sets["test"], words["test"].unsqueeze(1)
    felt, shown = (
        _fits(subject, sets["fit"], words["fit"], neutral, by)
        for by in ("felt", "shown")
    )
    figures = [
        _area(felt.left, felt, test, read, "felt", DEFLECTION + " vectors", layer),
        _area(felt.whole, felt, test, read, "felt", "vectors before that", layer),
        _area(shown.left, shown, test, read, "shown", "vectors of it", layer),
        *_ranks(felt, test, layer),
        *_by_stories(subject, test),
        *_apart(vectors, felt, neutral, layer),
    ]
    rank = felt.left.provenance["story_rank"][vectors.layer_index(layer)]
    removed = len(neutral[vectors.layer_index(layer)])
    return replace(
        BLANK,
        headline=figures[0],
        threshold=THRESHOLD,
        figures=tuple(figures),
        notes=(
            f"{len(sets['fit'].felt)} texts to fit on, {len(test.felt)} to test on, "
            f"over {len(felt.left.emotions)} emotions: thin.",
            f"At layer {layer} the space of {len(vectors.emotions)} story vectors has "
            f"rank {rank} and the neutral components {removed}, of {vectors.d_model}: "
            "the larger the share, the less is left of any direction. `chance` beside "
            "the norm is what a random one keeps.",
            "`before that`: without neutral components, the story space still in. What "
            "is read by those and not by deflection vectors lies among what stories "
            "teach.",
        ),
    )


def _read(subject: Subject, split: str) -> MaskedTexts:
    how: Any = {"split": split, "quiet": subject.quiet, "store": subject.store}
    layers = subject.vectors.layers
    return read_masked(subject.model, subject.tokenizer, subject.corpus, layers, **how)


def _words(subject: Subject, split: str) -> Float[Tensor, "text d_model"]:
    rows = subject.corpus.records("masked", split=split)
    passages = [text_passage(subject.tokenizer, r["text"], r["id"]) for r in rows]
    return subject.embeddings(passages)


def _fits(
    subject: Subject, texts: MaskedTexts, words: Tensor, neutral: list[Tensor], by: By
) -> Fits:
    labels = texts.labels(by)
    counts = Counter(labels)
    dealt = list(labels)
    random.Random(subject.seed).shuffle(dealt)
    how: Any = {
        "emotions": [e for e, count in counts.items() if count >= TEXTS],
        "layers": subject.vectors.layers,
        "neutral": neutral,
    }
    whole = mean_vectors(texts.values, labels, **how)
    shuffled = mean_vectors(texts.values, dealt, **how)
    # Embeddings have no neutral components of their own here: only words are told.
    bare: Any = {**how, "layers": (0,), "neutral": [words[:0]]}
    embedded = mean_vectors(words.unsqueeze(1), labels, **bare)
    return Fits(
        whole=whole,
        left=without_stories(whole, subject.vectors),
        shuffled=without_stories(shuffled, subject.vectors),
        embedded=embedded,
    )


def _area(
    vectors: EmotionVectors,
    fits: Fits,
    test: MaskedTexts,
    words: Tensor,
    by: By,
    whose: str,
    layer: int,
) -> Figure:
    """Return the mean area beside its controls."""
    own = test.labels(by)
    labels = sorted({*own} & {*vectors.emotions})

    def found(which: EmotionVectors, x: Tensor, reader: str, at: int) -> np.ndarray:
        each = areas(which, x, own, labels=labels, reader=reader, layer=at)
        return np.array(list(each.values()))

    x = test.values
    return mean_figure(
        AREA.format(by, whose),
        found(vectors, x, MEAN_DIFFERENCE, layer),
        controls={
            "chance": 0.5,
            "random": float(found(vectors, x, RANDOM, layer).mean()),
            "shuffled": float(found(fits.shuffled, x, MEAN_DIFFERENCE, layer).mean()),
            "embedding": float(found(fits.embedded, words, MEAN_DIFFERENCE, 0).mean()),
        },
        reader=DEFLECTION,
        layer=layer,
        count=len(own),
    )


def _ranked(
    vectors: EmotionVectors,
    texts: Texts,
    names: Sequence[str],
    reader: str,
    layer: int,
) -> Ranked:
    values, own = texts
    kept = [i for i, name in enumerate(own) if name in names]
    at, columns = vectors.layer_index(layer), vectors.emotion_indices(names)
    scores = standing_out(vectors, values[:, at], columns, reader, layer)[kept]
    return Ranked.of(scores, [list(names).index(own[i]) for i in kept])


def _ranks(fits: Fits, test: MaskedTexts, layer: int) -> list[Figure]:
    """Return how high deflection vectors rank what is felt."""
    names, texts = fits.left.emotions, (test.values, test.felt)
    controls: Mapping[str, tuple[EmotionVectors, str]] = {
        "random": (fits.left, RANDOM),
        "shuffled": (fits.shuffled, MEAN_DIFFERENCE),
    }
    return rank_figures(
        _ranked(fits.left, texts, names, MEAN_DIFFERENCE, layer),
        controls={
            name: _ranked(vectors, texts, names, reader, layer)
            for name, (vectors, reader) in controls.items()
        },
        reader=DEFLECTION,
        layer=layer,
        suffix=f" of what is felt, among {len(names)}",
    )


def _by_stories(subject: Subject, test: MaskedTexts) -> list[Figure]:
    """Return what the story readers make of what is felt, and of what is shown."""
    vectors = subject.vectors
    known = {
        by: sorted({*test.labels(by)} & {*vectors.emotions}) for by in ("felt", "shown")
    }
    if any(len(names) < FEWEST for names in known.values()):
        return []
    both = sorted({*known["felt"], *known["shown"]})
    figures = []
    for reader in sorted(vectors.readers, key=lambda name: name != LDA):
        layer = subject.layer_of[reader]
        for by, names in known.items():
            own = test.felt if by == "felt" else test.shown
            read, drawn = (
                areas(vectors, test.values, own, labels=names, reader=r, layer=layer)
                for r in (reader, RANDOM)
            )
            figures.append(
                mean_figure(
                    AREA.format(by, "story readers"),
                    np.array(list(read.values())),
                    controls={
                        "chance": 0.5,
                        "random": float(np.mean(list(drawn.values()))),
                    },
                    reader=reader,
                    layer=layer,
                    count=len(own),
                )
            )
            found, beside = (
                _ranked(vectors, (test.values, own), both, r, layer)
                for r in (reader, RANDOM)
            )
            figures += rank_figures(
                found,
                controls={"random": beside},
                reader=reader,
                layer=layer,
                suffix=f" of what is {by}, among {len(both)}, by stories",
            )[-1:]
    return figures


def _apart(
    vectors: EmotionVectors, fits: Fits, neutral: list[Tensor], layer: int
) -> list[Figure]:
    """Return how much of the vectors is no story vector, and how near they are."""
    row = vectors.layer_index(layer)
    rank = fits.left.provenance["story_rank"][row]
    # Both kinds of vectors lie in what neutral components leave.
    room = vectors.d_model - len(neutral[row])
    figures = [
        Figure(
            name="share of the norm outside the story space",
            value=float(fits.left.provenance["norm_left"][row]),
            controls={
                "chance": float(np.sqrt(1 - rank / room)),
                "shuffled": float(fits.shuffled.provenance["norm_left"][row]),
            },
            count=len(fits.left.emotions),
            layer=layer,
        )
    ]
    shared = [e for e in fits.whole.emotions if e in vectors.emotions]
    if len(shared) < 2:
        return figures
    at: Any = {"layer": layer, "reader": MEAN_DIFFERENCE}
    stories = vectors.subset(shared).unit_directions(**at)
    cosines = fits.whole.subset(shared).unit_directions(**at) @ stories.T
    others = cosines[~torch.eye(len(shared), dtype=torch.bool)]
    figures.append(
        mean_figure(
            "cosine with the story vector, before that",
            cosines.diagonal().double().numpy(),
            controls={"shuffled": float(others.mean())},
            reader=DEFLECTION,
            layer=layer,
            count=len(shared),
        )
    )
    return figures
