"""What a table of behavior rests on: model, adapter, precision, software."""

import hashlib
from importlib.metadata import version
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from emoreg.residual.layers import model_name


def model_meta(model: nn.Module) -> dict[str, Any]:
    """Return what a model's figures depend on besides its texts, JSON-able."""
    return {
        "model": model_name(model),
        "adapter": adapter_hash(model),
        "dtype": str(next(model.parameters()).dtype),
        "software": {n: version(n) for n in ("torch", "transformers", "emoreg")},
    }


def adapter_hash(model: nn.Module) -> str | None:
    """Return a short hash of a peft adapter's weights; None without an adapter.

    Its name would not do: by default all are called `default`.
    """
    adapters: Any = getattr(model, "peft_config", None)
    if not isinstance(adapters, dict):
        return None
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if set(name.split(".")) & set(adapters):
            digest.update(f"{name}{tuple(weight.shape)}{tensor_hash(weight)}".encode())
    return digest.hexdigest()[:16]


def tensor_hash(vector: Float[Tensor, "..."]) -> str:
    """Return a short hash of a tensor's values in float32."""
    return hashlib.sha256(vector.detach().float().cpu().numpy().tobytes()).hexdigest()[
        :16
    ]
