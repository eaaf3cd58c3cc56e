"""Steering text with emotion vectors: side by side with the model as it is."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import d_model, model_name, num_layers
from emoreg.residual.steer import addition, steered
from emoreg.residual.tokens import real_tokens_from, render
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import neutral_ids
from emoreg.vectors.pooled import FIRST_TOKEN
from emoreg.vectors.reader_names import MEAN_DIFFERENCE

DEPTH = 0.67
"""Where text is steered: two thirds of the blocks deep (the paper's choice)."""
PASSAGES = 24
"""Neutral passages over which the mean residual-stream norm is taken."""
REPEATED = 0.5
"""Share of repeated word pairs above which a text counts as broken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeredText:
    """What the model says at one strength."""

    strength: float
    greedy: str
    sampled: str

    @property
    def broken(self) -> bool:
        """Whether more than half of the greedy text's word pairs were said before."""
        return repeated_pairs(self.greedy) > REPEATED


def steer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    vectors: EmotionVectors,
    *,
    emotion: str,
    strengths: Sequence[float],
    prompt: str,
    layers: Sequence[int] | None = None,
    reader: str | None = None,
    max_new_tokens: int = 80,
    seed: int = 0,
) -> tuple[SteeredText, ...]:
    """Return greedy and sampled answers at each strength, and at 0 first.

    Args:
        model: The model that the vectors are of.
        tokenizer: Its tokenizer; the prompt is a user's message in its chat template.
        vectors: Directions.
        emotion: Whose direction is added.
        strengths: In mean residual-stream norms of the layer. At 0.05 to 0.1 text
            changes, above that it breaks in many models.
        prompt: What the user says.
        layers: Decoder blocks; the one of the vectors nearest to two thirds of depth
            when None. Several share the strength.
        reader: Which directions; the mean differences, the emotion vectors proper,
            when None and the file has them.
        max_new_tokens: Length of an answer.
        seed: Of the sampled answers.

    Raises:
        ValueError: On an unknown emotion or layer, an empty prompt, a strength that is
            not finite, or vectors of another model.
    """
    if not prompt.strip():
        raise ValueError("`prompt` must say something, got an empty text")
    vectors.check_model(
        d_model=d_model(model), num_layers=num_layers(model), name=model_name(model)
    )
    vectors.emotion_indices([emotion])
    for strength in strengths:
        addition(torch.zeros(1), strength=strength, norm=1.0)  # refuses NaN at once
    chosen = (layer_near(vectors, num_layers(model)),) if layers is None else layers
    for layer in chosen:
        vectors.layer_index(layer)  # refuses a layer that they don't have
    norms = mean_norms(model, tokenizer, Corpus.packaged(), chosen)
    messages = [{"role": "user", "content": prompt}]
    text = render(tokenizer, messages, generation_prompt=True)
    answer = partial(
        _answer, model, tokenizer, text, max_new_tokens=max_new_tokens, seed=seed
    )
    found = []
    for strength in dict.fromkeys((0.0, *strengths)):
        with at_strength(model, vectors, emotion, strength, norms=norms, reader=reader):
            greedy, sampled = answer(sample=False), answer(sample=True)
        found.append(SteeredText(strength=strength, greedy=greedy, sampled=sampled))
    return tuple(found)


def additions(
    vectors: EmotionVectors,
    emotion: str,
    strength: float,
    *,
    norms: Mapping[int, float],
    reader: str | None = None,
) -> dict[int, Float[Tensor, " d_model"]]:
    """Return what is added at each layer of `norms`, which share the strength."""
    if reader is None and MEAN_DIFFERENCE in vectors.readers:
        reader = MEAN_DIFFERENCE
    return {
        layer: addition(
            vectors.direction(emotion, layer=layer, reader=reader),
            strength=strength / len(norms),
            norm=norm,
        )
        for layer, norm in norms.items()
    }


def at_strength(
    model: nn.Module,
    vectors: EmotionVectors,
    emotion: str,
    strength: float,
    *,
    norms: Mapping[int, float],
    reader: str | None = None,
) -> AbstractContextManager[None]:
    """Steer inside a `with` block; the strength is shared between the layers.

    Args:
        model: The model.
        vectors: Directions.
        emotion: Whose direction is added.
        strength: In mean residual-stream norms.
        norms: Per layer that is steered, its mean norm, as `mean_norms` returns it.
        reader: Which directions; the mean differences when None and there are any.
    """
    moved = additions(vectors, emotion, strength, norms=norms, reader=reader)
    return steered(model, moved)


def layer_near(vectors: EmotionVectors, depth: int, *, share: float = DEPTH) -> int:
    """Return the vectors' layer nearest to a share of the model's depth."""
    return min(vectors.layers, key=lambda layer: abs(layer - share * depth))


def mean_norms(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    layers: Sequence[int],
) -> dict[int, float]:
    """Return each layer's mean residual-stream norm over neutral text.

    The mean over tokens from the 50th on of the Euclidean norm: the attention sink
    among the first tokens, whose norm is a hundred times the others', is left out.
    """
    passages = corpus.neutral("fit")[:PASSAGES]
    sums: Float[Tensor, " layer"] = torch.zeros(len(layers))
    count = 0

    def consume(batch: Batch, captured: Captured) -> None:
        nonlocal count
        keep = real_tokens_from(batch.attention_mask, FIRST_TOKEN)
        count += int(keep.sum())
        for place, layer in enumerate(layers):
            sums[place] += captured[layer][keep].float().norm(dim=-1).sum().cpu()

    sequences = [neutral_ids(tokenizer, passage) for passage in passages]
    read_stream(model, sequences, layers, consume, quiet=True)
    if count == 0:
        raise ValueError(
            f"the neutral texts must have more than {FIRST_TOKEN} tokens to measure "
            "norms, found none that has"
        )
    means = (sums / count).tolist()
    return dict(zip(layers, means, strict=True))


def repeated_pairs(text: str) -> float:
    """Return the share of a text's word pairs that stand earlier in it already."""
    words = text.split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    max_new_tokens: int,
    seed: int,
    sample: bool,
) -> str:
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    inputs = inputs.to(next(model.parameters()).device)
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
    if sample:
        how = {"do_sample": True, "temperature": 1.0, "top_p": 0.95}
    with evaluating(model), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(
            **inputs,
            **how,
            top_k=None,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
    said = out[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(said, skip_special_tokens=True))
