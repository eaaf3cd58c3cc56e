"""Steering: does adding a vector make its emotion's word likelier?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.residual.batches import token_batches
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import num_layers
from emoreg.residual.steer import steered
from emoreg.validation.check import Check, Curves, Figure
from emoreg.validation.figures import emotion_figures, mean_figure
from emoreg.validation.ranks import own_places
from emoreg.validation.subject import Subject, stand_in
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import MEAN_DIFFERENCE, RANDOM
from emoreg.vectors.steering import additions, layer_near

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
    norms = {layer: subject.mean_norm(layer)}
    readers = sorted(vectors.readers, key=lambda reader: reader != MEAN_DIFFERENCE)
    shifts = {
        reader: word_shifts(subject, vectors, emotions, tokens, reader, norms)
        for reader in (*readers, RANDOM)
    }
    shuffled = subject.controls["shuffled"]
    by = stand_in(MEAN_DIFFERENCE, shuffled)
    shifts["shuffled"] = word_shifts(subject, shuffled, emotions, tokens, by, norms)
    beside = {
        "chance": 0.5,
        "random": float(own_places(shifts[RANDOM][JUDGED]).mean()),
        "shuffled": float(own_places(shifts["shuffled"][JUDGED]).mean()),
    }
    figures = [
        mean_figure(
            PLACE,
            own_places(shifts[reader][JUDGED]),
            controls=beside,
            reader=reader,
            layer=layer,
        )
        for reader in readers
    ]
    own = own_places(shifts[readers[0]][JUDGED])
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


def word_shifts(
    subject: Subject,
    vectors: EmotionVectors,
    emotions: Sequence[str],
    tokens: Mapping[str, int],
    reader: str,
    norms: Mapping[int, float],
) -> dict[float, Float[np.ndarray, "steered word"]]:
    """Return per strength the change of each word's log-probability."""
    columns = [tokens[emotion] for emotion in emotions]
    openings = [subject.tokenizer(opening)["input_ids"] for opening in OPENINGS]
    moves = [
        additions(vectors, emotion, strength, norms=norms, reader=reader)
        for strength in STRENGTHS
        for emotion in emotions
    ]

    def compute() -> list[Tensor]:
        each = [_log_probs(subject.model, openings, move) for move in ({}, *moves)]
        return [torch.stack(each)[:, columns]]

    written = [list(move.items()) for move in moves]
    parts = ("next words steered", openings, columns, written)
    base, *rows = subject.recall(parts, compute)[0]
    changes = (torch.stack(rows) - base).unflatten(0, (len(STRENGTHS), -1)).numpy()
    return dict(zip(STRENGTHS, changes, strict=True))


def _log_probs(
    model: Any,
    openings: Sequence[Sequence[int]],
    move: Mapping[int, Float[Tensor, " d_model"]],
) -> Float[Tensor, " token"]:
    """Return the next token's log-probabilities, averaged over the openings."""
    device = next(model.parameters()).device
    # All in one call: it costs hardly more than one of them.
    (batch,) = token_batches(openings, budget=1 << 20, pad_id=0)
    mask = batch.attention_mask.to(device)
    with evaluating(model), torch.no_grad(), steered(model, move):
        out = model(input_ids=batch.input_ids.to(device), attention_mask=mask)
    last = out.logits[torch.arange(len(mask), device=device), mask.sum(1) - 1]
    return last.float().log_softmax(-1).mean(0).cpu()


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
