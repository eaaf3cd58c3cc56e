"""The recipes: whole programs, run through their own command lines."""

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


@pytest.mark.parametrize("terms", ["decouple", "none"])
@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_writes_an_adapter_that_peft_loads(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    name: str,
    terms: str,
) -> None:
    base, vectors = cases.lively(tiny_model("llama")), cases.make_vectors()
    reference = cases.make_reference(base, tokenizer, vectors)
    base.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vectors.save(tmp_path / "vectors.safetensors")
    reference.save(tmp_path / "reference.safetensors")
    ROWS[name]().to_json(tmp_path / "rows.jsonl")
    flags = {
        "model": tmp_path / "model",
        "data": tmp_path / "rows.jsonl",
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
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([tokenizer("job 3, and the reply to it")["input_ids"]])
    with torch.no_grad():
        untrained = fresh(ids).logits
        loaded: Any = PeftModel.from_pretrained(fresh, str(tmp_path / "out"))
        tuned = loaded.eval()(ids).logits
        trained = trainer.model.eval()(ids).logits.float()
    assert torch.allclose(tuned, trained, atol=1e-4)
    assert not torch.allclose(tuned, untrained, atol=1e-4)


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
