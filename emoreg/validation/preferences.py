"""Preferences: do readings go with what the model would rather do?"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import false_discovery_control
from scipy.stats import t as student
from torch import Tensor

from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import emotion_figures, mean_figure
from emoreg.validation.preference_shift import (
    PAIRS,
    STRENGTH,
    choices,
    shift_figures,
)
from emoreg.validation.subject import Subject
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA

NAME = "preferences"
ROUNDS, RIDGE = 8, 0.05
"""Opponents of each activity; the ridge on strengths."""
THRESHOLD = 0.3
QUESTION = "Do readings go with what the model would rather do?"


def preferences(subject: Subject) -> Check:
    """Return how readings of an activity go with how often the model chooses it.

    Strengths by Bradley and Terry's model, fitted to the probabilities of answering A
    or B in both orders, which takes the preference for a letter out; an activity's
    reading is that at the decision token when it is asked for by itself. The headline
    is the mean over emotions of the correlation's size.
    """
    texts = [row["text"] for row in subject.evaluation("activities")]
    pairs = _pairs(len(texts), subject.seed)
    asked = [(texts[i], texts[j]) for i, j in pairs]
    turned = [(other, one) for one, other in asked]
    odds = np.stack(
        [
            choices(subject, asked, bar="Asking for preferences"),
            choices(subject, turned, bar="Asking the other way round"),
        ],
        axis=1,
    )
    strengths = bradley_terry(len(texts), pairs, expit((odds[:, 0] - odds[:, 1]) / 2))
    values = subject.means(
        [subject.prompt(f"{text}.") for text in texts], description="Reading activities"
    )
    figures = [
        _figure(subject, values, strengths, reader, subject.layer_of[reader])
        for reader in sorted(subject.vectors.readers, key=lambda name: name != LDA)
    ]
    reader, layer = figures[0].reader, subject.layer_of[figures[0].reader]
    each, found = _each(subject.vectors, values, strengths, reader, layer)
    goes_with = {figure.emotion: figure.value for figure in each}
    moved = shift_figures(subject, texts, pairs, goes_with)
    steady = float(((odds[:, 0] > 0) != (odds[:, 1] > 0)).mean())
    return Check(
        name=NAME,
        question=QUESTION,
        method=(
            f"{len(pairs)} pairs of {len(texts)} activities, each in both orders; "
            "Bradley-Terry strengths from the probabilities of A and B; correlation "
            "over activities with the reading when one is asked for by itself. The "
            "mean size over emotions; interval: bootstrap over emotions. Beside it the "
            f"shift of the log-odds by steering on the activity's tokens at {STRENGTH} "
            f"of the mean norm, {PAIRS} pairs drawn with the seed, for the emotions "
            "that go most with the choices and most against them."
        ),
        headline=figures[0],
        threshold=THRESHOLD,
        figures=(*figures, _steadiness(steady, len(pairs)), *moved, *each),
        notes=(
            f"{found} of {len(subject.vectors.emotions)} emotions go with the choices "
            "(false discovery rate 5 %).",
        ),
    )


def bradley_terry(
    many: int,
    pairs: Sequence[tuple[int, int]],
    shares: Float[np.ndarray, " pair"],
) -> Float[np.ndarray, " thing"]:
    """Return strengths `s` with `P(i over j) = 1 / (1 + exp(s_j - s_i))`, mean 0.

    The maximum of the likelihood of `shares`, with a ridge that keeps a thing which
    won or lost throughout finite (Bradley and Terry 1952,
    https://doi.org/10.2307/2334029). Unlike Elo ratings in turn, it has no order.
    """
    one, other = np.array(pairs).T

    def loss(strengths: np.ndarray) -> tuple[float, np.ndarray]:
        gap = strengths[one] - strengths[other]
        cost = np.logaddexp(0, gap) - shares * gap
        slope = expit(gap) - shares
        gradient = RIDGE * strengths
        np.add.at(gradient, one, slope)
        np.add.at(gradient, other, -slope)
        return float(cost.sum() + RIDGE / 2 * (strengths**2).sum()), gradient

    found: Any = minimize(loss, np.zeros(many), jac=True, method="L-BFGS-B")
    return found.x - found.x.mean()


def _pairs(many: int, seed: int) -> list[tuple[int, int]]:
    """Return each thing with `ROUNDS` others, as rounds of a shuffled circle."""
    found, generator = set(), random.Random(seed)
    for _ in range(ROUNDS // 2):
        order = list(range(many))
        generator.shuffle(order)
        around = [*order[1:], order[0]]
        found |= {(min(p), max(p)) for p in zip(order, around, strict=True)}
    return sorted(found)


def _correlations(
    vectors: EmotionVectors,
    values: Float[Tensor, "activity layer d_model"],
    strengths: Float[np.ndarray, " activity"],
    reader: str,
    layer: int,
) -> Float[np.ndarray, " emotion"]:
    at = values[:, vectors.layer_index(layer)]
    read = vectors.project(at, layer=layer, reader=reader).double().numpy()
    x, y = read - read.mean(0), strengths - strengths.mean()
    size = np.sqrt((x * x).sum(0) * (y * y).sum())
    return (x * y[:, None]).sum(0) / np.maximum(size, 1e-12)


def _figure(
    subject: Subject,
    values: Float[Tensor, "activity layer d_model"],
    strengths: Float[np.ndarray, " activity"],
    reader: str,
    layer: int,
) -> Figure:
    own = np.abs(_correlations(subject.vectors, values, strengths, reader, layer))
    controls = {
        name: float(np.abs(_correlations(other, values, strengths, by, layer)).mean())
        for name, other, by in subject.controls_for(reader)
    }
    return mean_figure(
        "mean |r| of reading and strength",
        own,
        controls=controls,
        reader=reader,
        layer=layer,
        count=len(strengths),
    )


def _each(
    vectors: EmotionVectors,
    values: Float[Tensor, "activity layer d_model"],
    strengths: Float[np.ndarray, " activity"],
    reader: str,
    layer: int,
) -> tuple[list[Figure], int]:
    """Return each emotion's correlation, and how many are found."""
    found = _correlations(vectors, values, strengths, reader, layer)
    # Student's t of each correlation, two-sided.
    freedom = len(strengths) - 2
    t = found * np.sqrt(freedom / np.maximum(1 - found**2, 1e-12))
    adjusted = false_discovery_control(2 * student.sf(np.abs(t), freedom))
    figures = emotion_figures(
        "r of reading and strength",
        dict(zip(vectors.emotions, found.tolist(), strict=True)),
        reader=reader,
        layer=layer,
        chance=0.0,
        counts=len(strengths),
    )
    return figures, int((adjusted <= 0.05).sum())


def _steadiness(share: float, count: int) -> Figure:
    return Figure(
        name="choices that stay when the order turns",
        value=share,
        controls={"chance": 0.5},
        count=count,
    )
