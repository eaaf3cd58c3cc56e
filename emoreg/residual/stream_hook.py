"""A forward hook that changes the residual stream which a decoder block gives out."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def changing(change: Callable[[Tensor], Tensor | None]) -> Any:
    """Return a forward hook for a decoder block; None leaves its output as it is.

    Blocks give out the stream alone, or first in a tuple whose rest is kept.
    """

    def hook(_module: nn.Module, _args: Any, output: Tensor | tuple) -> Any:
        moved = change(output[0] if isinstance(output, tuple) else output)
        if moved is None:
            return None
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
