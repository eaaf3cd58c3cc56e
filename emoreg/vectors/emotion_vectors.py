"""What an emotion vector is: frozen directions with their provenance."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.vectors.audit_readers import AuditReaders
from emoreg.vectors.audit_split import AuditSplit
from emoreg.vectors.direction import Direction
from emoreg.vectors.random_directions import random_directions
from emoreg.vectors.reader_names import MEAN_DIFFERENCE, RANDOM
from emoreg.vectors.tensor_files import load_tensors, save_tensors

FORMAT = "emoreg.vectors/1"


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
    audit: AuditReaders | None = None
    """Readers that only an audit may use; `project` takes their names too."""
    split: AuditSplit | None = None
    """What was declared a loss's and what the audit's; losses keep to it."""

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

    @classmethod
    def of(cls, *directions: Direction) -> "EmotionVectors":
        """Wrap directions that were combined: `of(vectors["calm"] - vectors["sad"])`.

        Raises:
            ValueError: If there is none, they differ in layers, or one is zero.
        """
        layers = {direction.layers for direction in directions}
        if len(layers) != 1:
            raise ValueError(
                "there must be a direction or more, all of the same layers, got "
                f"{len(directions)} of {len(layers)} sets of layers"
            )
        return cls.from_directions(
            torch.stack([direction.values for direction in directions], dim=1),
            emotions=[direction.name for direction in directions],
            layers=layers.pop(),
        )

    def __getitem__(self, emotion: str) -> Direction:
        """Return one emotion's vector, as long as its mean difference.

        Raises:
            ValueError: If it has none here.
        """
        column = self.emotion_indices([emotion])[0]
        values = self.directions[0, :, column] * self.raw_norm[:, column].unsqueeze(-1)
        return Direction(name=emotion, layers=self.layers, values=values)

    def layer_at(self, share: float) -> int:
        """Return the layer nearest to a share of the model's depth, 0 to 1.

        Raises:
            ValueError: If the share is outside, or the file does not know the depth.
        """
        depth = self.provenance.get("num_layers")
        if depth is None or not 0 <= share <= 1:
            raise ValueError(
                "`share` must be in [0, 1] and the file must know its model's depth, "
                f"got {share} and {depth}. Name a layer instead"
            )
        return min(self.layers, key=lambda layer: abs(layer - share * depth))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.directions.shape[-1]

    @property
    def hash(self) -> str:
        """Return the first 16 hex digits of a hash over all that readings rest on.

        Those of the audit's readers too, where there are any.
        """
        digest = hashlib.sha256()
        digest.update(json.dumps([self.readers, self.layers, self.emotions]).encode())
        for tensor in (self.directions, self.centre):
            digest.update(tensor.contiguous().numpy().tobytes())
        if self.audit is not None:
            digest.update(self.audit.hash.encode())
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

    @property
    def all_readers(self) -> tuple[str, ...]:
        """Return the vectors' own readers and those of the audit."""
        return (*self.readers, *(self.audit.names if self.audit else ()))

    def reads(self, reader: str, layer: int) -> bool:
        """Return whether a reader was fitted at a layer; an audit's may not be."""
        if self.audit is not None and reader in self.audit.names:
            return layer in self.audit[reader].layers
        return layer in self.layers

    def project(
        self, x: Float[Tensor, "... d_model"], *, layer: int, reader: str | None = None
    ) -> Float[Tensor, "... emotion"]:
        """Return `<x - centre, direction>` of every emotion, in float32.

        Args:
            x: Residual stream at `layer`, in the model's own units.
            layer: Decoder block whose output `x` is.
            reader: Which directions, `random` among them; the first of `readers` when
                None. Or an audit reader's name, whose reading is
                `AuditReader.read`: NaN for emotions that it never saw.
        """
        if self.audit is not None and reader in self.audit.names:
            return self.audit.read(
                x, layer=layer, reader=str(reader), emotions=self.emotions
            )
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
        if self.audit is not None:
            metadata["audit"] = json.dumps(self.audit.described())
            tensors |= self.audit.tensors()
        if self.split is not None:
            metadata["split"] = json.dumps(self.split.described())
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
            audit=AuditReaders.restored(json.loads(metadata["audit"]), tensors)
            if "audit" in metadata
            else None,
            split=AuditSplit.restored(json.loads(metadata["split"]))
            if "split" in metadata
            else None,
            **{name: tensors[name] for name in _TENSORS},
        )


_TENSORS = ("directions", "centre", "raw_norm", "scale", "offset")


def _refuse(what: str, here: object, there: object) -> None:
    raise ValueError(
        f"the vectors must belong to the model: their {what} is {here}, the model's "
        f"is {there}. Extract vectors for this model with `emoreg extract`"
    )
