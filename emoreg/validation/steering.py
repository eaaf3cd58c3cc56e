"""Steering: does adding a vector make its emotion's word likelier?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.residual.layers import num_layers
from emoreg.validation.check import Check, Curves, Figure
from emoreg.validation.figures import emotion_figures, mean_figure
from emoreg.validation.subject import Subject
from emoreg.vectors.emotion_vectors import (
    LDA,
    MEAN_DIFFERENCE,
    RANDOM,
    EmotionVectors,
)
from emoreg.vectors.steering import at_strength, layer_near, mean_norms

NAME, PLACE = "steering", "place of the own word's gain"
THRESHOLD = 0.8
OPENINGS = ("I feel", "He feels", "She feels", "Right now I am")
STRENGTHS = (-0.1, -0.05, 0.05, 0.1)
JUDGED = 0.1
MOST = 24
"""Emotions that are steered at most: the core ones, else the first of the file."""


BLANK = Check(
    name=NAME,
    question="Does adding a vector make its own emotion's word likelier?",
    method=(
        f"After {', '.join(map(repr, OPENINGS))}, steered at two thirds of depth with "
        f"{JUDGED} of the mean residual-stream norm: the change of the own word's "
        "log-probability, its place among the changes of all words, 1 for the largest. "
        "Interval: bootstrap over emotions. An emotion holds if its word gains more "
        "than the mean of the others at each positive strength, and more at the larger."
    ),
)


def steering(subject: Subject) -> Check:
    """Return how much likelier steering makes an emotion's own word than others'.

    At each strength the change of the log-probability of each emotion's first token
    after a few openings; the place of the own word's change among all words', 1 for
    the largest and 1/2 by chance.
    """
    vectors = subject.vectors
    emotions = _steered_ones(subject)
    tokens = subject.first_tokens(emotions)
    emotions = [emotion for emotion in emotions if emotion in tokens]
    if len(emotions) < 4:
        said = f"{len(emotions)} emotions have a first token of their own"
        return replace(BLANK, not_run=said)
    depth = num_layers(subject.model)
    layer = layer_near(vectors, depth)
    norms = mean_norms(subject.model, subject.tokenizer, subject.corpus, (layer,))
    readers = sorted(vectors.readers, key=lambda reader: reader != MEAN_DIFFERENCE)
    shifts = {
        reader: _shifts(subject, vectors, emotions, tokens, reader, norms)
        for reader in (*readers, RANDOM)
    }
    shuffled = subject.controls["shuffled"]
    by = MEAN_DIFFERENCE if MEAN_DIFFERENCE in shuffled.readers else LDA
    shifts["shuffled"] = _shifts(subject, shuffled, emotions, tokens, by, norms)
    beside = {
        "chance": 0.5,
        "random": float(_places(shifts[RANDOM][JUDGED]).mean()),
        "shuffled": float(_places(shifts["shuffled"][JUDGED]).mean()),
    }
    figures = [
        mean_figure(
            PLACE,
            _places(shifts[reader][JUDGED]),
            controls=beside,
            reader=reader,
            layer=layer,
        )
        for reader in readers
    ]
    own = _places(shifts[readers[0]][JUDGED])
    return replace(
        BLANK,
        headline=figures[0],
        threshold=THRESHOLD,
        figures=(
            *figures,
            *emotion_figures(
                PLACE,
                dict(zip(emotions, own.tolist(), strict=True)),
                reader=readers[0],
                layer=layer,
                chance=0.5,
                counts=len(OPENINGS),
            ),
        ),
        emotions=_held(shifts[readers[0]], emotions),
        pictures=(_curves(shifts, readers),),
        notes=(_best(figures),),
    )


def _steered_ones(subject: Subject) -> list[str]:
    known = subject.vectors.emotions
    core = [e for e in subject.corpus.roles().core if e in known]
    return (core if len(core) >= 4 else list(known))[:MOST]


def _shifts(
    subject: Subject,
    vectors: EmotionVectors,
    emotions: Sequence[str],
    tokens: Mapping[str, int],
    reader: str,
    norms: Mapping[int, float],
) -> dict[float, Float[np.ndarray, "steered word"]]:
    """Return per strength the change of each word's log-probability."""
    columns = [tokens[emotion] for emotion in emotions]
    base = _log_probs(subject)[columns]
    found = {}
    for strength in STRENGTHS:
        rows = []
        for emotion in emotions:
            with at_strength(
                subject.model, vectors, emotion, strength, norms=norms, reader=reader
            ):
                rows.append(_log_probs(subject)[columns] - base)
        found[strength] = torch.stack(rows).numpy()
    return found


def _log_probs(subject: Subject) -> Float[Tensor, " token"]:
    """Return the next token's log-probabilities, averaged over the openings."""
    model: Any = subject.model
    device = next(model.parameters()).device
    found = []
    with torch.no_grad():
        for opening in OPENINGS:
            ids = subject.tokenizer(opening, return_tensors="pt")["input_ids"]
            logits = model(input_ids=ids.to(device)).logits[0, -1].float()
            found.append(logits.log_softmax(-1).cpu())
    return torch.stack(found).mean(0)


def _places(
    shifts: Float[np.ndarray, "steered word"],
) -> Float[np.ndarray, " steered"]:
    """Return each own word's place; what any steering does to a word is taken out."""
    centred = shifts - shifts.mean(0)
    own = np.diag(centred)
    return (centred < own[:, None]).sum(1) / (len(own) - 1)


def _held(
    shifts: Mapping[float, Float[np.ndarray, "steered word"]], emotions: Sequence[str]
) -> dict[str, bool]:
    gains = []
    for strength in (s for s in STRENGTHS if s > 0):
        own = np.diag(shifts[strength])
        others = (shifts[strength].sum(1) - own) / (len(own) - 1)
        gains.append(own - others)
    small, large = gains
    holds = (small > 0) & (large > small)
    return {e: bool(h) for e, h in zip(emotions, holds, strict=True)}


def _curves(
    shifts: Mapping[str, Mapping[float, Float[np.ndarray, "steered word"]]],
    readers: Sequence[str],
) -> Curves:
    """Return the own word's gain over the others', against strength."""

    def gain(found: Float[np.ndarray, "steered word"]) -> float:
        own = np.diag(found)
        return float((own - (found.sum(1) - own) / (len(own) - 1)).mean())

    return Curves(
        title="What an emotion's word gains over the others, nats",
        x_title="strength, mean residual-stream norms",
        y_title="nats",
        x=STRENGTHS,
        series={
            name: tuple(gain(shifts[name][s]) for s in STRENGTHS)
            for name in (*readers, RANDOM, "shuffled")
        },
    )


def _best(figures: Sequence[Figure]) -> str:
    best = max(figures, key=lambda figure: figure.value)
    return f"Of the readers, {best.reader} directions steer best by this figure."
