"""Calibration: the units of every threshold, measured on the model before training."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import LayerPlan, model_name, num_layers
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import neutral_ids
from emoreg.vectors.reader_names import RANDOM
from emoreg.vectors.reading import TurnReadings, read_conversations
from emoreg.vectors.tensor_files import load_tensors, save_tensors
from emoreg.vectors.transcripts import Conversation, Transcript
from emoreg.vectors.twins import SegmentColumns, average_rounds, pair_twins

FORMAT = "emoreg.reference/1"
PASSAGE_TOKENS = 192
_FIGURES = ("sigma_ref", "success_level", "success_std", "gap")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reference:
    """Units and levels of the reference model, all in raw projections.

    `sigma_ref` is the standard deviation, over training twins, of the twin difference
    (failing minus passing) at the decision token, averaged over the rounds. Figures
    are NaN where an audit reader was not fitted: some have fewer layers and emotions.
    """

    sigma_ref: Float[Tensor, "reader layer emotion"]
    success_level: Float[Tensor, "reader layer emotion"]
    """Mean at passing decision tokens."""
    success_std: Float[Tensor, "reader layer emotion"]
    """Standard deviation at passing decision tokens; dashboards' z-scores use it."""
    gap: Float[Tensor, "reader layer emotion"]
    """Mean twin difference."""
    readers: tuple[str, ...]
    """Those of the vectors and of their audit, and `random`."""
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    plan: LayerPlan
    stories: tuple[tuple[int, ...], ...]
    """Token ids of fitting stories, for `MeaningAnchor`."""
    neutral: tuple[tuple[int, ...], ...]
    """Token ids of neutral fitting passages, for `ReferenceKL`."""
    vectors_hash: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Return the first 16 hex digits of a hash over units and levels."""
        digest = hashlib.sha256(self.vectors_hash.encode())
        for name in _FIGURES:
            digest.update(getattr(self, name).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def unit(
        self,
        figure: str,
        *,
        reader: str,
        layers: Sequence[int],
        emotions: Sequence[str],
    ) -> Float[Tensor, "layer emotion"]:
        """Return `sigma_ref`, `success_level`, `success_std` or `gap` of a part.

        Raises:
            ValueError: If the reader, a layer or an emotion was not calibrated.
        """
        for name, asked, known in (
            ("reader", [reader], self.readers),
            ("layers", layers, self.layers),
            ("emotions", emotions, self.emotions),
        ):
            missing = [item for item in asked if item not in known]
            if missing:
                what = "Extract vectors that have it and calibrate again"
                if missing == [RANDOM]:
                    what = (
                        "All vectors have it: calibrate again (`emoreg calibrate`), an "
                        "earlier version did not measure its units"
                    )
                raise ValueError(
                    f"`{name}` must be among those calibrated, {known}, got "
                    f"{', '.join(map(repr, missing))}. {what}"
                )
        table = getattr(self, figure)[self.readers.index(reader)]
        rows = [self.layers.index(layer) for layer in layers]
        return table[rows][:, [self.emotions.index(e) for e in emotions]]

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with JSON metadata, whole or not at all."""
        described = {
            name: getattr(self, name)
            for name in ("readers", "layers", "emotions", "stories", "neutral")
        }
        described |= {"plan": asdict(self.plan), "provenance": self.provenance}
        metadata = {name: json.dumps(value) for name, value in described.items()}
        metadata |= {"format": FORMAT, "vectors_hash": self.vectors_hash}
        tensors = {name: getattr(self, name).contiguous() for name in _FIGURES}
        return save_tensors(tensors, metadata, path)

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read a reference written by `save`.

        Raises:
            ValueError: If the file is missing, broken or of another kind.
        """
        tensors, metadata = load_tensors(path, FORMAT, "emoreg calibrate")
        parts: dict[str, Any] = {
            name: json.loads(text)
            for name, text in metadata.items()
            if name not in ("format", "vectors_hash")
        }
        plan = {name: tuple(value) for name, value in parts.pop("plan").items()}
        for name in ("readers", "layers", "emotions"):
            parts[name] = tuple(parts[name])
        for name in ("stories", "neutral"):
            parts[name] = tuple(map(tuple, parts[name]))
        parts |= tensors
        return cls(
            plan=LayerPlan(**plan), vectors_hash=metadata["vectors_hash"], **parts
        )


def calibrate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    transcripts: Sequence[Transcript | Conversation],
    vectors: EmotionVectors,
    *,
    corpus: Corpus | None = None,
    plan: LayerPlan | None = None,
    passages: int = 48,
    budget: int | None = None,
    quiet: bool = False,
) -> Reference:
    """Measure units and success level on twins that differ in the feedback alone.

    Args:
        model: The model before training.
        tokenizer: Its tokenizer.
        transcripts: Training twins, whole or cut to some rounds.
        vectors: The model's; audit readers and random directions are measured too.
        corpus: Where the anchors' passages come from; the packaged one when None.
        plan: Loss, audit and monitored layers; `LayerPlan.for_depth` when None.
        passages: Stories, and at most as many neutral passages, kept for the anchors.
        budget: Tokens per batch.
        quiet: No progress bar.

    Raises:
        ValueError: With fewer than 4 twins, or another model's vectors.
    """
    conversations = as_conversations(transcripts)
    readings = read_conversations(
        model,
        tokenizer,
        conversations,
        vectors,
        readers=(*vectors.all_readers, RANDOM),
        budget=budget,
        description="Calibrating",
        quiet=quiet,
    )
    passing, differences = _passing(readings), _differences(readings, conversations)
    corpus = Corpus.packaged() if corpus is None else corpus
    return Reference(
        sigma_ref=_floored(differences.std(0, ddof=1)),
        success_level=torch.from_numpy(passing.mean(0)),
        success_std=_floored(passing.std(0, ddof=1)),
        gap=torch.from_numpy(differences.mean(0)),
        readers=(*vectors.all_readers, RANDOM),
        layers=vectors.layers,
        emotions=vectors.emotions,
        plan=plan or LayerPlan.for_depth(num_layers(model)),
        stories=_story_passages(tokenizer, corpus, vectors, passages),
        neutral=_neutral_passages(tokenizer, corpus, passages),
        vectors_hash=vectors.hash,
        provenance={
            "model": model_name(model),
            "twins": len(differences),
            "conversations": [talk.id for talk in conversations],
            "corpus_hash": corpus.hash(),
        },
    )


def as_conversations(
    transcripts: Sequence[Transcript | Conversation], rounds: int | None = None
) -> list[Conversation]:
    """Return twins as conversations; conversations stay what they are."""
    result: list[Conversation] = []
    for item in transcripts:
        if isinstance(item, Transcript):
            result.extend(item.conversations(rounds))
        else:
            result.append(item)
    return result


def _differences(
    readings: TurnReadings, conversations: Sequence[Conversation]
) -> Float32[np.ndarray, "twin reader layer emotion"]:
    """Return each twin's failing minus passing reading, averaged over its rounds."""
    of = [conversations[segment.conversation] for segment in readings.segments]
    columns = SegmentColumns(
        prompt=[conversation.pair for conversation in of],
        variant=[conversation.variant for conversation in of],
        turn=[segment.turn for segment in readings.segments],
        failure=[segment.failure for segment in readings.segments],
        position=[segment.position for segment in readings.segments],
    )
    pairs = pair_twins(columns, position="decision")
    differences = average_rounds(readings.values, pairs).values.astype(np.float32)
    if len(differences) < 4:
        raise ValueError(
            "`transcripts` must hold at least 4 twins (a failing and a passing version "
            f"of one task, sharing `pair`) to have a spread, found {len(differences)}"
        )
    return differences


