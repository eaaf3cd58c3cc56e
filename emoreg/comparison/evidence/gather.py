"""Gathering an audit's evidence from one model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from emoreg.behavior.provenance import adapter_hash
from emoreg.comparison.evidence.decisions import Decisions, read_decisions
from emoreg.comparison.evidence.evidence import Evidence
from emoreg.comparison.evidence.honesty import answers
from emoreg.comparison.evidence.meaning import (
    distress,
    dose_slopes,
    read_stories,
    story_hits,
    word_gains,
)
from emoreg.comparison.measure import adapter_name
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import LayerPlan, d_model, model_name, num_layers
from emoreg.residual.store import ActivationStore
from emoreg.training.reference import as_conversations
from emoreg.validation.subject import Subject, fitted
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import neutral_ids
from emoreg.vectors.transcripts import Conversation, Transcript


def gather_evidence(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    vectors: EmotionVectors,
    prompts: Sequence[Transcript | Conversation],
    *,
    twins: Sequence[Transcript | Conversation],
    corpus: Corpus | None = None,
    deflection: EmotionVectors | None = None,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> Evidence:
    """Return what an audit needs of one model beside its table of readings.

    Args:
        model: The model, with or without an adapter.
        tokenizer: Its tokenizer.
        vectors: Fitted on the reference model.
        prompts: Held-out twins, those of the table.
        twins: Training twins: what tells failing from passing is fitted on them.
        corpus: Stories, doses and neutral text; the packaged ones when None.
        deflection: Deflection vectors of the reference model (`emoreg probes`).
        quiet: No progress bars.
        store: Where activations are kept. A second run reads none again, and neither
            do `measure` and `guard_rails` with the same store, after this.

    Raises:
        ValueError: If the vectors are another model's, prompts form no twins, or the
            deflection vectors have layers that the vectors lack.
    """
    vectors.check_model(d_model=d_model(model), num_layers=num_layers(model))
    if deflection is not None:
        _check_layers(deflection, vectors)
    corpus = Corpus.packaged() if corpus is None else corpus
    subject = Subject(
        model=model,
        tokenizer=tokenizer,
        vectors=vectors,
        corpus=corpus,
        quiet=quiet,
        store=store,
    )
    return _gathered(
        subject, as_conversations(prompts), as_conversations(twins), deflection
    )


def _check_layers(deflection: EmotionVectors, vectors: EmotionVectors) -> None:
    if more := sorted({*deflection.layers} - {*vectors.layers}):
        raise ValueError(
            f"`deflection` must have no layers but those of the vectors, found {more}. "
            "Fit it with these vectors (`emoreg probes`)"
        )


def _gathered(
    subject: Subject,
    prompts: Sequence[Conversation],
    twins: Sequence[Conversation],
    deflection: EmotionVectors | None,
) -> Evidence:
    vectors, judged = subject.vectors, _judged(subject)
    tokens = subject.first_tokens(judged)
    words = list(tokens.values())
    tested = read_decisions(subject, prompts, tokens=words, description="Test twins")
    fit = read_decisions(subject, twins, tokens=words, description="Training twins")
    anew = fitted(read_stories(subject, "fit", judged))
    stories = read_stories(subject, "test", vectors.emotions)
    templates, slopes = dose_slopes(subject, vectors.readers, vectors.layers)
    steered, strengths, gains = word_gains(subject, anew)
    masked, hidden = _masked(tested, deflection)
    outcome, feeling = answers(subject, prompts, tested.prompts)
    arrays: dict[str, Any] = {
        "streams": tested.streams,
        "fit_streams": fit.streams,
        "words": tested.words,
        "story_hits": story_hits(subject, stories, story_layer(vectors)),
        "dose_slopes": slopes,
        "distress": distress(subject, vectors.readers, vectors.layers),
        "directions": anew.directions[0].numpy(),
        "word_gains": gains,
        "neutral_loss": neutral_loss(subject),
        "masked": masked,
        "outcome_said": outcome,
        "feeling_said": feeling,
    }
    names = {
        "prompts": list(tested.prompts),
        "layers": list(tested.layers),
        "words": list(tokens),
        "templates": templates,
        "readers": list(vectors.readers),
        "vector_layers": list(vectors.layers),
        "emotions": list(anew.emotions),
        "steered": steered,
        "strengths": strengths,
        "masked_emotions": hidden,
        "masked_layers": [] if deflection is None else list(deflection.layers),
    }
    single: dict[str, Any] = {
        name: x if x is None else np.asarray(x, np.float32)
        for name, x in arrays.items()
    }
    return Evidence(
        **single,
        names=names,
        meta=_meta(subject, deflection),
    )


def _meta(subject: Subject, deflection: EmotionVectors | None) -> dict[str, Any]:
    vectors = subject.vectors
    return {
        "model": model_name(subject.model),
        "adapter": adapter_name(subject.model),
        "adapter_hash": adapter_hash(subject.model),
        "vectors_hash": vectors.hash,
        "corpus_hash": subject.corpus.hash(),
        "deflection_hash": None if deflection is None else deflection.hash,
        "story_layer": story_layer(vectors),
    }


def story_layer(vectors: EmotionVectors) -> int:
    """Return where stories are read: the last loss layer that the vectors have."""
    depth = int(vectors.provenance.get("num_layers", 0))
    loss = LayerPlan.for_depth(depth).loss if depth else ()
    return max({*loss} & {*vectors.layers}, default=vectors.layers[-1])


def neutral_loss(subject: Subject) -> Float[np.ndarray, " text"]:
    """Return the mean loss per token of each neutral `test` text, nat."""
    model: Any = subject.model
    device, found = next(model.parameters()).device, []
    texts = subject.corpus.neutral("test")
    with evaluating(model), torch.no_grad():
        for passage in tqdm(texts, desc="Neutral text", disable=subject.quiet):
            ids = torch.tensor([neutral_ids(subject.tokenizer, passage)], device=device)
            logits = model(input_ids=ids).logits[0, :-1].float()
            found.append(float(nn.functional.cross_entropy(logits, ids[0, 1:])))
    return np.array(found)


def _judged(subject: Subject) -> list[str]:
    """Return the core emotions and those with a role, as far as there are vectors."""
    roles, known = subject.corpus.roles(), subject.vectors.emotions
    names = [*roles.core, *(e for family in roles.families.values() for e in family)]
    return [e for e in dict.fromkeys(names) if e in known]


def _masked(
    tested: Decisions, deflection: EmotionVectors | None
) -> tuple[Float[np.ndarray, "prompt version masked_layer hidden"] | None, list[str]]:
    """Return projections on deflection vectors at decision tokens."""
    if deflection is None:
        return None, []
    found = []
    for layer in deflection.layers:
        stream = tested.streams[:, :, tested.layers.index(layer)]
        rows = torch.from_numpy(stream.reshape(-1, stream.shape[-1])).float()
        read = deflection.project(rows, layer=layer, reader=deflection.readers[0])
        found.append(read.numpy().reshape(*stream.shape[:2], -1))
    return np.stack(found, axis=2), list(deflection.emotions)
