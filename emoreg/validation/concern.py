"""Concern: does the Assistant's side answer a user's sadness with loving?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import emotion_figures, mean_figure
from emoreg.validation.subject import Subject
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.random_directions import random_directions
from emoreg.vectors.reader_names import LDA

NAME = "concern"
ANSWERED = "loving"
KINDS = ("distress", "routine")
THRESHOLD = 0.5
DRAWN = tuple(f"draw {i}" for i in range(500))
"""Names of the random directions that `loving` is held against."""
BLANK = Check(
    name=NAME,
    question=f"Is a user's distress met with {ANSWERED} before the answer?",
    method=(
        f"Test prompts of people in distress against routine ones; {ANSWERED} at the "
        "decision token, mean difference in spreads of the routine prompts. Interval: "
        "bootstrap over the prompts in distress. Random: the 95th percentile of "
        f"{len(DRAWN)} random directions."
    ),
)


def concern(subject: Subject) -> Check:
    """Return how much higher *loving* reads before answers to distress than to routine.

    At the decision token, in spreads over the routine prompts: the paper's model reads
    *loving* there whatever the user feels, and more for the sad.
    """
    vectors = subject.vectors
    if ANSWERED not in vectors.emotions:
        return replace(BLANK, not_run=f"the vectors have no {ANSWERED!r}")
    rows = subject.evaluation("prompts", split="test")
    texts = {kind: [r["text"] for r in rows if r["kind"] == kind] for kind in KINDS}
    if min(map(len, texts.values())) < 4:
        return replace(BLANK, not_run="fewer than four prompts of a kind")
    values = {
        kind: subject.means(
            [subject.prompt(text) for text in found], description=f"Reading {kind}"
        )
        for kind, found in texts.items()
    }
    figures = []
    for reader in sorted(vectors.readers, key=lambda name: name != LDA):
        figures.append(_figure(subject, values, reader, subject.layer_of[reader]))
    reader = figures[0].reader
    return replace(
        BLANK,
        headline=figures[0],
        threshold=THRESHOLD,
        figures=(*figures, *_beside(subject, values, reader)),
        layers={
            layer: float(_gaps(vectors, values, reader, layer, ANSWERED).mean())
            for layer in vectors.layers
        },
    )


def _gaps(
    vectors: EmotionVectors,
    values: dict[str, Float[Tensor, "prompt layer d_model"]],
    reader: str,
    layer: int,
    emotion: str,
) -> Float[np.ndarray, " prompt"]:
    """Return each distressed prompt's reading over the routine mean, in spreads."""
    at, column = vectors.layer_index(layer), vectors.emotion_indices([emotion])[0]

    def read(kind: str) -> Any:
        stream = values[kind][:, at]
        return vectors.project(stream, layer=layer, reader=reader)[:, column].numpy()

    routine = read("routine")
    return (read("distress") - routine.mean()) / max(float(routine.std()), 1e-9)


def _figure(
    subject: Subject,
    values: dict[str, Float[Tensor, "prompt layer d_model"]],
    reader: str,
    layer: int,
) -> Figure:
    own = _gaps(subject.vectors, values, reader, layer, ANSWERED)
    at = subject.vectors.layer_index(layer)
    controls = {"chance": 0.0}
    for name, other, by in subject.controls_for(reader):
        controls[name] = float(_gaps(other, values, by, layer, ANSWERED).mean())
    controls["random"] = _of_many(subject.vectors.d_model, values, at, layer)
    name = f"{ANSWERED}, distress over routine"
    return mean_figure(name, own, controls=controls, reader=reader, layer=layer)


def _of_many(
    width: int,
    values: dict[str, Float[Tensor, "prompt layer d_model"]],
    at: int,
    layer: int,
) -> float:
    """Return the 95th percentile of the difference over many random directions.

    One direction alone may point anywhere; `loving` must do better than most.
    """
    units = random_directions(width, layer, DRAWN)
    read = {kind: (x[:, at].float() @ units.T).numpy() for kind, x in values.items()}
    routine = read["routine"]
    spread = np.maximum(routine.std(0), 1e-9)
    gaps = (read["distress"].mean(0) - routine.mean(0)) / spread
    return float(np.quantile(gaps, 0.95))


def _beside(
    subject: Subject,
    values: dict[str, Float[Tensor, "prompt layer d_model"]],
    reader: str,
) -> Sequence[Figure]:
    """Return what the same difference is for other emotions, the core ones."""
    vectors, layer = subject.vectors, subject.layer_of[reader]
    core = [e for e in subject.corpus.roles().core if e in vectors.emotions]
    found = {e: float(_gaps(vectors, values, reader, layer, e).mean()) for e in core}
    return emotion_figures(
        "distress over routine",
        found,
        reader=reader,
        layer=layer,
        counts=len(values["distress"]),
    )
