"""The area under the ROC curve: does a text of an emotion read higher than others?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import mannwhitneyu
from torch import Tensor

from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import emotion_figures, mean_figure
from emoreg.validation.subject import Subject, stand_in
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA

AREA = "mean area under the ROC curve"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Texts:
    """Texts with the emotion of each, as activations and as words alone."""

    values: Float[Tensor, "text layer d_model"]
    words: Float[Tensor, "text d_model"]
    """Mean input embeddings."""
    own: tuple[str, ...]
    """Each text's emotion; one that is no label's counts as another text."""


def area(readings: Float[np.ndarray, " text"], label: str, own: Sequence[str]) -> float:
    """Return P(a text of `label` reads higher than another), ties by half."""
    inside = np.array([name == label for name in own])
    found: Any = mannwhitneyu(readings[inside], readings[~inside])
    return float(found.statistic) / float(inside.sum() * (~inside).sum())


def areas(
    vectors: EmotionVectors,
    values: Float[Tensor, "text layer d_model"],
    own: Sequence[str],
    *,
    labels: Sequence[str],
    reader: str,
    layer: int,
) -> dict[str, float]:
    """Return the area of each of `labels` that the reader knows."""
    at = values[:, vectors.layer_index(layer)]
    read = vectors.project(at, layer=layer, reader=reader).numpy()
    columns = dict(zip(labels, vectors.emotion_indices(labels), strict=True))
    return {
        label: area(read[:, column], label, own)
        for label, column in columns.items()
        if not np.isnan(read[:, column]).any()
    }


def judged_by_area(
    blank: Check,
    subject: Subject,
    texts: Texts,
    *,
    labels: Sequence[str],
    threshold: float,
    enough: int,
) -> Check:
    """Return `blank` with the areas of every reader and what they say of emotions.

    The first figure, that of LDA where the vectors have it, is the headline; the
    audit's own readers come last.

    Args:
        blank: The check's name, question and method.
        subject: Whose vectors.
        texts: Activations with the emotion of each.
        labels: Emotions that are judged.
        threshold: What the mean area must reach, and an emotion's own.
        enough: An emotion of fewer texts is judged by none.
    """
    vectors, own = subject.vectors, texts.own
    figures = _of_readers(subject, texts, labels)
    reader, layer = figures[0].reader, subject.layer_of[figures[0].reader]

    def at(place: int) -> dict[str, float]:
        return areas(
            vectors, texts.values, own, labels=labels, reader=reader, layer=place
        )

    each = at(layer)
    return replace(
        blank,
        headline=figures[0],
        threshold=threshold,
        figures=(
            *figures,
            *emotion_figures(
                "area under the ROC curve",
                each,
                reader=reader,
                layer=layer,
                chance=0.5,
                counts={label: own.count(label) for label in each},
            ),
        ),
        emotions={e: a >= threshold for e, a in each.items() if own.count(e) >= enough},
        layers={i: _mean(at(i)) for i in vectors.layers},
    )


def _of_readers(subject: Subject, texts: Texts, labels: Sequence[str]) -> list[Figure]:
    """Return each reader's mean area: LDA first, the audit's own readers last."""
    readers = sorted(subject.vectors.readers, key=lambda name: name != LDA)
    places = [(name, subject.layer_of[name]) for name in readers]
    figures = []
    for name, layer in (*places, *subject.audit_places):
        found = areas(
            subject.vectors,
            texts.values,
            texts.own,
            labels=labels,
            reader=name,
            layer=layer,
        )
        if found:
            controls = _controls(subject, texts, labels, name, layer)
            figures.append(
                mean_figure(
                    AREA,
                    np.array(list(found.values())),
                    controls=controls,
                    reader=name,
                    layer=layer,
                    count=len(texts.own),
                )
            )
    return figures


def _controls(
    subject: Subject, texts: Texts, labels: Sequence[str], reader: str, layer: int
) -> dict[str, float]:
    """Return the mean areas of directions that mean nothing, and of the words alone."""
    embedded = subject.embedded.subset(subject.vectors.emotions)
    words = texts.words.unsqueeze(1)

    def mean(vectors: EmotionVectors, x: Tensor, by: str, layer: int) -> float:
        found = areas(vectors, x, texts.own, labels=labels, reader=by, layer=layer)
        return _mean(found)

    return {
        "chance": 0.5,
        **{
            name: mean(control, texts.values, by, layer)
            for name, control, by in subject.controls_for(reader)
        },
        "embedding": mean(embedded, words, stand_in(reader, embedded), 0),
    }


def _mean(found: Mapping[str, float]) -> float:
    return float(np.mean(list(found.values())))
