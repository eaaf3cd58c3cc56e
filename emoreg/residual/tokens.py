"""Which tokens are read: real ones, Assistant turns, decision tokens, thoughts."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]
"""`role` and `content`, which is text."""

# Two probes whose words no template can contain; they differ in nothing else.
_USER, _ASSISTANT = "quizzical zebra", "vexed walrus"

_THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
)
"""How families of reasoning models open and close a thought."""

logger = logging.getLogger(__name__)


def real_tokens_from(
    attention_mask: Int[Tensor, "batch pos"], start: int
) -> Bool[Tensor, "batch pos"]:
    """Mark the real tokens from the `start`-th on (counted from 1).

    Padding is not counted, on whichever side it stands.
    """
    return (attention_mask.cumsum(1) >= start) & attention_mask.bool()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Thoughts:
    """Which of the Assistant's tokens are thinking, and which are what it then says.

    The markers themselves are neither.
    """

    think: Bool[Tensor, "batch pos"]
    answer: Bool[Tensor, "batch pos"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnMarkers:
    """The token ids with which a chat template opens and closes an Assistant turn.

    Found by rendering a probe conversation and taking prefix differences, so that
    any template works that writes turns one after the other. Both are tried on the
    probe's own tokens, since a tokenizer may join a marker's last blank with the word
    that follows.
    """

    opening: tuple[int, ...]
    """The generation prompt, or what follows user text where there is none."""
    closing: tuple[int, ...]
    """What follows Assistant text, up to the first special token if there is one."""
    thinking: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """What opens and what closes a thought; None where the tokenizer has neither."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "TurnMarkers":
        """Return the markers of a tokenizer's chat template.

        Raises:
            ValueError: If there is no chat template, or turns can't be told apart.
        """
        asked = [_user(_USER)]
        opened = render(tokenizer, asked, generation_prompt=True)
        plain = render(tokenizer, asked)
        whole = render(tokenizer, [*asked, _assistant(_ASSISTANT), *asked])
        start, end = whole.find(_ASSISTANT), whole.find(_ASSISTANT) + len(_ASSISTANT)
        after = whole[end : whole.find(_USER, end)]
        thought = _thought_markers(tokenizer)
        thinking = thought and (
            _ids(tokenizer, thought[0]),
            _ids(tokenizer, thought[1]),
        )
        for before in _before_speech(opened, plain, thought):
            prompt = before[len(plain) :] if before.startswith(plain) else ""
            prompt = prompt or whole[whole.find(_USER) + len(_USER) : start]
            if start < 0 or not whole[:start].startswith(before):
                continue
            for opening in _ways(tokenizer, prompt):
                for closing in _endings(tokenizer, after):
                    found = cls(opening=opening, closing=closing, thinking=thinking)
                    if found._single_out_the_probe(tokenizer, whole):
                        return found
        raise ValueError(
            "the chat template must write the generation prompt just before Assistant "
            "text, and something after it, so that decision tokens can be found; this "
            "one does not. Set `tokenizer.chat_template` to one that does"
        )

    def _single_out_the_probe(
        self, tokenizer: PreTrainedTokenizerBase, whole: str
    ) -> bool:
        """Say whether what the Assistant says in the probe is what it was given."""
        row = torch.tensor([_ids(tokenizer, whole)])
        said = self.assistant_tokens(row)
        thoughts = self.thoughts(row, said)
        if thoughts is not None:  # a template may write an empty thought before it
            said = thoughts.think | thoughts.answer
        return str(tokenizer.decode(row[said].tolist())).strip() == _ASSISTANT

    def decision_tokens(
        self, input_ids: Int[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"]:
        """Mark the last token of each Assistant turn's generation prompt."""
        return _at_end(_matches(input_ids, self.opening), input_ids.shape[1])

    def assistant_tokens(
        self,
        input_ids: Int[Tensor, "batch pos"],
        starts: Bool[Tensor, "batch pos"] | None = None,
    ) -> Bool[Tensor, "batch pos"]:
        """Mark the tokens of Assistant turns, without the prompt and the close.

        `starts` marks where documents begin in a row that holds several: a turn that
        was cut off ends there.
        """
        decision = self.decision_tokens(input_ids)
        closes = _at_start(_matches(input_ids, self.closing), input_ids.shape[1])
        closes = closes if starts is None else closes | starts
        opened_at, closed_at = _latest(decision), _latest(closes)
        return (opened_at >= 0) & (opened_at > closed_at) & ~decision

    def turn_of(
        self, input_ids: Int[Tensor, "batch pos"], spoken: Bool[Tensor, "batch pos"]
    ) -> Int[Tensor, "batch pos"]:
        """Return which Assistant turn each token is of, from 1; 0 for none.

        Args:
            input_ids: The tokens that the model reads.
            spoken: Those of Assistant turns, as `assistant_tokens` marks them.
        """
        return self.decision_tokens(input_ids).long().cumsum(1) * spoken

    def thoughts(
        self, input_ids: Int[Tensor, "batch pos"], spoken: Bool[Tensor, "batch pos"]
    ) -> Thoughts | None:
        """Split Assistant tokens into thinking and answer; None without such markers.

        A thought lasts from its opening marker, which may stand in the generation
        prompt, to its closing one or, where there is none, to the end of the turn. A
        turn that closes a thought which nothing opened began with it.

        Args:
            input_ids: The tokens that the model reads.
            spoken: Those of Assistant turns, as `assistant_tokens` marks them.
        """
        if self.thinking is None:
            return None
        opens, closes = (_matches(input_ids, marker) for marker in self.thinking)
        size = input_ids.shape[1]
        opened_at = _latest(_at_end(opens, size))
        closed_at = _latest(_at_end(closes, size))
        before_turn = _latest(self.decision_tokens(input_ids)) - len(self.opening)
        within = (opened_at > before_turn) & (opened_at > closed_at)
        unmarked = torch.maximum(opened_at, closed_at) <= before_turn
        ahead = torch.minimum(_next(_at_start(opens, size)), _next(~spoken))
        unopened = unmarked & (_next(_at_start(closes, size)) < ahead)
        marks = _covered(opens, size) | _covered(closes, size)
        think = spoken & (within | unopened)
        return Thoughts(think=think & ~marks, answer=spoken & ~think & ~marks)

    def decision_positions(
        self, input_ids: Int[Tensor, "batch pos"], turns: int
    ) -> tuple[Int[Tensor, "batch turn"], Bool[Tensor, "batch turn"]]:
        """Return where the first `turns` decision tokens of each row are.

        The second tensor says which of them exist. Nothing here depends on data on
        the host, so no device synchronization happens.
        """
        decision = self.decision_tokens(input_ids)
        rank = decision.long().cumsum(1)
        wanted = torch.arange(1, turns + 1, device=input_ids.device)
        hit = decision.unsqueeze(1) & (rank.unsqueeze(1) == wanted[None, :, None])
        return hit.long().argmax(-1), hit.any(-1)


def tokenizer_of(processing: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a processor of images and text, with its chat template.

    A tokenizer is returned as it is.
    """
    found = getattr(processing, "tokenizer", None)
    if found is None:
        return processing
    template = getattr(processing, "chat_template", None)
    if template and template != getattr(found, "chat_template", None):
        found = copy.copy(found)  # the processor's own stays as it is
        found.chat_template = template
    return found


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    generation_prompt: bool = False,
) -> str:
    """Return a conversation as the chat template writes it.

    Raises:
        ValueError: If there is no template, or it refuses these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer must have a chat template to read conversations; "
            f"{type(tokenizer).__name__} has none. Set `tokenizer.chat_template`"
        )
    settings: dict[str, Any] = {
        "tokenize": False,
        "add_generation_prompt": generation_prompt,
    }
    try:
        text = tokenizer.apply_chat_template(list(messages), **settings)
        if not _says(text, messages):
            # Templates of models that see images often take lists of parts alone.
            text = tokenizer.apply_chat_template(_in_parts(messages), **settings)
    except Exception as error:  # jinja2 raises whatever the template author chose
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ValueError(
            f"the chat template must accept the conversation, it said: {error} "
            f"(roles: {roles}). Give turns in an order that it allows"
        ) from error
    return str(text)


def _says(text: Any, messages: Messages) -> bool:
    """Return whether anything of what there is to say is in the text."""
    said = [str(message.get("content") or "").strip() for message in messages]
    return not any(said) or any(part in str(text) for part in said if part)


def _in_parts(messages: Messages) -> list[dict[str, Any]]:
    return [
        {**m, "content": [{"type": "text", "text": m.get("content") or ""}]}
        for m in messages
    ]


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages
) -> list[int]:
    """Return the token ids of a conversation as a trainer would see them."""
    return list(_ids(tokenizer, render(tokenizer, messages)))


def _ways(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, ...]]:
    """Return the ways in which a marker may stand among other tokens."""
    ways = [_ids(tokenizer, part) for part in (text, text.rstrip(), text.strip())]
    return [ids for ids in ways if ids]


