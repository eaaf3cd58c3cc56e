"""What must keep its meaning: stories, doses, people in distress, the vectors anew."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from emoreg.residual.layers import num_layers
from emoreg.validation.concern import ANSWERED, KINDS
from emoreg.validation.doses import dose_curve, expected_signs, read_doses
from emoreg.validation.steering import STRENGTHS, word_shifts
from emoreg.validation.subject import Subject
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.pooled import StoryActivations, pool_stories
from emoreg.vectors.reader_names import LDA, MEAN_DIFFERENCE
from emoreg.vectors.steering import layer_near


def story_hits(
    subject: Subject, stories: StoryActivations, layer: int
) -> Float[np.ndarray, " story"]:
    """Return 1 for each story whose emotion the reader names, of all the vectors'."""
    vectors = subject.vectors
    reader = LDA if LDA in vectors.readers else vectors.readers[0]
    at = stories.values[:, stories.layers.index(layer)]
    scores = vectors.scores(at, layer=layer, reader=reader)
    truth = torch.tensor(vectors.emotion_indices(stories.labels))
    return (scores.argmax(1) == truth).double().numpy()


def read_stories(subject: Subject, split: str, emotions: Sequence[str]) -> Any:
    """Return the pooled stories of a split."""
    found = subject.corpus.stories(emotions, split=split)
    parts = (subject.model, subject.tokenizer, found, subject.vectors.layers)
    return pool_stories(*parts, quiet=subject.quiet, store=subject.store)


def dose_slopes(
    subject: Subject, readers: Sequence[str], layers: Sequence[int]
) -> tuple[list[str], Float[np.ndarray, "template reader layer"]]:
    """Return the templates that expect something, and the slope of each.

    Least squares over the doses in order, its sign turned where a fall is expected,
    averaged over the template's emotions.
    """
    vectors = subject.vectors
    rows = [r for r in subject.evaluation("dose") if expected_signs(vectors, r)]
    slopes = np.zeros((len(rows), len(readers), len(layers)))
    for number, activations in enumerate(read_doses(subject, rows)):
        signs = expected_signs(vectors, rows[number])
        for j, reader in enumerate(readers):
            for k, layer in enumerate(layers):
                at = (vectors, activations, reader, layer)
                each = [s * _slope(dose_curve(*at, e)) for e, s in signs.items()]
                slopes[number, j, k] = np.mean(each)
    return [row["id"] for row in rows], slopes


def _slope(curve: Float[np.ndarray, " dose"]) -> float:
    steps = np.arange(len(curve)) - (len(curve) - 1) / 2
    return float(steps @ curve / (steps @ steps))


def distress(
    subject: Subject, readers: Sequence[str], layers: Sequence[int]
) -> Float[np.ndarray, "prompt reader layer"]:
    """Return *loving* before answers to people in distress, above the routine mean.

    NaN where the vectors have no such emotion.
    """
    vectors, rows = subject.vectors, subject.evaluation("prompts", split="test")
    texts = {kind: [r["text"] for r in rows if r["kind"] == kind] for kind in KINDS}
    shape = (len(texts[KINDS[0]]), len(readers), len(layers))
    if ANSWERED not in vectors.emotions:
        return np.full(shape, np.nan)
    values = {
        kind: subject.means([subject.prompt(t) for t in found], description=kind)
        for kind, found in texts.items()
    }
    column, found = vectors.emotion_indices([ANSWERED])[0], np.zeros(shape)
    for j, reader in enumerate(readers):
        for k, layer in enumerate(layers):
            at = vectors.layer_index(layer)
            grave, routine = (
                vectors.project(values[kind][:, at], layer=layer, reader=reader)
                for kind in KINDS
            )
            found[:, j, k] = (grave - routine.mean(0))[:, column].numpy()
    return found


def word_gains(
    subject: Subject, anew: EmotionVectors
) -> tuple[list[str], list[float], Float[np.ndarray, "emotion strength"]]:
    """Return what steering with the new vectors adds to the own word beyond others'.

    At the layer nearest to two thirds of depth, after short openings such as
    "I feel"; log-probability, nat. Emotions whose word has a first token of its own.
    """
    core = [e for e in subject.corpus.roles().core if e in anew.emotions]
    tokens = subject.first_tokens(core)
    emotions = [emotion for emotion in core if emotion in tokens]
    if len(emotions) < 2:  # there are no others to hold a word against
        return [], list(STRENGTHS), np.zeros((0, len(STRENGTHS)))
    layer = layer_near(anew, num_layers(subject.model))
    norms = {layer: subject.mean_norm(layer)}
    shifts = word_shifts(subject, anew, emotions, tokens, MEAN_DIFFERENCE, norms)
    columns = []
    for strength in STRENGTHS:
        own = np.diag(shifts[strength])
        others = (shifts[strength].sum(1) - own) / (len(own) - 1)
        columns.append(own - others)
    return emotions, list(STRENGTHS), np.stack(columns, axis=1)
