"""Terms that keep things as they were: what directions mean, what the model says."""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emoreg.losses.term import (
    AbstractPassageTerm,
    PassageReadings,
    Probe,
    checked_weight,
)
from emoreg.residual.capping import Cap


@final
class MeaningAnchor(AbstractPassageTerm):
    """Keeps readings of stories where they were.

    `L = mean over story tokens, layers, emotions of Huber(p - p_ref)`.

    A direction that is rotated away or shrunk would read zero after failure and after
    a sad story alike; this term makes that escape expensive.
    """

    def __init__(
        self, probe: Probe, *, weight: float = 1.0, every: int = 4, passages: int = 4
    ) -> None:
        """Make the term.

        Args:
            probe: How to read.
            weight: Factor of the term.
            every: Optimizer steps from one auxiliary batch to the next.
            passages: Stories in that batch.
        """
        self.name, self.weight = "meaning", checked_weight(weight)
        self.probe, self.every, self.passages = probe, every, passages

    def __call__(self, readings: PassageReadings) -> Tensor:
        """Return the mean Huber distance over the marked tokens."""
        mask = readings.mask[..., None, None]
        # Masked before the distance: NaN at padding would be NaN in the gradient.
        drift = torch.where(mask, readings.values - readings.reference, 0.0)
        distance = F.huber_loss(drift, torch.zeros_like(drift), reduction="none")
        return distance.mean((2, 3)).sum() / readings.mask.sum().clamp(min=1)


@final
class ReferenceKL(AbstractPassageTerm):
    """Keeps the next-token distribution near the reference's.

    `L = mean over tokens of KL(reference || model)`, in nat per token. The reference
    is cached as its `k` largest log-probabilities; all other tokens count as one,
    which bounds the true KL from below and costs `k` numbers a token instead of a
    vocabulary.

    With `caps` the reference is the capped model: what capping does at run time is
    distilled into what is trained. Keep a `MeaningAnchor` beside it, and give it more
    weight and more texts than an anchor needs.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        every: int = 4,
        passages: int = 2,
        k: int = 64,
        caps: Mapping[int, Cap] | None = None,
    ) -> None:
        """Make the term.

        Args:
            weight: Factor of the term.
            every: Optimizer steps from one auxiliary batch to the next.
            passages: Texts in that batch, neutral ones and the run's own by turns.
            k: Log-probabilities kept of each token's reference distribution.
            caps: What the reference is capped with while its log-probabilities are
                taken (`emoreg.caps`); the model as it is when None.
        """
        self.caps = dict(caps or {})
        self.name = "capped_kl" if self.caps else "kl"
        self.weight = checked_weight(weight)
        self.every, self.passages, self.k = every, passages, k

    def __call__(
        self,
        logits: Float[Tensor, "token vocab"],
        reference: Float[Tensor, "token k"],
        ids: Int[Tensor, "token k"],
    ) -> Tensor:
        """Return the mean KL over tokens.

        Args:
            logits: The model's, with gradient.
            reference: Log-probabilities of the reference at `ids`.
            ids: Vocabulary ids of the reference's most likely tokens.
        """
        model = logits.float().log_softmax(-1).gather(-1, ids)
        inside = (reference.exp() * (reference - model)).sum(-1)
        rest_reference, rest_model = _rest(reference), _rest(model)
        outside = rest_reference.exp() * (rest_reference - rest_model)
        return (inside + outside).mean()


def _rest(log_probs: Float[Tensor, "token k"]) -> Float[Tensor, " token"]:
    """Return the log of the probability that is not among `log_probs`."""
    mass = log_probs.exp().sum(-1).clamp(max=1 - 1e-6)
    return torch.log1p(-mass)


def top_log_probs(
    logits: Float[Tensor, "token vocab"], k: int
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """Return the `k` largest log-probabilities of each token and their ids."""
    values, ids = logits.float().log_softmax(-1).topk(k, dim=-1)
    return values, ids


def prediction_mask(held: Bool[Tensor, "text pos"]) -> Bool[Tensor, "text pos"]:
    """Mark the positions that predict a held token: each is the one before it."""
    shifted = torch.zeros_like(held)
    shifted[:, :-1] = held[:, 1:]
    return shifted
