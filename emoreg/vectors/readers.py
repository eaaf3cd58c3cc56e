"""Readers that are fitted on samples: directions the losses never touch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.vectors.emotion_vectors import LOGISTIC, EmotionVectors

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
        _logistic(activations[:, i].float() - vectors.centre[i], labels, l2)
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


def _logistic(
    x: Float[Tensor, "text d_model"], labels: Int[Tensor, " text"], l2: float
) -> tuple[Float[Tensor, "emotion d_model"], Float[Tensor, " emotion"]]:
    """Return weights and offsets for `x` as given, by L-BFGS on standardized `x`."""
    classes = int(labels.max()) + 1
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    # Massive-activation dimensions would otherwise carry the whole penalty.
    z = (x - mean) / spread
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=50,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = z @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss = loss + 0.5 * l2 * weight.square().sum() / classes
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    centred = (weight - weight.mean(0)).detach() / spread
    offset = bias.detach() - bias.detach().mean() - centred @ mean
    return centred, offset
