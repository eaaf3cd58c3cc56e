"""The logistic reader among the vectors' own, which the losses never touch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_fits import logistic
from emoreg.vectors.reader_names import LOGISTIC

AUDIT_READERS = (LOGISTIC,)


def with_logistic(
    vectors: EmotionVectors,
    activations: Float[Tensor, "text layer d_model"],
    labels: Int[Tensor, " text"],
    *,
    l2: float = 1e-2,
) -> EmotionVectors:
    """Return `vectors` with a multinomial logistic reader added, fitted per layer.

    Args:
        vectors: Vectors with the same layers and emotions.
        activations: One pooled activation per text.
        labels: Index of each text's emotion in `vectors.emotions`.
        l2: Ridge on the weights of standardized features; more pulls the directions
            towards mean differences.
    """
    fitted = [
        logistic(activations[:, i].float() - vectors.centre[i], labels, l2=l2)[0]
        for i in range(len(vectors.layers))
    ]
    weights = torch.stack([weight for weight, _ in fitted])
    offset = torch.stack([bias for _, bias in fitted])
    norm = weights.norm(dim=-1)
    unit = weights / norm.unsqueeze(-1)
    return EmotionVectors(
        directions=torch.cat([vectors.directions, unit.unsqueeze(0)]),
        readers=(*vectors.readers, LOGISTIC),
        layers=vectors.layers,
        emotions=vectors.emotions,
        centre=vectors.centre,
        raw_norm=vectors.raw_norm,
        scale=torch.cat([vectors.scale, norm.unsqueeze(0)]),
        offset=torch.cat([vectors.offset, offset.unsqueeze(0)]),
        provenance=vectors.provenance,
    )
