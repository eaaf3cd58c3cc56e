"""The streaming fitter: labelled activations in, emotion vectors out."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA, MEAN_DIFFERENCE


@final
class VectorFitter:
    """Accumulates class means, within-class scatter and neutral covariance.

    Welford's update in float32, whatever the model's dtype, so that one batch, many
    batches and any order give the same vectors up to rounding. Memory: two
    `layer x d_model x d_model` matrices and one mean per emotion and layer.
    """

    def __init__(
        self, *, emotions: Sequence[str], layers: Sequence[int], d_model: int
    ) -> None:
        """Start empty for these emotions and layers."""
        self.emotions, self.layers = tuple(emotions), tuple(layers)
        self.d_model = d_model
        shape = (len(self.layers), d_model)
        self._count = torch.zeros(len(self.emotions))
        self._mean = torch.zeros(len(self.emotions), *shape)
        self._scatter = torch.zeros(*shape, d_model)
        self._neutral_count = 0.0
        self._neutral_mean = torch.zeros(shape)
        self._neutral_scatter = torch.zeros(*shape, d_model)

    def update(
        self, activations: Float[Tensor, "text layer d_model"], labels: Sequence[str]
    ) -> "VectorFitter":
        """Add one pooled activation per text with its emotion.

        Raises:
            ValueError: If a label is not among the emotions, or labels and texts
                differ in number.
        """
        if len(labels) != len(activations):
            raise ValueError(
                "`labels` must name one emotion per text, got "
                f"{len(labels)} for {len(activations)} texts"
            )
        for name in sorted(set(labels) - set(self.emotions)):
            raise ValueError(
                f"each label must be one of the fitter's emotions, got {name!r}"
            )
        x = activations.float().cpu()
        for name in sorted(set(labels)):
            row = self.emotions.index(name)
            rows = x[[i for i, label in enumerate(labels) if label == name]]
            count, mean = float(self._count[row]), self._mean[row]
            new_count, new_mean, scatter = _merged(count, mean, rows)
            self._count[row], self._mean[row] = new_count, new_mean
            self._scatter += scatter
        return self

    def update_neutral(
        self, tokens: Float[Tensor, "token layer d_model"]
    ) -> "VectorFitter":
        """Add activations at single tokens of text without emotion."""
        merged = _merged(self._neutral_count, self._neutral_mean, tokens.float().cpu())
        self._neutral_count, self._neutral_mean, scatter = merged
        self._neutral_scatter += scatter
        return self

    def neutral_subspace(self, variance: float) -> list[Float[Tensor, "rank d_model"]]:
        """Return, per layer, the components that explain `variance` of neutral text.

        Args:
            variance: Share of variance in [0, 1); 0 removes nothing, more removes
                more of what ordinary text varies in, and at last the emotion too.
        """
        if not 0 <= variance < 1:
            raise ValueError(f"`denoise` must be in [0, 1), got {variance}")
        bases = []
        for scatter in self._neutral_scatter:
            if variance == 0 or self._neutral_count < 2:
                bases.append(scatter[:0])
                continue
            values, columns = torch.linalg.eigh(scatter.double())
            values, columns = values.flip(0).clamp(min=0), columns.flip(1)
            explained = values.cumsum(0) / values.sum()
            rank = int((explained < variance).sum()) + 1
            bases.append(columns[:, :rank].T.float())
        return bases

    def vectors(
        self,
        *,
        denoise: float = 0.5,
        shrinkage: float = 0.5,
        provenance: dict[str, Any] | None = None,
    ) -> EmotionVectors:
        """Return mean-difference and LDA directions of everything seen so far.

        `r_e = mean_e - mean over emotions`, minus its part in the neutral subspace;
        `w_e = inverse((1 - s) S + s tr(S)/d I) r_e` with the within-class covariance
        S and shrinkage s.

        Args:
            denoise: Share of neutral variance whose components are projected out.
            shrinkage: 0 trusts the sample covariance, 1 ignores it.
            provenance: Written into the file.

        Raises:
            ValueError: If an emotion has fewer than two texts.
        """
        if float(self._count.min()) < 2:
            name = self.emotions[int(self._count.argmin())]
            raise ValueError(
                "each emotion must have at least 2 texts to fit, found "
                f"{int(self._count.min())} for {name!r}"
            )
        centre = self._mean.mean(0)
        difference = (self._mean - centre).transpose(0, 1)  # layer emotion d_model
        bases = self.neutral_subspace(denoise)
        clean = without(difference, bases)
        weights = self._lda(difference, shrinkage)
        raw_norm, lda_norm = clean.norm(dim=-1), weights.norm(dim=-1)
        bias = -0.5 * (weights * difference).sum(-1)
        return EmotionVectors(
            directions=torch.stack(
                [clean / raw_norm.unsqueeze(-1), weights / lda_norm.unsqueeze(-1)]
            ),
            readers=(MEAN_DIFFERENCE, LDA),
            layers=self.layers,
            emotions=self.emotions,
            centre=centre,
            raw_norm=raw_norm,
            scale=torch.stack([torch.ones_like(raw_norm), lda_norm]),
            offset=torch.stack([torch.zeros_like(bias), bias]),
            provenance={
                **(provenance or {}),
                "neutral_rank": [len(base) for base in bases],
            },
        )

    def _lda(
        self, difference: Float[Tensor, "layer emotion d_model"], shrinkage: float
    ) -> Float[Tensor, "layer emotion d_model"]:
        degrees = float(self._count.sum()) - len(self.emotions)
        covariance = self._scatter.double() / max(degrees, 1.0)
        width = covariance.shape[-1]
        ridge = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        eye = torch.eye(width, dtype=torch.float64)
        shrunk = (1 - shrinkage) * covariance + shrinkage * ridge[:, None, None] * eye
        solved = torch.linalg.solve(shrunk, difference.double().transpose(1, 2))
        return solved.transpose(1, 2).float()


def _merged(
    count: float, mean: Float[Tensor, "layer d_model"], rows: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Return count and mean with `rows` added, and the scatter that they add."""
    n = rows.shape[0]
    batch_mean = rows.mean(0)
    centred = rows - batch_mean
    delta = batch_mean - mean
    total = count + n
    scatter = torch.einsum("nld,nle->lde", centred, centred)
    scatter += (count * n / total) * torch.einsum("ld,le->lde", delta, delta)
    return total, mean + delta * (n / total), scatter


def without(
    x: Float[Tensor, "layer emotion d_model"], bases: list[Tensor]
) -> Float[Tensor, "layer emotion d_model"]:
    """Return `x` with its part in each layer's basis (rank, d_model) taken out."""
    return torch.stack(
        [row - (row @ base.T) @ base for row, base in zip(x, bases, strict=True)]
    )
