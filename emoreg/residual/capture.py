"""Reading the residual stream during a forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.nn as nn
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from emoreg.residual.layers import (
    backbone,
    checked_layers,
    decoder_layers,
    num_layers,
)


class _LastLayerReached(Exception):
    """Ends a forward pass once the last layer that anyone asked for is there."""


@final
class Captured:
    """The residual stream of chosen layers in the latest forward pass.

    Hooks only store references: nothing is cloned, detached or computed, so the
    tensors carry gradient when the forward pass did, also under gradient
    checkpointing.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        gradient: bool,
        device: torch.device | None = None,
    ) -> None:
        """Make an empty store for `layers`; see `capture`."""
        self.layers, self._gradient, self.device = tuple(layers), gradient, device
        self.open = True
        self._stream: dict[int, Tensor] = {}

    def store(self, layer: int, output: Tensor | tuple) -> None:
        """Keep a block's output; blocks of older models return a tuple."""
        if not self.open or (self._gradient and not torch.is_grad_enabled()):
            return  # a reference pass or a generation inside the same window
        self._stream[layer] = output if isinstance(output, Tensor) else output[0]

    def clear(self) -> None:
        """Let go of the stored tensors."""
        self._stream.clear()

    def __contains__(self, layer: int) -> bool:
        """Say whether the hook of `layer` fired."""
        return layer in self._stream

    def __getitem__(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """Return the output of decoder block `layer`.

        Raises:
            KeyError: If that layer was not captured, or no forward pass was run.
        """
        if layer not in self._stream:
            raise KeyError(
                f"layer {layer} must have been captured; captured layers are "
                f"{self.layers}, of which {sorted(self._stream)} fired. A hook does "
                "not fire when the forward was compiled before, or when the model "
                "is called through another object"
            )
        return self._stream[layer].to(self.device)


@contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[int],
    *,
    gradient: bool = False,
    tokens: Int[Tensor, "batch pos"] | None = None,
    device: torch.device | None = None,
) -> Iterator[Captured]:
    """Store the output of decoder blocks `layers` while the context is open.

    Args:
        model: Any wrapping of a transformers decoder (peft, DDP).
        layers: Decoder block indices; negatives count from the end.
        gradient: Keep only forward passes with gradients enabled.
        tokens: Keep only the first forward pass over these token ids. It tells the
            policy's pass from a reference's where none has gradients; comparing costs
            a host synchronization.
        device: Where streams are handed on, each copied when it is asked for: the
            blocks of a large model may lie on several. Where its block is when None.

    Yields:
        A `Captured`, filled by each forward pass and emptied on leaving.
    """
    wanted = checked_layers(layers, num_layers(model))
    captured = Captured(wanted, gradient=gradient, device=device)
    blocks = decoder_layers(model)
    handles = [
        blocks[layer].register_forward_hook(_storing_hook(captured, layer))
        for layer in wanted
    ]
    if tokens is not None:
        captured.open = False
        handles += _first_pass_over(tokens, backbone(model), captured)
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
        captured.clear()


def _storing_hook(
    captured: Captured, layer: int
) -> Callable[[nn.Module, tuple, Tensor | tuple], None]:
    def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        captured.store(layer, output)

    return hook


def _first_pass_over(
    tokens: Tensor, model: nn.Module, captured: Captured
) -> list[RemovableHandle]:
    seen = False

    def begin(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal seen
        ids = kwargs.get("input_ids", args[0] if args else None)
        embeds = kwargs.get("inputs_embeds")  # of a model that reads images as well
        same = (
            torch.equal(ids, tokens)
            if ids is not None
            else embeds is not None and embeds.shape[:2] == tokens.shape
        )
        captured.open = same and not seen
        seen = seen or same

    def end(_module: nn.Module, _args: tuple, _output: object) -> None:
        captured.open = False

    return [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_forward_hook(end),
    ]


@contextmanager
def truncated(model: nn.Module, last_layer: int) -> Iterator[None]:
    """Stop each forward pass after decoder block `last_layer`.

    Blocks above it and the head cost nothing. Only for passes without gradient:
    the forward ends by an exception, which `run_truncated` swallows.
    """

    def hook(_module: nn.Module, _args: tuple, _output: object) -> None:
        raise _LastLayerReached

    handle = decoder_layers(model)[last_layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def run_truncated(decoder: nn.Module, **inputs: Tensor) -> None:
    """Run `decoder` on `inputs` as far as `truncated` lets it."""
    try:
        decoder(**inputs, use_cache=False)
    except _LastLayerReached:
        pass
