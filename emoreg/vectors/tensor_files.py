"""Tensors with metadata in one safetensors file, written whole or not at all."""

import os
import uuid
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(
    tensors: dict[str, Tensor], metadata: dict[str, str], path: str | Path
) -> Path:
    """Write a safetensors file beside its place, then rename it into place.

    Raises:
        ValueError: If the folder can't be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    except OSError as error:
        raise ValueError(
            f"the folder of {str(path)!r} must be writable: {error.strerror}. Pass "
            "another output path"
        ) from error
    try:
        save_file(tensors, temporary, metadata)
        temporary.chmod(mode)  # safetensors lets no one else read what it writes
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_tensors(
    path: str | Path, expected_format: str, command: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a file of `expected_format`.

    Raises:
        ValueError: If it is missing, broken or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{str(path)!r} must be a file made by `{command}`; there is none"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} must be a whole safetensors file: {error}. Make it again "
            f"with `{command}`"
        ) from error
    if metadata.get("format") != expected_format:
        raise ValueError(
            f"{str(path)!r} must have the format {expected_format!r}, found "
            f"{metadata.get('format')!r}. Make it with `{command}`"
        )
    return tensors, metadata
