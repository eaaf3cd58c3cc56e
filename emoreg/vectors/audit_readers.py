"""Readers for the audit alone: what no loss acts on, fitted on other texts as well."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.vectors.reader_fits import METHODS, Maps, applied

STORIES, DIALOGUES, HUMAN = "stories", "dialogues", "human"
"""Texts that readers are fitted on."""
LINEAR_ALREADY = ("lda", "logistic")
"""Methods by which stories have a reader among the vectors' own."""
FEWEST = 2
"""Texts of an emotion to fit on, and emotions of a reader."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledTexts:
    """Pooled activations of one kind of text with the emotion of each."""

    values: Float[Tensor, "text layer d_model"]
    labels: tuple[str, ...]

    def of(self, emotions: Collection[str]) -> "LabelledTexts":
        """Return the texts of `emotions`."""
        rows = [i for i, label in enumerate(self.labels) if label in emotions]
        labels = tuple(self.labels[row] for row in rows)
        return LabelledTexts(values=self.values[rows], labels=labels)


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AuditReader:
    """One method fitted on one kind of text, at some layers, for some emotions.

    A reading is the emotion's class score minus the mean over the reader's emotions:
    what a softmax can't tell apart is taken out. Its unit is the reader's own; divide
    by the spread of a reference to compare.
    """

    name: str
    """`method-source`, for instance `mlp-stories`."""
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    maps: tuple[Maps, ...]
    """Weights and biases per layer."""
    texts: int
    """How many it was fitted on."""
    tested: int
    """How many held-out texts of the same kind there were."""
    top1: tuple[float, ...]
    """Share of them that it names, per layer; chance is one over the emotions."""

    def read(
        self, x: Float[Tensor, "... d_model"], *, layer: int
    ) -> Float[Tensor, "... emotion"]:
        """Return centred class scores of its emotions, in float32.

        Raises:
            ValueError: If it was not fitted at `layer`.
        """
        if layer not in self.layers:
            raise ValueError(
                f"`layer` must be one of {self.layers}, where {self.name!r} was "
                f"fitted, got {layer}"
            )
        scores = applied(self.maps[self.layers.index(layer)], x.float())
        return scores - scores.mean(-1, keepdim=True)


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AuditReaders:
    """All readers of an audit, which a vectors file carries beside its own."""

    readers: tuple[AuditReader, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the readers."""
        return tuple(reader.name for reader in self.readers)

    def __getitem__(self, name: str) -> AuditReader:
        """Return a reader by its name."""
        return self.readers[self.names.index(name)]

    def read(
        self,
        x: Float[Tensor, "... d_model"],
        *,
        layer: int,
        reader: str,
        emotions: Sequence[str],
    ) -> Float[Tensor, "... emotion"]:
        """Return readings of `emotions`; NaN for those that the reader never saw.

        NaN, not 0: an emotion that was not read must not look like one at rest.
        """
        chosen = self[reader]
        found = chosen.read(x, layer=layer)
        known = {emotion: place for place, emotion in enumerate(chosen.emotions)}
        read = [k for k, emotion in enumerate(emotions) if emotion in known]
        values = found.new_full((*found.shape[:-1], len(emotions)), torch.nan)
        values[..., read] = found[..., [known[emotions[k]] for k in read]]
        return values

    @property
    def hash(self) -> str:
        """Return the first 16 hex digits of a hash over names, layers and weights."""
        digest = hashlib.sha256()
        for reader in self.readers:
            named = [reader.name, reader.layers, reader.emotions]
            digest.update(json.dumps(named).encode())
            for tensor in _flat(reader).values():
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights under names that a safetensors file can hold."""
        return {
            f"audit.{reader.name}.{name}": tensor.contiguous()
            for reader in self.readers
            for name, tensor in _flat(reader).items()
        }

    def described(self) -> list[dict[str, Any]]:
        """Return what is no tensor, as JSON-able values."""
        names = [f.name for f in fields(AuditReader) if f.name != "maps"]
        return [{n: getattr(reader, n) for n in names} for reader in self.readers]

    @classmethod
    def restored(
        cls, described: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
    ) -> "AuditReaders":
        """Return what `tensors` and `described` were made from."""
        readers = []
        for stated in described:
            prefix = f"audit.{stated['name']}."
            parts = {k: v for k, v in tensors.items() if k.startswith(prefix)}
            depth = len(parts) // 2
            maps = tuple(
                tuple(
                    (parts[f"{prefix}weight{i}"][row], parts[f"{prefix}bias{i}"][row])
                    for i in range(depth)
                )
                for row in range(len(stated["layers"]))
            )
            lists = ("layers", "emotions", "top1")
            plain: dict[str, Any] = {
                k: tuple(v) if k in lists else v for k, v in stated.items()
            }
            readers.append(AuditReader(**plain, maps=maps))
        return cls(readers=tuple(readers))


def fit_audit_readers(
    source: str,
    fit: LabelledTexts,
    test: LabelledTexts,
    *,
    at: Sequence[int],
    layers: Sequence[int],
    methods: Sequence[str] = tuple(METHODS),
) -> list[AuditReader]:
    """Fit every method on one kind of text, and test it on held-out texts of it.

    Args:
        source: What the texts are, for the readers' names.
        fit: Texts to fit on, at least two of each emotion.
        test: Texts that no fit has seen.
        at: Layers to fit at.
        layers: Layers of the activations.
        methods: Names from `METHODS`.

    Raises:
        ValueError: If there are fewer than two emotions, or one has fewer than two
            texts to fit on.
    """
    emotions = tuple(dict.fromkeys(fit.labels))
    few = [e for e in emotions if fit.labels.count(e) < FEWEST]
    if few or len(emotions) < FEWEST:
        raise ValueError(
            f"readers need two emotions or more with two {source} each to fit on, "
            f"found {len(emotions)}, of which too few for {few or 'none'}. Add texts, "
            "or leave these emotions out"
        )
    truth = torch.tensor([emotions.index(label) for label in fit.labels])
    kept = test.of(emotions)
    judged = torch.tensor([emotions.index(label) for label in kept.labels])
    readers = []
    for method in methods:
        maps, hits = [], []
        for layer in at:
            column = list(layers).index(layer)
            maps.append(METHODS[method](fit.values[:, column].float(), truth))
            scores = applied(maps[-1], kept.values[:, column].float())
            hits.append(float((scores.argmax(-1) == judged).float().mean()))
        readers.append(
            AuditReader(
                name=f"{method}-{source}",
                layers=tuple(at),
                emotions=emotions,
                maps=tuple(maps),
                texts=len(fit.labels),
                tested=len(kept.labels),
                top1=tuple(hits),
            )
        )
    return readers


def audit_lines(readers: AuditReaders) -> list[str]:
    """Return what each audit reader names of held-out texts of its kind."""
    lines = []
    for reader in readers.readers:
        mean = sum(reader.top1) / len(reader.top1)
        lines.append(
            f"{reader.name:>18}: top-1 {mean:.2f} (chance "
            f"{1 / len(reader.emotions):.3f}) over {len(reader.emotions)} emotions, "
            f"fitted on {reader.texts}, tested "
            f"on {reader.tested}, mean over {len(reader.layers)} layers; audit only"
        )
    return lines


def _flat(reader: AuditReader) -> dict[str, Tensor]:
    """Return the weights with all layers in one tensor."""
    flat = {}
    for i in range(len(reader.maps[0])):
        flat[f"weight{i}"] = torch.stack([maps[i][0] for maps in reader.maps])
        flat[f"bias{i}"] = torch.stack([maps[i][1] for maps in reader.maps])
    return flat
