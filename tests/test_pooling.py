"""Means over spans of tokens: against a plain forward pass, one text at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from emoreg.residual.pooling import Passage, embedding_means, span_means

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


@pytest.mark.parametrize("span", [(0, 4), (2, 2), (-1, 1)])
def test_a_span_without_a_token_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="0 <= start < end <= 3"):
        Passage(ids=(1, 2, 3), spans=(span,))
