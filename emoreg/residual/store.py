"""Keeping activations on disk, so that the same batch need not be read twice."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
from torch import Tensor, nn

from emoreg.residual.layers import decoder_layers

logger = logging.getLogger(__name__)


@final
class ActivationStore:
    """A folder of pooled activations, one file for each batch of texts.

    A file is named by a hash of all that its numbers depend on: the weights and the
    adapters that act, the configuration, the token ids and spans of the whole batch; in
    it stands at which layers it was read. Where it was made plays no part. Whole
    batches are kept since the last bits of a text's activations depend on the texts
    beside it: what is read back is what a new run would give, bit for bit. What else
    takes forward passes (a steered run, an answer) is kept beside them by `recall`.
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

    def key(self, model_hash: str, *parts: Any) -> str:
        """Return a name for what depends on a model and on `parts`.

        Args:
            model_hash: As `model_hash` returns it.
            parts: Numbers, strings, tensors, and sequences of them.
        """
        written = json.dumps(
            [model_hash, *parts], separators=(",", ":"), default=_tensor_hash
        )
        return hashlib.sha256(written.encode()).hexdigest()[:32]

    def recall(
        self,
        key: str,
        compute: Callable[[], Sequence[Tensor]],
    ) -> tuple[Tensor, ...]:
        """Return what `compute` gives, from the folder if it was kept under `key`.

        The key has to hold all that the answer depends on, and a word for what is
        computed: another word, once that changes.

        Raises:
            OSError: If there is no room, or the folder can't be written.
        """
        kept = self.get(key)
        if kept is None:
            kept = tuple(compute())
            self.put(key, kept)
        return tuple(kept)

    def get(self, key: str) -> Any:
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

    def put(self, key: str, values: Tensor | tuple[Tensor, ...]) -> None:
        """Keep `values`, whole or not at all.

        Raises:
            OSError: If there is no room, or the folder can't be written.
        """
        path = self._path(key)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}")
        self.folder.mkdir(parents=True, exist_ok=True)  # it may have been cleared
        copied = tuple(map(_copy, values)) if type(values) is tuple else _copy(values)
        try:
            torch.save({"key": key, "values": copied}, partial)
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


@contextmanager
def temporary_store() -> Iterator[ActivationStore]:
    """Give a store whose folder is gone afterwards."""
    with TemporaryDirectory(prefix="emoreg-") as folder:
        yield ActivationStore(folder)


def _copy(values: Any) -> Tensor:
    """Return a tensor's own numbers, without the larger storage it may look into."""
    return values.detach().cpu().clone()


def _tensor_hash(values: Tensor) -> str:
    raw = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(raw.data, digest_size=16).hexdigest()
    return f"{values.dtype} {tuple(values.shape)} {digest}"


def model_hash(model: nn.Module) -> str | None:
    """Return a hash of weights, adapters and configuration.

    It reads every weight once: a third of a second for 135 million of them on a CPU.

    Returns:
        None where no hash can tell what the model does: a hook changes or watches some
        part of a decoder block, or weights lie elsewhere (offloaded, `meta` here).
    """
    if _is_hooked(model) or any(weight.is_meta for _, weight in _stored(model)):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in (*_settings(model), torch.__version__):
        digest.update(part.encode() + b"\0")
    for name, weight in _stored(model):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\0".encode())
        raw = weight.detach().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.cpu().numpy().data)
    return digest.hexdigest()


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _is_hooked(model: nn.Module) -> bool:
    """Return whether a hook runs in a decoder block, or in any part of one."""
    parts = (part for block in decoder_layers(model) for part in block.modules())
    return any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def _settings(model: nn.Module) -> Iterator[str]:
    """Yield what beside weights decides a forward pass."""
    config: Any = getattr(model, "config", None)
    yield type(model).__name__
    if config is not None:
        yield json.dumps(config.to_dict(), sort_keys=True, default=str)
        yield str(getattr(config, "_attn_implementation", ""))
    for name, module in model.named_modules():
        # Of peft's layers: an adapter may be there and not act, or act less.
        if hasattr(module, "disable_adapters") and hasattr(module, "active_adapters"):
            layer: Any = module
            acting = (layer.disable_adapters, layer.active_adapters)
            merged, scaling = (getattr(layer, x, None) for x in ("merged", "scaling"))
            yield f"{name} {acting} {merged} {scaling}"
