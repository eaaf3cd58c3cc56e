"""Decision tokens and Assistant spans, against searching the text by hand."""

import random
from collections.abc import Callable

import pytest
import torch
from conftest import CHAT_TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from emoreg.residual.tokens import (
    TurnMarkers,
    conversation_ids,
    real_tokens_from,
    render,
)

# As in Llama 2: no generation prompt, no system turn, blanks around the text.
INST_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }} <|im_end|>"
    "{% else %}{{ raise_exception('Only user and assistant roles!') }}{% endif %}"
    "{% endfor %}"
)
# No special token ends a turn, and the generation prompt has no last blank.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}### User: {% else %}### Assistant: {% endif %}"
    "{{ message['content'] }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:{% endif %}"
)
# As in Qwen 3: the last Assistant turn alone is given an empty thought.
THINK_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if loop.last and message['role'] == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Template, opening and closing, written out by hand.
TEMPLATES = {
    "chatml": (CHAT_TEMPLATE, "<|im_start|>assistant\n", "<|im_end|>"),
    "inst": (INST_TEMPLATE, " [/INST] ", " <|im_end|>"),
    "plain": (PLAIN_TEMPLATE, "### Assistant:", "\n\n### User: "),
    "think": (THINK_TEMPLATE, "<|im_start|>assistant\n", "<|im_end|>"),
}
SYSTEM = {"role": "system", "content": "Be brief.\nassistant"}


