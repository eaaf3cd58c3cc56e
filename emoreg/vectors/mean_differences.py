"""Vectors from a few labelled texts: mean differences without neutral components."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import d_model, model_name, num_layers
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import read_neutral
from emoreg.vectors.fit import VectorFitter, without
from emoreg.vectors.records import did_you_mean

FEWEST = 2
"""Texts of an emotion, below which its mean is one text's."""


def mean_vectors(
    values: Float[Tensor, "text layer d_model"],
    labels: Sequence[str],
    *,
    emotions: Sequence[str],
    layers: Sequence[int],
    neutral: Sequence[Float[Tensor, "_ d_model"]],
) -> EmotionVectors:
    """Return `r_e` = mean over e's texts - mean over emotions, without `neutral`.

    The same vectors as `VectorFitter`'s mean differences, where nothing else is wanted
    of the texts.

    Args:
        values: One pooled activation per text.
        labels: The emotion of each; texts of others are left out.
        emotions: Which have vectors; each needs a text.
        layers: Where `values` were read.
        neutral: Per layer, an orthonormal basis of what is taken out.
    """
    means = torch.stack(
        [
            values[[i for i, label in enumerate(labels) if label == emotion]].mean(0)
            for emotion in emotions
        ],
        dim=1,
    ).float()
    centre = means.mean(1)
    difference = without(means - centre.unsqueeze(1), list(neutral))
    made = EmotionVectors.from_directions(difference, emotions=emotions, layers=layers)
    return replace(made, centre=centre)


def neutral_space(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    layers: Sequence[int],
    *,
    variance: float,
    quiet: bool = False,
) -> list[Float[Tensor, "rank d_model"]]:
    """Return, per layer, the components that `extract` takes out of emotion vectors.

    Those of the `fit` half of the neutral texts that explain `variance` of them, token
    by token; none where it is 0, and then no text is read.
    """
    fitter = VectorFitter(emotions=(), layers=layers, d_model=d_model(model))
    if variance:
        texts = corpus.neutral("fit")
        read_neutral(model, tokenizer, texts, fitter, budget=None, quiet=quiet)
    return fitter.neutral_subspace(variance)


def origin(model: nn.Module) -> dict[str, Any]:
    """Return which model vectors are of, as their provenance says it."""
    return {
        "model": model_name(model),
        "num_layers": num_layers(model),
        "dtype": str(next(model.parameters()).dtype),
    }


def with_texts_enough(
    labels: Sequence[str], asked: Sequence[str] | None, *, what: str
) -> tuple[str, ...]:
    """Return the emotions that have two texts or more, in the order they come in.

    Args:
        labels: The emotion of each text.
        asked: Emotions that must have them; None for all that do.
        what: What the texts are, for complaints: `masked texts`.

    Raises:
        ValueError: If one that is asked for has fewer, or fewer than two have enough.
    """
    counts = Counter(labels)
    for emotion in asked or ():
        if counts[emotion] < FEWEST:
            near = "" if counts[emotion] else f". {did_you_mean(emotion, counts)}"
            raise ValueError(
                f"each emotion must have {FEWEST} {what} or more to fit on, found "
                f"{counts[emotion]} of {emotion!r}. Write more, or leave it out{near}"
            )
    known = [emotion for emotion, count in counts.items() if count >= FEWEST]
    found = tuple(known if asked is None else dict.fromkeys(asked))
    if len(found) < 2:
        raise ValueError(
            f"there must be two emotions or more with {FEWEST} {what} each, since a "
            f"vector is a difference from their mean; found {len(found)}. Write more "
            "of them"
        )
    return found
