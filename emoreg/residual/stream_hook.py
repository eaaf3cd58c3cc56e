"""A forward hook that changes the residual stream which a decoder block gives out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def changing(change: Callable[[Tensor], Tensor | None]) -> Any:
    """Return a forward hook for a decoder block; None leaves its output as it is.

    Blocks give out the stream alone, or first in a tuple whose rest is kept. A caller's
    autocast is off inside: a projection in bfloat16 is off by more than what a hook
    changes.
    """

    def hook(_module: nn.Module, _args: Any, output: Tensor | tuple) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        with torch.autocast(stream.device.type, enabled=False):
            moved = change(stream)
        if moved is None:
            return None
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
