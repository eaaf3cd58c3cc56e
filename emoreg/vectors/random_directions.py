"""The random reader: directions that mean nothing, to stand beside those that do."""

import hashlib
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@lru_cache(maxsize=64)
def random_directions(
    d_model: int, layer: int, emotions: tuple[str, ...]
) -> Float[Tensor, "emotion d_model"]:
    """Return a unit direction for each name, all directions being equally likely.

    Each depends on the width, the layer and the name alone. So it is the same whatever
    else the vectors hold, and its units stay true where a reference is read again.
    """
    return torch.stack([_direction(d_model, layer, name) for name in emotions])


def _direction(d_model: int, layer: int, name: str) -> Float[Tensor, " d_model"]:
    key = f"emoreg random direction/{d_model}/{layer}/{name}".encode()
    seed = np.frombuffer(hashlib.sha256(key).digest(), dtype="<u4")
    # Of numpy's generators the one whose numbers are promised not to change.
    drawn = np.random.RandomState(seed).standard_normal(d_model)
    return torch.from_numpy(drawn / np.linalg.norm(drawn)).float()
