"""Deflection vectors: what is felt where something else is shown.

The story space is what is taken out of them: the principal components that hold 99 % of
the story vectors' variance. What is left is not the emotion as stories have it (the
appendix on deflection of https://transformer-circuits.pub/2026/emotions/). Where story
vectors are many and the model is small, that space is a large part of the stream, and
little is left of anything: a random direction keeps `sqrt(1 - rank / d_model)`.

Activations are means over tokens from the 50th on, as for stories, whose vectors they
are held against. The packaged texts have 130 tokens or more; on their `fit` split those
means told the felt emotion better than means over all tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import d_model, model_name, num_layers
from emoreg.residual.pooling import span_means
from emoreg.residual.store import ActivationStore
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.dialogues import over_turns, words_of
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.mean_differences import (
    mean_vectors,
    neutral_space,
    origin,
    with_texts_enough,
)
from emoreg.vectors.pooled import FIRST_TOKEN, text_passage
from emoreg.vectors.reader_names import MEAN_DIFFERENCE

STORY_VARIANCE = 0.99
"""Of the story vectors' variance, what is taken out of deflection vectors (the paper's
choice)."""
ROUNDING = 1e-3
"""Share of a vector's length below which what is left of it is rounding alone."""

By = Literal["felt", "shown"]
Source = Literal["masked", "masked_dialogues"]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MaskedTexts:
    """Pooled activations of texts in which one emotion is felt and another shown."""

    values: Float[Tensor, "text layer d_model"]
    felt: tuple[str, ...]
    shown: tuple[str, ...]

    def labels(self, by: By) -> tuple[str, ...]:
        """Return what is felt in each text, or what is shown."""
        return self.felt if by == "felt" else self.shown


def deflection_vectors(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    vectors: EmotionVectors,
    *,
    by: By = "felt",
    source: Source = "masked",
    emotions: Sequence[str] | None = None,
    denoise: float = 0.5,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> EmotionVectors:
    """Return a vector for each emotion that is felt and hidden.

    `r_e` = mean over texts in which e is felt and another emotion shown, minus the mean
    over felt emotions, without neutral components; then without the story space. The
    packaged corpus has seven texts for each of twelve emotions: thin. `provenance` says
    how many there were, the ranks that were taken out, and per layer which share of the
    length the story space left.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        corpus: Its masked texts and neutral ones of the `fit` split are used.
        vectors: Story vectors of the same model, which say where to read.
        by: Label the texts with what is felt, or with what is shown, for comparison.
        source: Scenes, or dialogues (of `emoreg stories`): a scenario says why
            something is felt, and the words of who hides it are read, as in the paper.
        emotions: Which to fit; all with two texts or more when None.
        denoise: Share of neutral variance that is taken out first. With 0 most of what
            is left lies in those components, which the story vectors do not have.
        quiet: No progress bar.
        store: Where activations of masked texts are kept.

    Raises:
        ValueError: If an emotion that is asked for, or all but one, have fewer than two
            texts; if the vectors are another model's; if the story space leaves none.
    """
    vectors.check_model(
        d_model=d_model(model), num_layers=num_layers(model), name=model_name(model)
    )
    layers, what = vectors.layers, f"masked texts, by what is {by},"
    labels = [row[by] for row in corpus.records(source, split="fit")]
    chosen = with_texts_enough(labels, emotions, what=what)
    parts: Any = (model, tokenizer, corpus, layers)
    also: Any = {"source": source, "quiet": quiet, "store": store}
    texts = read_masked(*parts, split="fit", **also)
    neutral = neutral_space(*parts, variance=denoise, quiet=quiet)
    how: Any = {"emotions": chosen, "layers": layers, "neutral": neutral}
    found = mean_vectors(texts.values, texts.labels(by), **how)
    provenance = {
        "kind": f"deflection, by what is {by}",
        "source": source,
        "first_token": FIRST_TOKEN if source == "masked" else 0,
        "texts": {emotion: labels.count(emotion) for emotion in chosen},
        "neutral_rank": [len(base) for base in neutral],
        **origin(model),
    }
    return without_stories(replace(found, provenance=provenance), vectors)


def read_masked(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    layers: Sequence[int],
    *,
    split: str,
    source: Source = "masked",
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> MaskedTexts:
    """Return the masked texts of a split, each as one mean.

    Scenes from the 50th token on; dialogues over the words of who hides something.
    """
    rows = corpus.records(source, split=split)
    if source == "masked":
        passages = [
            text_passage(tokenizer, row["text"], f"masked {row['id']}") for row in rows
        ]
    else:
        passages = words_of(tokenizer, rows)
    said = f"Reading masked texts ({split})"
    how: Any = {"description": said, "quiet": quiet, "store": store}
    values = over_turns(span_means(model, passages, layers, **how), passages)
    return MaskedTexts(
        values=values,
        felt=tuple(row["felt"] for row in rows),
        shown=tuple(row["shown"] for row in rows),
    )


def story_space(vectors: EmotionVectors) -> list[Float[Tensor, "rank d_model"]]:
    """Return, per layer, an orthonormal basis of the story vectors' main components.

    Variance is counted from the mean over all emotions that the vectors were fitted on,
    from which they are taken: a part of them has the space that it needs itself.
    """
    row = vectors.reader_index(MEAN_DIFFERENCE)
    long = vectors.directions[row] * vectors.raw_norm.unsqueeze(-1)
    bases = []
    for layer in long:
        _, sizes, axes = torch.linalg.svd(layer.double(), full_matrices=False)
        explained = sizes.square().cumsum(0) / sizes.square().sum()
        rank = int((explained < STORY_VARIANCE).sum()) + 1
        bases.append(axes[:rank])
    return bases


def without_stories(found: EmotionVectors, stories: EmotionVectors) -> EmotionVectors:
    """Return `found` without the story space; provenance says what was left of it.

    Raises:
        ValueError: If nothing is left of one.
    """
    bases = story_space(stories)
    long = (found.directions[0] * found.raw_norm.unsqueeze(-1)).double()
    left = torch.stack(
        [x - (x @ base.T) @ base for x, base in zip(long, bases, strict=True)]
    )
    shares = left.norm(dim=-1) / long.norm(dim=-1)
    if float(shares.min()) < ROUNDING:
        row = int(shares.min(1).values.argmin())
        raise ValueError(
            "the story space must leave something of each vector, found nothing at "
            f"layer {found.layers[row]}: it has {len(bases[row])} of "
            f"{found.d_model} dimensions. Take story vectors of fewer emotions: "
            "`vectors.subset([...])`"
        )
    made = EmotionVectors.from_directions(
        left.float(), emotions=found.emotions, layers=found.layers
    )
    provenance = {
        "story_vectors": stories.hash,
        "story_emotions": len(stories.emotions),
        "story_rank": [len(base) for base in bases],
        "norm_left": [round(float(share), 3) for share in shares.mean(1)],
    }
    return replace(
        made, centre=found.centre, provenance={**found.provenance, **provenance}
    )
