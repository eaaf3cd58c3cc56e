"""Which tokens are read: real ones, Assistant turns, decision tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]

# Two probes whose words no template can contain; they differ in nothing else.
_USER, _ASSISTANT = "quizzical zebra", "vexed walrus"


def real_tokens_from(
    attention_mask: Int[Tensor, "batch pos"], start: int
) -> Bool[Tensor, "batch pos"]:
    """Mark the real tokens from the `start`-th on (counted from 1).

    Padding is not counted, on whichever side it stands.
    """
    return (attention_mask.cumsum(1) >= start) & attention_mask.bool()


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
        prompt = opened[len(plain) :] if opened.startswith(plain) else ""
        prompt = prompt or whole[whole.find(_USER) + len(_USER) : start]
        after = whole[end : whole.find(_USER, end)]
        ids = _ids(tokenizer, whole)
        if start >= 0 and whole[:start].startswith(opened):
            for opening in _ways(tokenizer, prompt):
                for closing in _endings(tokenizer, after):
                    markers = cls(opening=opening, closing=closing)
                    inside = markers.assistant_tokens(torch.tensor([ids]))[0]
                    found = torch.tensor(ids)[inside].tolist()
                    if str(tokenizer.decode(found)).strip() == _ASSISTANT:
                        return markers
        raise ValueError(
            "the chat template must write the generation prompt just before Assistant "
            "text, and something after it, so that decision tokens can be found; this "
            "one does not. Set `tokenizer.chat_template` to one that does"
        )

    def decision_tokens(
        self, input_ids: Int[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"]:
        """Mark the last token of each Assistant turn's generation prompt."""
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        matches = _matches(input_ids, self.opening)
        found[:, found.shape[1] - matches.shape[1] :] = matches
        return found

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
        matches = _matches(input_ids, self.closing)
        closes = torch.zeros_like(decision)
        closes[:, : matches.shape[1]] = matches
        closes = closes if starts is None else closes | starts
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        before = torch.full_like(input_ids, -1)
        opened_at = torch.where(decision, position, before).cummax(1).values
        closed_at = torch.where(closes, position, before).cummax(1).values
        return (opened_at >= 0) & (opened_at > closed_at) & ~decision

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
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # jinja2 raises whatever the template author chose
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ValueError(
            f"the chat template must accept the conversation, it said: {error} "
            f"(roles: {roles}). Give turns in an order that it allows"
        ) from error
    return str(text)


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
