"""Measuring: a model, conversations and vectors into a table of readings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.behavior.provenance import adapter_hash
from emoreg.comparison.plane import plane_of
from emoreg.comparison.readings import FIXED, SEGMENT_SCHEMA, Readings
from emoreg.comparison.samples import SAMPLE_FIELDS, Sample, sampled_turns
from emoreg.comparison.tokens import chosen, read_tokens
from emoreg.losses.presets import check_same_vectors
from emoreg.residual.layers import LayerPlan, model_name, num_layers
from emoreg.residual.store import ActivationStore
from emoreg.training.reference import Reference, as_conversations
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reading import Segment, TurnReadings, read_conversations
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
    if reference is not None:
        check_same_vectors(reference, vectors)
    conversations = as_conversations(prompts)
    parts: Any = (model, tokenizer, conversations, vectors)
    how: Any = {"budget": budget, "quiet": quiet}
    also: Any = {"description": f"Measuring {arm}".strip(), "store": store}
    read = read_conversations(*parts, readers=vectors.all_readers, **also, **how)
    if samples:
        read = sampled_turns(read, conversations)
    meta = _meta(model, conversations, vectors, reference)
    if reference is not None:
        meta["transcripts"] = _transcripts(parts, reference, texts, how)
    return Readings(
        segments=_segments(read, conversations, samples or {}),
        values=read.values,
        resid_norm=read.resid_norm,
        readers=vectors.all_readers,
        layers=vectors.layers,
        emotions=vectors.emotions,
        meta={**meta, "arm": arm, "guards": guards or {}},
    )


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
    read: TurnReadings,
    conversations: Sequence[Conversation],
    samples: Mapping[str, Sample],
) -> pa.Table:
    more = SAMPLE_FIELDS if samples else ()
    return pa.Table.from_pylist(
        [_row(s, conversations[s.conversation], samples) for s in read.segments],
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
