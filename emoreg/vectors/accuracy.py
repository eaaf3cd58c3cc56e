"""How well readers name the emotion of stories that no fit has seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from emoreg.vectors.corpus import EMOTIONS_FIT_TOPICS
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.pooled import StoryActivations
from emoreg.vectors.reader_names import LDA, LOGISTIC


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Share of held-out stories whose emotion a reader names first, or in three."""

    reader: str
    layer: int
    top1: float
    top3: float
    texts: int
    emotions: int

    @property
    def chance(self) -> tuple[float, float]:
        """Top-1 and top-3 accuracy of guessing."""
        return 1 / self.emotions, min(1.0, 3 / self.emotions)


def named(
    vectors: EmotionVectors, stories: StoryActivations, *, reader: str, layer: int
) -> Int[Tensor, "text place"]:
    """Return 1 where a story's emotion is the reader's first, second or third."""
    column = stories.layers.index(layer)
    scores = vectors.scores(stories.values[:, column], layer=layer, reader=reader)
    truth = torch.tensor(vectors.emotion_indices(stories.labels))
    top = scores.topk(min(3, scores.shape[1]), dim=1).indices
    return (top == truth.unsqueeze(1)).long()


def accuracy(
    vectors: EmotionVectors, stories: StoryActivations, *, reader: str, layer: int
) -> Accuracy:
    """Return how often `reader` names the emotion of `stories` at `layer`."""
    hits = named(vectors, stories, reader=reader, layer=layer)
    return Accuracy(
        reader=reader,
        layer=layer,
        top1=float(hits[:, 0].float().mean()),
        top3=float(hits.sum(1).float().mean()),
        texts=len(stories.labels),
        emotions=len(vectors.emotions),
    )


def merged(parts: Sequence[Sequence[Accuracy]]) -> tuple[Accuracy, ...]:
    """Return accuracies over several parts of the texts, each by its number of texts.

    Raises:
        ValueError: If there is no text in any part.
    """
    found = []
    for same in zip(*parts, strict=True):
        texts = sum(part.texts for part in same)
        if not texts:
            raise ValueError(
                "there must be stories to test on, found none on these topics. Add "
                "stories on the held-out topics"
            )
        top1, top3 = (
            sum(getattr(part, name) * part.texts for part in same if part.texts) / texts
            for name in ("top1", "top3")
        )
        found.append(replace(same[0], top1=top1, top3=top3, texts=texts))
    return tuple(found)


def chosen_by(tried: Sequence[Accuracy]) -> dict[str, int]:
    """Return the layer per reader at which it names most, the first of equals.

    The logistic reader, which is slow to fit, takes the LDA's layer.
    """
    chosen = {
        reader: max(
            (found for found in tried if found.reader == reader),
            key=lambda found: found.top1,
        ).layer
        for reader in dict.fromkeys(found.reader for found in tried)
    }
    return chosen | {LOGISTIC: chosen[LDA]}


def chosen_layers(
    fit: StoryActivations, vectors: EmotionVectors, *, shrinkage: float
) -> dict[str, int]:
    """Return the best layer per reader, fitted on t01-t06 and judged on t07-t08."""
    inner = fit.of_topics(EMOTIONS_FIT_TOPICS[:6])
    outer = fit.of_topics(EMOTIONS_FIT_TOPICS[6:])
    fitter = VectorFitter(
        emotions=vectors.emotions, layers=vectors.layers, d_model=vectors.d_model
    )
    fitter.update(inner.values, inner.labels)
    trial = fitter.vectors(denoise=0.0, shrinkage=shrinkage)
    return chosen_by(accuracies(trial, outer))


def accuracies(
    vectors: EmotionVectors, stories: StoryActivations
) -> tuple[Accuracy, ...]:
    """Return the accuracy of every reader at every layer."""
    return tuple(
        accuracy(vectors, stories, reader=reader, layer=layer)
        for reader in vectors.readers
        for layer in vectors.layers
    )


def recorded(accuracies: Sequence[Accuracy]) -> list[dict[str, Any]]:
    """Return accuracies as the vectors' provenance holds them."""
    return [asdict(accuracy) for accuracy in accuracies]


def accuracy_lines(vectors: EmotionVectors) -> list[str]:
    """Return the held-out accuracies in a file's provenance, beside chance."""
    lines = []
    for fields in vectors.provenance.get("accuracy", []):
        found = Accuracy(**fields)
        first, third = found.chance
        lines.append(
            f"{found.reader:>15}: top-1 {found.top1:.2f} (chance {first:.3f}), top-3 "
            f"{found.top3:.2f} (chance {third:.3f}) over {found.emotions} emotions, "
            f"{found.texts} held-out stories, layer {found.layer} (inner split)"
        )
    return lines
