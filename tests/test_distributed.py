"""Two processes on a CPU against one: the same global batch, the same run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.training.watching.log_file import NAME

pytestmark = pytest.mark.slow

WEIGHTS = {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 1.0}
GIVEN = (0.5, 0.5, 0.1, 1.0, 1.0)
"""The same by term: two readers share the contrast's."""
# Sums in another order, over 4 steps: relative to the largest entry, and on average.
LARGEST, MEAN = 3e-4, 1e-6

DDP = "DDP, two processes"


@pytest.fixture
def folder(
    tiny_model: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Path:
    cases.write_files(tmp_path, cases.lively(tiny_model("llama")), tokenizer)
    return tmp_path


def job(rows: list[dict[str, Any]], *, batch: int, peft: bool = True) -> cases.Job:
    changes = {
        "per_device_train_batch_size": batch,
        "max_steps": 4,
        "optim": "sgd",
        "learning_rate": 1e-3,
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": True,
    }
    return cases.Job(rows=rows, weights=WEIGHTS, peft=peft, changes=changes)


def figures(result: dict[str, Any]) -> list[dict[str, float]]:
    """Terms, readings, gradients and the loss of each step."""
    kept = ("emotion", "loss")
    return [
        {k: v for k, v in entry.items() if k.startswith(kept) and "_cost/" not in k}
        for entry in result["log"]
        if "loss" in entry
    ]


def moved(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """How far training moved each parameter."""
    after, start = result["weights"], result["start"]
    return {name: tensor - start[name] for name, tensor in after.items()}


@pytest.mark.cell(trainer="sft", mode="full and LoRA", launch=DDP)
@pytest.mark.parametrize(
    "peft",
    [True, pytest.param(False, marks=pytest.mark.matrix)],
    ids=["lora", "full"],
)
def test_two_processes_equal_one(folder: Path, peft: bool) -> None:
    rows = [dict(row) for row in cases.make_rows(16)]
    one = cases.run_job(folder, "one", job(rows, batch=4, peft=peft))
    two = cases.run_job(folder, "two", job(rows, batch=2, peft=peft), processes=2)
    half = cases.run_job(folder, "half", job(rows, batch=2, peft=peft))
    assert (one["processes"], two["processes"]) == (1, 2)
    written = (folder / "two" / NAME).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in written] == [0, 1, 2, 3, 4]
    compared = list(zip(figures(one), figures(two), strict=True))
    assert len(compared) == 4
    for expected, found in compared:
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert {"emotion_gradient/task", "emotion_gradient/band"} <= set(found)
    steps = moved(one)
    largest, mean, size = cases.gap(steps, moved(two))
    biggest = max(float(step.abs().max()) for step in steps.values())
    assert largest < LARGEST * biggest
    assert mean < MEAN * biggest
    # The control: half of the batch is another run.
    assert cases.gap(steps, moved(half))[1] > 0.1 * size
    assert figures(half)[0] != pytest.approx(figures(one)[0], rel=1e-3, abs=1e-3)
    for key in ("emotion_gradient/task", "emotion_gradient/contrast-lda"):
        assert figures(half)[0][key] != pytest.approx(figures(one)[0][key], rel=1e-2)


def test_two_processes_set_the_same_weights_as_one(folder: Path) -> None:
    """First weights from the first batches, then an update on targets."""
    rows = [dict(row) for row in cases.make_rows(16)]

    def run(name: str, batch: int, processes: int = 1) -> dict[str, Any]:
        made = job(rows, batch=batch)
        made = replace(made, kl_budget=1e-4, changes={**made.changes, "max_steps": 11})
        return cases.run_job(folder, name, made, processes=processes)

    one, two, half = run("one", 4), run("two", 2, 2), run("half", 2)
    assert len(two["term_weights"]) == 2
    assert torch.equal(two["term_weights"][0], two["term_weights"][1])
    assert "emotion_error/kl" in figures(two)[-1]
    together, alone = two["term_weights"][0].tolist(), one["term_weights"][0].tolist()
    assert together == pytest.approx(alone, rel=1e-3)
    # Control: half of the batch sets other weights, and all of them were set.
    assert half["term_weights"][0].tolist() != pytest.approx(alone, rel=1e-2)
    assert len(alone) == len(GIVEN)
    for found, given in zip(alone, GIVEN, strict=True):
        assert found != pytest.approx(given, rel=1e-2)


@pytest.mark.cell(
    trainer="sft", mode="outcomes of one kind alone", launch="DDP, two processes"
)
def test_a_process_without_failing_rows_joins_every_reduce(folder: Path) -> None:
    """One process sees only failures, the other only successes; then none at all."""
    kinds: list[tuple[float | None, ...]] = [(None, 1.0), (None, 0.0)] * 3
    kinds += [(None, None), (None, None)]
    rows = [cases.row(turns, k) for k, turns in enumerate(kinds)]
    two = cases.run_job(folder, "two", job(rows, batch=1), processes=2, seconds=150)
    one = cases.run_job(folder, "one", job(rows, batch=2))
    alone = cases.run_job(folder, "alone", job(rows[::2], batch=1))
    for expected, found in zip(figures(one), figures(two), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
    slope = "emotion/desperate/L2/lda/slope"
    assert [slope in step for step in figures(two)] == [True, True, True, False]
    assert not any(slope in step for step in figures(alone))
    largest, _, _ = cases.gap(one["weights"], two["weights"])
    assert largest < 1e-6
    assert cases.gap(one["weights"], alone["weights"])[0] > 1e-6
