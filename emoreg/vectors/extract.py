"""Stories through a model, into emotion vectors with a held-out accuracy."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
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
from emoreg.vectors.auditing import AuditTexts, with_audit
from emoreg.vectors.corpus import Corpus, Neutral
from emoreg.vectors.extraction import Extraction, fit_and_test
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.pooled import FIRST_TOKEN, story_parts
from emoreg.vectors.texts import Story, check_splits


def extract(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    *,
    emotions: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    denoise: float = 0.5,
    shrinkage: float = 0.5,
    budget: int | None = None,
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
        ValueError: On an unknown emotion, or texts that are too few, short or wrong.
        FloatingPointError: On activations that are not finite.
    """
    plan = LayerPlan.for_depth(num_layers(model))
    depth = num_layers(model)
    layers = plan.monitor if layers is None else checked_layers(layers, depth)
    emotions, stories = _asked_for(corpus, emotions)
    also: Any = {"goemotions": goemotions, "quiet": quiet, "store": store}
    texts = AuditTexts(model=model, tokenizer=tokenizer, corpus=corpus, **also)
    if audit:
        texts.check(emotions)
    fitter = VectorFitter(
        emotions=emotions, layers=sorted(layers), d_model=d_model(model)
    )
    neutral = corpus.neutral("fit")
    read_neutral(model, tokenizer, neutral, fitter, budget=budget, quiet=quiet)
    settings = {"denoise": denoise, "shrinkage": shrinkage}
    provenance = _provenance(model, tokenizer, corpus, len(neutral), settings)
    how: Any = {"budget": budget, "quiet": quiet}
    with story_parts(model, tokenizer, stories, layers, store=store, **how) as parts:
        extraction = fit_and_test(parts, fitter, denoise, shrinkage, provenance)
    if not audit:
        return extraction
    vectors = with_audit(extraction.vectors, extraction.sample, texts)
    return replace(extraction, vectors=vectors)


def _asked_for(
    corpus: Corpus, emotions: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[Story, ...]]:
    """Return the emotions with all of their stories, if there is enough to fit on."""
    names = corpus.emotions() if emotions is None else tuple(emotions)
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(
                f"`emotions` must name each once, found {name!r} {count} times. Leave "
                "the repeats out"
            )
    stories = corpus.stories(names, split="all")
    check_splits(stories)
    return names, stories


def read_neutral(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Neutral],
    fitter: VectorFitter,
    *,
    budget: int | None = None,
    quiet: bool = False,
) -> None:
    """Add the tokens of neutral passages, from the 50th real one on, to a fitter."""
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
    settings: dict[str, float],
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
        "settings": settings,
        "first_token": FIRST_TOKEN,
        "dtype": str(next(model.parameters()).dtype),
        "software": {n: version(n) for n in ("torch", "transformers", "emoreg")},
    }
