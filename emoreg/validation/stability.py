"""Stability: would other stories have given the same vectors?"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import emotion_figures, layer_curves, mean_figure
from emoreg.validation.held_out import ranks
from emoreg.validation.subject import Subject, fitted
from emoreg.vectors.corpus import EMOTIONS_FIT_TOPICS, EMOTIONS_TEST_TOPICS
from emoreg.vectors.emotion_vectors import LDA, MEAN_DIFFERENCE, EmotionVectors
from emoreg.vectors.pooled import StoryActivations
from emoreg.vectors.reader_fits import METHODS

NAME, HALVES = "split halves", "cosine of halves"
THRESHOLD = 0.3
SPLITS = 6
"""Splits of the eight fitting topics into halves, spread over the 35 there are."""
SIZES = (2, 4, 8)
HOLDS = 0.2
"""The cosine of halves above which an emotion holds: random directions of 576
dimensions stay within 0.08 in 95 of 100 cases."""
TOP = 3


BLANK = Check(
    name=NAME,
    question="Would other stories have given the same vectors?",
    method=(
        "Mean differences from two halves of topics "
        f"{', '.join(EMOTIONS_FIT_TOPICS)}, mean cosine over {SPLITS} splits. Half of "
        "the stories made each, so the vectors of all of them agree better. Interval: "
        f"bootstrap over emotions. An emotion holds above {HOLDS}."
    ),
)


def split_halves(subject: Subject) -> Check:
    """Return the cosine of vectors fitted on two halves of the topics.

    Mean differences, not denoised. Beside it: the same with shuffled names; how
    accuracy grows with the number of stories; and what a few coordinates carry.
    """
    fit = subject.stories.of_topics(EMOTIONS_FIT_TOPICS)
    cosines = _halves(fit)
    shuffled = _halves(_with_shuffled_names(fit, subject.seed))
    layer = subject.layer_of.get(MEAN_DIFFERENCE, fit.layers[len(fit.layers) // 2])
    order = [layer, *(i for i in fit.layers if i != layer)]
    at = {i: fit.layers.index(i) for i in fit.layers}
    figures = [
        mean_figure(
            HALVES,
            cosines[at[i]],
            controls={"chance": 0.0, "shuffled": float(shuffled[at[i]].mean())},
            reader=MEAN_DIFFERENCE,
            layer=i,
        )
        for i in order
    ]
    own = cosines[at[layer]]
    names = _names(fit)
    return replace(
        BLANK,
        headline=figures[0],
        threshold=THRESHOLD,
        figures=(
            *figures,
            *_of_readers(subject, fit),
            *_sizes(subject, fit),
            *_denoising(subject),
            *_coordinates(subject.vectors),
            *emotion_figures(
                HALVES,
                dict(zip(names, own.tolist(), strict=True)),
                reader=MEAN_DIFFERENCE,
                layer=layer,
                chance=0.0,
                counts=SPLITS,
            ),
        ),
        emotions={e: bool(c > HOLDS) for e, c in zip(names, own, strict=True)},
        layers={i: float(cosines[at[i]].mean()) for i in fit.layers},
        pictures=(
            layer_curves(
                "Cosine of halves by layer",
                "mean cosine",
                fit.layers,
                {"stories": cosines.mean(1), "shuffled names": shuffled.mean(1)},
            ),
        ),
        notes=_neutral_components(subject.vectors),
    )


def _names(stories: StoryActivations) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stories.labels))


def _differences(stories: StoryActivations) -> Float[Tensor, "layer emotion d_model"]:
    """Return unit mean differences, emotions in the order of their first story."""
    names = _names(stories)
    rows = torch.tensor([names.index(label) for label in stories.labels])
    sums = torch.zeros(len(names), *stories.values.shape[1:])
    sums.index_add_(0, rows, stories.values.float())
    means = sums / rows.bincount(minlength=len(names))[:, None, None]
    centred = (means - means.mean(0)).transpose(0, 1)
    return centred / centred.norm(dim=-1, keepdim=True)


def _halves(stories: StoryActivations) -> Float[np.ndarray, "layer emotion"]:
    """Return the mean cosine of the halves over `SPLITS` splits of the topics."""
    topics = EMOTIONS_FIT_TOPICS
    halves = list(combinations(topics, len(topics) // 2))
    halves = halves[: len(halves) // 2]  # the rest are their complements
    step = max(1, len(halves) // SPLITS)
    found = []
    for half in halves[::step][:SPLITS]:
        rest = [topic for topic in topics if topic not in half]
        one, other = (_differences(stories.of_topics(part)) for part in (half, rest))
        found.append((one * other).sum(-1))
    return torch.stack(found).mean(0).numpy()


def _with_shuffled_names(stories: StoryActivations, seed: int) -> StoryActivations:
    """Deal the names out anew within each topic, so that halves stay balanced."""
    generator = np.random.default_rng(seed)
    labels = np.array(stories.labels, dtype=object)
    topics = np.array(stories.topics, dtype=object)
    for topic in sorted(set(stories.topics)):
        rows = np.flatnonzero(topics == topic)
        labels[rows] = labels[generator.permutation(rows)]
    return replace(stories, labels=tuple(labels))


def _of_readers(subject: Subject, fit: StoryActivations) -> list[Figure]:
    """Return the same cosine of the other readers, odd topics against even ones."""
    names, figures = _names(fit), []
    halves = [fit.of_topics(EMOTIONS_FIT_TOPICS[start::2]) for start in (0, 1)]
    for reader in subject.vectors.readers:
        if reader not in METHODS:
            continue
        layer = subject.layer_of[reader]
        column = fit.layers.index(layer)
        units = []
        for half in halves:
            truth = torch.tensor([names.index(label) for label in half.labels])
            ((weight, _),) = METHODS[reader](half.values[:, column].float(), truth)
            units.append(weight / weight.norm(dim=-1, keepdim=True))
        cosines = (units[0] * units[1]).sum(-1).numpy()
        beside = {"chance": 0.0}
        at = {"controls": beside, "reader": reader, "layer": layer}
        figures.append(mean_figure(HALVES, cosines, **at))
    return figures


def _sizes(subject: Subject, fit: StoryActivations) -> list[Figure]:
    """Return held-out accuracy with fewer stories per emotion."""
    test, found = subject.stories.of_topics(EMOTIONS_TEST_TOPICS), []
    for size in SIZES:
        part = fit.of_topics(EMOTIONS_FIT_TOPICS[:size])
        vectors = fitted(part)
        for reader in (MEAN_DIFFERENCE, LDA):
            layer = subject.layer_of.get(reader, vectors.layers[0])
            own = ranks(vectors, test, reader, layer).own
            found.append(
                Figure(
                    name=f"held-out top-1 with {size} stories each",
                    value=float((own == 1).mean()),
                    controls={"chance": 1 / len(vectors.emotions)},
                    count=len(own),
                    reader=reader,
                    layer=layer,
                )
            )
    return found


def _denoising(subject: Subject) -> list[Figure]:
    """Return what removing neutral components does: cosine, accuracy without."""
    vectors = subject.vectors
    if MEAN_DIFFERENCE not in vectors.readers:
        return []
    fit = subject.stories.of_topics(EMOTIONS_FIT_TOPICS)
    test = subject.stories.of_topics(EMOTIONS_TEST_TOPICS)
    raw = fitted(fit).subset(vectors.emotions)
    layer = subject.layer_of[MEAN_DIFFERENCE]
    at = {"layer": layer, "reader": MEAN_DIFFERENCE}
    cosine = (vectors.unit_directions(**at) * raw.unit_directions(**at)).sum(-1)
    found = []
    for name, which in (("as in the file", vectors), ("raw", raw)):
        own = ranks(which, test, MEAN_DIFFERENCE, layer).own
        value = float((own == 1).mean())
        chance = {"chance": 1 / len(vectors.emotions)}
        found.append(
            Figure(name=f"held-out top-1, {name}", value=value, controls=chance, **at)
        )
    return [
        *found,
        Figure(name="cosine of denoised and raw", value=float(cosine.mean()), **at),
    ]


def _coordinates(vectors: EmotionVectors) -> list[Figure]:
    """Return the share of the squared norm in the three largest coordinates."""
    by_chance = TOP / vectors.d_model
    return [
        Figure(
            name=f"share of the squared norm in {TOP} coordinates",
            value=float(
                vectors.unit_directions(layer=layer, reader=reader)
                .square()
                .topk(TOP, dim=-1)
                .values.sum(-1)
                .mean()
            ),
            controls={"chance": by_chance},
            reader=reader,
            layer=layer,
            lower_is_better=True,
        )
        for reader in vectors.readers
        for layer in (vectors.layers[len(vectors.layers) // 2],)
    ]


def _neutral_components(vectors: EmotionVectors) -> tuple[str, ...]:
    removed = vectors.provenance.get("neutral_rank")
    if not removed:
        return ()
    pairs = zip(vectors.layers, removed, strict=True)
    said = ", ".join(f"{n} at layer {i}" for i, n in pairs)
    return (f"Neutral components removed: {said}.",)
