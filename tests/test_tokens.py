"""Decision tokens and Assistant spans, against searching the text by hand."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from conftest import CHAT_TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from emoreg.residual.tokens import (
    Thoughts,
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


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


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


# -- thoughts --------------------------------------------------------------------------

# A thought is opened for the model, and kept in the last turn alone: as in QwQ.
PROMPTED_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'user' or loop.last %}{{ message['content'] }}"
    "{% else %}{{ message['content'].split('</think>')[-1] }}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Every turn begins within a thought, as does the generation prompt.
INSIDE_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}<think>\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Every turn is given an empty thought, the generation prompt is not: as in GLM.
EMPTY_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}<think></think>\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Template, whether its markers are tokens, and the opening, written out by hand.
THINKERS = {
    "tokens": (CHAT_TEMPLATE, True, "<|im_start|>assistant\n"),
    "letters": (THINK_TEMPLATE, False, "<|im_start|>assistant\n"),
    "prompted": (PROMPTED_TEMPLATE, True, "<|im_start|>assistant\n"),
    "inside": (INSIDE_TEMPLATE, True, "<|im_start|>assistant\n<think>\n"),
    "empty": (EMPTY_TEMPLATE, True, "<|im_start|>assistant\n"),
}
REPLIES = (
    "plain é",
    "<think>why 🙂</think>so",
    "<think>never closed",
    "not opened</think>so",
    "<think>one</think>two<think>three</think>four",
    "<think></think>",
    "a</think>b</think>c",
    "",
)
QUESTIONS = ("hi", "what does <think> mean?", "</think>", "and <think>this</think>?")


def thinker(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> tuple[TurnMarkers, tuple[str, ...]]:
    """Markers of a template, with what is one token to its tokenizer."""
    template, tokens, _ = THINKERS[name]
    tokenizer.chat_template = template
    if tokens:
        tokenizer.add_tokens(["<think>", "</think>"])
    single = ("<|im_start|>", "<|im_end|>", *(("<think>", "</think>") * tokens))
    return TurnMarkers.of(tokenizer), single


def letters(text: str, single: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Walk through a text: each marker or letter with how many tokens it makes."""
    at = 0
    while at < len(text):
        marks = (*single, "<think>", "</think>")
        found = next((m for m in marks if text.startswith(m, at)), text[at])
        yield found, 1 if found in single else len(found.encode())
        at += len(found)


def by_hand(text: str, opening: str, single: tuple[str, ...]) -> tuple[set, set]:
    """Positions of thinking and of answering, by walking through the text."""
    think: set[int] = set()
    answer: set[int] = set()
    at = text.find(opening)
    while at >= 0:
        start = at + len(opening)
        end = text.find("<|im_end|>", start)
        said = text[start : len(text) if end < 0 else end]
        place = sum(n for _, n in letters(text[:start], single))
        marks = [m for m, _ in letters(said, single) if "think>" in m]
        thinking = "<think>" in opening or marks[:1] == ["</think>"]
        for letter, tokens in letters(said, single):
            if letter in ("<think>", "</think>"):
                thinking = letter == "<think>"
            else:
                (think if thinking else answer).update(range(place, place + tokens))
            place += tokens
        at = text.find(opening, start)
    return think, answer


def texts_of(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Dialogues of one to three turns, rollouts, and some that were cut."""
    found = []
    for number, reply in enumerate(REPLIES):
        turns = [t for k in range(1 + number % 3) for t in (
            QUESTIONS[(number + k) % 4], REPLIES[(number + 3 * k) % len(REPLIES)]
        )]  # fmt: skip
        talk = dialogue(*turns, QUESTIONS[number % 4], reply)
        found.append(render(tokenizer, talk))
        asked = render(tokenizer, talk[:-1], generation_prompt=True)
        found.append(f"{asked}{reply}<|im_end|>\n")
        found.append(found[-1][: -3 - 4 * (number % 4)])
    return found


def marked(thoughts: Thoughts | None, row: int = 0) -> tuple[set[int], set[int]]:
    assert thoughts is not None
    both = (thoughts.think[row], thoughts.answer[row])
    think, answer = (set(positions(mask)) for mask in both)
    return think, answer


def shifted(found: tuple[set[int], set[int]], by: int) -> tuple[set[int], set[int]]:
    think, answer = ({i + by for i in part} for part in found)
    return think, answer


@pytest.mark.parametrize("name", THINKERS)
def test_thoughts_equal_a_walk_through_the_text(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    markers, single = thinker(tokenizer, name)
    opening = THINKERS[name][2]
    assert tokenizer.decode(list(markers.opening)) == opening
    texts = texts_of(tokenizer)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    wanted = [by_hand(text, opening, single) for text in texts]
    assert any(think for think, _ in wanted)
    assert any(answer for _, answer in wanted)
    swapped, same = replace(markers, thinking=markers.thinking[::-1]), 0  # type: ignore
    for ids, expected in zip(rows, wanted, strict=True):
        row = as_row(ids)
        spoken = markers.assistant_tokens(row)
        found = markers.thoughts(row, spoken)
        assert marked(found) == expected
        rest = set(positions(spoken[0])) - expected[0] - expected[1]
        between = str(tokenizer.decode([ids[i] for i in sorted(rest)]))
        assert between.replace("</think>", "").replace("<think>", "") == ""
        same += marked(swapped.thoughts(row, spoken)) == expected
    assert same < len(rows) / 2  # control: the walk does tell opening from closing
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        found = markers.thoughts(ids, markers.assistant_tokens(ids) & real)
        for k, row in enumerate(rows):
            by = ids.shape[1] - len(row) if side == "left" else 0
            assert marked(found, k) == shifted(wanted[k], by)
    starts = torch.tensor([[i == 0 for row in rows for i in range(len(row))]])
    packed = as_row([token for row in rows for token in row])
    spoken = markers.assistant_tokens(packed, starts)
    think, answer, at = set(), set(), 0
    for row, expected in zip(rows, wanted, strict=True):
        moved = shifted(expected, at)
        think, answer, at = think | moved[0], answer | moved[1], at + len(row)
    assert marked(markers.thoughts(packed, spoken)) == (think, answer)


def test_a_tokenizer_without_think_markers_splits_nothing(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    markers = TurnMarkers.of(tokenizer)
    row = as_row(conversation_ids(tokenizer, dialogue("a", "<think>b</think>c")))
    assert markers.thinking is None
    assert markers.thoughts(row, markers.assistant_tokens(row)) is None
    tokenizer.add_tokens(["[THINK]", "[/THINK]"])  # control
    other = TurnMarkers.of(tokenizer)
    assert [len(ids) for ids in other.thinking or ()] == [1, 1]
    assert (other.opening, other.closing) == (markers.opening, markers.closing)


def test_markers_that_are_joined_with_their_neighbors_are_said_to_be(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*alphabet, ">Ċ"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[(">", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore[attr-defined]
        add_prefix_space=False, use_regex=False
    )
    core.decoder = decoders.ByteLevel()  # type: ignore[attr-defined]
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    joining = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    for made, splits in ((tokenizer, True), (joining, False), (joining, False)):
        made.chat_template = THINK_TEMPLATE
        markers = TurnMarkers.of(made)
        assert (markers.thinking is not None) == splits
        assert made.decode(list(markers.opening)) == "<|im_start|>assistant\n"
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 1  # once, however often it is asked
    assert "joins with their neighbors" in told[0]