def dialogue(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


CONVERSATIONS = {
    "one turn": dialogue("Sum 2 and 2.", "4"),
    "several turns": dialogue("a", "b c", "d\n\ne", "f. g", "h", "i\n\nj"),
    "system turn": [SYSTEM, *dialogue("a?", "b!", "c?", "d!")],
    "leading newline": dialogue("a", "\nb", "\n", "\n\n c"),
    "empty turn": dialogue("a", "", "b", "c"),
    "same words": dialogue("assistant", "user", "assistant\n", "assistant"),
    "not ASCII": dialogue("naïve – 東京", "jalapeño 🙂", "é", "ö"),
}


class Marks:
    """The spans that a search of the text finds, one number per byte or special."""

    def __init__(self, text: str, opening: str, closing: str) -> None:
        self.decision: list[int] = []
        self.spans: list[tuple[int, int]] = []
        at = text.find(opening)
        while at >= 0:
            start = at + len(opening)
            end = text.find(closing, start)
            end = len(text) if end < 0 else end
            self.decision.append(count(text[:start]) - 1)
            self.spans.append((count(text[:start]), count(text[:end])))
            at = text.find(opening, start)

    def assistant(self) -> set[int]:
        return {i for start, end in self.spans for i in range(start, end)}


def count(text: str) -> int:
    """Count tokens: a special token is one, everything else a byte each."""
    for special in ("<|im_start|>", "<|im_end|>"):
        text = text.replace(special, "@")
    return len(text.encode())


def positions(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def as_row(ids: list[int]) -> Tensor:
    return torch.tensor([ids])


def cases() -> list[tuple[str, str]]:
    """Templates with the conversations that they accept."""
    return [
        (name, talk)
        for name in TEMPLATES
        for talk in CONVERSATIONS
        if not (talk == "system turn" and name in ("inst", "plain"))
    ]


@pytest.mark.parametrize(("name", "talk"), cases())
def test_marks_equal_a_search_of_the_text(
    tokenizer: PreTrainedTokenizerFast, name: str, talk: str
) -> None:
    template, opening, closing = TEMPLATES[name]
    tokenizer.chat_template = template
    messages = CONVERSATIONS[talk]
    markers = TurnMarkers.of(tokenizer)
    assert tokenizer.decode(list(markers.opening)) == opening
    assert tokenizer.decode(list(markers.closing)) == closing
    text, ids = render(tokenizer, messages), conversation_ids(tokenizer, messages)
    assert len(ids) == count(text)
    wanted = Marks(text, opening, closing)
    assert len(wanted.decision) == sum(m["role"] == "assistant" for m in messages)
    assert positions(markers.decision_tokens(as_row(ids))[0]) == wanted.decision
    inside = set(positions(markers.assistant_tokens(as_row(ids))[0]))
    assert inside == wanted.assistant()
    # Control: the search does tell a mark that is one token off.
    assert positions(markers.decision_tokens(as_row(ids[1:]))[0]) != wanted.decision


@pytest.mark.parametrize("name", ["chatml", "inst"])
def test_spans_hold_the_assistants_words_and_no_one_elses(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    tokenizer.chat_template = TEMPLATES[name][0]
    markers = TurnMarkers.of(tokenizer)
    messages = CONVERSATIONS["several turns"]
    ids = as_row(conversation_ids(tokenizer, messages))
    said = tokenizer.decode(ids[markers.assistant_tokens(ids)].tolist())
    assert said == "".join(m["content"] for m in messages if m["role"] == "assistant")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_marks_and_does_nothing_else(
    tokenizer: PreTrainedTokenizerFast, side: str
) -> None:
    tokenizer.padding_side = side
    markers = TurnMarkers.of(tokenizer)
    rows = [conversation_ids(tokenizer, m) for m in CONVERSATIONS.values()]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    decision = markers.decision_tokens(batch["input_ids"])
    assistant = markers.assistant_tokens(batch["input_ids"])
    width = batch["input_ids"].shape[1]
    for k, ids in enumerate(rows):
        shift = width - len(ids) if side == "left" else 0
        for mask, alone in (
            (decision, markers.decision_tokens(as_row(ids))),
            (assistant, markers.assistant_tokens(as_row(ids))),
        ):
            assert positions(mask[k]) == [i + shift for i in positions(alone[0])]
    assert len({len(ids) for ids in rows}) > 3  # control: there is padding


def test_decision_positions_equal_the_marks_one_by_one(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    markers = TurnMarkers.of(tokenizer)
    rows = [conversation_ids(tokenizer, m) for m in CONVERSATIONS.values()]
    ids = tokenizer.pad({"input_ids": rows}, return_tensors="pt")["input_ids"]
    for turns in (1, 2, 4):
        at, exists = markers.decision_positions(ids, turns)
        for k, row in enumerate(rows):
            wanted = positions(markers.decision_tokens(as_row(row))[0])[:turns]
            assert exists[k].tolist() == [i < len(wanted) for i in range(turns)]
            assert at[k][exists[k]].tolist() == wanted
    assert bool((~exists).any())


def test_a_row_shorter_than_the_marker_has_none(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    markers = TurnMarkers.of(tokenizer)
    short = torch.tensor([markers.opening[1:]])
    assert not markers.decision_tokens(short).any()
    assert not markers.assistant_tokens(short).any()
    whole = torch.tensor([markers.opening])  # control
    assert positions(markers.decision_tokens(whole)[0]) == [len(markers.opening) - 1]


def test_a_turn_that_was_cut_is_marked_to_its_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    markers = TurnMarkers.of(tokenizer)
    ids = conversation_ids(tokenizer, dialogue("ab", "cdefg"))
    cut = as_row(ids[:-4])
    assert tokenizer.decode(cut[markers.assistant_tokens(cut)].tolist()) == "cde"


def sentencepiece_like(words: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that take the blank before them along."""
    pieces = sorted({f"▁{word}" for word in words.split()} | {"▁", "<unk>"})
    core = Tokenizer(
        models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace()
    core.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    made.chat_template = INST_TEMPLATE
    return made


def test_a_blank_that_joins_the_next_word_is_no_part_of_the_marker() -> None:
    words = "quizzical zebra vexed walrus one two three four [INST] [/INST]"
    tokenizer = sentencepiece_like(words)
    ids = conversation_ids(tokenizer, dialogue("one", "two", "three", "four two"))
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert "▁[/INST]" in tokens  # control: as the template writes it, it isn't there
    naive = tokenizer(" [/INST] ", add_special_tokens=False)["input_ids"]
    assert not any(ids[i : i + len(naive)] == naive for i in range(len(ids)))
    markers = TurnMarkers.of(tokenizer)
    row = as_row(ids)
    marked = positions(markers.decision_tokens(row)[0])
    assert [tokens[i] for i in marked] == ["▁[/INST]", "▁[/INST]"]
    inside = positions(markers.assistant_tokens(row)[0])
    assert [tokens[i] for i in inside if tokens[i] != "▁"] == [
        *("▁two", "▁four", "▁two"),
    ]


REFUSED = {
    "no prompt before the text": "{% for m in messages %}{{ m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}",
    "nothing between the turns": "{% for m in messages %}{{ m['content'] }}"
    "{% endfor %}",
    "text is changed": "{% for m in messages %}<|im_start|>{{ m['content'] | upper }}"
    "<|im_end|>{% endfor %}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_without_usable_marks_is_refused(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    TurnMarkers.of(tokenizer)  # control
    tokenizer.chat_template = REFUSED[name]
    with pytest.raises(ValueError, match="must write the generation prompt just befor"):
        TurnMarkers.of(tokenizer)


def test_a_missing_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = dialogue("a", "b")
    assert render(tokenizer, messages)
    tokenizer.chat_template = None
    message = "must have a chat template.*TokenizersBackend|PreTrainedTokenizerFast"
    calls: tuple[Callable, ...] = (
        lambda: TurnMarkers.of(tokenizer),
        lambda: render(tokenizer, messages),
        lambda: conversation_ids(tokenizer, messages),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_refused_conversation_says_why_and_which_roles(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    talk = [SYSTEM, *dialogue("a", "b")]
    assert "Be brief." in render(tokenizer, talk)
    tokenizer.chat_template = INST_TEMPLATE
    message = r"it said: Only user and assistant roles! \(roles: system, user, assista"
    with pytest.raises(ValueError, match=message):
        conversation_ids(tokenizer, talk)


def test_conversations_are_tokens_of_the_rendered_text_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = CONVERSATIONS["system turn"]
    text = render(tokenizer, messages)
    assert tokenizer.decode(conversation_ids(tokenizer, messages)) == text
    asked = render(tokenizer, messages[:2], generation_prompt=True)
    assert asked.endswith("<|im_start|>assistant\n")
    assert text.startswith(asked)


@pytest.mark.parametrize("start", [1, 2, 5, 50])
def test_real_tokens_are_counted_on_either_side(start: int) -> None:
    for _ in range(20):
        width = random.randint(1, 12)
        lengths = [random.randint(1, width) for _ in range(4)]
        sides = [random.choice(("left", "right")) for _ in lengths]
        rows = [
            [1] * n + [0] * (width - n)
            if side == "right"
            else [0] * (width - n) + [1] * n
            for n, side in zip(lengths, sides, strict=True)
        ]
        wanted = []
        for row in rows:
            seen, marks = 0, []
            for real in row:
                seen += real
                marks.append(bool(real) and seen >= start)
            wanted.append(marks)
        marked = real_tokens_from(torch.tensor(rows), start)
        assert marked.tolist() == wanted
        assert marked.sum(1).tolist() == [max(n - start + 1, 0) for n in lengths]


def test_a_cut_turn_ends_where_the_next_document_begins(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Packed rows: without the borders, a user's words would count as Assistant's."""
    markers = TurnMarkers.of(tokenizer)
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "ok"},
    ]
    whole = conversation_ids(tokenizer, turns)
    close = len(markers.closing) + 1  # and a line's end after it
    cut = whole[:-close]
    row = torch.tensor([cut + whole])
    starts = torch.zeros_like(row, dtype=torch.bool)
    starts[0, [0, len(cut)]] = True
    alone = [
        int(markers.assistant_tokens(torch.tensor([ids])).sum()) for ids in (cut, whole)
    ]
    assert int(markers.assistant_tokens(row, starts).sum()) == sum(alone)
    assert int(markers.assistant_tokens(row).sum()) > sum(alone)  # control
