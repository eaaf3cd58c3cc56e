"""One pooled activation per story: the mean over tokens from the 50th on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import checked_layers, num_layers
from emoreg.residual.pooling import Passage, read_share, span_means
from emoreg.residual.processes import Share
from emoreg.residual.store import ActivationStore, temporary_store
from emoreg.vectors.corpus import Story

FIRST_TOKEN = 50
"""By the 50th token of a story its emotion is apparent (the paper's choice)."""
PART = 4096
"""Stories whose activations are in memory at a time: the packaged corpus has half."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoryActivations:
    """One pooled residual-stream activation per story and layer."""

    values: Float[Tensor, "text layer d_model"]
    labels: tuple[str, ...]
    topics: tuple[str, ...]
    layers: tuple[int, ...]

    def of_topics(self, topics: Sequence[str]) -> "StoryActivations":
        """Return the stories on `topics`."""
        return self.rows([i for i, topic in enumerate(self.topics) if topic in topics])

    def rows(self, rows: Sequence[int]) -> "StoryActivations":
        """Return some of the stories, in the order of `rows`."""
        return replace(
            self,
            values=self.values[list(rows)],
            labels=tuple(self.labels[i] for i in rows),
            topics=tuple(self.topics[i] for i in rows),
        )


def pool_stories(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stories: Sequence[Story],
    layers: Sequence[int],
    *,
    budget: int | None = None,
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


@contextmanager
def story_parts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stories: Sequence[Story],
    layers: Sequence[int],
    *,
    budget: int | None = None,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> Iterator[Callable[[], Iterator[StoryActivations]]]:
    """Give a way to go through all stories, `PART` at a time, as often as need be.

    Up to `PART` stories stay in memory. Of more, one part at a time does: the others
    are kept in `store`, or in a temporary folder, and read back the next time.
    """
    pieces = _pieces(stories)
    how: Any = {"budget": budget, "quiet": quiet}
    if len(pieces) == 1:
        only = pool_stories(model, tokenizer, stories, layers, store=store, **how)
        yield lambda: iter((only,))
        return
    with temporary_store() as own:
        kept = own if store is None else store

        def parts() -> Iterator[StoryActivations]:
            for piece in pieces:
                yield pool_stories(model, tokenizer, piece, layers, store=kept, **how)

        yield parts


def _pieces(stories: Sequence[Story]) -> list[Sequence[Story]]:
    return [stories[start : start + PART] for start in range(0, len(stories), PART)]


def share_stories(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stories: Sequence[Story],
    layers: Sequence[int],
    *,
    store: ActivationStore,
    share: Share,
    budget: int | None = None,
    quiet: bool = False,
) -> None:
    """Read this process's share of the stories into a store; wait for the others."""
    for piece in _pieces(stories):
        read_share(
            model,
            [story_passage(tokenizer, story) for story in piece],
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
    return text_passage(tokenizer, story.text, story.source)


def text_passage(tokenizer: PreTrainedTokenizerBase, text: str, source: str) -> Passage:
    """Return a text's tokens, to be averaged from the 50th on.

    Raises:
        ValueError: If it has fewer than 50 tokens; `source` says which text.
    """
    ids = tuple(tokenizer(text)["input_ids"])
    if len(ids) < FIRST_TOKEN:
        raise ValueError(
            f"a story must have at least {FIRST_TOKEN} tokens, since activations are "
            f"averaged from the {FIRST_TOKEN}th on; {source} has {len(ids)}. "
            "Lengthen it or take it out"
        )
    return Passage(ids=ids, spans=((FIRST_TOKEN - 1, len(ids)),))
