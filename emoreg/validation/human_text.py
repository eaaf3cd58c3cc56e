"""Human-written text: do readers fitted on made-up stories carry over?"""

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import mannwhitneyu, pearsonr
from torch import Tensor

from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import emotion_figures, mean_figure
from emoreg.validation.subject import Subject
from emoreg.vectors.comments import comment_passage, read_comments
from emoreg.vectors.emotion_vectors import LDA, EmotionVectors

THRESHOLD, FEWEST = 0.7, 5
PER_LABEL, OTHERS, SENTENCES, ENOUGH = 60, 300, 500, 20
NO_FOLDER = "no folder was given; pass `--{} FOLDER`"

COMMENTS = Check(
    name="human comments",
    question="Do readers fitted on stories carry over to what people write?",
    method=(
        f"GoEmotions, test split, comments of one label: at most {PER_LABEL} for each "
        f"mapped label and {OTHERS} others, drawn with the seed; mean over tokens; "
        "area under the ROC curve of the label's emotion against all other comments. "
        "Interval: bootstrap over labels. Labels of fewer than "
        f"{ENOUGH} comments judge no emotion."
    ),
)
RATED = Check(
    name="rated sentences",
    question="Do the vectors' main components follow the mood of human sentences?",
    method=(
        f"EmoBank, test split, {SENTENCES} sentences drawn with the seed; readings "
        "projected on the vectors' first four principal components; correlation with "
        "the mean ratings."
    ),
)


def human_comments(subject: Subject, folder: Path | None) -> Check:
    """Return how well readings tell comments labelled with an emotion from others.

    The area under the ROC curve of each emotion's reading, its comments against all
    others of the sample: 1/2 by chance. Mean over a comment's tokens but the first.
    """
    if folder is None:
        return replace(COMMENTS, not_run=NO_FOLDER.format("goemotions"))
    rows = read_comments(
        folder,
        "test",
        emotions=subject.vectors.emotions,
        per_emotion=PER_LABEL,
        others=OTHERS,
        seed=subject.seed,
    )
    labels = sorted({label for _, label in rows if label in subject.vectors.emotions})
    if len(labels) < FEWEST:
        reason = f"{len(labels)} of the labels have a vector, {FEWEST} are needed"
        return replace(COMMENTS, not_run=reason)
    passages = [comment_passage(subject.tokenizer, text) for text, _ in rows]
    values = subject.means(passages, description="Reading comments")
    words = subject.embeddings(passages)
    own = [label for _, label in rows]
    readers = sorted(subject.vectors.readers, key=lambda name: name != LDA)
    figures = []
    for reader in readers:
        layer = subject.layer_of[reader]
        found = _areas(subject.vectors, values, own, labels, reader, layer)
        controls = _controls(subject, values, words, own, labels, reader, layer)
        figures.append(
            mean_figure(
                "mean area under the ROC curve",
                np.array(list(found.values())),
                controls=controls,
                reader=reader,
                layer=layer,
                count=len(rows),
            )
        )
    reader, layer = readers[0], subject.layer_of[readers[0]]
    each = _areas(subject.vectors, values, own, labels, reader, layer)
    return replace(
        COMMENTS,
        headline=figures[0],
        threshold=THRESHOLD,
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
        emotions={
            emotion: area >= THRESHOLD
            for emotion, area in each.items()
            if own.count(emotion) >= ENOUGH
        },
        layers={
            i: _mean(_areas(subject.vectors, values, own, labels, reader, i))
            for i in subject.vectors.layers
        },
    )


def rated_sentences(subject: Subject, folder: Path | None) -> Check:
    """Return how the vectors' components go with rated valence and arousal.

    Nothing is claimed: the correlations are printed as they are.
    """
    if folder is None:
        return replace(RATED, not_run=NO_FOLDER.format("emobank"))
    rows = _sentences(folder, subject.seed)
    passages = [comment_passage(subject.tokenizer, row["text"]) for row in rows]
    values = subject.means(passages, description="Reading rated sentences")
    figures = []
    for reader in sorted(subject.vectors.readers, key=lambda name: name != LDA):
        layer = subject.layer_of[reader]
        units = subject.vectors.unit_directions(layer=layer, reader=reader).double()
        axes = np.linalg.svd((units - units.mean(0)).numpy(), full_matrices=False)[2]
        at = subject.vectors.layer_index(layer)
        x = values[:, at].double().numpy() @ axes[:4].T
        for place in range(x.shape[1]):
            for column, name in (("V", "valence"), ("A", "arousal")):
                rated = [float(row[column]) for row in rows]
                result: Any = pearsonr(x[:, place], rated)
                figures.append(
                    Figure(
                        name=f"|r| of component {place + 1} and {name}",
                        value=abs(float(result.statistic)),
                        controls={"chance": 0.0},
                        count=len(rows),
                        reader=reader,
                        layer=layer,
                    )
                )
    return replace(RATED, figures=tuple(figures))


def _sentences(folder: Path, seed: int) -> list[dict[str, str]]:
    path = folder / "emobank.csv"
    if not path.is_file():
        raise ValueError(f"the EmoBank folder must hold {path.name}, found none there")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    random.Random(seed).shuffle(rows)
    return rows[:SENTENCES]


def _areas(
    vectors: EmotionVectors,
    values: Tensor,
    own: Sequence[str],
    labels: Sequence[str],
    reader: str,
    layer: int,
) -> dict[str, float]:
    """Return each label's area under the ROC curve."""
    read = vectors.project(
        values[:, vectors.layer_index(layer)], layer=layer, reader=reader
    ).numpy()
    return {
        label: area(read[:, vectors.emotion_indices([label])[0]], label, own)
        for label in labels
    }


def area(readings: Float[np.ndarray, " text"], label: str, own: Sequence[str]) -> float:
    """Return P(a text of `label` reads higher than another), ties by half."""
    inside = np.array([name == label for name in own])
    found: Any = mannwhitneyu(readings[inside], readings[~inside])
    return float(found.statistic) / float(inside.sum() * (~inside).sum())


def _controls(
    subject: Subject,
    values: Tensor,
    words: Tensor,
    own: Sequence[str],
    labels: Sequence[str],
    reader: str,
    layer: int,
) -> dict[str, float]:
    random_ones, shuffled = subject.controls["random"], subject.controls["shuffled"]
    other = reader if reader in shuffled.readers else LDA
    embedded = subject.embedded.subset(subject.vectors.emotions)
    return {
        "chance": 0.5,
        "random": _mean(_areas(random_ones, values, own, labels, reader, layer)),
        "shuffled": _mean(_areas(shuffled, values, own, labels, other, layer)),
        "embedding": _mean(_areas(embedded, words.unsqueeze(1), own, labels, other, 0)),
    }


def _mean(areas: Mapping[str, float]) -> float:
    return float(np.mean(list(areas.values())))
