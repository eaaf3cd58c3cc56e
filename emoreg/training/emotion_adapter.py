"""An adapter that carries an emotion, made from representation targets alone."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from emoreg.losses.presets import check_same_vectors
from emoreg.losses.term import refuse_audit_items
from emoreg.residual.capture import capture
from emoreg.residual.layers import backbone, d_model, model_name, num_layers
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.training.adapters import with_new_lora
from emoreg.training.auxiliary import padded_texts
from emoreg.training.reference import Reference, as_conversations
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.steering import additions, mean_norms
from emoreg.vectors.transcripts import Conversation, Transcript

_LOG_EVERY = 8


def emotion_adapter(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    transcripts: Sequence[Transcript | Conversation],
    vectors: EmotionVectors,
    reference: Reference,
    *,
    emotion: str = "calm",
    strength: float = 0.05,
    steps: int = 64,
    batch: int = 2,
    learning_rate: float = 1e-3,
    seed: int = 0,
    quiet: bool = False,
) -> nn.Module:
    """Return `model` with a LoRA that puts an emotion into its own turns.

    `L = mean over tokens t, loss layers l of |h_t - h_ref,t - a_t n_l v_l|^2 / n_l^2`,
    `h_ref` the model with the adapter off, `v_l` the emotion's unit direction, `n_l`
    the mean norm of the stream and `a_t` the strength at decision and Assistant
    tokens, 0 at all others: what people say is to read as it did. The target moves
    along one direction and nowhere else, so that no other term is needed beside it.
    From LoRRA (https://arxiv.org/abs/2310.01405), with one known direction in place of
    the difference between two prompts. Nothing says that a model acts better with it:
    measure it, and mind that calm goes with flattery.

    Args:
        model: The model, without an adapter.
        tokenizer: Its tokenizer.
        transcripts: Dialogues of the kind in which it is to hold; training ones.
        vectors: The model's emotion vectors.
        reference: What `calibrate` measured with them; its loss layers are used.
        emotion: Which one; none that the audit judges by.
        strength: In mean residual-stream norms, at each loss layer; below 0 takes the
            emotion out.
        steps: Optimizer steps (AdamW, warmed up over a tenth of them).
        batch: Dialogues in each.
        learning_rate: Its highest.
        seed: Of the adapter's start and the order of dialogues.
        quiet: No progress bar.

    Raises:
        ValueError: If there is no dialogue, the vectors are another model's, the
            emotion is unknown or the audit's, or the model has an adapter already.
    """
    talks = as_conversations(transcripts)
    _check(model, vectors, reference, emotion, len(talks))
    norms = mean_norms(model, tokenizer, Corpus.packaged(), reference.plan.loss)
    moves = {
        layer: additions(vectors, emotion, strength, norms={layer: norm})[layer]
        for layer, norm in norms.items()
    }
    tuned = with_new_lora(model, vectors, seed=seed)
    rows = [conversation_ids(tokenizer, talk.messages) for talk in talks]
    batches, markers = _batches(rows, batch, seed), TurnMarkers.of(tokenizer)

    how: Any = {"steps": steps, "rate": learning_rate, "quiet": quiet}
    next_loss = partial(_loss, tuned, batches, markers, moves, norms)
    _descend(tuned, next_loss, **how, says=f"Adapter: {emotion}")
    return tuned


def _descend(
    tuned: nn.Module,
    loss: Callable[[], Tensor],
    *,
    steps: int,
    rate: float,
    says: str,
    quiet: bool,
) -> None:
    """Take AdamW's steps, warmed up over a tenth of them."""
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    with tqdm(range(steps), desc=says, disable=quiet) as bar:
        for step in bar:
            warm = min(1.0, (step + 1) / max(1, steps // 10))
            optimizer.param_groups[0]["lr"] = rate * warm
            value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % _LOG_EVERY == 0:  # asking at each would wait for the GPU
                bar.set_postfix(loss=f"{float(value.detach()):.2e}")


def _check(
    model: nn.Module,
    vectors: EmotionVectors,
    reference: Reference,
    emotion: str,
    talks: int,
) -> None:
    vectors.check_model(
        d_model=d_model(model), num_layers=num_layers(model), name=model_name(model)
    )
    check_same_vectors(reference, vectors)
    refuse_audit_items(
        Corpus.packaged().roles(), emotions=[emotion], split=vectors.split
    )
    if not talks or hasattr(model, "peft_config"):
        raise ValueError(
            "`transcripts` must hold a dialogue, and `model` no adapter yet, found "
            f"{talks} dialogues and {type(model).__name__}. Add dialogues, or merge "
            "the adapter that is there"
        )


def _batches(
    rows: Sequence[Sequence[int]], size: int, seed: int
) -> Iterator[list[Sequence[int]]]:
    """Yield batches for ever, each round in another order."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(range(len(rows)), len(rows))
        for start in range(0, len(order), size):
            yield [rows[i] for i in order[start : start + size]]


def _loss(
    tuned: Any,
    batches: Iterator[list[Sequence[int]]],
    markers: TurnMarkers,
    moves: dict[int, Float[Tensor, " d_model"]],
    norms: dict[int, float],
) -> Tensor:
    ids, mask = padded_texts(next(batches), next(tuned.parameters()).device)
    own = markers.assistant_tokens(ids) | markers.decision_tokens(ids)
    with torch.no_grad(), tuned.disable_adapter():
        held = _streams(tuned, ids, mask, tuple(moves))
    now, parts = _streams(tuned, ids, mask, tuple(moves)), []
    for layer, move in moves.items():
        shift = (own & mask)[..., None] * move.to(ids.device)
        apart = now[layer].float() - held[layer].float() - shift
        squares = apart.square().sum(-1) / norms[layer] ** 2
        parts.append((squares * mask).sum() / mask.sum())
    return torch.stack(parts).mean()


def _streams(
    model: nn.Module,
    ids: Int[Tensor, "text pos"],
    mask: Bool[Tensor, "text pos"],
    layers: tuple[int, ...],
) -> dict[int, Float[Tensor, "text pos d_model"]]:
    with capture(model, layers) as captured:  # no head: its logits would cost most
        backbone(model)(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return {layer: captured[layer] for layer in layers}
