"""One pooled activation per story: the mean over tokens from the 50th on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import checked_layers, num_layers
from emoreg.residual.pooling import Passage, read_share, span_means
from emoreg.residual.processes import Share
from emoreg.residual.store import ActivationStore
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
    store: ActivationStore | None = None,
) -> StoryActivations:
    """Return each story's mean activation over real tokens from the 50th on."""
    order = checked_layers(layers, num_layers(model))
    values = span_means(
        model,
        [story_passage(tokenizer, story) for story in stories],
        order,
        budget=budget,
        description="Reading stories",
        quiet=quiet,
        store=store,
    )
    return StoryActivations(
        values=values,
        labels=tuple(story.emotion for story in stories),
        topics=tuple(story.topic for story in stories),
        layers=order,
    )


def share_stories(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stories: Sequence[Story],
    layers: Sequence[int],
    *,
    store: ActivationStore,
    share: Share,
    budget: int = 2048,
    quiet: bool = False,
) -> None:
    """Read this process's share of the stories into a store; wait for the others."""
    read_share(
        model,
        [story_passage(tokenizer, story) for story in stories],
        layers,
        store=store,
        share=share,
        budget=budget,
        description="Reading stories",
        quiet=quiet,
    )
    share.wait()


def story_passage(tokenizer: PreTrainedTokenizerBase, story: Story) -> Passage:
    """Return a story's tokens, to be averaged from the 50th on.

    Raises:
        ValueError: If it has fewer than 50 tokens.
    """
    ids = tuple(tokenizer(story.text)["input_ids"])
    if len(ids) < FIRST_TOKEN:
        raise ValueError(
            f"a story must have at least {FIRST_TOKEN} tokens, since activations are "
            f"averaged from the {FIRST_TOKEN}th on; {story.source} has {len(ids)}. "
            "Lengthen it or take it out"
        )
    return Passage(ids=ids, spans=((FIRST_TOKEN - 1, len(ids)),))
