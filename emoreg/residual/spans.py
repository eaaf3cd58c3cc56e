"""Where words that one knows stand among the tokens of a text."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from emoreg.residual.tokens import render

_OTHERS = ("quizzical zebra", "vexed walrus")
"""Two sayings that no template holds, with other letters first."""


def message_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return a conversation's token ids, and where each message's own words stand.

    Spans are half-open and in the order of the messages. What the chat template writes
    around a message does not belong to it, though it may say the same words.

    Raises:
        ValueError: If the template changes a message so that it can't be found.
    """
    text = render(tokenizer, [dict(message) for message in messages])
    said = [str(message["content"]) for message in messages]
    starts = []
    for at, words in enumerate(said):
        # The template's text before a message is what stands whatever it says.
        other = next(x for x in _OTHERS if x[0] != words.strip()[:1])
        changed = [dict(message) for message in messages]
        changed[at]["content"] = other
        starts.append(_alike(text, render(tokenizer, changed)))
    return word_spans(tokenizer, text, said, starts=starts)


def _alike(one: str, other: str) -> int:
    """Return how many characters both begin with."""
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda n: one[:n] != other[:n])


def word_spans(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    passages: Sequence[str],
    *,
    starts: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return a text's token ids, and the half-open span of tokens of each passage.

    Passages stand in the text in this order, stripped; a token that holds a part of
    one and something else belongs to it.

    Args:
        tokenizer: A fast tokenizer, which knows where its tokens come from.
        text: Written out as the model will see it, special tokens and all.
        passages: Parts of it.
        starts: Where the search for each may begin; where the one before ends if None.

    Raises:
        ValueError: If one is not found.
    """
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = coded["offset_mapping"]
    spans, end_before = [], 0
    for passage, start in zip(passages, starts or [0] * len(passages), strict=True):
        words = passage.strip()
        first = text.find(words, max(start, end_before))
        inside = [
            place
            for place, (begin, end) in enumerate(offsets)
            if end > begin and begin < first + len(words) and end > first
        ]
        if first < 0 or not inside:
            raise ValueError(
                "the chat template must keep what a message says, so that its tokens "
                f"can be found; it changed {words[:40]!r}. Use texts that it keeps"
            )
        spans.append((inside[0], inside[-1] + 1))
        end_before = first + len(words)
    return tuple(coded["input_ids"]), tuple(spans)
