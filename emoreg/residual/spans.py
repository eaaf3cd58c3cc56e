"""Where words that one knows stand among the tokens of a text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def word_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, passages: Sequence[str]
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return a text's token ids, and the half-open span of tokens of each passage.

    Passages stand in the text in this order, stripped; a token that holds a part of
    one and something else belongs to it.

    Args:
        tokenizer: A fast tokenizer, which knows where its tokens come from.
        text: Written out as the model will see it, special tokens and all.
        passages: Parts of it.

    Raises:
        ValueError: If one is not found.
    """
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = coded["offset_mapping"]
    spans, start = [], 0
    for passage in passages:
        words = passage.strip()
        first = text.find(words, start)
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
        start = first + len(words)
    return tuple(coded["input_ids"]), tuple(spans)
