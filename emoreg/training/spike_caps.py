"""How hot the hottest tokens of a turn are before training: `SpikePenalty`'s cap."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.losses.presets import loss_probe
from emoreg.losses.spikes import SpikePenalty, hottest
from emoreg.losses.term import Probe
from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.training.reference import Reference, as_conversations
from emoreg.vectors.corpus import Roles
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.transcripts import Conversation, Transcript

QUANTILE = 0.95
FEWEST = 20
"""Passing turns that a 95th percentile needs."""


def spike_penalty(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    transcripts: Sequence[Transcript | Conversation],
    vectors: EmotionVectors,
    reference: Reference,
    *,
    weight: float = 1.0,
    roles: Roles | None = None,
    quiet: bool = False,
) -> SpikePenalty:
    """Return a `SpikePenalty` whose cap is what passing turns hardly ever go above.

    `cap[l,e]` is the 95th percentile, over passing turns, of the mean of a turn's
    hottest tenth of tokens. Of emotions that a loss lowers, at the loss's layers.

    Args:
        model: The model before training.
        tokenizer: Its tokenizer.
        transcripts: Training twins, or your own conversations.
        vectors: The model's emotion vectors.
        reference: What `calibrate` measured with them.
        weight: Factor of the term.
        roles: Which emotions are lowered; the packaged roles when None.
        quiet: No progress bar.

    Raises:
        ValueError: If fewer than 20 turns pass, or `loss_probe` refuses.
    """
    probe, signs = loss_probe(vectors, reference, roles=roles)
    probe = _of(probe, [e for e, s in zip(probe.emotions, signs, strict=True) if s > 0])
    spikes = _passing_spikes(model, tokenizer, transcripts, probe, quiet=quiet)
    if len(spikes) < FEWEST:
        raise ValueError(
            f"`transcripts` must have at least {FEWEST} Assistant turns after passing "
            f"feedback, to have a 95th percentile, found {len(spikes)}. Add some"
        )
    return SpikePenalty(probe, spikes.quantile(QUANTILE, dim=0), weight=weight)


def _of(probe: Probe, emotions: Sequence[str]) -> Probe:
    """Return a probe of some of its emotions."""
    at = [probe.emotions.index(emotion) for emotion in emotions]
    return replace(
        probe,
        directions=probe.directions[:, at],
        zero=probe.zero[:, at],
        sigma=probe.sigma[:, at],
        emotions=tuple(emotions),
    )


def _passing_spikes(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    transcripts: Sequence[Transcript | Conversation],
    probe: Probe,
    *,
    quiet: bool,
) -> Float[Tensor, "segment layer emotion"]:
    talks, markers = as_conversations(transcripts), TurnMarkers.of(tokenizer)
    found: list[Tensor] = []

    def consume(batch: Batch, captured: Captured) -> None:
        spoken = markers.assistant_tokens(batch.input_ids)
        spoken &= batch.attention_mask.bool()
        turn = markers.turn_of(batch.input_ids, spoken)
        read = [probe.read(captured[i], layer=i) for i in probe.layers]
        turns = max(len(talks[row].failed) for row in batch.rows)
        spikes = hottest(torch.stack(read, dim=2), turn, turns)
        for k, row in enumerate(batch.rows):
            passing = [n for n, f in enumerate(talks[row].failed) if f == 0]
            found.append(spikes[k, passing].cpu())

    read_stream(
        model,
        [conversation_ids(tokenizer, talk.messages) for talk in talks],
        probe.layers,
        consume,
        description="Measuring spikes",
        quiet=quiet,
    )
    every = torch.cat(found)
    return every[every.isfinite().all(2).all(1)]
