"""Measuring: a model, conversations and vectors into a table of readings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.behavior.provenance import adapter_hash
from emoreg.comparison.plane import plane_of
from emoreg.comparison.readings import (
    FIXED,
    SEGMENT_SCHEMA,
    Readings,
    checked_segments,
)
from emoreg.comparison.samples import SAMPLE_FIELDS, Sample, sampled_turns
from emoreg.comparison.table_file import Axes, TableWriter
from emoreg.comparison.tokens import chosen, read_tokens
from emoreg.losses.presets import check_same_vectors
from emoreg.residual.layers import LayerPlan, model_name, num_layers
from emoreg.residual.pooling import Passage
from emoreg.residual.store import ActivationStore
from emoreg.training.reference import Reference, as_conversations
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reading import Take, project_spans, turn_passages
from emoreg.vectors.segment import Segment
from emoreg.vectors.transcripts import Conversation, Transcript


def measure(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Transcript | Conversation],
    vectors: EmotionVectors,
    *,
    samples: Mapping[str, Sample] | None = None,
    reference: Reference | None = None,
    arm: str = "",
    guards: dict[str, Any] | None = None,
    texts: int = 4,
    budget: int | None = None,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> Readings:
    """Return readings at decision tokens and over Assistant turns, teacher-forced.

    Nothing is sampled: a difference between two models is of state, not of wording.

    Args:
        model: The model, with or without an adapter.
        tokenizer: Its tokenizer.
        prompts: Twins, or conversations with an outcome per Assistant turn.
        vectors: The model's emotion vectors; every reader in them is used, the audit's
            too, but no random directions: no verdict rests on them.
        samples: Which sampled reply each ends in, by its id; then that turn alone.
        reference: Gives the table its units, so that thresholds are one everywhere.
        arm: Name of the model in comparisons.
        guards: Guard rails measured beside (`emoreg.comparison.guards`).
        texts: How many transcripts are kept with their text and the reading of every
            token, for the report's page: the first failing one of each style, so many
            styles. 0 keeps none, and so does a table without a reference.
        budget: Tokens per batch.
        quiet: No progress bar.
        store: What it has, from `gather_evidence` for one, is not read again.

    Raises:
        ValueError: If the reference has other vectors, or a conversation doesn't fit.
    """
    asked = _Asked.of(
        *(model, tokenizer, prompts, vectors),
        samples=samples,
        reference=reference,
        arm=arm,
        guards=guards,
        texts=texts,
        budget=budget,
        quiet=quiet,
    )
    return asked.whole(model, vectors, store=store)


def measure_into(
    path: Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Transcript | Conversation],
    vectors: EmotionVectors,
    *,
    store: ActivationStore | None = None,
    **how: Any,
) -> int:
    """Write the table of `measure` to a file as it is read; return its segments.

    Of the readings no more than a batch and a row group are in memory, whatever the
    number of prompts. Everything else, `how` with it, is as in `measure`.
    """
    asked = _Asked.of(model, tokenizer, prompts, vectors, **how)
    with TableWriter(path, asked.segments, asked.axes, asked.meta) as writer:
        asked.read(model, vectors, writer.write, store=store)
    return asked.segments.num_rows


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Asked:
    """What is to be read, and all of the table but its readings."""

    passages: list[Passage]
    segments: pa.Table
    place: Mapping[int, int]
    """Row of each span that is kept, by the span's number."""
    axes: Axes
    meta: dict[str, Any]
    how: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Transcript | Conversation],
        vectors: EmotionVectors,
        *,
        samples: Mapping[str, Sample] | None = None,
        reference: Reference | None = None,
        arm: str = "",
        guards: dict[str, Any] | None = None,
        texts: int = 4,
        budget: int | None = None,
        quiet: bool = False,
    ) -> "_Asked":
        if reference is not None:
            check_same_vectors(reference, vectors)
        conversations = as_conversations(prompts)
        segments, passages = turn_passages(tokenizer, conversations)
        place = {number: number for number in range(len(segments))}
        if samples:
            segments, place = sampled_turns(segments, conversations)
        how = {"budget": budget, "quiet": quiet}
        meta = _meta(model, conversations, vectors, reference)
        meta |= {"arm": arm, "guards": guards or {}}
        if reference is not None:
            parts = (model, tokenizer, conversations, vectors)
            meta["transcripts"] = _transcripts(parts, reference, texts, how)
        return cls(
            passages=passages,
            segments=checked_segments(
                _segments(segments, conversations, samples or {})
            ),
            place=place,
            axes=Axes(
                readers=vectors.all_readers,
                layers=vectors.layers,
                emotions=vectors.emotions,
            ),
            meta=meta,
            how=how,
        )

    def whole(
        self,
        model: nn.Module,
        vectors: EmotionVectors,
        *,
        store: ActivationStore | None,
    ) -> Readings:
        """Return the table with all of its readings in memory."""
        rows, shape = self.segments.num_rows, self.axes.shape
        values = np.full((rows, *shape), np.nan, np.float32)
        norms = np.full((rows, shape[1]), np.nan, np.float32)

        def keep(numbers: Sequence[int], found: np.ndarray, by: np.ndarray) -> None:
            values[numbers], norms[numbers] = found, by

        self.read(model, vectors, keep, store=store)
        return Readings(
            segments=self.segments,
            values=values,
            resid_norm=norms,
            readers=self.axes.readers,
            layers=self.axes.layers,
            emotions=self.axes.emotions,
            meta=self.meta,
        )

    def read(
        self,
        model: nn.Module,
        vectors: EmotionVectors,
        take: Take,
        *,
        store: ActivationStore | None,
    ) -> None:
        """Hand on every row's readings: NaN where nothing was said."""

        def keep(spans: Sequence[int], found: np.ndarray, norms: np.ndarray) -> None:
            at = [i for i, span in enumerate(spans) if span in self.place]
            take([self.place[spans[i]] for i in at], found[at], norms[at])

        said = f"Measuring {self.meta['arm']}".strip()
        also: Any = {"description": said, "store": store, **self.how}
        project_spans(model, self.passages, vectors, self.axes.readers, keep, **also)
        silent = range(len(self.place), self.segments.num_rows)
        nothing = np.full((len(silent), *self.axes.shape), np.nan, np.float32)
        take(silent, nothing, nothing[:, 0, :, 0])


