"""Which tokens are read: real ones, Assistant turns, decision tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    any template works that writes turns one after the other.
    """

    opening: tuple[int, ...]
    """The generation prompt, or what follows user text where there is none."""
    closing: tuple[int, ...]
    """What follows Assistant text; its first token ends the turn."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "TurnMarkers":
        """Return the markers of a tokenizer's chat template.

        Raises:
            ValueError: If there is no chat template, or turns can't be told apart.
        """
        opened = render(tokenizer, [_user(_USER)], generation_prompt=True)
        plain = render(tokenizer, [_user(_USER)], generation_prompt=False)
        whole = render(tokenizer, [_user(_USER), _assistant(_ASSISTANT)])
        start, end = whole.find(_ASSISTANT), whole.find(_ASSISTANT) + len(_ASSISTANT)
        if start < 0 or not whole.startswith(opened[:start]) or len(opened) > start:
            raise ValueError(
                "the chat template must write the generation prompt just before "
                "Assistant text, so that decision tokens can be found; this one does "
                "not. Set `tokenizer.chat_template` to one that does"
            )
        prompt = whole[len(plain) : start] if opened != plain else ""
        prompt = prompt or whole[whole.find(_USER) + len(_USER) : start]
        return cls(
            opening=_ids(tokenizer, prompt), closing=_ids(tokenizer, whole[end:])
        )

    def decision_tokens(
        self, input_ids: Int[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"]:
        """Mark the last token of each Assistant turn's generation prompt."""
        length = len(self.opening)
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        if input_ids.shape[1] < length:
            return found
        wanted = torch.tensor(self.opening, device=input_ids.device)
        windows = input_ids.unfold(1, length, 1)
        found[:, length - 1 :] = (windows == wanted).all(-1)
        return found

    def assistant_tokens(
        self, input_ids: Int[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"]:
        """Mark the tokens of Assistant turns, without the prompt and the close."""
        decision = self.decision_tokens(input_ids)
        if not self.closing:
            return (decision.long().cumsum(1) > 0) & ~decision
        closes = input_ids == self.closing[0]
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


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
