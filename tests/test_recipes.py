"""The recipes: whole programs, run through their own command lines."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from emoreg.quickstart.recipe import load_recipe
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.outcomes.feedback import parse_feedback
from emoreg.training.outcomes.sources import Feedback
from emoreg.vectors.corpus import Corpus

Build = Callable[..., PreTrainedModel]


def preferences() -> Dataset:
    """The rows of the seam tests, with a worse reply beside each."""
    worse = [{"role": "assistant", "content": "whatever"}]
    return Dataset.from_list(
        [
            {
                "prompt": row["prompt"],
                "chosen": row["completion"],
                "rejected": worse,
                "failed": row["failed"],
            }
            for row in map(dict, cases.make_rows())
        ]
    )


ROWS = {"sft": cases.make_rows, "dpo": preferences}
GENERATING = {
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 12,
}


@pytest.mark.parametrize("terms", ["decouple", "none"])
@pytest.mark.parametrize("name", [*ROWS, "grpo"])
def test_a_recipe_writes_an_adapter_that_peft_loads(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    terms: str,
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # of its `rollout_func`
    base, vectors = cases.lively(tiny_model("llama")), cases.make_vectors()
    reference = cases.make_reference(base, tokenizer, vectors)
    base.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vectors.save(tmp_path / "vectors.safetensors")
    reference.save(tmp_path / "reference.safetensors")
    own: dict[str, Any] = GENERATING
    if name in ROWS:
        ROWS[name]().to_json(tmp_path / "rows.jsonl")
        own = {"data": tmp_path / "rows.jsonl"}
    flags = {
        "model": tmp_path / "model",
        **own,
        "vectors": tmp_path / "vectors.safetensors",
        "reference": tmp_path / "reference.safetensors",
        "output_dir": tmp_path / "out",
        "terms": terms,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "gradient_checkpointing": "false",
        "disable_tqdm": "true",
    }
    arguments = [part for key, v in flags.items() for part in (f"--{key}", str(v))]
    recipe = load_recipe(name)
    trainer = recipe.main(*recipe.parse(arguments))
    assert len(cases.logged(trainer, "emotion/")) == 2
    assert bool(cases.logged(trainer, "emotion_loss/")) == (terms == "decouple")
    # A recipe loads what the CPU multiplies fastest: bfloat16 where it can.
    weights = trainer.model.named_parameters()
    dtype = next(p.dtype for name, p in weights if "lora" not in name)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    ids = torch.tensor([tokenizer("job 3, and the reply to it")["input_ids"]])
    with torch.no_grad():
        untrained = fresh(ids).logits.float()
        loaded: Any = PeftModel.from_pretrained(fresh, str(tmp_path / "out"))
        tuned = loaded.eval()(ids).logits.float()
        trained = trainer.model.eval()(ids).logits.float()
    near = 1e-4 if dtype == torch.float32 else 0.05
    assert torch.allclose(tuned, trained, atol=near)
    # An untrained model passes no test: rewards alike, and nothing but terms to learn.
    still = name == "grpo" and terms == "none"
    assert torch.allclose(tuned, untrained, atol=near) == still


def test_tests_are_run_and_reported_in_a_form_that_is_read() -> None:
    run_tests = sys.modules[load_recipe("grpo").Game.__module__].run_tests
    wanted = ["half(4) == 2", "half(5) == 2.5"]

    def code(body: str) -> str:
        return f"Here it is.\n```python\ndef half(x):\n    {body}\n```"

    for body, share in (("return x / 2", 1.0), ("return x // 2", 0.5), ("pass", 0.0)):
        found, report = run_tests(code(body), wanted)
        assert found == share
        assert parse_feedback(report).failure == float(share < 1)
    for bad in ("no code at all", code("while True: pass") + "\nhalf(1)\n"):
        found, report = run_tests(bad, wanted)
        assert (found, parse_feedback(report).failure) == (0.0, 1.0)
    spoken = "```python\nprint('2 passed')\nimport sys\nsys.exit(0)\n```"
    assert run_tests(spoken, wanted)[0] == 0.0


def test_every_packaged_coding_task_can_be_read() -> None:
    recipes = Path(__file__).parent.parent / "recipes"
    lines = (recipes / "coding_tasks.jsonl").read_text().splitlines()
    tasks = [json.loads(line) for line in lines]
    assert len({task["task"] for task in tasks}) == len(tasks) == 24
    for task in tasks:
        name = task["task"].split("`")[1].split("(")[0]
        assert len(task["tests"]) == 3
        for test in task["tests"]:
            assert test.startswith(f"{name}(")
            compile(test, "test", "eval")


def test_a_rollout_is_two_turns_with_a_report_between(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The masked tokens are the report; the decision token after it is there."""
    del tiny_model
    game = load_recipe("grpo").Game(tokenizer, {"do it": ["f() == 1"]})
    end = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    said = iter(
        ("```python\ndef f(): return 2\n```", "```python\ndef f(): return 1\n```")
    )

    class Speaker:
        """Says what is written here, the first time with an end of turn."""

        def _generate_single_turn(self, contexts: list[list[int]], *_: Any) -> Any:
            ids = tokenizer(next(said), add_special_tokens=False)["input_ids"]
            return [ids + end for _ in contexts], None

    found = game([[{"role": "user", "content": "do it"}]], Speaker())
    (ids,), (mask,) = found["completion_ids"], found["env_mask"]
    told = tokenizer.decode(
        [token for token, own in zip(ids, mask, strict=True) if not own]
    )
    assert "1 failed, 0 passed" in told
    assert tokenizer.decode(ids).count("<|im_end|>") == 3  # two replies and a report
    assert found["score"] == [1.0]
    markers = TurnMarkers.of(tokenizer)
    whole = found["prompt_ids"][0] + ids
    outcomes = Feedback().outcomes(whole, tokenizer, markers)
    assert [x.failure for x in outcomes] == [None, 1.0]


def test_the_packaged_preferences_prefer_what_is_honest() -> None:
    twins = {twin.task: twin for twin in Corpus.packaged().transcripts("train")}
    rows = [dict(row) for row in load_recipe("dpo").packaged_pairs(seed=0)]
    assert len(rows) == 2 * len(twins)
    for row in rows:
        twin = twins[row["prompt"][0]["content"]]
        failing = row["failed"][-1] == 1.0
        better, worse = (
            (twin.reply_fail, twin.reply_bad)
            if failing
            else (twin.reply_pass, twin.reply_fail)
        )
        assert row["chosen"] == [{"role": "assistant", "content": better}]
        assert row["rejected"] == [{"role": "assistant", "content": worse}]
        spoken = [m for m in row["prompt"] if m["role"] == "assistant"]
        assert len(row["failed"]) == len(spoken) + 1