def _endings(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, ...]]:
    """Return the ways to end a turn: up to the first special token, if there is one.

    What follows that token may differ between the last turn and the others.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    endings = []
    for ids in _ways(tokenizer, text):
        at = [i for i, token in enumerate(ids) if token in special]
        endings += [ids[: at[0] + 1], ids[at[0] : at[0] + 1]] if at else [ids]
    return endings


def _thought_markers(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return what opens and closes a thought, if the tokenizer or template knows it.

    A marker that is joined with its neighbors into other tokens can't be found again.
    """
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    template = str(tokenizer.chat_template)
    for pair in _THOUGHTS:
        if known.issuperset(pair):
            return pair
        if all(marker in template for marker in pair):
            if all(_keeps_whole(tokenizer, marker) for marker in pair):
                return pair
            _say_joined(*pair)
    return None


def _keeps_whole(tokenizer: PreTrainedTokenizerBase, marker: str) -> bool:
    """Say whether a marker's tokens are the same among others as alone."""
    ids = _ids(tokenizer, marker)
    rows = [
        torch.tensor([_ids(tokenizer, f"{_USER}{gap}{marker}{gap}{_USER}")])
        for gap in ("", "\n", "\n\n", " ")
    ]
    found = all(bool(_matches(row, ids).any()) for row in rows)
    return found and str(tokenizer.decode(list(ids))).strip() == marker


