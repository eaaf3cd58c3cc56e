"""What a loss could do at its best: its readings set to their level after success."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from emoreg.residual.patch import Patch
from emoreg.training.reference import Reference
from emoreg.vectors.corpus import Roles
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA, MEAN_DIFFERENCE, RANDOM


def success_patches(
    vectors: EmotionVectors,
    reference: Reference,
    roles: Roles,
    *,
    placebo: bool = False,
) -> dict[int, Patch]:
    """Return, per loss layer, the patch to the level after success.

    Of the loss's emotions, by the readers that a loss acts on; with `placebo` of as
    many random directions, set to *their* level after success.
    """
    emotions = [e for e in (*roles.lower, *roles.raise_) if e in vectors.emotions]
    readers = [r for r in (LDA, MEAN_DIFFERENCE) if r in vectors.readers]
    if placebo:
        emotions = list(islice(vectors.emotions, len(emotions) * len(readers)))
        readers = [RANDOM]
    patches = {}
    for layer in reference.plan.loss:
        at = [
            _levels(vectors, reference, layer, reader, emotions) for reader in readers
        ]
        rows, levels = zip(*at, strict=True)
        patches[layer] = Patch.of(torch.cat(rows), torch.cat(levels))
    return patches


def _levels(
    vectors: EmotionVectors,
    reference: Reference,
    layer: int,
    reader: str,
    emotions: list[str],
) -> tuple[Tensor, Tensor]:
    """Return a reader's directions, and the projections on them after success."""
    units = vectors.unit_directions(layer=layer, reader=reader)
    units = units[list(vectors.emotion_indices(emotions))]
    at: Any = {"reader": reader, "layers": [layer], "emotions": emotions}
    centre = vectors.centre[vectors.layer_index(layer)]
    return units, reference.unit("success_level", **at)[0] + units @ centre
