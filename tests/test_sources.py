"""Where outcomes come from: feedback in the tokens, and rewards of rollouts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import seam_cases as cases
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer  # pyright: ignore

from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.training.attach import attach
from emoreg.training.outcomes.columns import OUTCOMES
from emoreg.training.outcomes.feedback import Outcome, parse_feedback
from emoreg.training.outcomes.sources import PARSED, Feedback, Reward
from emoreg.training.reference import Reference
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors

Model = Callable[[], PreTrainedModel]
FAILED, PASSED = "2 failed, 3 passed in 0.1s", "5 passed in 0.1s"


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


def talk(*feedback: str, role: str = "user") -> list[dict[str, str]]:
    """A conversation with these feedbacks."""
    messages = [{"role": "user", "content": "Sort it. 1 failed in 0.1s"}]
    for k, text in enumerate(feedback):
        messages += [
            {"role": "assistant", "content": f"try {k}: 9 failed in 0.1s"},
            {"role": role, "content": text},
        ]
    return [*messages, {"role": "assistant", "content": "done"}]


# -- feedback ------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["user", "tool"])
def test_feedback_is_what_stands_between_assistant_turns(
    tokenizer: PreTrainedTokenizerFast, role: str
) -> None:
    ids = conversation_ids(tokenizer, talk(FAILED, PASSED, "Hm.", role=role))
    found = Feedback().outcomes(ids, tokenizer, TurnMarkers.of(tokenizer))
    assert [x.failure for x in found] == [None, 1.0, 0.0, None]
    assert [x.source for x in found] == [
        "no feedback yet",
        "test counts",
        "test counts",
        "unknown",
    ]


def test_the_packaged_twins_read_as_from_their_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    markers = TurnMarkers.of(tokenizer)
    for twin in Corpus.packaged().transcripts("train")[::8]:
        for conversation in twin.conversations(None):
            ids = conversation_ids(tokenizer, conversation.messages)
            found = Feedback().outcomes(ids, tokenizer, markers)
            texts = [
                m["content"] for m in conversation.messages if m["role"] != "assistant"
            ]
            wanted = [None, *(parse_feedback(text).failure for text in texts[1:])]
            assert [x.failure for x in found] == wanted[: len(found)]


def test_a_parser_of_ones_own_is_used(tokenizer: PreTrainedTokenizerFast) -> None:
    def mine(text: str) -> Outcome:
        return Outcome(failure=float("Hm" in text), source="mine")

    ids = conversation_ids(tokenizer, talk("Hm.", "Fine."))
    found = Feedback(parse=mine).outcomes(ids, tokenizer, TurnMarkers.of(tokenizer))
    assert [(x.failure, x.source) for x in found[1:]] == [(1.0, "mine"), (0.0, "mine")]


@pytest.fixture
def sft(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., Any]:
    def make(talks: list[list[dict[str, str]]], outcome: Any, **columns: Any) -> Any:
        rows = [
            {"prompt": messages[:-1], "completion": messages[-1:]} for messages in talks
        ]
        data = Dataset.from_list(rows)
        for name, column in columns.items():
            data = data.add_column(name, column)
        trainer = cases.make_sft(
            model(), tokenizer, tmp_path, rows=data, eval_rows=data, max_steps=2
        )
        return attach(
            trainer,
            monitor=Monitor(vectors),
            terms=cases.make_terms(vectors, reference),
            outcome=outcome,
            reference=reference,
        )

    return make


def test_training_on_parsed_feedback_is_training_on_the_same_column(
    sft: Callable[..., Any],
) -> None:
    talks = [talk(FAILED, PASSED), talk(PASSED), talk("Hm.", FAILED), talk(FAILED)]
    column = [[None, 1.0, 0.0], [None, 0.0], [None, None, 1.0], [None, 1.0]]
    parsed, given = sft(talks, Feedback()), sft(talks, "failed", failed=column)
    wrong = sft(talks, "failed", failed=[[None] * len(c) for c in column])
    for trainer in (parsed, given, wrong):
        trainer.train()
        trainer.evaluate()
    assert parsed.train_dataset[PARSED] == column
    assert cases.logged(parsed) == cases.logged(given)
    assert cases.logged(parsed, "eval_emotion") == cases.logged(given, "eval_emotion")
    assert cases.equal(cases.weights(parsed), cases.weights(given))
    assert not cases.equal(cases.weights(wrong), cases.weights(given))  # control


def test_feedback_that_all_reads_alike_is_refused(sft: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="must be read as passed"):
        sft([talk(FAILED), talk(FAILED)], Feedback())
    with pytest.raises(ValueError, match="must be read as failed"):
        sft([talk("Hm."), talk(PASSED)], Feedback())


def test_rewards_without_rollouts_are_refused(sft: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="there are no rewards"):
        sft([talk(FAILED), talk(PASSED)], Reward())


def test_feedback_of_pairs_is_read_in_both_halves(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    rows = [
        {"prompt": t[:-1], "chosen": t[-1:], "rejected": [{**t[-1], "content": "no"}]}
        for t in (talk(FAILED), talk(PASSED), talk(FAILED, PASSED), talk(PASSED))
    ]
    trainer: Any = DPOTrainer(
        model=model(),
        args=DPOConfig(**cases.quiet(tmp_path, max_length=None, max_steps=2)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=cases.adapter(),
    )
    attach(
        trainer,
        monitor=Monitor(vectors),
        terms=cases.make_terms(vectors, reference),
        outcome=Feedback(),
        reference=reference,
    )
    assert trainer.train_dataset[PARSED][2] == {
        "chosen": [None, 1.0, 0.0],
        "rejected": [None, 1.0, 0.0],
    }
    trainer.train()
    keys = {key for entry in cases.logged(trainer) for key in entry}
    assert "emotion/desperate/L2/lda/slope" in keys


def test_packed_rows_train_as_the_rows_they_hold(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """All in one row, or one row each, in one batch: one step, one gradient."""
    del recwarn  # that attention must keep documents apart, which it does here
    talks = [talk(FAILED, PASSED), talk(PASSED), talk("Hm.", FAILED), talk(FAILED)]
    rows = Dataset.from_list([{"prompt": t[:-1], "completion": t[-1:]} for t in talks])
    flat: Any = {"packing": True, "max_length": 4096, "per_device_train_batch_size": 1}
    found = []
    rows_of_four: Any = {"per_device_train_batch_size": 4}
    for settings in (rows_of_four, flat, {**flat, "seed": 5}):
        keep = cases.Gradients()
        trainer: Any = cases.make_sft(
            model(),
            tokenizer,
            tmp_path,
            rows=rows if len(found) < 2 else rows.select(range(3)),
            callbacks=[keep],
            max_steps=1,
            max_grad_norm=0.0,
            **settings,
        )
        terms = cases.make_terms(vectors, reference, meaning=0.0, kl=0.0)
        attach(
            trainer,
            monitor=Monitor(vectors),
            terms=terms,
            outcome=Feedback(),
            reference=reference,
        )
        trainer.train()
        found.append(
            (keep.steps[0], cases.logged(trainer)[0], len(trainer.train_dataset))
        )
    (apart, log, _), (packed, log2, count), (other, log3, _) = found
    assert count == 1
    largest, mean, size = cases.gap(apart, packed)
    assert largest < 1e-3 * size
    assert mean < 1e-5 * size
    assert cases.gap(apart, other)[1] > 1e-3 * size  # control: three of the four
    assert log2 == pytest.approx(log, rel=1e-3, abs=1e-4)
    assert log3 != pytest.approx(log, rel=1e-3, abs=1e-4)


# -- rewards -------------------------------------------------------------------------


def test_ranks_are_those_of_scipy() -> None:
    rewards = torch.tensor([[3.0], [1.0], [2.0], [2.0], [5.0], [5.0], [5.0], [5.0]])
    found = Reward().failures(rewards, ["r"], torch.ones(1), group=4)
    ranks = scipy.stats.rankdata(-rewards[:4, 0].numpy())
    torch.testing.assert_close(
        found[:4], torch.tensor((ranks - 1) / 3, dtype=torch.float32)
    )
    assert bool(found[4:].isnan().all())  # all alike: nothing is known


def test_a_named_function_and_a_threshold() -> None:
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0], [float("nan"), 1.0]])
    names, weights = ["tests", "style"], torch.tensor([1.0, 10.0])
    by_tests = Reward(function="tests", below=0.5)
    found = by_tests.failures(rewards, names, weights, group=3)
    assert found[:2].tolist() == [1.0, 0.0]
    assert bool(found[2].isnan())
    by_sum = Reward(below=5.0).failures(rewards, names, weights, group=3)
    assert by_sum.tolist() == [0.0, 1.0, 0.0]  # the weighted sum: 10, 1, 10
    with pytest.raises(ValueError, match="must name a reward function"):
        Reward(function="grader").failures(rewards, names, weights, group=3)


# -- rollouts ------------------------------------------------------------------------


def shortness(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between completions."""
    said = [completion[0]["content"] for completion in completions]
    return [-float(sum(map(ord, text))) / 1e4 for text in said]


