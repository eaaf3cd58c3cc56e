"""Guard rails against plain formulas, on tiny models."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import seam_cases as cases
import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.comparison.guards import (
    GuardText,
    guard_rails,
    reference_kl,
    story_accuracy,
)
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.pooled import pool_stories

# Lengths and starts differ, so that a mean over tokens is no mean over texts.
TEXTS = [
    GuardText(ids=tuple(range(5, 25)), start=0),
    GuardText(ids=tuple(range(40, 47)), start=3),
]


@pytest.fixture
def base(tiny_model: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return cases.lively(tiny_model("llama")).eval()


def adapted(base: PreTrainedModel, *, trained: bool) -> Any:
    tuned: Any = get_peft_model(copy.deepcopy(base), cases.adapter()).eval()
    if trained:
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return tuned


def plain_kl(model: Any, base: Any) -> list[torch.Tensor]:
    """Torch's own KL per predicted token, a tensor a text."""
    found = []
    for text in TEXTS:
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            logs = [
                m(ids).logits[0, text.start : -1].log_softmax(-1) for m in (model, base)
            ]
        found.append(F.kl_div(*logs, reduction="none", log_target=True).sum(-1))
    return found


def test_a_fresh_adapter_has_no_kl_and_a_trained_one_has(base: PreTrainedModel) -> None:
    fresh = reference_kl(adapted(base, trained=False), TEXTS, quiet=True)
    assert fresh["value"] == 0.0
    assert reference_kl(adapted(base, trained=True), TEXTS, quiet=True)["value"] > 1e-3


def test_kl_is_the_plain_one_over_all_tokens(base: PreTrainedModel) -> None:
    tuned = adapted(base, trained=True)
    expected = plain_kl(tuned, base)
    found = reference_kl(tuned, TEXTS, quiet=True)
    assert found["value"] == pytest.approx(float(torch.cat(expected).mean()), rel=1e-4)
    assert found["n"] == len(TEXTS)
    # The control: a mean of the texts' means is another number.
    of_texts = float(torch.stack([each.mean() for each in expected]).mean())
    assert found["value"] != pytest.approx(of_texts, rel=1e-2)


def test_a_model_trained_whole_is_held_against_its_base(base: PreTrainedModel) -> None:
    tuned = adapted(base, trained=True)
    expected = reference_kl(tuned, TEXTS, quiet=True)
    merged = tuned.merge_and_unload()
    found = reference_kl(merged, TEXTS, base=base, quiet=True)
    assert found["value"] == pytest.approx(expected["value"], rel=1e-3)
    assert reference_kl(merged, TEXTS, base=merged, quiet=True)["value"] == 0.0


def test_kl_is_left_out_where_nothing_says_what_the_model_was(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    def found(**options: Any) -> dict[str, Any]:
        vectors, corpus = cases.make_vectors(), Corpus.packaged()
        return guard_rails(
            base, tokenizer, vectors, corpus, limit=1, quiet=True, **options
        )

    assert "kl" not in found()
    assert found(base=base)["kl"]["value"] == 0.0


def test_story_accuracy_is_the_share_of_right_names(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    vectors, corpus = cases.make_vectors(), Corpus.packaged()
    layer = vectors.layers[1]
    found = story_accuracy(
        base, tokenizer, vectors, corpus, layer=layer, limit=3, quiet=True
    )
    stories = corpus.stories(vectors.emotions[:3], split="test")
    pooled = pool_stories(base, tokenizer, stories, [layer], quiet=True).values[:, 0]
    scores = vectors.scores(pooled, layer=layer, reader=found["reader"])
    named = [vectors.emotions[int(i)] for i in scores.argmax(1)]
    right = [name == story.emotion for name, story in zip(named, stories, strict=True)]
    assert found["value"] == pytest.approx(sum(right) / len(right))
    assert found["n"] == len(stories) == 12