def _passing(readings: TurnReadings) -> np.ndarray:
    rows = [
        i
        for i, segment in enumerate(readings.segments)
        if segment.position == "decision" and segment.failure == 0
    ]
    if not rows:
        raise ValueError(
            "`transcripts` must contain passing feedback (failure 0), found none. "
            "The success level is the mean reading after it"
        )
    return readings.values[rows]


def _floored(spread: np.ndarray) -> Float[Tensor, "reader layer emotion"]:
    """Return `spread`, at least a tenth of its layer's median; NaN stays NaN.

    A reading that hardly varies would otherwise count every change as enormous.
    """
    there = np.isfinite(spread).any(axis=-1, keepdims=True)
    floor = 0.1 * np.nanmedian(np.where(there, spread, 0.0), axis=-1, keepdims=True)
    return torch.from_numpy(np.maximum(spread, np.maximum(floor, 1e-6)))


def _story_passages(
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    vectors: EmotionVectors,
    count: int,
) -> tuple[tuple[int, ...], ...]:
    stories = corpus.stories(vectors.emotions, split="fit")
    # An even walk meets every emotion's neighbors and all topics. A step without a
    # common divisor takes no story twice and does not fall into step with the topics.
    step = max(1, len(stories) // max(count, 1))
    while math.gcd(step, len(stories)) > 1:
        step += 1
    chosen = [stories[(i * step) % len(stories)] for i in range(count)]
    return tuple(
        tuple(tokenizer(story.text)["input_ids"][:PASSAGE_TOKENS]) for story in chosen
    )


def _neutral_passages(
    tokenizer: PreTrainedTokenizerBase, corpus: Corpus, count: int
) -> tuple[tuple[int, ...], ...]:
    passages = corpus.neutral("fit")[:count]
    return tuple(
        tuple(neutral_ids(tokenizer, passage)[:PASSAGE_TOKENS]) for passage in passages
    )
