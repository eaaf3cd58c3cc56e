"""Measuring a model and adapters of it in one process, each once."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.comparison.measure import measure, prompts_hash
from emoreg.comparison.readings import Readings
from emoreg.residual.layers import model_name
from emoreg.residual.store import model_hash
from emoreg.training.adapters import with_adapter
from emoreg.training.reference import Reference
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.transcripts import Conversation

BASE = "before"
"""The arm without an adapter."""
Guard = Callable[[nn.Module], dict[str, Any]]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Measuring:
    """What every arm is measured with."""

    tokenizer: PreTrainedTokenizerBase
    vectors: EmotionVectors
    reference: Reference | None
    prompts: Sequence[Conversation]
    guard: Guard | None = None
    """Guard rails of a model; None for none."""
    quiet: bool = False

    def arms(
        self, model: nn.Module, adapters: Mapping[str, Path], folder: Path
    ) -> dict[str, Readings]:
        """Return the readings of `model` as it is and with each adapter, by arm.

        The base is loaded once: adapters are put on and taken off. A table that is in
        `folder` already is not measured again, so that a run that was cut off goes on.

        Raises:
            ValueError: If a table is there that was measured with other vectors,
                prompts or reference, of another model or adapter, or an adapter
                doesn't fit.
        """
        own: dict[str, Any] = {
            "model": model_name(model),
            "dtype": str(next(model.parameters()).dtype),
            "base_weights": model_hash(model),
            "adapter_weights": None,
        }
        base = folder / f"{BASE}.parquet"
        found = {BASE: self._known(base, own) or self._measured(model, base, own)}
        for arm, adapter in adapters.items():
            path = folder / f"{arm}.parquet"
            own["adapter_weights"] = _weights_hash(adapter)
            known = self._known(path, own)
            if known is not None:
                found[arm] = known
                continue
            tuned: Any = with_adapter(model, adapter)
            found[arm] = self._measured(tuned, path, own)
            model = tuned.unload()
        return found

    def _measured(
        self, model: nn.Module, path: Path, own: Mapping[str, Any]
    ) -> Readings:
        found = measure(
            model,
            self.tokenizer,
            self.prompts,
            self.vectors,
            reference=self.reference,
            arm=path.stem,
            guards=None if self.guard is None else self.guard(model),
            quiet=self.quiet,
        )
        found.meta.update(own)
        found.save(path)
        return found

    def _known(self, path: Path, own: Mapping[str, Any]) -> Readings | None:
        """Return a table of an earlier run, if it is there and one of this.

        One without guard rails, where they are asked for, is measured anew.
        """
        if not path.is_file():
            return None
        table = Readings.load(path)
        own = {
            "vectors_hash": self.vectors.hash,
            "prompts_hash": prompts_hash(self.prompts),
            "reference_hash": None if self.reference is None else self.reference.hash,
            **own,
        }
        other = [name for name, value in own.items() if table.meta.get(name) != value]
        if other:
            raise ValueError(
                f"{path} is there already and must be of this run, found another "
                f"`{other[0]}`: {table.meta.get(other[0])}. Choose another --out, or "
                "delete it"
            )
        return None if self.guard is not None and not table.meta["guards"] else table


def _weights_hash(adapter: Path) -> str:
    """Return a short hash of an adapter's settings and weights, as they are on disk."""
    digest = hashlib.sha256()
    for file in sorted(adapter.glob("adapter_*")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return a run's checkpoints with an adapter by step, the earliest first.

    Raises:
        ValueError: If there is none.
    """
    found = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
        and (path / "adapter_config.json").is_file()
    }
    if not found:
        raise ValueError(
            f"{str(folder)!r} must hold folders `checkpoint-STEP` with an adapter "
            "each, found none. Train with `--save_strategy steps --save_steps N`"
        )
    return dict(sorted(found.items()))
