"""Guard rails with margins: what is shown to have stayed, and what is not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.behavior.likelihood import likelihoods, rendered
from emoreg.comparison.capability import capability
from emoreg.comparison.guards import GuardText, text_loss
from emoreg.comparison.rails import RAILS, rail_rows, rails_document
from emoreg.vectors.corpus import Corpus


def guard(values: Any, **more: Any) -> dict[str, Any]:
    found = np.asarray(values, float)
    return {
        "value": float(found.mean()),
        "n": len(found),
        "values": list(found),
        **more,
    }


def verdicts(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    rows = rail_rows({"before": {"guards": before}, "after": {"guards": after}})
    return {row.name: row.verdict for row in rows}


def losses(shift: float, *, n: int = 80, spread: float = 0.01) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    before = rng.normal(3.0, 0.5, n)
    return guard(before), guard(before + shift + spread * rng.normal(size=n))


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [
        (0.0, 0.01, "kept"),
        (-0.5, 0.01, "kept"),  # a lower loss is no harm
        (0.015, 0.01, "kept"),
        (0.1, 0.01, "not kept"),
        (0.018, 0.1, "not shown"),
        (0.021, 0.1, "not shown"),
    ],
)
def test_a_loss_is_kept_within_two_percent_of_perplexity(
    shift: float, spread: float, verdict: str
) -> None:
    before, after = losses(shift, spread=spread)
    assert verdicts({"loss": before}, {"loss": after}) == {"loss": verdict}


def test_the_interval_is_the_paired_t_interval_at_ninety_percent() -> None:
    before, after = losses(0.01)
    meta = {
        "before": {"guards": {"loss": before}},
        "after": {"guards": {"loss": after}},
    }
    [row] = rail_rows(meta)
    change = np.subtract(after["values"], before["values"])
    reach = student.ppf(0.95, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
    assert row.change is not None
    assert (row.change.low, row.change.high) == pytest.approx(
        (change.mean() - reach, change.mean() + reach)
    )
    assert row.margin == pytest.approx(np.log(1.02))


@pytest.mark.parametrize(
    ("lost", "n", "verdict"),
    [(0, 680, "kept"), (10, 680, "kept"), (200, 680, "not kept"), (0, 12, "not shown")],
)
def test_shares_are_held_against_a_share_of_that_before(
    lost: int, n: int, verdict: str
) -> None:
    before = np.arange(n) % 2
    after = before.copy()
    after[np.flatnonzero(before)[:lost]] = 0
    found = verdicts({"story_top1": guard(before)}, {"story_top1": guard(after)})
    assert found == {"story_top1": verdict}
    meta = {
        "before": {"guards": {"story_top1": guard(before)}},
        "after": {"guards": {"story_top1": guard(after)}},
    }
    assert rail_rows(meta)[0].margin == pytest.approx(-0.05 * 0.5)


def test_a_kl_needs_no_value_before() -> None:
    small, large = guard(np.full(20, 0.01)), guard(np.linspace(0.2, 0.4, 20))
    assert verdicts({}, {"kl": small}) == {"kl": "kept"}
    assert verdicts({}, {"kl": large}) == {"kl": "not kept"}


def test_what_can_not_be_paired_has_no_verdict() -> None:
    before, after = losses(0.0)
    cut = {**after, "values": after["values"][:-1]}
    bare = {"value": 3.0, "n": 80}  # of a table that was made before there were values
    assert verdicts({"loss": before}, {"loss": cut}) == {"loss": None}
    assert verdicts({"loss": bare}, {"loss": after}) == {"loss": None}
    assert verdicts({}, {"own": {"value": 1.0}}) == {"own": None}


def test_the_document_has_no_single_values() -> None:
    before, after = losses(0.0)
    meta = {
        "before": {"guards": {"loss": before}},
        "after": {"guards": {"loss": after}},
    }
    [found] = rails_document(meta)
    assert found["verdict"] == "kept"
    assert "values" not in found["values"]["before"]
    assert before["values"]  # and the table keeps them


def test_every_rail_has_a_margin_that_does_harm_if_passed() -> None:
    assert {name: rail.margin > 0 for name, rail in RAILS.items()} == dict.fromkeys(
        (
            *("kl", "loss", "capability", "story_top1"),
            *("gsm8k", "humaneval", "mbpp"),
        ),
        True,
    )


# ------------------------------------------------------------------ on a model


@pytest.fixture
def base(tiny_model: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return cases.lively(tiny_model("llama")).eval()


def test_loss_is_torchs_own(base: PreTrainedModel) -> None:
    texts = [
        GuardText(ids=tuple(range(5, 25)), start=0),
        GuardText(ids=tuple(range(40, 47)), start=3),
    ]
    found, plain = text_loss(base, texts, quiet=True), []
    for text in texts:
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            logits = base(ids).logits[0, text.start : -1]
        plain.append(float(F.cross_entropy(logits, ids[0, text.start + 1 :])))
    assert found["values"] == pytest.approx(plain, rel=1e-4)
    assert found["value"] == pytest.approx(float(np.mean(plain)), rel=1e-4)


def test_likelihoods_are_those_of_each_reply_alone(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    said = [{"role": "user", "content": "two and two?"}]
    replies = [rendered(tokenizer, said, text) for text in ("4", "five", "22 is it")]
    with torch.no_grad():
        found = likelihoods(base, replies, use_cache=False)
        for reply, value in zip(replies, found, strict=True):
            ids = torch.tensor([reply.ids])
            logs = base(ids).logits[0].log_softmax(-1)
            places = range(reply.start, reply.end)
            own = [float(logs[p - 1, ids[0, p]]) for p in places]
            assert value == pytest.approx(float(np.mean(own)), abs=1e-4)


def test_capability_counts_what_is_likeliest(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = Corpus.packaged()
    found = capability(base, tokenizer, corpus, limit=2, quiet=True)
    assert found["n"] == 8 == len(found["values"])
    assert set(found["by_kind"]) == {
        *("arithmetic", "copying", "formats", "instructions")
    }
    assert found["value"] == np.mean(found["values"])


def test_every_question_has_one_right_answer_and_three_others() -> None:
    for item in Corpus.packaged().records("capability"):
        assert len({item["answer"], *item["wrong"]}) == 4