def constant(completions: list[Any], **_: Any) -> list[float]:
    """A reward that tells nothing."""
    return [1.0] * len(completions)


@pytest.fixture
def grpo(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., Any]:
    def make(outcome: Any, **changes: Any) -> Any:
        talks = [talk(FAILED), talk(PASSED, FAILED), talk(PASSED), talk()]
        extra = {k: changes.pop(k) for k in ("tools", "rollout_func") if k in changes}
        settings = {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 6,
            **changes,
        }
        torch.manual_seed(11)
        trainer = GRPOTrainer(
            model=model(),
            args=GRPOConfig(**cases.quiet(tmp_path, **settings)),
            reward_funcs=[shortness, constant],  # pyright: ignore[reportArgumentType]
            train_dataset=Dataset.from_list([{"prompt": t[:-1]} for t in talks]),
            processing_class=tokenizer,
            peft_config=cases.adapter(),
            **extra,
        )
        terms = cases.make_terms(vectors, reference)
        trainer = attach(
            trainer,
            monitor=Monitor(vectors),
            terms=terms,
            outcome=outcome,
            reference=reference,
        )
        torch.manual_seed(7)
        return trainer

    return make


def rows_of(trainer: Any) -> list[tuple[list[int], list[int], list[float]]]:
    """Prompt ids, completion ids and outcomes of each rollout in the buffer."""
    found = []
    for part in trainer._buffered_inputs:
        for row in range(len(part["prompt_ids"])):
            ids = [
                part[f"{half}_ids"][row][part[f"{half}_mask"][row].bool()].tolist()
                for half in ("prompt", "completion")
            ]
            found.append((ids[0], ids[1], part[OUTCOMES][row].tolist()))
    return found


