"""Held-out stories: does a reader name the emotion of a scene it was not fitted on?"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from emoreg.validation.check import Check, Curves, Figure, Matrix
from emoreg.validation.figures import emotion_figures, layer_curves
from emoreg.validation.ranks import Ranked, named, rank_figures
from emoreg.validation.subject import Subject, stand_in
from emoreg.vectors.corpus import EMOTIONS_TEST_TOPICS
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.pooled import StoryActivations
from emoreg.vectors.reader_names import LDA

NAME = "held-out stories"
FACTOR, CEILING = 50.0, 0.5
"""Top-1 accuracy must be 50 times chance, or one half if that is less: more than the
words alone give."""
PLEASANT = (
    "Exuberant Joy",
    "Peaceful Contentment",
    "Compassionate Gratitude",
    "Competitive Pride",
    "Playful Amusement",
)
"""The first half of the paper's clusters, which it orders by valence."""


def held_out_stories(subject: Subject) -> Check:
    """Return how often readers name the emotion of stories on held-out topics."""
    vectors, test = subject.vectors, subject.stories.of_topics(EMOTIONS_TEST_TOPICS)
    reader = LDA if LDA in vectors.readers else vectors.readers[0]
    layer = subject.layer_of[reader]
    ranked = {
        (name, i): ranks(vectors, test, name, i)
        for name in vectors.readers
        for i in vectors.layers
    }
    figures, headline = _figures(subject, test, ranked, (reader, layer))
    best = ranked[reader, layer]
    held = named(best, seed=subject.seed)
    return Check(
        name=NAME,
        question="Does a reader name the emotion of scenes on topics it never saw?",
        method=(
            f"Stories on topics {', '.join(EMOTIONS_TEST_TOPICS)}, averaged from the "
            "50th token on; the emotion with the highest class score. Layers by an "
            "inner split of the fitting topics. Intervals: bootstrap over emotions. An "
            "emotion holds if its own stories rank it higher than other emotions' do "
            "(permutation, false discovery rate 5 %)."
        ),
        headline=headline,
        threshold=min(CEILING, FACTOR / len(vectors.emotions)),
        figures=(*figures, *_per_emotion(best, vectors, reader, layer)),
        emotions={vectors.emotions[c]: holds for c, holds in held.items()},
        layers={i: float((ranked[reader, i].own == 1).mean()) for i in vectors.layers},
        pictures=(
            _by_layer(ranked, vectors),
            *_by_cluster(best, vectors),
        ),
        notes=_confused(best, vectors),
    )


def ranks(
    vectors: EmotionVectors, stories: StoryActivations, reader: str, layer: int
) -> Ranked:
    """Return the ranks of all emotions for pooled stories."""
    column = stories.layers.index(layer)
    scores = vectors.scores(stories.values[:, column], layer=layer, reader=reader)
    return Ranked.of(scores.numpy(), vectors.emotion_indices(stories.labels))


def _figures(
    subject: Subject,
    test: StoryActivations,
    ranked: Mapping[tuple[str, int], Ranked],
    chosen: tuple[str, int],
) -> tuple[list[Figure], Figure]:
    """Return the figures of each reader at its layer, then at the others."""
    vectors, figures = subject.vectors, []
    core = subject.corpus.roles().core
    columns = list(vectors.emotion_indices([e for e in core if e in vectors.emotions]))
    part = 1 < len(columns) < len(vectors.emotions)
    places = [(name, subject.layer_of[name]) for name in vectors.readers]
    places.remove(chosen)
    order = [chosen, *places, *(at for at in ranked if at not in (chosen, *places))]
    for name, layer in order:
        found = ranked[name, layer]
        controls = _controls(subject, test, name, layer)
        at = {"reader": name, "layer": layer}
        figures += rank_figures(found, controls=controls, suffix="", **at)
        if part and layer == subject.layer_of[name]:
            inner = {key: control.within(columns) for key, control in controls.items()}
            figures += rank_figures(
                found.within(columns), controls=inner, suffix=", core emotions", **at
            )
    return figures, figures[0]