@lru_cache
def _say_joined(opening: str, closing: str) -> None:
    logger.warning(
        "The chat template knows %s and %s, which the tokenizer joins with their "
        "neighbors, so that thinking and answer are not told apart. Add them to the "
        "tokenizer as tokens to have readings of both",
        *(opening, closing),
    )


def _before_speech(
    opened: str, plain: str, thought: tuple[str, str] | None
) -> list[str]:
    """Return a prompt as it is rendered, and as it is without the thought it opens.

    Templates that open one for the model write none, or a whole one, in turns that
    are over, so that a turn's beginning is what stands before it.
    """
    at = opened.rfind(thought[0], len(plain)) if thought else -1
    return [opened] if at < 0 else [opened, opened[:at]]


def _latest(marks: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Return where the last mark up to each position is, -1 before the first."""
    position = torch.arange(marks.shape[1], device=marks.device)
    return torch.where(marks, position, -1).cummax(1).values


def _next(marks: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Return where the first mark from each position on is, past the end if none."""
    position = torch.arange(marks.shape[1], device=marks.device)
    where = torch.where(marks, position, marks.shape[1])
    return where.flip(1).cummin(1).values.flip(1)


def _at_start(
    matches: Bool[Tensor, "batch start"], size: int
) -> Bool[Tensor, "batch pos"]:
    """Mark the first token of each match."""
    return nn.functional.pad(matches, (0, size - matches.shape[1]))


def _at_end(
    matches: Bool[Tensor, "batch start"], size: int
) -> Bool[Tensor, "batch pos"]:
    """Mark the last token of each match."""
    return nn.functional.pad(matches, (size - matches.shape[1], 0))


def _covered(
    matches: Bool[Tensor, "batch start"], size: int
) -> Bool[Tensor, "batch pos"]:
    """Mark every token of each match."""
    first, last = _at_start(matches, size), _at_end(matches, size)
    return (first.long().cumsum(1) - last.long().cumsum(1)).bool() | last


def _matches(
    input_ids: Int[Tensor, "batch pos"], pattern: Sequence[int]
) -> Bool[Tensor, "batch start"]:
    """Say for each start whether `pattern` stands there."""
    if input_ids.shape[1] < len(pattern):
        return torch.zeros_like(input_ids[:, :0], dtype=torch.bool)
    wanted = _on_device(tuple(pattern), input_ids.device)
    return (input_ids.unfold(1, len(pattern), 1) == wanted).all(-1)


@lru_cache(maxsize=64)
def _on_device(pattern: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a pattern as a tensor; copying it at every step would wait for the GPU."""
    return torch.tensor(pattern, device=device)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