def test_prompts_feedback_is_read_without_a_column(
    grpo: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    trainer = grpo(Feedback(), per_device_train_batch_size=8)
    trainer.train()
    for prompt, _, outcomes in rows_of(trainer):
        said = str(tokenizer.decode(prompt)).split("user\n")[2:]
        texts = [text.split("<|im_end|>")[0] for text in said]
        wanted = [None, *(parse_feedback(text).failure for text in texts)]
        found = [None if x != x else x for x in outcomes]
        assert found[: len(wanted)] == wanted
        assert not any(found[len(wanted) :])
    keys = {key for entry in cases.logged(trainer) for key in entry}
    assert "emotion/desperate/L2/lda/slope" in keys


def test_a_rollouts_reward_is_the_outcome_of_what_was_generated(
    grpo: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    trainer = grpo(Reward(function="shortness", below=-21.0))
    trainer.train()
    markers, seen = TurnMarkers.of(tokenizer), set()
    for prompt, completion, outcomes in rows_of(trainer):
        text = tokenizer.decode(completion, skip_special_tokens=True)
        score = shortness([[{"content": text}]])[0]
        turns = int(markers.decision_tokens(torch.tensor([prompt])).sum())
        assert all(x != x for x in outcomes[: turns - 1])  # before: unknown
        assert outcomes[turns - 1] == float(score < -21.0)
        seen.add(outcomes[turns - 1])
    assert seen == {0.0, 1.0}  # control: both occur


def test_an_unknown_reward_function_is_refused(grpo: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="must name a reward function"):
        grpo(Reward(function="grader"))


def test_what_tools_answer_inside_a_rollout_is_feedback(
    grpo: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rollouts with an environment's answer in them, as TRL's own loop makes them."""
    reply: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=False
    )
    opening = str(reply).split("?")[1]

    def play(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        del trainer
        asked, answered, masks = [], [], []
        for k, prompt in enumerate(prompts):
            text = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=False
            )
            asked.append(tokenizer(str(text), add_special_tokens=False)["input_ids"])
            tool = f"<|im_end|>\n<|im_start|>tool\n{(FAILED, PASSED)[k % 2]}{opening}"
            parts = [f"call {k}", tool, f"end {'x' * k}<|im_end|>"]
            ids = [tokenizer(x, add_special_tokens=False)["input_ids"] for x in parts]
            answered.append([token for part in ids for token in part])
            masks.append([int(i != 1) for i, part in enumerate(ids) for _ in part])
        logps = [[-1.0] * len(ids) for ids in answered]
        return {
            "prompt_ids": asked,
            "completion_ids": answered,
            "logprobs": logps,
            "env_mask": masks,
        }

    trainer = grpo(Feedback(), rollout_func=play, max_completion_length=64)
    trainer.train()
    verdicts = []
    for _, completion, outcomes in rows_of(trainer):
        known = [x for x in outcomes if x == x]
        failing = FAILED in tokenizer.decode(completion)
        assert known[-1] == float(failing)  # the turn after the tool
        verdicts.append(failing)
    assert set(verdicts) == {True, False}
    assert json.dumps(cases.logged(trainer))  # plain numbers
