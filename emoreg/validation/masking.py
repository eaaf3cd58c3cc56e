"""Masking: where one emotion is felt and another shown, which one is read?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from emoreg.validation.areas import areas
from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import mean_figure
from emoreg.validation.subject import Subject
from emoreg.vectors.deflection import deflection_vectors
from emoreg.vectors.emotion_vectors import LDA, MEAN_DIFFERENCE, EmotionVectors
from emoreg.vectors.pooled import text_passage

NAME, THRESHOLD, FEWEST = "masking", 0.7, 5
FELT = "area of what is felt, by deflection vectors"

BLANK = Check(
    name=NAME,
    question="Do deflection vectors say what is felt where something else is shown?",
    method=(
        "Masked texts, test split, tokens from the 50th on; area under the ROC curve "
        "of the felt emotion's reading, its texts against all others. Deflection "
        "vectors are fitted on the fit split, without the space of the story vectors, "
        "at the layer that stories chose. Interval: bootstrap over emotions."
    ),
)


def masking(subject: Subject) -> Check:
    """Return what story readers and deflection vectors make of masked texts."""
    vectors = subject.vectors
    if MEAN_DIFFERENCE not in vectors.readers or not subject.corpus.has("masked"):
        return replace(BLANK, not_run="there are no story vectors or masked texts")
    rows = subject.corpus.records("masked", split="test")
    deflection = deflection_vectors(
        subject.model,
        subject.tokenizer,
        subject.corpus,
        vectors,
        quiet=subject.quiet,
        store=subject.store,
    )
    felt = tuple(row["felt"] for row in rows)
    labels = sorted({*felt} & {*deflection.emotions})
    if len(labels) < FEWEST:
        said = f"{len(labels)} emotions have masked texts, {FEWEST} are needed"
        return replace(BLANK, not_run=said)
    passages = [text_passage(subject.tokenizer, r["text"], r["id"]) for r in rows]
    values = subject.means(passages, description="Reading masked texts")
    layer = subject.layer_of[MEAN_DIFFERENCE]
    own = _area(deflection, values, felt, labels, MEAN_DIFFERENCE, layer)
    # Each emotion with its neighbour's vector.
    shuffled = replace(deflection, directions=deflection.directions.roll(1, dims=2))
    controls = {
        "chance": 0.5,
        "shuffled": float(
            _area(shuffled, values, felt, labels, MEAN_DIFFERENCE, layer).mean()
        ),
    }
    headline = mean_figure(
        FELT,
        own,
        controls=controls,
        reader=MEAN_DIFFERENCE,
        layer=layer,
        count=len(rows),
    )
    shown = tuple(row["shown"] for row in rows)
    return replace(
        BLANK,
        headline=headline,
        threshold=THRESHOLD,
        figures=(
            headline,
            *_by_stories(subject, values, "felt", felt),
            *_by_stories(subject, values, "shown", shown),
            *_apart(deflection, layer),
        ),
        notes=(
            f"{sum(deflection.provenance['texts'].values())} texts to fit on, "
            f"{len(rows)} to test on: thin. The story space had rank "
            f"{deflection.provenance['story_rank'][vectors.layer_index(layer)]} of "
            f"{vectors.d_model}; neutral components were not taken out beside it.",
        ),
    )


def _area(
    vectors: EmotionVectors,
    values: Tensor,
    own: Sequence[str],
    labels: Sequence[str],
    reader: str,
    layer: int,
) -> np.ndarray:
    found = areas(vectors, values, own, labels=labels, reader=reader, layer=layer)
    return np.array(list(found.values()))


def _by_stories(
    subject: Subject, values: Tensor, what: str, own: Sequence[str]
) -> list[Figure]:
    """Return the story readers' areas, for what is felt or for what is shown."""
    vectors = subject.vectors
    labels = sorted({label for label in own if label in vectors.emotions})
    if len(labels) < FEWEST:
        return []
    figures = []
    for reader in sorted(vectors.readers, key=lambda name: name != LDA):
        layer = subject.layer_of[reader]
        found = _area(vectors, values, own, labels, reader, layer)
        figures.append(
            mean_figure(
                f"area of what is {what}, by story readers",
                found,
                controls={"chance": 0.5},
                reader=reader,
                layer=layer,
                count=len(own),
            )
        )
    return figures


def _apart(deflection: EmotionVectors, layer: int) -> tuple[Figure, ...]:
    """Return how much of the deflection vectors was no story vector."""
    row = deflection.layer_index(layer)
    share = float(deflection.provenance["norm_left"][row])
    return (
        Figure(
            name="share of the norm outside the story space",
            value=share,
            count=len(deflection.emotions),
            layer=layer,
        ),
    )
