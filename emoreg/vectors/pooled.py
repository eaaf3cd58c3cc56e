"""One pooled activation per story: the mean over tokens from the 50th on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.layers import checked_layers, d_model, num_layers
from emoreg.residual.tokens import real_tokens_from
from emoreg.vectors.corpus import Story

FIRST_TOKEN = 50
"""By the 50th token of a story its emotion is apparent (the paper's choice)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoryActivations:
    """One pooled residual-stream activation per story and layer."""

    values: Float[Tensor, "text layer d_model"]
    labels: tuple[str, ...]
    topics: tuple[str, ...]
    layers: tuple[int, ...]

    def of_topics(self, topics: Sequence[str]) -> "StoryActivations":
        """Return the stories on `topics`."""
        rows = [i for i, topic in enumerate(self.topics) if topic in topics]
        return replace(
            self,
            values=self.values[rows],
            labels=tuple(self.labels[i] for i in rows),
            topics=tuple(self.topics[i] for i in rows),
        )


def pool_stories(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stories: Sequence[Story],
    layers: Sequence[int],
    *,
    budget: int = 2048,
    quiet: bool = False,
) -> StoryActivations:
    """Return each story's mean activation over real tokens from the 50th on."""
    sequences = [_story_ids(tokenizer, story) for story in stories]
    order = checked_layers(layers, num_layers(model))
    values = torch.zeros(len(stories), len(order), d_model(model))

    def consume(batch: Batch, captured: Captured) -> None:
        keep = real_tokens_from(batch.attention_mask, FIRST_TOKEN).float()
        weights = keep / keep.sum(1, keepdim=True)
        for column, layer in enumerate(order):
            stream = captured[layer].float()
            pooled = torch.einsum("bp,bpd->bd", weights, stream)
            values[list(batch.rows), column] = pooled.cpu()

    read_stream(
        model,
        sequences,
        order,
        consume,
        budget=budget,
        description="Reading stories",
        quiet=quiet,
    )
    return StoryActivations(
        values=values,
        labels=tuple(story.emotion for story in stories),
        topics=tuple(story.topic for story in stories),
        layers=order,
    )


def _story_ids(tokenizer: PreTrainedTokenizerBase, story: Story) -> list[int]:
    ids = tokenizer(story.text)["input_ids"]
    if len(ids) < FIRST_TOKEN:
        raise ValueError(
            f"a story must have at least {FIRST_TOKEN} tokens, since activations are "
            f"averaged from the {FIRST_TOKEN}th on; {story.source} has {len(ids)}. "
            "Lengthen it or take it out"
        )
    return ids
