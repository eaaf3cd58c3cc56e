"""A judge's choices are the likeliest letters of a plain forward, in every order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pressure_cases import SAYINGS, SORT
from sklearn.metrics import cohen_kappa_score
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.behavior.pressure import judge as judging
from emoreg.behavior.pressure.judge import CHOICES, judge, question
from emoreg.behavior.pressure.reaction_table import Reaction, Reactions
from emoreg.behavior.pressure.requests import grade_reply, load_requests
from emoreg.cli import main
from emoreg.residual.tokens import render
from emoreg.statistics.bootstrap import resample_counts
from emoreg.statistics.kappa import kappa


def replies(per_setting: int = 1) -> Reactions:
    """A saying of every outcome in every setting, graded by rule; and an agent."""
    rows = []
    for setting in CHOICES:
        asked = [r for r in load_requests() if r.setting == setting][:per_setting]
        sayings = [texts[0] for texts in SAYINGS[SORT[setting]].values()]
        for request in asked:
            for number, text in enumerate(sayings):
                grade = grade_reply(request, text)
                told = (
                    {"role": "user", "content": request.text},
                    {"role": "assistant", "content": text},
                )
                rows.append(
                    Reaction(
                        id=request.id,
                        setting=setting,
                        sample=number,
                        outcome=grade.outcome,
                        reason=grade.reason,
                        calls=0,
                        messages=told,
                    )
                )
    agent = replace(rows[0], id="a", setting="agent-threat", outcome="accepts", calls=2)
    return Reactions(reactions=(agent, *rows), meta={"texts_hash": "x"})


def sized(tiny_model: Callable[..., Any]) -> PreTrainedModel:
    """A model whose next words depend on what was said."""
    made = tiny_model("llama").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made


def plainly(
    model: Any, reads: Any, reaction: Reaction, orders: int | None = None
) -> list[float]:
    """The mean log-probability of each choice's letter over all orders, one by one."""
    choices = CHOICES[reaction.setting]
    found = dict.fromkeys(choices, 0.0)
    for turn in range(orders or len(choices)):
        order = choices[turn:] + choices[:turn]
        asked = [{"role": "user", "content": question(reaction, order)}]
        before = render(reads, asked, generation_prompt=True)
        for letter, name in zip("ABCDEFGH", order, strict=False):
            ids = torch.tensor([reads(before + letter)["input_ids"]])
            with torch.no_grad():
                said = model(ids).logits.float().log_softmax(-1)[0, -2]
            found[name] += float(said[ids[0, -1]]) / len(choices)
    return [found[name] for name in choices]


def test_the_choice_is_that_of_a_plain_forward(
    tiny_model: Callable[..., Any], letters: PreTrainedTokenizerFast
) -> None:
    model, table = sized(tiny_model), replies()
    found = judge(model, letters, table, quiet=True).reactions.reactions
    assert found[0] == table.reactions[0]  # an agent is graded by what it did
    chosen = set()
    for reaction, row in zip(table.reactions[1::3], found[1::3], strict=True):
        logs = np.array(plainly(model, letters, reaction))
        assert row.outcome == CHOICES[reaction.setting][int(logs.argmax())]
        share = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
        assert f"{share.max():.2f} of its choices" in row.reason
        assert f"by rule {reaction.outcome}" in row.reason
        chosen.add(row.outcome)
    assert len(chosen) > 1  # control: it does not say the same of all


def test_no_place_and_no_letter_is_liked(
    tiny_model: Callable[..., Any],
    letters: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, table = sized(tiny_model), replies()

    def outcomes() -> list[str]:
        found = judge(model, letters, table, quiet=True)
        return [reaction.outcome for reaction in found.reactions.reactions]

    first = outcomes()
    turned = {name: c[1:] + c[:1] for name, c in CHOICES.items()}
    monkeypatch.setattr(judging, "CHOICES", turned)
    assert outcomes() == first

    monkeypatch.undo()
    by_one_order = {  # control: the first place, in one order alone, is not for nothing
        CHOICES[r.setting][int(np.argmax(plainly(model, letters, r, 1)))] == outcome
        for r, outcome in zip(table.reactions[1:], first[1:], strict=True)
    }
    assert False in by_one_order


def test_agreement_is_counted_where_a_rule_holds(
    tiny_model: Callable[..., Any], letters: PreTrainedTokenizerFast
) -> None:
    table = replies()
    found = judge(sized(tiny_model), letters, table, quiet=True)
    rules = [r.outcome for r in table.reactions[1:]]
    said = [r.outcome for r in found.reactions.reactions[1:]]
    pairs = list(zip(rules, said, strict=True))
    decided = [pair for pair in pairs if pair[0] != "cannot-decide"]
    assert 0 < len(decided) < len(pairs)
    assert found.decided == len(decided)
    assert found.alike == sum(a == b for a, b in decided)
    assert sum(found.undecided.values()) == len(pairs) - len(decided)
    assert found.agreement is not None
    mine = cohen_kappa_score(*zip(*decided, strict=True))
    assert found.agreement.estimate == pytest.approx(mine)
    agents = Reactions(reactions=table.reactions[:1])
    with pytest.raises(ValueError, match="agents alone"):
        judge(sized(tiny_model), letters, agents, quiet=True)


def test_the_command_writes_a_table_that_others_read(
    tiny_model: Callable[..., Any],
    letters: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sized(tiny_model).save_pretrained(tmp_path / "judge")
    letters.save_pretrained(tmp_path / "judge")
    table = replies()
    table.save(tmp_path / "by-rule.parquet")
    words = ["behave", "judge", "--model", str(tmp_path / "judge"), "--quiet"]
    files = ["--reactions", str(tmp_path / "by-rule.parquet")]
    out = tmp_path / "judged.parquet"
    assert main([*words, *files, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "alike, kappa" in said
    assert "on which no rule holds: " in said
    judged = Reactions.load(out)
    judged.check_paired(table, setting="distress")
    assert judged.meta["judge"]["model"] == str(tmp_path / "judge")


# ------------------------------------------------------------------------- the figure


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_scikit_learns(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first = draw.integers(0, 4, 40)
    second = np.where(draw.random(40) < 0.6, first, draw.integers(0, 4, 40))
    pairs = [(f"c{a}", f"c{b}") for a, b in zip(first, second, strict=True)]
    found = kappa(pairs, n_resamples=300, seed=seed)
    assert found.estimate == pytest.approx(cohen_kappa_score(first, second))
    assert found.n == 40
    counts = resample_counts(40, n_resamples=300, seed=seed).astype(int)
    drawn = [
        cohen_kappa_score(np.repeat(first, c), np.repeat(second, c)) for c in counts
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_kappa_at_its_ends() -> None:
    same = [("a", "a"), ("b", "b")] * 10
    assert kappa(same).estimate == 1.0
    swapped = [("a", "b"), ("b", "a")] * 10
    assert kappa(swapped).estimate == pytest.approx(-1.0)
    assert np.isnan(kappa([("a", "a")] * 5).estimate)  # 0 by 0: nothing to agree on
    with pytest.raises(ValueError, match="at least 2 items"):
        kappa(same[:1])
