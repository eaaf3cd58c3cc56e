"""GGUF control vectors: steering in llama.cpp with the same direction."""

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ARCHITECTURE = "controlvector"


def write_control_vector(
    path: str | Path,
    additions: Mapping[int, Float[Tensor, " d_model"]],
    *,
    model_type: str = "",
) -> Path:
    """Write what is added at each layer as a GGUF control vector.

    llama.cpp adds the tensor `direction.i` to the output of decoder block `i` at every
    token, times the scale it is given: our layer `i`. With vectors one mean norm long
    (`addition(unit, strength=1, norm=N)`) that scale is our strength:
    `--control-vector-scaled FILE 0.05`.

    Args:
        path: The file.
        additions: Per decoder block, a vector in the model's own units.
        model_type: The model's architecture as llama.cpp names it; a note alone.

    Raises:
        ValueError: If there is none, or one for block 0, which the format has no place
            for; if the folder can't be written.
        ModuleNotFoundError: Without the package `gguf`.
    """
    from gguf import GGUFWriter

    if not additions or 0 in additions:
        raise ValueError(
            "a control vector must have a layer or more, none of them 0, which its "
            f"format has no place for; got layers {sorted(additions)}. Choose others"
        )
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(partial, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(additions))
        for layer, vector in sorted(additions.items()):
            values = vector.detach().float().cpu().numpy()
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(
            f"the folder of {str(path)!r} must be writable: {error.strerror}. Choose "
            "another one"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def read_control_vector(path: str | Path) -> dict[int, Float[Tensor, " d_model"]]:
    """Return what a GGUF control vector adds at each layer.

    Raises:
        ValueError: If the file is not one.
        ModuleNotFoundError: Without the package `gguf`.
    """
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(Path(path)).tensors
        found = {
            int(tensor.name.removeprefix("direction.")): torch.from_numpy(
                np.array(tensor.data, dtype=np.float32)
            )
            for tensor in tensors
            if tensor.name.startswith("direction.")
        }
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(
            f"{str(path)!r} must be a GGUF control vector: {error}"
        ) from error
    if not found:
        raise ValueError(
            f"{str(path)!r} must hold tensors named direction.N, found none"
        )
    return found
