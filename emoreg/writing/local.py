"""Writing with a transformers model in this process."""

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import model_name
from emoreg.residual.tokens import render
from emoreg.writing.writer import Prompt


@final
class LocalWriter:
    """Samples from a model that is loaded already, several prompts at a time.

    A batch is seeded by its first prompt. Which prompts share a batch, and so what is
    sampled, depends on what is left to write: a run that goes on keeps what it has, and
    may write the rest otherwise than an uncut run would have.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch: int = 8,
        temperature: float = 0.9,
    ) -> None:
        """Write with `model`.

        Raises:
            ValueError: If there is no chat template.
        """
        render(tokenizer, [{"role": "user", "content": "."}])
        self._model: Any = model
        self._tokenizer, self._batch = tokenizer, batch
        self._temperature = temperature

    def settings(self) -> dict[str, Any]:
        """Return the model's name and how it samples."""
        return {"model": model_name(self._model), "temperature": self._temperature}

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield each prompt's place with what was sampled, batch by batch."""
        for start in range(0, len(prompts), self._batch):
            texts = self._sample(prompts[start : start + self._batch])
            yield from enumerate(texts, start=start)

    def _sample(self, prompts: Sequence[Prompt]) -> list[str]:
        tokenizer, before = self._tokenizer, self._tokenizer.padding_side
        texts = [
            render(tokenizer, [dict(m) for m in p.messages], generation_prompt=True)
            for p in prompts
        ]
        padding = tokenizer.pad_token_id
        try:
            tokenizer.padding_side = "left"
            if padding is None:
                tokenizer.pad_token = tokenizer.eos_token
            inputs = tokenizer(
                texts, return_tensors="pt", padding=True, add_special_tokens=False
            )
        finally:
            tokenizer.padding_side = before
        inputs = inputs.to(next(self._model.parameters()).device)
        inputs.pop("token_type_ids", None)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(prompts[0].seed)
            out = self._model.generate(
                **inputs,
                do_sample=True,
                temperature=self._temperature,
                top_p=0.95,
                top_k=None,
                max_new_tokens=max(prompt.tokens for prompt in prompts),
                pad_token_id=tokenizer.pad_token_id,
            )
        said = out[:, inputs["input_ids"].shape[1] :]
        return [str(t) for t in tokenizer.batch_decode(said, skip_special_tokens=True)]
