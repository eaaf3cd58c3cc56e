"""What an audit needs to know of one model, beside its table of readings."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float

from emoreg.vectors.tensor_files import load_tensors, save_tensors

FORMAT = "emoreg.evidence/1"
SUFFIX = ".evidence.safetensors"


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evidence:
    """One model's figures, each text by text, so that two models can be paired.

    Versions of a prompt are failing (0) and passing (1). Everything is in the model's
    own units, float32.
    """

    streams: Float[np.ndarray, "prompt version block d_model"]
    """Residual stream at decision tokens of held-out twins, averaged over rounds; the
    vectors' layers and the last block."""
    fit_streams: Float[np.ndarray, "twin version block d_model"]
    """The same of training twins, to fit what is then tested on the others."""
    words: Float[np.ndarray, "prompt version word"]
    """Log-probability of emotion words as the next token, likewise."""
    story_hits: Float[np.ndarray, " story"]
    """1 for each held-out story whose emotion the LDA reader names."""
    dose_slopes: Float[np.ndarray, "template reader layer"]
    """Change of reading per step of the dose, in the expected direction, mean over the
    template's emotions."""
    distress: Float[np.ndarray, "person reader layer"]
    """Reading of *loving* before answers to people in distress, above routine ones."""
    directions: Float[np.ndarray, "layer emotion d_model"]
    """Mean differences of stories fitted anew on this model, not denoised."""
    word_gains: Float[np.ndarray, "steered strength"]
    """What steering with those adds to the own word's log-probability, over others'."""
    neutral_loss: Float[np.ndarray, " text"]
    """Mean loss per token of neutral text, nat."""
    masked: Float[np.ndarray, "prompt version masked_layer hidden"] | None = None
    """Projections on deflection vectors at decision tokens; None without a file."""
    outcome_said: Float[np.ndarray, "prompt version"] | None = None
    """Log-likelihood per token of saying that it failed over that it worked, asked
    after the last feedback; None in files of earlier versions, or without twins."""
    feeling_said: Float[np.ndarray, "prompt version"] | None = None
    """Likewise of saying emotions of the audit's distress over those of its composure.
    """
    names: dict[str, list[Any]] = field(default_factory=dict)
    """Labels of the axes: prompts, layers (of the streams), words, templates, readers,
    vector_layers, emotions, steered, strengths, masked_emotions, masked_layers."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-able: model, adapter, hash of the vectors, corpus."""

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises:
            ValueError: If the folder can't be written.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(array, np.float32))
            for name, array in arrays.items()
            if array is not None
        }
        described = {"names": json.dumps(self.names), "meta": json.dumps(self.meta)}
        return save_tensors(tensors, {"format": FORMAT, **described}, path)

    @classmethod
    def load(cls, path: str | Path) -> "Evidence":
        """Read what `save` wrote.

        Raises:
            ValueError: If it is missing, broken or of another kind.
        """
        tensors, described = load_tensors(path, FORMAT, "emoreg measure --audit")
        arrays: dict[str, Any] = {name: x.numpy() for name, x in tensors.items()}
        plain = {name: json.loads(described[name]) for name in ("names", "meta")}
        return cls(**arrays, **plain)


_ARRAYS = tuple(f.name for f in fields(Evidence) if f.name not in ("names", "meta"))


def beside(table: str | Path) -> Path:
    """Return where the evidence of a table of readings lies: next to it."""
    return Path(table).with_suffix(SUFFIX)
