"""Keeping activations on disk, so that the same batch need not be read twice."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emoreg.residual.layers import decoder_layers

logger = logging.getLogger(__name__)


@final
class ActivationStore:
    """A folder of pooled activations, one file for each batch of texts.

    A file is named by a hash of all that its numbers depend on: the weights and the
    adapters that act, the configuration, the token ids, spans and layers of the whole
    batch. Where it was made plays no part. Whole batches are kept since the last bits
    of a text's activations depend on the texts beside it: what is read back is what a
    new run would give, bit for bit.
    """

    def __init__(self, folder: str | Path) -> None:
        """Use `folder`, made if need be.

        Raises:
            ValueError: If it can't be made.
        """
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{str(folder)!r} must be a folder that can be written: "
                f"{error.strerror}. Choose another one"
            ) from error

    def key(
        self,
        model_hash: str,
        layers: Sequence[int],
        texts: Sequence[tuple[Sequence[int], Sequence[tuple[int, int]]]],
    ) -> str:
        """Return the name of a batch: its texts as token ids with their spans."""
        written = json.dumps([model_hash, list(layers), texts], separators=(",", ":"))
        return hashlib.sha256(written.encode()).hexdigest()[:32]

    def get(self, key: str) -> Float[Tensor, "span layer d_model"] | None:
        """Return what was kept under `key`; None if it is not there or broken."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            content = torch.load(path, weights_only=True)
            if content["key"] == key:
                return content["values"]
        except Exception as error:  # whatever a cut or foreign file makes torch raise
            logger.warning("%s can't be read (%s); it is made anew", path, error)
            return None
        logger.warning("%s holds another batch; it is made anew", path)
        return None

    def put(self, key: str, values: Float[Tensor, "span layer d_model"]) -> None:
        """Keep `values`, whole or not at all.

        Raises:
            OSError: If there is no room, or the folder can't be written.
        """
        path = self._path(key)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}")
        self.folder.mkdir(parents=True, exist_ok=True)  # it may have been cleared
        try:
            torch.save({"key": key, "values": values.cpu().clone()}, partial)
            os.replace(partial, path)
        except RuntimeError as error:  # how torch says that a file can't be written
            raise OSError(
                f"{str(self.folder)!r} must have room for activations, writing stopped "
                f"({error}). What was kept before is whole: make room and go on"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete the folder with all that it holds."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.pt"


def model_hash(model: nn.Module) -> str | None:
    """Return a hash of weights, adapters and configuration.

    It reads every weight once: a third of a second for 135 million of them on a CPU.

    Returns:
        None where a hook changes or watches the decoder, whose doing no hash can tell.
    """
    if any(block._forward_hooks for block in decoder_layers(model)):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in (*_settings(model), torch.__version__):
        digest.update(part.encode() + b"\0")
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\0".encode())
        raw = weight.detach().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.cpu().numpy().data)
    return digest.hexdigest()


def _settings(model: nn.Module) -> Iterator[str]:
    """Yield what beside weights decides a forward pass."""
    config: Any = getattr(model, "config", None)
    yield type(model).__name__
    if config is not None:
        yield json.dumps(config.to_dict(), sort_keys=True, default=str)
        yield str(getattr(config, "_attn_implementation", ""))
    for name, module in model.named_modules():
        # Of peft's layers: an adapter may be there and not act.
        if hasattr(module, "disable_adapters") and hasattr(module, "active_adapters"):
            layer: Any = module
            merged = getattr(layer, "merged", False)
            yield f"{name} {layer.disable_adapters} {layer.active_adapters} {merged}"