def _transcripts(
    parts: tuple[Any, ...], reference: Reference, texts: int, how: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return some conversations token by token, as a table's `meta` keeps them."""
    model, tokenizer, conversations, vectors = parts
    seen = chosen(conversations, texts)
    found = read_tokens(model, tokenizer, seen, vectors, reference=reference, **how)
    return [text.described() for text in found]


def _meta(
    model: nn.Module,
    conversations: Sequence[Conversation],
    vectors: EmotionVectors,
    reference: Reference | None,
) -> dict[str, Any]:
    depth = num_layers(model)
    plan = reference.plan if reference is not None else LayerPlan.for_depth(depth)
    plane = plane_of(vectors, plan.audit)
    return {
        "model": model_name(model),
        "adapter": adapter_name(model),
        "adapter_hash": adapter_hash(model),
        "vectors_hash": vectors.hash,
        "text": FIXED,
        "prompts_hash": prompts_hash(conversations),
        "reference_hash": None if reference is None else reference.hash,
        "layer_plan": asdict(plan),
        "plane": plane and plane.described(),
        "units": _units(reference, vectors.all_readers),
        "audit_readers": list(vectors.all_readers[len(vectors.readers) :]),
        "dtype": str(next(model.parameters()).dtype),
        "software": {n: version(n) for n in ("torch", "transformers", "emoreg")},
    }


def _segments(
    segments: Sequence[Segment],
    conversations: Sequence[Conversation],
    samples: Mapping[str, Sample],
) -> pa.Table:
    more = SAMPLE_FIELDS if samples else ()
    return pa.Table.from_pylist(
        [_row(s, conversations[s.conversation], samples) for s in segments],
        schema=pa.schema([*SEGMENT_SCHEMA, *more]),
    )


def _row(
    segment: Segment, conversation: Conversation, samples: Mapping[str, Sample]
) -> dict[str, Any]:
    own = samples[conversation.id]._asdict() if samples else {}
    return own | {
        "prompt": conversation.pair,
        "style": conversation.style,
        "variant": conversation.variant,
        "turn": segment.turn,
        "failure": segment.failure,
        "position": segment.position,
        "n_tokens": segment.token_end - segment.token_start,
        "token_start": segment.token_start,
        "token_end": segment.token_end,
    }


def _units(
    reference: Reference | None, readers: Sequence[str]
) -> dict[str, Any] | None:
    """Return the units of the table's readers; None where one was not calibrated."""
    if reference is None:
        return None
    if missing := [reader for reader in readers if reader not in reference.readers]:
        raise ValueError(
            "`reference` must have been calibrated with all readers of the vectors, "
            f"it lacks {', '.join(missing)}. Calibrate again (`emoreg calibrate`)"
        )
    rows = [reference.readers.index(reader) for reader in readers]
    names = ("sigma_ref", "success_level", "success_std")
    found = {name: getattr(reference, name)[rows].double().numpy() for name in names}
    return {n: _listed(x) for n, x in found.items()}


def _listed(values: np.ndarray) -> list[Any]:
    """Return nested lists, with None for NaN, which JSON has not."""
    held: Any = values.astype(object)
    held[np.isnan(values)] = None
    return held.tolist()


def adapter_name(model: nn.Module) -> str | None:
    """Return the names of a model's peft adapters; None without any."""
    config: Any = getattr(model, "peft_config", None)
    return ", ".join(config) if isinstance(config, dict) else None


def prompts_hash(conversations: Sequence[Conversation]) -> str:
    """Return a short hash of what conversations say, and of their outcomes."""
    texts = [[c.id, list(c.messages), list(c.failed)] for c in conversations]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
