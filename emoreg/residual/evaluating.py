"""Reading a model as it is used, whatever mode it is in: no dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back as it was.

    Module by module, since who trains may hold some of them in evaluation mode.

    Example:
        `with evaluating(model), torch.no_grad(): model(ids)` has no dropout.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
