"""Deflection vectors: what is felt where something else is shown."""

from collections import Counter
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import d_model, model_name, num_layers
from emoreg.residual.pooling import span_means
from emoreg.residual.store import ActivationStore
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import MEAN_DIFFERENCE, EmotionVectors
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.pooled import text_passage

STORY_VARIANCE = 0.99
"""Of the story vectors' variance, what is taken out of deflection vectors (the paper's
choice)."""


def deflection_vectors(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    vectors: EmotionVectors,
    *,
    by: Literal["felt", "shown"] = "felt",
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> EmotionVectors:
    """Return a vector for each emotion that is felt and hidden, less the story space.

    `r_e` = mean over texts in which e is felt and another emotion shown, minus the mean
    over felt emotions; tokens from the 50th on. Then the principal components that hold
    99 % of the story vectors' variance are projected out: what is left is not the
    emotion as stories have it (https://transformer-circuits.pub/2026/emotions/, the
    appendix on deflection). The packaged corpus has seven texts for each of twelve
    emotions: thin. `provenance` says what was left of each layer's norms, the rank that
    was taken out, and how many texts there were.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        corpus: Its `masked` texts of the `fit` split are used.
        vectors: Story vectors of the same model, which say where to read.
        by: Label the texts with what is felt, or with what is shown, for comparison.
        quiet: No progress bar.
        store: Where activations are kept.

    Raises:
        ValueError: If fewer than two emotions have two texts, or the vectors are
            another model's.
    """
    vectors.check_model(
        d_model=d_model(model), num_layers=num_layers(model), name=model_name(model)
    )
    rows = corpus.records("masked", split="fit")
    counts = Counter(row[by] for row in rows)
    rows = [row for row in rows if counts[row[by]] >= 2]
    emotions = tuple(dict.fromkeys(row[by] for row in rows))
    if len(emotions) < 2:
        raise ValueError(
            "deflection vectors need two emotions or more with two masked texts each, "
            f"found {len(emotions)}. Write some (`emoreg stories --kinds masked`)"
        )
    values = span_means(
        model,
        [text_passage(tokenizer, row["text"], f"masked {row['id']}") for row in rows],
        vectors.layers,
        description="Reading masked texts",
        quiet=quiet,
        store=store,
    )
    fitter = VectorFitter(
        emotions=emotions, layers=vectors.layers, d_model=vectors.d_model
    )
    fitter.update(values, [row[by] for row in rows])
    raw = fitter.vectors(denoise=0.0)
    return _without_stories(raw, vectors, {e: counts[e] for e in emotions}, by)


def story_space(vectors: EmotionVectors) -> list[Float[Tensor, "rank d_model"]]:
    """Return, per layer, an orthonormal basis of the story vectors' main components."""
    row = vectors.reader_index(MEAN_DIFFERENCE)
    long = vectors.directions[row] * vectors.raw_norm.unsqueeze(-1)
    bases = []
    for layer in long:
        _, sizes, axes = torch.linalg.svd(layer.double(), full_matrices=False)
        explained = sizes.square().cumsum(0) / sizes.square().sum()
        rank = int((explained < STORY_VARIANCE).sum()) + 1
        bases.append(axes[:rank].float())
    return bases


def _without_stories(
    raw: EmotionVectors, stories: EmotionVectors, counts: dict[str, int], by: str
) -> EmotionVectors:
    bases = story_space(stories)
    long = raw.directions[0] * raw.raw_norm.unsqueeze(-1)
    left = torch.stack(
        [x - (x @ base.T) @ base for x, base in zip(long, bases, strict=True)]
    )
    norm = left.norm(dim=-1)
    shares = (norm / raw.raw_norm).mean(-1)
    return replace(
        raw,
        directions=(left / norm.unsqueeze(-1)).unsqueeze(0),
        readers=(MEAN_DIFFERENCE,),
        raw_norm=norm,
        scale=torch.ones(1, *norm.shape),
        offset=torch.zeros(1, *norm.shape),
        provenance={
            "model": stories.provenance.get("model"),
            "num_layers": stories.provenance.get("num_layers"),
            "kind": f"deflection, by what is {by}",
            "story_vectors": stories.hash,
            "story_rank": [len(base) for base in bases],
            "norm_left": [round(float(share), 3) for share in shares],
            "texts": counts,
        },
    )
