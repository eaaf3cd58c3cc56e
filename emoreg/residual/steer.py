"""Steering: adding directions to the residual stream while a model runs."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from emoreg.residual.layers import checked_layers, d_model, decoder_layers, num_layers
from emoreg.residual.stream_hook import changing


@contextmanager
def steered(
    model: nn.Module,
    additions: Mapping[int, Float[Tensor, " d_model"]],
    *,
    where: Bool[Tensor, "batch pos"] | None = None,
) -> Iterator[None]:
    """Add a vector to the output of decoder blocks, inside the block.

    `h_l <- h_l + a_l`. It acts on prompts and on generated tokens alike, with a cache
    or without: each token passes each block once. Gradients flow through. Zero vectors
    add no hook, so that strength 0 is the model itself, bit for bit.

    Args:
        model: Any wrapping of a transformers decoder.
        additions: Per decoder block, what is added to its output, in the model's own
            units; see `addition`.
        where: True at the tokens that it is added to, for forward passes of this shape
            without a cache; every token when None.

    Raises:
        ValueError: If a layer is not the model's, or a vector has another width or is
            not finite.
    """
    blocks, width = decoder_layers(model), d_model(model)
    if additions:
        checked_layers(tuple(additions), num_layers(model))
    with ExitStack() as hooks:
        for layer, vector in additions.items():
            if vector.shape != (width,) or not bool(vector.isfinite().all()):
                raise ValueError(
                    f"what is added at layer {layer} must be a finite vector of the "
                    f"model's width {width}, got the shape {tuple(vector.shape)}"
                )
            if bool(vector.any()):
                hooks.callback(
                    blocks[layer].register_forward_hook(_adding(vector, where)).remove
                )
        yield


def addition(
    unit: Float[Tensor, " d_model"], *, strength: float, norm: float
) -> Float[Tensor, " d_model"]:
    """Return `strength * norm * unit`: a share of the mean residual-stream norm.

    Raises:
        ValueError: If the strength is not finite or the norm not positive.
    """
    if not math.isfinite(strength):
        raise ValueError(f"`strength` must be a finite number, got {strength}")
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"`norm` must be a positive number, got {norm}")
    return strength * norm * unit


def _adding(
    vector: Float[Tensor, " d_model"], where: Bool[Tensor, "batch pos"] | None
) -> Any:
    def change(stream: Tensor) -> Tensor:
        added = vector.to(device=stream.device, dtype=stream.dtype)
        if where is not None:
            added = where.to(stream.device).unsqueeze(-1) * added
        return stream + added

    return changing(change)
