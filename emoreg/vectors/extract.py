"""Stories through a model, into emotion vectors with a held-out accuracy."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.layers import (
    LayerPlan,
    checked_layers,
    d_model,
    model_name,
    num_layers,
    unwrapped,
)
from emoreg.residual.store import ActivationStore
from emoreg.residual.tokens import conversation_ids, real_tokens_from
from emoreg.vectors.accuracy import Accuracy, accuracy, chosen_layers, recorded
from emoreg.vectors.auditing import AuditTexts, with_audit
from emoreg.vectors.corpus import (
    EMOTIONS_FIT_TOPICS,
    EMOTIONS_TEST_TOPICS,
    Corpus,
    Neutral,
)
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.pooled import FIRST_TOKEN, StoryActivations, pool_stories
from emoreg.vectors.readers import with_logistic


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Extraction:
    """Vectors, and how well each reader names held-out stories."""

    vectors: EmotionVectors
    accuracies: tuple[Accuracy, ...]
    """Every reader and layer, on topics that no fit has seen."""
    chosen: dict[str, int]
    """Layer per reader, chosen by an inner split of the fitting topics alone."""

    def headline(self, reader: str) -> Accuracy:
        """Return the held-out accuracy of `reader` at its chosen layer."""
        return next(
            a
            for a in self.accuracies
            if (a.reader, a.layer) == (reader, self.chosen[reader])
        )


def extract(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    *,
    emotions: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    denoise: float = 0.5,
    shrinkage: float = 0.5,
    budget: int = 2048,
    quiet: bool = False,
    store: ActivationStore | None = None,
    audit: bool = True,
    goemotions: Path | None = None,
) -> Extraction:
    """Fit emotion vectors on the fitting topics and test them on the others.

    Args:
        model: A transformers decoder.
        tokenizer: Its tokenizer.
        corpus: Stories and neutral passages.
        emotions: Emotion concepts; all of the corpus when None.
        layers: Decoder blocks; the monitored ones of `LayerPlan` when None.
        denoise: Share of neutral variance whose components are removed from the mean
            differences.
        shrinkage: Shrinkage of the LDA's within-class covariance.
        budget: Tokens per batch.
        quiet: No progress bars.
        store: Where stories that were read are kept batch by batch, so that a run that
            was cut off goes on and gives the same vectors bit for bit. Neutral text, a
            twentieth of the tokens, is read anew.
        audit: Whether to fit the audit's readers too.
        goemotions: The GoEmotions folder, for readers of what people wrote.

    Raises:
        ValueError: On an unknown emotion, or a story shorter than 50 tokens.
        FloatingPointError: On activations that are not finite.
    """
    plan = LayerPlan.for_depth(num_layers(model))
    depth = num_layers(model)
    layers = plan.monitor if layers is None else checked_layers(layers, depth)
    emotions = corpus.emotions() if emotions is None else tuple(emotions)
    stories = corpus.stories(emotions, split="all")
    pooled = pool_stories(
        model, tokenizer, stories, layers, budget=budget, quiet=quiet, store=store
    )
    fitter = VectorFitter(
        emotions=emotions, layers=pooled.layers, d_model=d_model(model)
    )
    neutral = corpus.neutral("fit")
    _read_neutral(model, tokenizer, neutral, fitter, budget=budget, quiet=quiet)
    provenance = _provenance(model, tokenizer, corpus, len(neutral))
    provenance["settings"] = {"denoise": denoise, "shrinkage": shrinkage}
    extraction = fit_and_test(pooled, fitter, denoise, shrinkage, provenance)
    if not audit:
        return extraction
    texts = AuditTexts(
        model=model,
        tokenizer=tokenizer,
        corpus=corpus,
        goemotions=goemotions,
        quiet=quiet,
        store=store,
    )
    return replace(extraction, vectors=with_audit(extraction.vectors, pooled, texts))


def fit_and_test(
    pooled: StoryActivations,
    fitter: VectorFitter,
    denoise: float,
    shrinkage: float,
    provenance: dict[str, Any],
) -> Extraction:
    """Fit on the fitting topics, choose layers inside them, test on the rest."""
    fit = pooled.of_topics(EMOTIONS_FIT_TOPICS)
    test = pooled.of_topics(EMOTIONS_TEST_TOPICS)
    fitter.update(fit.values, fit.labels)
    provenance["stories"] = len(fit.labels)
    vectors = fitter.vectors(
        denoise=denoise, shrinkage=shrinkage, provenance=provenance
    )
    labels = torch.tensor(vectors.emotion_indices(fit.labels))
    vectors = with_logistic(vectors, fit.values, labels)
    extraction = Extraction(
        vectors=vectors,
        accuracies=tuple(
            accuracy(vectors, test, reader=reader, layer=layer)
            for reader in vectors.readers
            for layer in vectors.layers
        ),
        chosen=chosen_layers(fit, vectors, shrinkage=shrinkage),
    )
    headlines = [extraction.headline(reader) for reader in vectors.readers]
    vectors.provenance["accuracy"] = recorded(headlines)
    return extraction


def _read_neutral(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Neutral],
    fitter: VectorFitter,
    *,
    budget: int,
    quiet: bool,
) -> None:
    sequences = [neutral_ids(tokenizer, passage) for passage in passages]

    def consume(batch: Batch, captured: Captured) -> None:
        # The first tokens are left out: the attention sink among them would be the
        # first component all by itself.
        keep = real_tokens_from(batch.attention_mask, FIRST_TOKEN)
        if bool(keep.any()):
            rows = [captured[layer][keep].float() for layer in fitter.layers]
            fitter.update_neutral(torch.stack(rows, dim=1))

    read_stream(
        model,
        sequences,
        fitter.layers,
        consume,
        budget=budget,
        description="Reading neutral text",
        quiet=quiet,
    )


_SPEAKERS = {
    "system": "System",
    "user": "Human",
    "assistant": "Assistant",
    "tool": "Tool",
}


def neutral_ids(tokenizer: PreTrainedTokenizerBase, passage: Neutral) -> list[int]:
    """Return a neutral passage's tokens: prose as it is, dialogue by the template.

    Where there is no template, as with a base model, a dialogue is plain text with
    `Human:` and `Assistant:` before the turns, as such a model may have met it.
    """
    if passage.messages is None:
        return tokenizer(passage.text)["input_ids"]
    if not getattr(tokenizer, "chat_template", None):
        turns = [f"{_SPEAKERS[m['role']]}: {m['content']}" for m in passage.messages]
        return tokenizer("\n\n".join(turns))["input_ids"]
    return conversation_ids(tokenizer, passage.messages)


def _provenance(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    neutral: int,
) -> dict[str, Any]:
    config: Any = unwrapped(model).config
    template = str(getattr(tokenizer, "chat_template", None))
    return {
        "model": model_name(model),
        "revision": getattr(config, "_commit_hash", None),
        "num_layers": num_layers(model),
        "corpus_hash": corpus.hash(),
        "template_hash": hashlib.sha256(template.encode()).hexdigest()[:16],
        "neutral_passages": neutral,
        "first_token": FIRST_TOKEN,
        "dtype": str(next(model.parameters()).dtype),
        "software": {n: version(n) for n in ("torch", "transformers", "emoreg")},
    }
