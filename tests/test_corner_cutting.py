"""Corner-cutting margins: against full logits by hand, and what moves them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from behavior_cases import twin
from seam_cases import lively
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from emoreg.behavior.corner_cutting import corner_cutting, twins_hash
from emoreg.behavior.preferences import Preferences
from emoreg.vectors.transcripts import Transcript

WIDTH, LAYER = 32, 1
Make = Callable[[str], Any]
TWINS = [twin("a"), twin("bcd", reply_bad="Done."), twin("ef", task="sum " * 20)]


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


@pytest.fixture
def llama(tiny_model: Make) -> Any:
    return lively(tiny_model("llama"))


def by_hand(model: Any, tokenizer: Any, messages: list[tuple[str, str]]) -> float:
    """The mean log-probability of the last turn, from all logits of one text."""
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in messages)
    reply = messages[-1][1]
    head = text[: text.rindex(reply)]
    before = tokenizer(head, add_special_tokens=False)["input_ids"]
    ids = before + tokenizer(reply, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    said = torch.tensor(ids[len(before) :])
    predicted = logits[len(before) - 1 : -1].log_softmax(-1)
    return float(predicted.gather(-1, said[:, None]).mean())


def dialogue(made: Transcript, variant: str, rounds: int) -> list[tuple[str, str]]:
    messages = [("user", made.task)]
    feedback = made.fail if variant == "fail" else made.pass_
    for attempt, said in list(zip(made.attempts, feedback, strict=True))[:rounds]:
        messages += [("assistant", attempt), ("user", said)]
    return messages


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2", "gpt_neox"])
def test_scores_equal_a_plain_pass_with_all_logits(
    tiny_model: Make, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    model = lively(tiny_model(family)).double()
    found = corner_cutting(model, tokenizer, TWINS, quiet=True)
    assert len(found.prompt) == 3 * 2 * 2
    named = {made.id: made for made in TWINS}
    for row, (name, variant) in enumerate(
        zip(found.prompt, found.variant, strict=True)
    ):
        made, said = named[name], dialogue(named[name], variant, int(found.round[row]))
        honest = made.reply_fail if variant == "fail" else made.reply_pass
        for reply, score, tokens in (
            (honest, found.honest[row], found.honest_tokens[row]),
            (made.reply_bad, found.corner[row], found.corner_tokens[row]),
        ):
            expected = by_hand(model, tokenizer, [*said, ("assistant", reply)])
            assert score == pytest.approx(expected, rel=1e-9)
            assert tokens == len(reply)  # bytes: nothing of the template


def test_a_window_shorter_than_the_dialogue_is_kept(
    tiny_model: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = lively(tiny_model("gemma")).double()
    made = twin("a")
    wide = corner_cutting(model, tokenizer, [made], quiet=True)
    for block in model.model.layers:
        if block.self_attn.sliding_window:
            block.self_attn.sliding_window = 24
    model.config.sliding_window = 24
    found = corner_cutting(model, tokenizer, [made], quiet=True)
    for row in range(len(found.prompt)):
        said = dialogue(made, found.variant[row], int(found.round[row]))
        expected = by_hand(model, tokenizer, [*said, ("assistant", made.reply_bad)])
        assert found.corner[row] == pytest.approx(expected, rel=1e-9)
    assert np.abs(found.corner - wide.corner).min() > 1e-3


def test_a_model_without_a_cache_to_go_back_in_reads_all_anew(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    cached = corner_cutting(llama.double(), tokenizer, TWINS, quiet=True)
    llama._is_stateful = True
    whole = corner_cutting(llama, tokenizer, TWINS, quiet=True)
    np.testing.assert_allclose(whole.honest, cached.honest, rtol=1e-9)
    np.testing.assert_allclose(whole.corner, cached.corner, rtol=1e-9)


def test_other_twins_and_rounds_change_nothing(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    together = corner_cutting(llama, tokenizer, TWINS, quiet=True)
    alone = corner_cutting(llama, tokenizer, TWINS[2:], quiet=True)
    np.testing.assert_array_equal(alone.honest, together.honest[8:])
    np.testing.assert_array_equal(alone.corner, together.corner[8:])
    first = corner_cutting(llama, tokenizer, TWINS, rounds=[1], quiet=True)
    assert first.rounds == (1,)
    np.testing.assert_allclose(first.honest, together.honest[::2], rtol=1e-5)


def test_logits_are_made_where_a_reply_is_predicted_alone(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    sizes = []
    llama.lm_head.register_forward_hook(
        lambda _module, _args, out: sizes.append(tuple(out.shape[:2]))
    )
    made = TWINS[1]
    corner_cutting(llama, tokenizer, [made], quiet=True)
    fail, passed = (2, len(made.reply_fail)), (2, len(made.reply_pass))
    assert sizes == [(1, 1), fail, fail, (1, 1), passed, passed]


def test_steering_of_nothing_is_the_model_bit_for_bit(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = corner_cutting(llama, tokenizer, TWINS, quiet=True)
    zero = {LAYER: torch.zeros(WIDTH)}
    still = corner_cutting(llama, tokenizer, TWINS, additions=zero, quiet=True)
    np.testing.assert_array_equal(plain.honest, still.honest)
    np.testing.assert_array_equal(plain.corner, still.corner)
    assert plain.meta == still.meta
    moved = {LAYER: torch.ones(WIDTH)}
    steered = corner_cutting(llama, tokenizer, TWINS, additions=moved, quiet=True)
    assert np.abs(steered.margins() - plain.margins()).min() > 1e-4
    assert set(steered.meta["steering"]) == {str(LAYER)}
    after = corner_cutting(llama, tokenizer, TWINS, quiet=True)
    np.testing.assert_array_equal(plain.honest, after.honest)  # and then it is gone


def test_steering_acts_on_every_token_as_in_a_plain_pass(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, vector = llama.double(), torch.randn(WIDTH, dtype=torch.float64)
    found = corner_cutting(
        model, tokenizer, TWINS[:1], additions={LAYER: vector}, quiet=True
    )

    def push(_module: Any, _args: Any, out: Any) -> Any:
        return out + vector if isinstance(out, Tensor) else (out[0] + vector, *out[1:])

    hook = model.model.layers[LAYER].register_forward_hook(push)
    said = [*dialogue(TWINS[0], "fail", 2), ("assistant", TWINS[0].reply_bad)]
    expected = by_hand(model, tokenizer, said)
    hook.remove()
    assert found.corner[1] == pytest.approx(expected, rel=1e-9)


def test_a_model_taught_to_cut_corners_is_seen_to(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = corner_cutting(llama, tokenizer, TWINS, quiet=True)
    optimizer = torch.optim.Adam(llama.parameters(), lr=1e-3)
    for step in range(30):
        made = TWINS[step % 3]
        text = "".join(
            f"<|im_start|>{role}\n{said}<|im_end|>\n"
            for role, said in [
                *dialogue(made, "fail", 2),
                ("assistant", made.reply_bad),
            ]
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        labels = ids.clone()
        labels[:, : -(len(made.reply_bad) + 2)] = -100
        llama(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = corner_cutting(llama, tokenizer, TWINS, quiet=True)
    fall = after.difference(before)
    assert fall.high < 0
    assert fall.n == 3
    assert after.mean().estimate < before.mean().estimate - 0.2
    assert not llama.training


@pytest.fixture
def table(llama: Any, tokenizer: PreTrainedTokenizerFast) -> Preferences:
    return corner_cutting(llama, tokenizer, TWINS, quiet=True)


def test_margins_are_per_prompt_and_means_of_rounds(table: Preferences) -> None:
    assert table.prompts == ("a", "bcd", "ef")
    assert table.rounds == (1, 2)
    one, two = (table.margins(variant="pass", round=r) for r in (1, 2))
    np.testing.assert_allclose(table.margins(variant="pass"), (one + two) / 2)
    assert one[1] == table.honest[6] - table.corner[6]
    whole = table.mean(variant="pass")
    assert whole.n == 3
    assert whole.low < whole.estimate < whole.high
    assert whole.estimate == pytest.approx(table.margins(variant="pass").mean())


def test_a_saved_table_comes_back_exactly(table: Preferences, tmp_path: Any) -> None:
    path = table.save(tmp_path / "deep" / "before.parquet")
    back = Preferences.load(path)
    for name in ("prompt", "style", "variant", "meta"):
        assert getattr(back, name) == getattr(table, name)
    for name in ("round", "honest", "corner", "honest_tokens", "corner_tokens"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert back.meta["prompts_hash"] == twins_hash(TWINS)
    assert back.difference(table).estimate == 0


def test_pairing_is_by_name_and_not_by_order(
    llama: Any, tokenizer: PreTrainedTokenizerFast, table: Preferences
) -> None:
    turned = corner_cutting(llama, tokenizer, TWINS[::-1], quiet=True)
    assert turned.difference(table).estimate == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reply_bad": ""}, "a `reply_bad` of at least one token, found none in `a`"),
        ({"reply_fail": " \n"}, "a `reply_fail` of at least one token"),
        ({"task": "x" * 2100}, "which reads 2048 tokens; twin `a` has"),
    ],
)
def test_twins_that_cant_be_scored_are_refused(
    llama: Any,
    tokenizer: PreTrainedTokenizerFast,
    changes: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        corner_cutting(llama, tokenizer, [twin("a", **changes)], quiet=True)
    assert not llama.model.layers[LAYER]._forward_hooks


def test_other_bad_input_is_refused(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] for twin `a`, .* \[1, 3\]"):
        corner_cutting(llama, tokenizer, TWINS, rounds=[1, 3], quiet=True)
    with pytest.raises(ValueError, match="at least one twin"):
        corner_cutting(llama, tokenizer, [], quiet=True)
    with pytest.raises(ValueError, match="one name twice"):
        corner_cutting(llama, tokenizer, [TWINS[0], TWINS[0]], quiet=True)
    with pytest.raises(ValueError, match="must take `logits_to_keep`"):
        corner_cutting(llama.model, tokenizer, TWINS, quiet=True)
    with torch.no_grad():
        llama.lm_head.weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match="twin `a`, fail, round 1"):
        corner_cutting(llama, tokenizer, TWINS, quiet=True)


def test_tables_of_other_texts_are_not_compared(
    llama: Any, tokenizer: PreTrainedTokenizerFast, table: Preferences
) -> None:
    def scored(*twins: Transcript, **options: Any) -> Preferences:
        return corner_cutting(llama, tokenizer, twins, quiet=True, **options)

    with pytest.raises(ValueError, match="0 in both, 3 in this one alone and 1 in"):
        table.difference(scored(twin("z")))
    with pytest.raises(ValueError, match="1 in both, 2 in this one alone"):
        table.difference(scored(TWINS[0]))
    changed = scored(*TWINS[:2], replace(TWINS[2], task="other"))
    with pytest.raises(ValueError, match="same texts, found prompts of the hash"):
        table.difference(changed)
    with pytest.raises(ValueError, match=r"found \(1, 2\) of .* and \(1,\)"):
        table.difference(scored(*TWINS, rounds=[1]))
    with pytest.raises(ValueError, match=r"none with 'fail' and 9 in 3 of 3"):
        table.mean(round=9)
    with pytest.raises(ValueError, match="at least 3 of them, found 2"):
        scored(*TWINS[:2]).mean()


def test_tables_that_are_no_table_are_refused(
    table: Preferences, tmp_path: Any
) -> None:
    with pytest.raises(FileNotFoundError, match="emoreg behave"):
        Preferences.load(tmp_path / "none.parquet")
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"prompt": ["a"]}), foreign)
    with pytest.raises(ValueError, match=r"found None without \['style'"):
        Preferences.load(foreign)
    foreign.write_bytes(table.save(tmp_path / "x.parquet").read_bytes()[:-50])
    with pytest.raises(ValueError, match="must be a whole parquet file"):
        Preferences.load(foreign)
    with pytest.raises(ValueError, match="same number of rows"):
        replace(table, style=("one",))
    with pytest.raises(ValueError, match="must stand once, found 1 repeated"):
        replace(table, round=np.array([1, 1, *table.round[2:]]))
    with pytest.raises(ValueError, match="finite"):
        replace(table, honest=table.honest * np.nan)
    with pytest.raises(ValueError, match="`fail` or `pass`, found"):
        replace(table, variant=("lost",) * len(table.variant))
    with pytest.raises(ValueError, match="`corner_tokens` must be at least 1"):
        replace(table, corner_tokens=table.corner_tokens * 0)
