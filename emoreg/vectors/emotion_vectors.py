"""What an emotion vector is: frozen directions with their provenance."""

import difflib
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emoreg.vectors.random_directions import random_directions

FORMAT = "emoreg.vectors/1"
MEAN_DIFFERENCE, LDA, LOGISTIC = "mean-difference", "lda", "logistic"
RANDOM = "random"
"""A reader that all vectors have and no file holds: the placebo."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EmotionVectors:
    """Unit directions of emotion concepts in the residual stream of one model.

    A *reader* is one way to get a direction from labelled texts. `mean-difference`
    is the emotion vector proper, `r = mean over the emotion's stories - mean over
    emotions`, with the neutral subspace projected out
    (https://transformer-circuits.pub/2026/emotions/index.html): steer with it. `lda`
    reads better and is what losses act on; `logistic` is for the audit alone.
    Readings by `random` are there for all vectors: random unit directions, one for
    each layer and emotion, to which no text has contributed. They are not among
    `readers`, which is what can be judged by.
    """

    directions: Float[Tensor, "reader layer emotion d_model"]
    """Unit directions, float32."""
    readers: tuple[str, ...]
    layers: tuple[int, ...]
    """Layer `i` is the output of decoder block `i`."""
    emotions: tuple[str, ...]
    centre: Float[Tensor, "layer d_model"]
    """Mean over emotions; projections are taken from here."""
    raw_norm: Float[Tensor, "layer emotion"]
    """Length of the mean difference before it was made a unit direction."""
    scale: Float[Tensor, "reader layer emotion"]
    offset: Float[Tensor, "reader layer emotion"]
    """Class score of a text = `scale * projection + offset`."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model id and revision, corpus and template hashes, counts, versions."""

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        shape = (len(self.readers), len(self.layers), len(self.emotions))
        if self.directions.shape[:3] != shape:
            raise ValueError(
                "`directions` must be (readers, layers, emotions, d_model) = "
                f"{(*shape, 'd_model')}, got {tuple(self.directions.shape)}"
            )
        if RANDOM in self.readers:
            raise ValueError(
                f"`readers` must not hold {RANDOM!r}, which is the name of the random "
                f"directions that all vectors have, got {self.readers}. Name it "
                "otherwise"
            )
        if len(set(self.emotions)) != len(self.emotions):
            raise ValueError("`emotions` must be distinct, found a name twice")
        if not bool(self.directions.isfinite().all()):
            raise ValueError("`directions` must be finite, found NaN or infinity")

    @classmethod
    def from_directions(
        cls,
        directions: Float[Tensor, "layer emotion d_model"],
        *,
        emotions: Sequence[str],
        layers: Sequence[int],
        reader: str = MEAN_DIFFERENCE,
    ) -> "EmotionVectors":
        """Wrap directions found elsewhere; they are made unit vectors.

        Raises:
            ValueError: If the shape does not fit, or a direction is zero or NaN.
        """
        if directions.ndim != 3:
            raise ValueError(
                "`directions` must have the shape (layers, emotions, d_model), got "
                f"{tuple(directions.shape)}"
            )
        norm = directions.float().norm(dim=-1)
        if not bool((norm > 0).all()):
            raise ValueError("`directions` must be non-zero and finite, found one not")
        unit = (directions.float() / norm.unsqueeze(-1)).unsqueeze(0)
        return cls(
            directions=unit,
            readers=(reader,),
            layers=tuple(layers),
            emotions=tuple(emotions),
            centre=torch.zeros(unit.shape[1], unit.shape[3]),
            raw_norm=norm,
            scale=torch.ones(unit.shape[:3]),
            offset=torch.zeros(unit.shape[:3]),
        )

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.directions.shape[-1]

    @property
    def hash(self) -> str:
        """Return the first 16 hex digits of a hash over all that readings rest on."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.readers, self.layers, self.emotions]).encode())
        for tensor in (self.directions, self.centre):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def validation(self) -> dict[str, Any] | None:
        """Return what `emoreg validate` found in this model; None if it was not run.

        Its `emotions` say which may be used, its `layers` where to read.
        """
        return self.provenance.get("validation")

    def with_validation(self, summary: dict[str, Any]) -> "EmotionVectors":
        """Return the same vectors with what a validation found; readings stay."""
        provenance = {**self.provenance, "validation": summary}
        return replace(self, provenance=provenance)

    def unit_directions(
        self, *, layer: int, reader: str | None = None
    ) -> Float[Tensor, "emotion d_model"]:
        """Return the unit directions of all emotions at one layer.

        Args:
            layer: Decoder block.
            reader: Which directions, `random` among them; the first of `readers` when
                None.

        Raises:
            ValueError: If there is no such layer or reader.
        """
        row = self.layer_index(layer)
        if reader == RANDOM:
            return random_directions(self.d_model, layer, self.emotions)
        return self.directions[self.reader_index(reader), row]

    def project(
        self, x: Float[Tensor, "... d_model"], *, layer: int, reader: str | None = None
    ) -> Float[Tensor, "... emotion"]:
        """Return `<x - centre, direction>` of every emotion, in float32.

        Args:
            x: Residual stream at `layer`, in the model's own units.
            layer: Decoder block whose output `x` is.
            reader: Which directions, `random` among them; the first of `readers` when
                None.
        """
        unit = self.unit_directions(layer=layer, reader=reader).to(x.device)
        centred = x.float() - self.centre[self.layer_index(layer)].to(x.device)
        return centred @ unit.T

    def cosine(
        self, x: Float[Tensor, "... d_model"], *, layer: int, reader: str | None = None
    ) -> Float[Tensor, "... emotion"]:
        """Return the projection divided by the length of `x`."""
        projection = self.project(x, layer=layer, reader=reader)
        return projection / x.float().norm(dim=-1, keepdim=True)

    def scores(
        self, x: Float[Tensor, "... d_model"], *, layer: int, reader: str | None = None
    ) -> Float[Tensor, "... emotion"]:
        """Return class scores: the largest names the emotion of a text's mean.

        Raises:
            ValueError: If there is no such reader; the random one has no scores.
        """
        at = (self.reader_index(reader), self.layer_index(layer))
        projection = self.project(x, layer=layer, reader=reader)
        return projection * self.scale[at].to(x.device) + self.offset[at].to(x.device)

    def direction(
        self, emotion: str, *, layer: int, reader: str | None = None
    ) -> Float[Tensor, " d_model"]:
        """Return the unit direction of one emotion."""
        units = self.unit_directions(layer=layer, reader=reader)
        return units[self.emotion_indices([emotion])[0]]

    def subset(self, emotions: Sequence[str]) -> "EmotionVectors":
        """Return the vectors of `emotions` only, with the same centre."""
        rows = list(self.emotion_indices(emotions))
        return replace(
            self,
            directions=self.directions[:, :, rows],
            emotions=tuple(emotions),
            raw_norm=self.raw_norm[:, rows],
            scale=self.scale[:, :, rows],
            offset=self.offset[:, :, rows],
        )

    def emotion_indices(self, emotions: Sequence[str]) -> tuple[int, ...]:
        """Return where `emotions` stand.

        Raises:
            ValueError: If one of them has no vector here.
        """
        for name in emotions:
            if name not in self.emotions:
                near = difflib.get_close_matches(name, self.emotions, 3)
                hint = f"; did you mean {', '.join(near)}?" if near else ""
                raise ValueError(
                    f"each emotion must be one of the {len(self.emotions)} in the "
                    f"vectors, got {name!r}{hint}"
                )
        return tuple(self.emotions.index(name) for name in emotions)

    def layer_index(self, layer: int) -> int:
        """Return where decoder block `layer` stands.

        Raises:
            ValueError: If these vectors were not extracted there.
        """
        if layer not in self.layers:
            raise ValueError(
                f"`layer` must be one of {self.layers}, where these vectors were "
                f"extracted, got {layer}"
            )
        return self.layers.index(layer)

    def reader_index(self, reader: str | None) -> int:
        """Return where `reader` stands; None is the first.

        Raises:
            ValueError: If there is no such reader in the file.
        """
        if reader is None:
            return 0
        if reader not in self.readers:
            hint = ", which has directions alone" if reader == RANDOM else ""
            raise ValueError(
                f"`reader` must be one of {self.readers}, got {reader!r}{hint}"
            )
        return self.readers.index(reader)

    def check_model(self, *, d_model: int, num_layers: int, name: str = "") -> None:
        """Refuse a model that these vectors can't have come from.

        Raises:
            ValueError: If width, depth or (where both are known) name differ.
        """
        depth = self.provenance.get("num_layers", num_layers)
        if d_model != self.d_model:
            _refuse("width (d_model)", self.d_model, d_model)
        if depth != num_layers or max(self.layers) >= num_layers:
            _refuse("number of layers", depth, num_layers)
        model = self.provenance.get("model", name)
        if name and model and model != name:
            _refuse("model", model, name)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with JSON metadata, whole or not at all."""
        metadata = {
            "format": FORMAT,
            "readers": json.dumps(self.readers),
            "layers": json.dumps(self.layers),
            "emotions": json.dumps(self.emotions),
            "provenance": json.dumps(self.provenance),
        }
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        return save_tensors(tensors, metadata, path)

    @classmethod
    def load(cls, path: str | Path) -> "EmotionVectors":
        """Read vectors written by `save`.

        Raises:
            ValueError: If the file is missing, broken or of another kind.
        """
        tensors, metadata = load_tensors(path, FORMAT, "emoreg extract")
        return cls(
            readers=tuple(json.loads(metadata["readers"])),
            layers=tuple(json.loads(metadata["layers"])),
            emotions=tuple(json.loads(metadata["emotions"])),
            provenance=json.loads(metadata["provenance"]),
            **tensors,
        )


_TENSORS = ("directions", "centre", "raw_norm", "scale", "offset")


def _refuse(what: str, here: object, there: object) -> None:
    raise ValueError(
        f"the vectors must belong to the model: their {what} is {here}, the model's "
        f"is {there}. Extract vectors for this model with `emoreg extract`"
    )


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
