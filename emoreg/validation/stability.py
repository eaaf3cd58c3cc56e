"""Stability: would other stories have given the same vectors?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import emotion_figures, layer_curves, mean_figure
from emoreg.validation.held_out import ranks
from emoreg.validation.subject import Subject, fitted
from emoreg.vectors.corpus import EMOTIONS_FIT_TOPICS, EMOTIONS_TEST_TOPICS
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.mean_differences import FEWEST
from emoreg.vectors.pooled import StoryActivations
from emoreg.vectors.reader_fits import METHODS
from emoreg.vectors.reader_names import LDA, MEAN_DIFFERENCE

NAME, HALVES = "split halves", "cosine of halves"
THRESHOLD = 0.3
SPLITS = 6
"""Splits of the eight fitting topics into halves, spread over the 35 there are."""
SIZES = (2, 4, 8)
HOLDS = 0.2
"""The cosine of halves above which an emotion holds: random directions of 576
dimensions stay within 0.08 in 95 of 100 cases."""
TOP = 3

Topics = tuple[str, ...]

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
    names = _in_all(fit, [half for split in _splits() for half in split], fewest=1)
    if len(names) < 2:
        reason = "fewer than two emotions have stories in all halves"
        return replace(BLANK, not_run=reason)
    cosines = _halves(fit, names)
    shuffled = _halves(_with_shuffled_names(fit, subject.seed), names)
    layer = subject.layer_of.get(MEAN_DIFFERENCE, fit.layers[len(fit.layers) // 2])
    figures = _of_layers(fit.layers, layer, cosines, shuffled)
    own = cosines[fit.layers.index(layer)]
    readers, sizes = _of_readers(subject, fit), _sizes(subject, fit)
    return replace(
        BLANK,
        headline=figures[0],
        threshold=THRESHOLD,
        figures=(
            *figures,
            *readers[0],
            *sizes[0],
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
        layers=dict(zip(fit.layers, cosines.mean(1).tolist(), strict=True)),
        pictures=(
            layer_curves(
                "Cosine of halves by layer",
                "mean cosine",
                fit.layers,
                {"stories": cosines.mean(1), "shuffled names": shuffled.mean(1)},
            ),
        ),
        notes=(
            *_left_out("the halves", fit, names),
            *readers[1],
            *sizes[1],
            *_neutral_components(subject.vectors),
        ),
    )


def _of_layers(
    layers: Sequence[int],
    first: int,
    cosines: Float[np.ndarray, "layer emotion"],
    shuffled: Float[np.ndarray, "layer emotion"],
) -> list[Figure]:
    """Return the mean cosine at each layer beside that of shuffled names."""
    at = {layer: row for row, layer in enumerate(layers)}
    return [
        mean_figure(
            HALVES,
            cosines[at[i]],
            controls={"chance": 0.0, "shuffled": float(shuffled[at[i]].mean())},
            reader=MEAN_DIFFERENCE,
            layer=i,
        )
        for i in (first, *(i for i in layers if i != first))
    ]


def _in_all(
    stories: StoryActivations, parts: Sequence[Topics], *, fewest: int
) -> tuple[str, ...]:
    """Return the emotions that have `fewest` stories or more on each part's topics."""
    told = list(zip(stories.labels, stories.topics, strict=True))
    counts = [Counter(e for e, topic in told if topic in part) for part in parts]
    known = dict.fromkeys(stories.labels)
    return tuple(e for e in known if all(count[e] >= fewest for count in counts))


def _left_out(
    what: str, stories: StoryActivations, names: Sequence[str]
) -> tuple[str, ...]:
    """Return a note on emotions that have stories, but too few on some topics."""
    missing = [e for e in dict.fromkeys(stories.labels) if e not in names]
    said = f"Left out of {what}, for want of stories on some topics: "
    return (f"{said}{', '.join(missing)}.",) if missing else ()


def _part(
    stories: StoryActivations, topics: Topics, names: Sequence[str]
) -> StoryActivations:
    """Return the stories of `names` on `topics`."""
    told = enumerate(zip(stories.labels, stories.topics, strict=True))
    return stories.rows([i for i, (e, t) in told if e in names and t in topics])


def _classes(stories: StoryActivations, names: Sequence[str]) -> Int[Tensor, " text"]:
    return torch.tensor([names.index(label) for label in stories.labels])


def _differences(
    stories: StoryActivations, names: Sequence[str]
) -> Float[Tensor, "layer emotion d_model"]:
    """Return the unit mean differences of `names`, in that order."""
    rows = _classes(stories, names)
    sums = torch.zeros(len(names), *stories.values.shape[1:])
    sums.index_add_(0, rows, stories.values.float())
    means = sums / rows.bincount(minlength=len(names))[:, None, None]
    centred = (means - means.mean(0)).transpose(0, 1)
    return centred / centred.norm(dim=-1, keepdim=True)


def _splits() -> list[tuple[Topics, Topics]]:
    """Return `SPLITS` splits of the topics into halves."""
    topics = EMOTIONS_FIT_TOPICS
    halves = list(combinations(topics, len(topics) // 2))
    halves = halves[: len(halves) // 2]  # the rest are their complements
    step = max(1, len(halves) // SPLITS)
    return [
        (half, tuple(topic for topic in topics if topic not in half))
        for half in halves[::step][:SPLITS]
    ]


def _halves(
    stories: StoryActivations, names: Sequence[str]
) -> Float[np.ndarray, "layer emotion"]:
    """Return each emotion's cosine of the halves, averaged over the splits."""
    found = []
    for split in _splits():
        parts = (_part(stories, half, names) for half in split)
        one, other = (_differences(part, names) for part in parts)
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


def _of_readers(
    subject: Subject, fit: StoryActivations
) -> tuple[list[Figure], tuple[str, ...]]:
    """Return the same cosine of the other readers, odd topics against even ones.

    And a note on emotions that are left out.
    """
    halves = [EMOTIONS_FIT_TOPICS[start::2] for start in (0, 1)]
    names, figures = _in_all(fit, halves, fewest=FEWEST), []
    notes = _left_out("the halves of other readers", fit, names)
    if len(names) < 2:
        return figures, notes
    parts = [_part(fit, half, names) for half in halves]
    for reader in subject.vectors.readers:
        if reader not in METHODS:
            continue
        layer = subject.layer_of[reader]
        column = fit.layers.index(layer)
        units = []
        for part in parts:
            truth = _classes(part, names)
            ((weight, _),) = METHODS[reader](part.values[:, column].float(), truth)
            units.append(weight / weight.norm(dim=-1, keepdim=True))
        cosines = (units[0] * units[1]).sum(-1).numpy()
        beside = {"chance": 0.0}
        at = {"controls": beside, "reader": reader, "layer": layer}
        figures.append(mean_figure(HALVES, cosines, **at))
    return figures, notes


def _sizes(
    subject: Subject, fit: StoryActivations
) -> tuple[list[Figure], tuple[str, ...]]:
    """Return held-out accuracy with fewer stories per emotion.

    And a note on emotions that are left out, throughout: accuracies of other numbers
    of emotions could not be compared.
    """
    parts = {size: EMOTIONS_FIT_TOPICS[:size] for size in SIZES}
    names, found = _in_all(fit, list(parts.values()), fewest=FEWEST), []
    notes = _left_out("the accuracy by number of stories", fit, names)
    test = _part(subject.stories, EMOTIONS_TEST_TOPICS, names)
    if len(names) < 2 or not test.labels:
        return found, notes
    for size, topics in parts.items():
        vectors = fitted(_part(fit, topics, names))
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
    return found, notes


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
