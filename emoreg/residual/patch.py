"""Patching: setting what the stream says in some directions, at some tokens."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from emoreg.residual.layers import (
    backbone,
    checked_layers,
    d_model,
    decoder_layers,
    num_layers,
)
from emoreg.residual.stream_hook import changing


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Patch:
    """What one layer's stream is set to, inside a space and nowhere else."""

    basis: Float[Tensor, "rank d_model"]
    """Orthonormal rows."""
    goal: Float[Tensor, " rank"]
    """Coordinates in that basis, in the model's own units."""

    @classmethod
    def of(
        cls, directions: Float[Tensor, "direction d_model"], levels: Tensor
    ) -> "Patch":
        """Return the patch after which `<h, direction>` is `levels`, one for each.

        Directions need not be orthogonal; where there are more than their span has
        dimensions, levels are met by least squares.
        """
        wanted = directions.double()
        left, sizes, rows = torch.linalg.svd(wanted, full_matrices=False)
        kept = sizes > 1e-6 * sizes[0]
        goal = (left.T @ levels.double())[kept] / sizes[kept]
        return cls(basis=rows[kept].float(), goal=goal.float())


@contextmanager
def patched(
    model: nn.Module,
    patches: Mapping[int, Patch],
    *,
    where: Callable[[Int[Tensor, "batch pos"]], Bool[Tensor, "batch pos"]],
) -> Iterator[None]:
    """Set the output of decoder blocks to their patch's goal, inside the block.

    `h <- h + (goal - h B^T) B` at the marked tokens: what lies outside the space stays.
    For forward passes over token ids. With a cache, as in generation, a call's own
    tokens are marked: what is to be patched must stand in the prompt.

    Args:
        model: Any wrapping of a transformers decoder.
        patches: By decoder block.
        where: Marks the tokens of a batch that are patched.

    Raises:
        ValueError: If a layer is not the model's, or a basis has another width.
    """
    if patches:
        checked_layers(tuple(patches), num_layers(model))
    for layer, patch in patches.items():
        if patch.basis.shape[-1] != d_model(model):
            raise ValueError(
                f"the patch of layer {layer} must have the model's width "
                f"{d_model(model)}, got {patch.basis.shape[-1]}"
            )
    marked: list[Tensor] = []

    def note(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError(
                "a patched forward pass must be given `input_ids`, which say where to "
                "patch; it was given embeddings"
            )
        marked[:] = [where(ids)]

    blocks = decoder_layers(model)
    with ExitStack() as hooks:
        handle = backbone(model).register_forward_pre_hook(note, with_kwargs=True)
        hooks.callback(handle.remove)
        for layer, patch in patches.items():
            handle = blocks[layer].register_forward_hook(_setting(patch, marked))
            hooks.callback(handle.remove)
        yield


def _setting(patch: Patch, marked: list[Tensor]) -> Any:
    def change(stream: Tensor) -> Tensor:
        basis = patch.basis.to(stream.device)
        off = patch.goal.to(stream.device) - stream.float() @ basis.T
        moved = stream + (off @ basis).to(stream.dtype)
        return torch.where(marked[0].to(stream.device).unsqueeze(-1), moved, stream)

    return changing(change)
