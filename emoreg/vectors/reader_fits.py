"""Four ways to fit a reader on labelled activations of one layer.

Each takes activations `x` and the class of every text, and returns the weights and
biases of one affine map, or of two with a rectifier between them. The class scores are
what the last one gives; only their differences mean anything.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

Maps = tuple[tuple[Tensor, Tensor], ...]
"""(weight, bias) of each affine map, in the order in which they act."""

HIDDEN = 256
"""Units of the MLP."""
_STEPS, _RATE, _DECAY, _DROPPED = 120, 3e-3, 0.3, 0.5
"""Chosen on the demo model's stories, topics t07 and t08."""


def lda(
    x: Float[Tensor, "text d_model"],
    labels: Int[Tensor, " text"],
    *,
    shrinkage: float = 0.5,
) -> Maps:
    """Return linear discriminants: `w = inverse((1 - s) S + s tr(S)/d I) (m - mean)`.

    S is the within-class covariance, m a class mean and s the shrinkage.
    """
    means = _class_means(x, labels)
    centre = means.mean(0)
    inside = (x - means[labels]).double()
    covariance = inside.T @ inside / max(len(x) - len(means), 1)
    width = x.shape[1]
    ridge = covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    shrunk = (1 - shrinkage) * covariance + shrinkage * ridge
    difference = (means - centre).double()
    weight = torch.linalg.solve(shrunk, difference.T).T
    bias = -0.5 * (weight * difference).sum(-1) - weight @ centre.double()
    return ((weight.float(), bias.float()),)


def logistic(
    x: Float[Tensor, "text d_model"],
    labels: Int[Tensor, " text"],
    *,
    l2: float = 1e-2,
) -> Maps:
    """Return multinomial logistic weights, by L-BFGS on standardized `x`.

    Args:
        x: One pooled activation per text.
        labels: Class of each text.
        l2: Ridge on the weights; more pulls the directions towards mean differences.
    """
    classes = int(labels.max()) + 1
    mean, spread = _moments(x)
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
        loss = cross_entropy(z @ weight.T + bias, labels)
        loss = loss + 0.5 * l2 * weight.square().sum() / classes
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    centred = (weight - weight.mean(0)).detach() / spread
    offset = bias.detach() - bias.detach().mean() - centred @ mean
    return ((centred, offset),)


def pca_contrast(
    x: Float[Tensor, "text d_model"], labels: Int[Tensor, " text"]
) -> Maps:
    """Return each class's main direction of difference from the other classes.

    For a class: the first right singular vector of its texts minus the mean over the
    other classes, turned so that the class lies on its positive side, and scaled so
    that all texts together have a standard deviation of 1 along it. This is the
    reading vector of representation engineering (Zou et al. 2023,
    https://arxiv.org/abs/2310.01405) with the other emotions for the contrast.
    """
    means = _class_means(x, labels)
    rows = []
    for row, mean in enumerate(means):
        others = torch.cat([means[:row], means[row + 1 :]]).mean(0)
        contrast = x[labels == row] - others
        first = torch.linalg.svd(contrast, full_matrices=False).Vh[0]
        rows.append(first * torch.sign(first @ (mean - others)))
    weight = torch.stack(rows)
    read = x @ weight.T
    spread = read.std(0).clamp(min=1e-6)
    return ((weight / spread.unsqueeze(-1), -read.mean(0) / spread),)


def mlp(
    x: Float[Tensor, "text d_model"], labels: Int[Tensor, " text"], *, seed: int = 0
) -> Maps:
    """Return a network with one hidden layer, by AdamW over all texts at once.

    What a linear reader can't see, this one may: it is there to find what was only
    bent out of the others' way. Half of the inputs and of the hidden units are dropped
    at each step, without which a few texts a class are learnt by heart.
    """
    classes = int(labels.max()) + 1
    mean, spread = _moments(x)
    z = (x - mean) / spread
    draw = torch.Generator().manual_seed(seed)
    inner, outer = (
        (torch.randn(*shape, generator=draw) / shape[1] ** 0.5).requires_grad_()
        for shape in ((HIDDEN, x.shape[1]), (classes, HIDDEN))
    )
    inner_bias = torch.zeros(HIDDEN, requires_grad=True)
    outer_bias = torch.zeros(classes, requires_grad=True)
    weights = [inner, inner_bias, outer, outer_bias]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=_DECAY)
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            hidden = relu(_dropped(z, draw) @ inner.T + inner_bias)
            scores = _dropped(hidden, draw) @ outer.T + outer_bias
            cross_entropy(scores, labels).backward()
            optimizer.step()
    first = inner.detach() / spread
    return (
        (first, inner_bias.detach() - first @ mean),
        (outer.detach(), outer_bias.detach()),
    )


METHODS = {"lda": lda, "logistic": logistic, "pca": pca_contrast, "mlp": mlp}


def applied(maps: Maps, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
    """Return the class scores of `x`."""
    for place, (weight, bias) in enumerate(maps):
        x = x if place == 0 else relu(x)
        x = x @ weight.T.to(x.device) + bias.to(x.device)
    return x


def _class_means(
    x: Float[Tensor, "text d_model"], labels: Int[Tensor, " text"]
) -> Float[Tensor, "class d_model"]:
    classes = int(labels.max()) + 1
    return torch.stack([x[labels == row].mean(0) for row in range(classes)])


def _dropped(
    x: Float[Tensor, "text feature"], draw: torch.Generator
) -> Float[Tensor, "text feature"]:
    kept = torch.rand(x.shape, generator=draw) >= _DROPPED
    return x * kept / (1 - _DROPPED)


def _moments(
    x: Float[Tensor, "text d_model"],
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """Return mean and spread; massive dimensions would carry all of a penalty."""
    return x.mean(0), x.std(0).clamp(min=1e-6)
