"""Which tokens a direction makes likelier: the logit lens on emotion vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import final_norm, unwrapped
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import MEAN_DIFFERENCE


@dataclass(frozen=True, kw_only=True, slots=True)
class TopTokens:
    """The tokens that one emotion's direction speaks for most, and least."""

    emotion: str
    layer: int
    reader: str
    top: tuple[str, ...]
    bottom: tuple[str, ...]


def top_tokens(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    vectors: EmotionVectors,
    *,
    emotions: Sequence[str],
    layers: Sequence[int],
    count: int = 10,
) -> list[TopTokens]:
    """Return the tokens of each emotion's direction at each layer.

    It is the mean difference, the emotion vector proper, where the file has it: the
    directions of other readers are made to be read with, and say less.

    Raises:
        ValueError: If the model has no head, or no norm before it is found.
    """
    known = MEAN_DIFFERENCE in vectors.readers
    reader = MEAN_DIFFERENCE if known else vectors.readers[0]
    rows = [vectors.layer_index(layer) for layer in layers]
    columns = list(vectors.emotion_indices(emotions))
    chosen = vectors.directions[vectors.reader_index(reader)][rows][:, columns]
    logits = direct_logits(model, chosen.flatten(0, 1))[:, : len(tokenizer)]
    ids = {
        "top": logits.topk(count).indices.tolist(),
        "bottom": logits.topk(count, largest=False).indices.tolist(),
    }
    places = [(layer, emotion) for layer in layers for emotion in emotions]
    return [
        TopTokens(
            emotion=emotion,
            layer=layer,
            reader=reader,
            **{
                side: tuple(str(tokenizer.decode([i])) for i in found[place])
                for side, found in ids.items()
            },
        )
        for place, (layer, emotion) in enumerate(places)
    ]


@torch.no_grad()
def direct_logits(
    model: nn.Module, directions: Float[Tensor, "direction d_model"]
) -> Float[Tensor, "direction vocab"]:
    """Return what directions add to the logits through final norm and head alone.

    What norm and head say of nothing at all, their biases, is taken off.

    Raises:
        ValueError: If the model has no head, or no norm before it is found.
    """
    base: Any = unwrapped(model)
    head, norm = base.get_output_embeddings(), final_norm(base)
    if head is None or norm is None:
        missing = "a language-model head" if head is None else "a norm before its head"
        raise ValueError(
            f"the model must have {missing} for its directions to have top tokens; "
            f"none was found in {type(base).__name__}. Use a model for causal "
            "language modelling"
        )
    weight = head.weight
    given = directions.to(weight.device, weight.dtype)
    nothing = torch.zeros_like(given[:1])
    through = norm(given) - norm(nothing)
    return (head(through.to(weight.dtype)) - head(nothing)).float().cpu()
