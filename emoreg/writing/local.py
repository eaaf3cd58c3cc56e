"""Writing with a transformers model in this process."""

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from emoreg.residual.layers import max_positions, model_name
from emoreg.residual.tokens import render
from emoreg.writing.writer import Prompt, check_sampling

TOP_P = 0.95
"""Tokens are drawn from the likeliest ones that hold this share of the probability."""


@final
class LocalWriter:
    """Samples from a model that is loaded already, several prompts at a time.

    Every prompt draws with its own seed, so what it becomes depends on which others
    share its batch through rounding alone. A run that goes on makes the batches of an
    uncut run again, where one of them is not complete: with the same `batch`, on the
    same machine, it writes the same.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch: int = 8,
        temperature: float = 0.9,
    ) -> None:
        """Write with `model`, as it is: call `model.eval()` before if it was trained.

        Raises:
            ValueError: If there is no chat template, the temperature is not above 0 or
                `batch` below 1.
        """
        check_sampling(temperature, batch)
        render(tokenizer, [{"role": "user", "content": "."}])
        self._model: Any = model
        self._tokenizer, self._batch = tokenizer, batch
        self._temperature = temperature

    def settings(self) -> dict[str, Any]:
        """Return the model's name and how it samples."""
        return {"model": model_name(self._model), "temperature": self._temperature}

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield each prompt's place with what was sampled, batch by batch.

        Raises:
            ValueError: If a batch does not fit into the device's memory, or a prompt
                with its answer not into what the model reads.
        """
        rows = [self._ids(prompt) for prompt in prompts]
        for places in alike([len(row) for row in rows], self._batch):
            batch = [prompts[place] for place in places]
            if all(prompt.answered for prompt in batch):
                continue
            try:
                texts = self._sample(batch, [rows[place] for place in places])
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"{len(batch)} texts at a time must fit into the device's memory, "
                    "which they do not. What was written is kept: give the same "
                    "command again with a smaller `--concurrency`"
                ) from error
            for place, text in zip(places, texts, strict=True):
                if not prompts[place].answered:
                    yield place, text

    def _ids(self, prompt: Prompt) -> list[int]:
        asked = _asked(self._tokenizer, prompt)
        ids: Any = self._tokenizer(asked, add_special_tokens=False)["input_ids"]
        return ids

    @torch.no_grad()
    def _sample(
        self, prompts: Sequence[Prompt], rows: Sequence[list[int]]
    ) -> list[str]:
        tokenizer = self._tokenizer
        padding = tokenizer.pad_token_id
        padding = tokenizer.eos_token_id if padding is None else padding
        padding = 0 if padding is None else padding
        longest = max(len(row) for row in rows)
        tokens = max(prompt.tokens for prompt in prompts)
        self._check_length(longest, tokens)
        device = next(self._model.parameters()).device
        ids = [[padding] * (longest - len(row)) + row for row in rows]
        real = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        out = self._model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(real, device=device),
            logits_processor=LogitsProcessorList(
                [_OwnDraws([prompt.seed for prompt in prompts], self._temperature)]
            ),
            do_sample=False,  # the draw is made already; the likeliest is what it took
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=tokens,
            pad_token_id=padding,
        )
        return [
            str(tokenizer.decode(row[: prompt.tokens], skip_special_tokens=True))
            for row, prompt in zip(out[:, longest:], prompts, strict=True)
        ]

    def _check_length(self, longest: int, tokens: int) -> None:
        most = max_positions(self._model)
        if most and longest + tokens > most:
            raise ValueError(
                f"a prompt and its answer must fit into the {most} tokens that the "
                f"model reads, found {longest} and up to {tokens}. Ask for shorter "
                "answers or fewer turns, or take another model"
            )


def alike(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the places of each batch: `most` texts, none twice as long as another.

    One long prompt among short ones would have all of them padded to its length.

    Example:
        >>> list(alike([9, 200, 10, 12, 11], most=3))
        [[0, 2, 4], [3], [1]]
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (
            len(batch) == most or lengths[place] >= 2 * max(1, lengths[batch[0]])
        ):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@final
class _OwnDraws(LogitsProcessor):
    """Draws each row's token with a generator of its own and leaves that token alone.

    The draw is one number in [0, 1), looked up among the likeliest tokens that hold
    `TOP_P` of the probability, in the order of their likelihood.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        """Begin each row's draws at its seed."""
        # On the CPU, so that the draws are the same on every device.
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(
        self,
        input_ids: Int[Tensor, "batch pos"],  # noqa: ARG002 (generate passes it)
        scores: Float[Tensor, "batch vocab"],
    ) -> Float[Tensor, "batch vocab"]:
        """Return scores in which every row's token has 0 and the others minus infinity.

        Raises:
            FloatingPointError: If a row has no finite score to draw by.
        """
        likely = (scores.float() / self._temperature).softmax(-1)
        if not bool(likely.isfinite().all()):
            raise FloatingPointError(
                "the model's scores must be finite to draw by, found some that are "
                "not. Load it with another dtype"
            )
        values, order = likely.sort(dim=-1, descending=True, stable=True)
        before = values.cumsum(-1) - values
        kept = values * (before < TOP_P)
        share = kept.cumsum(-1)
        draws = torch.stack([torch.rand(1, generator=g) for g in self._draws])
        aim = draws.to(share.device) * share[:, -1:]
        place = torch.searchsorted(share, aim, right=True)
        # Rounding may put the aim on the very end of what is kept.
        last = (kept > 0).sum(-1, keepdim=True) - 1
        drawn = order.gather(-1, torch.minimum(place, last))
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def _asked(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """Return a prompt as the template writes it, without thinking if it can.

    A text that must be short has no room for a thought, and no use for one.
    """
    messages = [dict(message) for message in prompt.messages]
    if "enable_thinking" not in str(tokenizer.chat_template):
        return render(tokenizer, messages, generation_prompt=True)
    return str(
        tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    )
