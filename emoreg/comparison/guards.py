"""Guard rails: what must stay as it was while readings change."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from emoreg.comparison.capability import capability
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import LayerPlan, num_layers
from emoreg.residual.store import ActivationStore
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.statistics.bootstrap import bootstrap_mean
from emoreg.vectors.accuracy import accuracy, named
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import neutral_ids
from emoreg.vectors.pooled import pool_stories
from emoreg.vectors.reader_names import LDA


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardText:
    """Token ids, and the first position whose prediction counts."""

    ids: tuple[int, ...]
    start: int


def guard_texts(
    tokenizer: PreTrainedTokenizerBase, corpus: Corpus, *, limit: int | None = None
) -> list[GuardText]:
    """Return the answers of the retain set and the neutral `test` passages.

    Args:
        tokenizer: The model's.
        corpus: Where they come from.
        limit: At most this many of each kind; None for all.
    """
    markers = TurnMarkers.of(tokenizer)
    texts = []
    for exchange in corpus.retain()[:limit]:
        messages = [
            {"role": "user", "content": exchange.prompt},
            {"role": "assistant", "content": exchange.answer},
        ]
        ids = conversation_ids(tokenizer, messages)
        decision = markers.decision_tokens(torch.tensor([ids]))[0].nonzero()
        texts.append(GuardText(ids=tuple(ids), start=int(decision[-1])))
    for passage in corpus.neutral("test")[:limit]:
        texts.append(GuardText(ids=tuple(neutral_ids(tokenizer, passage)), start=0))
    return texts


def guard_rails(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    vectors: EmotionVectors,
    corpus: Corpus,
    *,
    base: nn.Module | None = None,
    limit: int | None = None,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> dict[str, Any]:
    """Return KL to the reference, loss on text, simple skills and story accuracy.

    Each has its `values` too, one a text, so that two models are compared text by text.

    A model with a peft adapter is compared with itself without the adapter, one that
    was trained whole with `base`. Where there is neither, the KL is left out.

    Args:
        model: The model, with or without a peft adapter.
        tokenizer: Its tokenizer.
        vectors: Fitted on the reference model.
        corpus: Where texts and stories come from.
        base: The reference model; None takes `model` without its adapter.
        limit: At most this many texts of each kind, and emotions; None for all.
        quiet: No progress bar.
        store: Stories that it has are not read again.
    """
    found: dict[str, Any] = {}
    texts = guard_texts(tokenizer, corpus, limit=limit)
    if base is not None or hasattr(model, "peft_config"):
        found["kl"] = reference_kl(model, texts, base=base, quiet=quiet)
    found["loss"] = text_loss(model, texts, quiet=quiet)
    found["capability"] = capability(model, tokenizer, corpus, limit=limit, quiet=quiet)
    loss_layers = LayerPlan.for_depth(num_layers(model)).loss
    layer = next((i for i in reversed(loss_layers) if i in vectors.layers), None)
    found["story_top1"] = story_accuracy(
        model,
        tokenizer,
        vectors,
        corpus,
        layer=vectors.layers[-1] if layer is None else layer,
        limit=limit,
        quiet=quiet,
        store=store,
    )
    return found


@torch.no_grad()
def reference_kl(
    model: nn.Module,
    texts: Sequence[GuardText],
    *,
    base: nn.Module | None = None,
    quiet: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the mean KL(reference || model) in nat per token, over all tokens.

    Args:
        model: The trained model.
        texts: What to compare on.
        base: The reference, in eval mode on the same device; None takes `model`
            without its peft adapter.
        quiet: No progress bar.
        seed: Of the bootstrap over texts.
    """
    device = next(model.parameters()).device
    sums, counts = [], []
    with evaluating(model):
        for text in tqdm(texts, desc="KL to the reference", disable=quiet):
            ids = torch.tensor([text.ids], device=device)
            with nullcontext(base) if base is not None else _adapter_off(model) as own:
                held = _log_probs(own, ids, text.start)
            kl = _kl(held, _log_probs(model, ids, text.start))
            sums.append(float(kl.sum()))
            counts.append(kl.numel())
    per_text = np.asarray(sums) / np.asarray(counts)
    interval = bootstrap_mean(per_text[:, None], seed=seed)
    return {
        "value": float(np.sum(sums) / np.sum(counts)),
        "low": float(np.ravel(interval.low)[0]),
        "high": float(np.ravel(interval.high)[0]),
        "n": len(sums),
        "unit": "nat per token; the interval is of the mean over texts",
        "values": _short(per_text),
    }


@torch.no_grad()
def text_loss(
    model: nn.Module, texts: Sequence[GuardText], *, quiet: bool = False
) -> dict[str, Any]:
    """Return the mean loss on texts that have nothing to do with training.

    In nat per token, the mean of the texts' means; its exponent is a perplexity.

    Args:
        model: The model.
        texts: What is read.
        quiet: No progress bar.
    """
    device, losses = next(model.parameters()).device, []
    with evaluating(model):
        for text in tqdm(texts, desc="Loss on other text", disable=quiet):
            ids = torch.tensor([text.ids], device=device)
            logs = _log_probs(model, ids, text.start)
            said = ids[0, text.start + 1 :, None]
            losses.append(-float(logs.gather(-1, said).mean()))
    values = np.asarray(losses)
    interval = bootstrap_mean(values[:, None], keep=False).at(0)
    return {
        "value": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "n": len(values),
        "unit": "nat per token; the mean over texts",
        "values": _short(values),
    }


def story_accuracy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    vectors: EmotionVectors,
    corpus: Corpus,
    *,
    layer: int,
    reader: str | None = None,
    limit: int | None = None,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> dict[str, Any]:
    """Return how often `reader` still names the emotion of held-out stories.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        vectors: Fitted on the reference model.
        corpus: Its `test` stories are read.
        layer: Which layer.
        reader: Which reader; LDA, which reads best, or else the first, when None.
        limit: At most this many emotions, in the order of the vectors.
        quiet: No progress bar.
        store: Stories that it has are not read again.
    """
    if reader is None:
        reader = LDA if LDA in vectors.readers else vectors.readers[0]
    emotions = vectors.emotions[:limit]
    stories = corpus.stories(emotions, split="test")
    parts = (model, tokenizer, stories, [layer])
    pooled = pool_stories(*parts, quiet=quiet, store=store)
    found = accuracy(vectors, pooled, reader=reader, layer=layer)
    hits = named(vectors, pooled, reader=reader, layer=layer)[:, 0]
    return {
        "value": found.top1,
        "top3": found.top3,
        "n": found.texts,
        "reader": reader,
        "layer": layer,
        "chance": found.chance[0],
        "values": hits.tolist(),
    }


def _short(values: Float[np.ndarray, " text"]) -> list[float]:
    """Return values in six significant digits, so that a table stays small."""
    return [float(f"{value:.6g}") for value in values]


@contextmanager
def _adapter_off(model: Any) -> Iterator[nn.Module]:
    with model.disable_adapter():
        yield model


def _log_probs(
    model: nn.Module, ids: Tensor, start: int
) -> Float[Tensor, "token vocab"]:
    logits = model(input_ids=ids, use_cache=False).logits[0, start:-1]
    return logits.float().log_softmax(-1)


def _kl(
    reference: Float[Tensor, "token vocab"], model: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    return (reference.exp() * (reference - model)).sum(-1)