def _controls(
    subject: Subject, test: StoryActivations, reader: str, layer: int
) -> dict[str, Ranked]:
    """Return ranks by directions that mean nothing, and by the words alone."""
    found = {
        name: ranks(control, test, by, layer)
        for name, control, by in subject.controls_for(reader)
    }
    words = subject.story_embeddings.of_topics(EMOTIONS_TEST_TOPICS)
    embedded = subject.embedded.subset(subject.vectors.emotions)
    by = stand_in(reader, embedded)
    return {**found, "embedding": ranks(embedded, words, by, 0)}


def _per_emotion(
    found: Ranked, vectors: EmotionVectors, reader: str, layer: int
) -> list[Figure]:
    rows = {e: found.truth == column for column, e in enumerate(vectors.emotions)}
    return emotion_figures(
        "mean rank",
        {e: float(found.own[own].mean()) for e, own in rows.items() if own.any()},
        reader=reader,
        layer=layer,
        chance=(len(vectors.emotions) + 1) / 2,
        counts={e: int(own.sum()) for e, own in rows.items()},
        lower_is_better=True,
    )


def _by_layer(
    ranked: Mapping[tuple[str, int], Ranked], vectors: EmotionVectors
) -> Curves:
    return layer_curves(
        "Top-1 accuracy by layer",
        "share of held-out stories",
        vectors.layers,
        {
            name: [(ranked[name, i].own == 1).mean() for i in vectors.layers]
            for name in vectors.readers
        },
    )


def _by_cluster(found: Ranked, vectors: EmotionVectors) -> tuple[Matrix, ...]:
    """Return where first guesses land, by the paper's ten clusters."""
    known = clusters()
    if not all(emotion in known for emotion in vectors.emotions):
        return ()
    names = tuple(dict.fromkeys(known.values()))
    home = np.array([names.index(known[emotion]) for emotion in vectors.emotions])
    guesses = home[found.ranks.argmin(axis=1)]
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (home[found.truth], guesses), 1)
    there = counts.sum(1) > 0
    shares: Float[np.ndarray, "row column"] = counts[there] / counts[there].sum(
        1, keepdims=True
    )
    rows = tuple(name for name, some in zip(names, there, strict=True) if some)
    title = "First guesses by cluster: rows are the true cluster, shares of its stories"
    return (Matrix(title=title, rows=rows, columns=names, values=shares),)


def _confused(found: Ranked, vectors: EmotionVectors) -> tuple[str, ...]:
    """Return how many errors stay within the true emotion's cluster and valence."""
    known = clusters()
    guesses = found.ranks.argmin(axis=1)
    wrong = [
        (vectors.emotions[true], vectors.emotions[guess])
        for true, guess in zip(found.truth, guesses, strict=True)
        if true != guess
    ]
    judged = [(a, b) for a, b in wrong if a in known and b in known]
    if not judged:
        return ()
    valence = {e: name in PLEASANT for e, name in known.items()}
    kinds = (
        ("cluster", known),
        (f"valence (pleasant: {', '.join(PLEASANT)})", valence),
    )
    sentences = []
    for what, kind in kinds:
        share, chance = _stay(judged, kind, vectors.emotions)
        sentences.append(
            f"Of {len(judged)} wrong first guesses {share:.0%} stay in the true "
            f"emotion's {what}; {chance:.0%} would by chance."
        )
    return tuple(sentences)


def _stay(
    wrong: Sequence[tuple[str, str]],
    kind: Mapping[str, object],
    emotions: Sequence[str],
) -> tuple[float, float]:
    """Return the share of errors within one kind of emotion, and what chance gives."""
    same = sum(kind[true] == kind[guess] for true, guess in wrong)
    there = sum(
        kind[true] == kind[e]
        for true, _ in wrong
        for e in emotions
        if e != true and e in kind
    )
    return same / len(wrong), there / len(wrong) / max(len(emotions) - 1, 1)


@cache
def clusters() -> Mapping[str, str]:
    """Return the paper's cluster of each of its 171 emotions."""
    path = Path(__file__).with_name("emotion_clusters.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    return {e: name for name, members in content["clusters"].items() for e in members}
