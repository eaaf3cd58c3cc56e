"""Capping: the residual stream kept from going past a point along a direction."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from emoreg.residual.layers import checked_layers, d_model, decoder_layers, num_layers
from emoreg.residual.stream_hook import changing


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cap:
    """A unit direction, and how far along it the stream may go."""

    direction: Float[Tensor, " d_model"]
    """`v`, of length 1."""
    ceiling: float
    """The largest projection, in the model's own units."""


@contextmanager
def capped(model: nn.Module, caps: Mapping[int, Cap]) -> Iterator[None]:
    """Cap the output of decoder blocks along a direction, inside the block.

    `h_l <- h_l - relu(v_l . h_l - c_l) v_l`: a token below the ceiling is left as it
    is, bit for bit, one above is set to it. It acts on prompts and on generated tokens
    alike, and gradients flow through. What comes after the block reads the capped
    stream, and so does whatever is captured inside this context.

    A baseline at run time (activation capping, https://arxiv.org/abs/2601.10387); to
    train it into the weights, see `ReferenceKL(caps=...)`.

    Args:
        model: Any wrapping of a transformers decoder.
        caps: Per decoder block, along what and at what; see `emoreg.caps`.

    Raises:
        ValueError: If a layer is not the model's, or a direction has another width or
            another length than 1.
    """
    blocks, width = decoder_layers(model), d_model(model)
    if caps:
        checked_layers(tuple(caps), num_layers(model))
    for layer, cap in caps.items():
        length = float(cap.direction.float().norm())
        if cap.direction.shape != (width,) or not abs(length - 1) < 1e-3:
            raise ValueError(
                f"the direction capped at layer {layer} must be a unit vector of the "
                f"model's width {width}, got the shape {tuple(cap.direction.shape)} "
                f"and the length {length:.4g}"
            )
    with ExitStack() as hooks:
        for layer, cap in caps.items():
            hooks.callback(blocks[layer].register_forward_hook(_capping(cap)).remove)
        yield


def _capping(cap: Cap) -> Any:
    def change(stream: Tensor) -> Tensor:
        direction = cap.direction.to(stream.device).float()
        past = (stream.float() @ direction - cap.ceiling).clamp(min=0)
        return stream - (past.unsqueeze(-1) * direction).to(stream.dtype)

    return changing(change)
