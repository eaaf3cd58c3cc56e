"""Means over spans of tokens: against a plain forward pass, one text at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from emoreg.residual.layers import decoder_layers
from emoreg.residual.pooling import Passage, embedding_means, span_means
from emoreg.residual.spans import message_spans, word_spans
from emoreg.residual.tokens import render

PASSAGES = (
    Passage(ids=(3, 5, 7, 9, 11), spans=((4, 5), (0, 2))),
    Passage(ids=(2, 4), spans=()),
    Passage(ids=(8, 6, 4, 2, 1, 12, 13), spans=((0, 7),)),
    Passage(ids=(9,), spans=((0, 1),)),
)
LAYERS = (0, 2)


def plainly(model: Any, passage: Passage, layer: int) -> list[Tensor]:
    """The span means of one text by itself, from the model's own hidden states."""
    with torch.no_grad():
        out = model(torch.tensor([passage.ids]), output_hidden_states=True)
    states = out.hidden_states[layer + 1][0]
    return [states[start:end].mean(0) for start, end in passage.spans]


@pytest.mark.parametrize("budget", [4, 2048])
def test_each_span_has_its_mean_in_order(model: Callable[[], Any], budget: int) -> None:
    subject = model().eval()
    found = span_means(subject, PASSAGES, LAYERS, budget=budget, quiet=True)
    for column, layer in enumerate(LAYERS):
        wanted = [x for p in PASSAGES for x in plainly(subject, p, layer)]
        torch.testing.assert_close(found[:, column], torch.stack(wanted))
    assert not torch.allclose(found[0], found[1])  # control: the span decides


def test_means_are_exact_under_a_callers_autocast(model: Callable[[], Any]) -> None:
    subject, stored = model().eval(), []
    hook = decoder_layers(subject)[2].register_forward_hook(
        lambda _module, _args, output: stored.append(output)
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = span_means(subject, PASSAGES[2:3], [2], quiet=True)
    hook.remove()
    torch.testing.assert_close(found[0, 0], stored[0][0].mean(0))


def test_embeddings_are_the_words_alone(model: Callable[[], Any]) -> None:
    subject = model().eval()
    table = subject.get_input_embeddings().weight.detach()
    found = embedding_means(subject, PASSAGES)
    wanted = [
        table[torch.tensor(p.ids[start:end])].mean(0)
        for p in PASSAGES
        for start, end in p.spans
    ]
    torch.testing.assert_close(found, torch.stack(wanted))


SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>"
    "{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
)


def test_a_message_is_found_where_it_stands_and_not_in_the_template(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = SYSTEM
    said = [("user", " You"), ("assistant", "user"), ("user", "quiet")]
    messages = [{"role": role, "content": words} for role, words in said]
    ids, spans = message_spans(tokenizer, messages)
    for (role, words), (start, end) in zip(said, spans, strict=True):
        assert tokenizer.decode(list(ids[start:end])) == words.strip()
        before = str(tokenizer.decode(list(ids[:start])))
        assert before.endswith(f"<|im_start|>{role}\n")
    # Control: by the words alone the first is in the system prompt.
    text = render(tokenizer, messages)
    assert word_spans(tokenizer, text, ["You"])[1][0] < spans[0]
    tokenizer.chat_template = SYSTEM.replace("| trim", "| upper")
    with pytest.raises(ValueError, match="must keep what a message says"):
        message_spans(tokenizer, messages)


@pytest.mark.parametrize("span", [(0, 4), (2, 2), (-1, 1)])
def test_a_span_without_a_token_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="0 <= start < end <= 3"):
        Passage(ids=(1, 2, 3), spans=(span,))
