"""Speaker probes: an emotion at the words of who has it, and at the other's."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import (
    LayerPlan,
    checked_layers,
    d_model,
    model_name,
    num_layers,
)
from emoreg.residual.pooling import span_means
from emoreg.residual.store import ActivationStore
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.dialogues import OTHER, OWN, over_turns, words_of
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.fit import VectorFitter

PRESENT_USER, PRESENT_ASSISTANT = "present-user", "present-assistant"
OTHER_USER, OTHER_ASSISTANT = "other-at-user", "other-at-assistant"
CELLS = {
    PRESENT_USER: ("user", OWN),
    PRESENT_ASSISTANT: ("assistant", OWN),
    OTHER_USER: ("assistant", OTHER),
    OTHER_ASSISTANT: ("user", OTHER),
}
"""Whose emotion it is, and at whose words it is read: `other-at-user` is the
assistant's emotion at the user's words."""


def speaker_probes(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    *,
    layers: tuple[int, ...] | None = None,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> EmotionVectors:
    """Return four readers, one for each pair of token owner and emotion owner.

    Each is the mean difference over dialogues: mean over an emotion's, minus the mean
    over emotions, at one speaker's words. The paper finds that the two `present` ones
    agree, the two `other` ones agree, and the pairs are nearly orthogonal
    (https://transformer-circuits.pub/2026/emotions/). The packaged dialogues have two
    texts to fit on for each emotion and cell: thin; `provenance` says how many there
    were.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        corpus: Its `dialogues` of the `fit` split are used.
        layers: Decoder blocks; the monitored ones when None.
        quiet: No progress bar.
        store: Where activations are kept.

    Raises:
        ValueError: If an emotion has fewer than two dialogues for a cell.
    """
    depth = num_layers(model)
    chosen = layers or LayerPlan.for_depth(depth).monitor
    layers = checked_layers(chosen, depth)
    rows = corpus.records("dialogues", split="fit")
    emotions = tuple(dict.fromkeys(row["emotion"] for row in rows))
    found: dict[str, EmotionVectors] = {}
    how: Any = {"quiet": quiet, "store": store, "description": "Reading dialogues"}
    for cell, (speaker, whose) in CELLS.items():
        own = [row for row in rows if row["speaker"] == speaker]
        passages = words_of(tokenizer, own, whose)
        values = over_turns(span_means(model, passages, layers, **how), passages)
        fitter = VectorFitter(emotions=emotions, layers=layers, d_model=d_model(model))
        fitter.update(values, [row["emotion"] for row in own])
        found[cell] = fitter.vectors(denoise=0.0)
    texts = {
        cell: sum(row["speaker"] == speaker for row in rows)
        for cell, (speaker, _) in CELLS.items()
    }
    provenance = {
        "model": model_name(model),
        "num_layers": depth,
        "kind": "speakers",
        "texts": texts,
        "emotions": len(emotions),
    }
    return _joined(found, provenance)


def _joined(
    found: dict[str, EmotionVectors], provenance: dict[str, Any]
) -> EmotionVectors:
    """Return the cells as readers around one centre; scores allow for their own."""
    first = next(iter(found.values()))
    units: Float[Tensor, "reader layer emotion d_model"] = torch.stack(
        [vectors.directions[0] for vectors in found.values()]
    )
    centres = torch.stack([vectors.centre for vectors in found.values()])
    centre = centres.mean(0)
    offset = -torch.einsum("rled,rld->rle", units, centres - centre)
    return EmotionVectors(
        directions=units,
        readers=tuple(found),
        layers=first.layers,
        emotions=first.emotions,
        centre=centre,
        raw_norm=torch.stack([v.raw_norm for v in found.values()]).mean(0),
        scale=torch.ones(units.shape[:3]),
        offset=offset,
        provenance=provenance,
    )
