"""Implicit scenarios: does an emotion that nobody names show at the decision token?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from emoreg.residual.pooling import Passage
from emoreg.validation.check import Check, Curves, Figure, Matrix
from emoreg.validation.ranks import Ranked, named, rank_figures, standing_out
from emoreg.validation.subject import Subject, stand_in
from emoreg.vectors.emotion_vectors import EmotionVectors

NAME = "implicit scenarios"
FACTOR, CEILING = 4.0, 0.5
"""Top-1 must be four times chance, or one half if that is less."""


BLANK = Check(
    name=NAME,
    question="Does an emotion that a situation implies show before the answer?",
    method=(
        "First-person situations that name no emotion, read at the decision token; "
        "each emotion's readings standardized over the situations, then the emotion "
        "that stands out most. Reader and layer chosen on dev, measured on test. "
        "Intervals: bootstrap over emotions."
    ),
)


def implicit_scenarios(subject: Subject) -> Check:
    """Return how often the implied emotion is the one that stands out, on `test`.

    Reader and layer are chosen on `dev`.
    """
    rows = {s: subject.evaluation("scenarios", split=s) for s in ("dev", "test")}
    known = {*subject.vectors.emotions}.intersection(
        *({row["emotion"] for row in part} for part in rows.values())
    )
    if len(known) < 2:
        reason = "fewer than two of the scenarios' emotions have vectors"
        return replace(BLANK, not_run=reason)
    sets = {
        split: _read(subject, split, [row for row in part if row["emotion"] in known])
        for split, part in rows.items()
    }
    columns = _columns(subject.vectors, sets["test"][0])
    on_dev = {
        (reader, layer): float(
            (_ranked(subject.vectors, sets["dev"], columns, reader, layer).own == 1)
            .astype(float)
            .mean()
        )
        for reader in subject.vectors.readers
        for layer in subject.vectors.layers
    }
    reader, layer = max(on_dev, key=lambda at: on_dev[at])
    found = _ranked(subject.vectors, sets["test"], columns, reader, layer)
    figures = _figures(subject, sets["test"], columns, on_dev)
    names = [subject.vectors.emotions[c] for c in columns]
    held = named(found, seed=subject.seed)
    return replace(
        BLANK,
        headline=figures[0],
        threshold=min(CEILING, FACTOR / len(names)),
        figures=figures,
        emotions={names[column]: holds for column, holds in held.items()},
        layers={i: on_dev[reader, i] for i in subject.vectors.layers},
        pictures=(
            _picture(subject.vectors, sets["test"], columns, reader, layer),
            Curves(
                title="Top-1 on dev by layer",
                x_title="layer",
                y_title="share of scenarios",
                x=tuple(float(i) for i in subject.vectors.layers),
                series={
                    name: tuple(on_dev[name, i] for i in subject.vectors.layers)
                    for name in subject.vectors.readers
                },
            ),
        ),
    )


Texts = tuple[tuple[str, ...], Tensor, Tensor]
"""Labels, activations (text, layer, d_model), mean embeddings of the user's words."""


def _read(subject: Subject, split: str, rows: Sequence[Mapping[str, Any]]) -> Texts:
    prompts = [subject.prompt(row["text"]) for row in rows]
    values = subject.means(prompts, description=f"Reading scenarios ({split})")
    words = [_whole(subject.tokenizer(row["text"])["input_ids"]) for row in rows]
    labels = tuple(row["emotion"] for row in rows)
    return labels, values, subject.embeddings(words)


def _whole(ids: Sequence[int]) -> Passage:
    return Passage(ids=tuple(ids), spans=((0, len(ids)),))


def _columns(vectors: EmotionVectors, labels: Sequence[str]) -> list[int]:
    return list(vectors.emotion_indices(list(dict.fromkeys(labels))))


def _ranked(
    vectors: EmotionVectors,
    texts: Texts,
    columns: Sequence[int],
    reader: str,
    layer: int,
) -> Ranked:
    labels, values, _ = texts
    column = vectors.layer_index(layer)
    scores = standing_out(vectors, values[:, column], columns, reader, layer)
    names = [vectors.emotions[c] for c in columns]
    return Ranked.of(scores, [names.index(label) for label in labels])


def _figures(
    subject: Subject,
    texts: Texts,
    columns: Sequence[int],
    on_dev: Mapping[tuple[str, int], float],
) -> tuple[Figure, ...]:
    """Return each reader's figures at the layer that was best on dev, best first."""
    vectors = subject.vectors
    labels, _, words = texts
    embedded = subject.embedded.subset(vectors.emotions)
    names = [vectors.emotions[c] for c in columns]
    truth = [names.index(label) for label in labels]
    figures: list[Figure] = []
    best = {
        reader: max(vectors.layers, key=lambda i: on_dev[reader, i])
        for reader in vectors.readers
    }
    for reader in sorted(best, key=lambda name: -on_dev[name, best[name]]):
        layer = best[reader]
        beside = {
            name: _ranked(control, texts, columns, by, layer)
            for name, control, by in subject.controls_for(reader)
        }
        by = stand_in(reader, embedded)
        scores = standing_out(embedded, words, columns, by, 0)
        beside["embedding"] = Ranked.of(scores, truth)
        found = _ranked(vectors, texts, columns, reader, layer)
        figures += rank_figures(
            found, controls=beside, reader=reader, layer=layer, suffix=""
        )
    return tuple(figures)


def _picture(
    vectors: EmotionVectors,
    texts: Texts,
    columns: Sequence[int],
    reader: str,
    layer: int,
) -> Matrix:
    labels, values, _ = texts
    at = vectors.layer_index(layer)
    scores = standing_out(vectors, values[:, at], columns, reader, layer)
    names = tuple(vectors.emotions[c] for c in columns)
    means = [scores[[label == name for label in labels]].mean(0) for name in names]
    title = f"Readings ({reader}, layer {layer}) by implied emotion, in spreads"
    return Matrix(title=title, rows=names, columns=names, values=np.stack(means))
