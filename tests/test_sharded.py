"""Sharded weights in two processes against one: ZeRO-2, ZeRO-3 and FSDP2 on a CPU."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import sharded_cases as sharded
import torch
from accelerate import FullyShardedDataParallelPlugin, ParallelismConfig
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.losses.presets import Terms
from emoreg.training.checks import check_launch, check_loop
from emoreg.training.reference import Reference
from emoreg.vectors.emotion_vectors import EmotionVectors

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or shutil.which("c++") is None,
    reason="deepspeed, or the C++ compiler with which it builds its communication on a "
    "CPU, is not installed; docs/training.md says how",
)
# Anchors start at zero, since the model starts as the reference: as heavy as this,
# either of them alone is seen when it counts double.
WEIGHTS = {"contrast": 1.0, "band": 0.1, "meaning": 100.0, "kl": 1000.0}
# Sums in another order: relative to the largest entry, and on average.
LARGEST, MEAN = 3e-4, 1e-6
ZERO, FSDP2 = "ZeRO, two processes", "FSDP2, two processes"
HERE = Path(__file__).resolve().parent


@pytest.fixture
def folder(
    tiny_model: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Path:
    cases.write_files(tmp_path, cases.lively(tiny_model("llama")), tokenizer)
    return tmp_path


def job(*, batch: int, **options: Any) -> sharded.Job:
    changes = {
        "per_device_train_batch_size": batch,
        "max_steps": 4,
        "optim": "sgd",
        "learning_rate": 1e-2 if options.get("peft", True) else 1e-3,
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": True,
        **options.pop("changes", {}),
    }
    return sharded.Job(**{"weights": WEIGHTS, "changes": changes, **options})


def launch(
    folder: Path, name: str, kind: str, made: sharded.Job, *, stage: int = 0
) -> dict[str, Any]:
    """Run a job in two processes, launched as a user would."""
    sharded.write_job(folder, name, made)
    if kind == "zero":
        file = HERE.parent / "recipes" / "accelerate" / f"zero{stage}_cpu.yaml"
        start = ["accelerate.commands.launch", "--config_file", str(file)]
    else:
        start = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = [str(HERE / "sharded_cases.py"), kind, str(folder), name]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    done = subprocess.run(
        [sys.executable, "-m", *start, *program],
        env={**os.environ, "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=480,  # the first run of DeepSpeed compiles its communication
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / f"{name}.pt", weights_only=False)


def one_process(folder: Path, made: sharded.Job) -> dict[str, Any]:
    result = sharded.run_trainer(folder, "one", made)
    assert result is not None
    return result


def figures(result: dict[str, Any]) -> list[dict[str, float]]:
    """Terms, readings, the loss and the gradient's size of each step."""
    kept = ("emotion", "loss", "grad_norm")
    # Times are of the machine; the terms' gradients are not measured where DeepSpeed
    # runs the backward pass.
    left = ("emotion_cost", "emotion_gradient")
    return [
        {
            k: v
            for k, v in entry.items()
            if k.startswith(kept) and not k.startswith(left)
        }
        for entry in result["log"]
        if "loss" in entry
    ]


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    largest, mean, _ = cases.gap(a, b)
    size = max(float(tensor.abs().max()) for tensor in a.values())
    return largest < LARGEST * size and mean < MEAN * size


def same_numbers(a: dict[str, float], b: dict[str, float]) -> bool:
    # Percentiles come from bins: a reading at the edge of one may be in the next.
    binned = {key: 0.3 for key in a if key.endswith(("_p05", "_p95"))}
    return a.keys() == b.keys() and all(
        a[key] == pytest.approx(b[key], rel=1e-3, abs=binned.get(key, 1e-3))
        for key in a
    )


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Name what is not the same in two runs of the trainer."""
    found = []
    steps = list(zip(figures(one), figures(two), strict=True))
    assert len(steps) == 4
    if not all(same_numbers(a, b) for a, b in steps):
        found.append("log")
    moved = [
        {name: run["weights"][name] - run["start"][name] for name in run["weights"]}
        for run in (one, two)
    ]
    if not close(*moved):
        found.append("weights")
    return found + states(one, two)


def states(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Name what in a checkpoint's running means is not the same."""
    first, second = dict(tensors(one["state"])), dict(tensors(two["state"]))
    assert first.keys() == second.keys()
    assert "contrast-lda/failing_sum" in first
    return [
        name
        for name, tensor in first.items()
        if not torch.allclose(tensor, second[name], rtol=1e-3, atol=1e-3)
    ]


def tensors(
    state: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of nested state with their paths."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from tensors(value, f"{path}{name}/")
        elif isinstance(value, torch.Tensor):
            yield f"{path}{name}", value


def check_double_is_seen(
    folder: Path, one: dict[str, Any], made: Callable[..., sharded.Job]
) -> None:
    """The control: with either anchor counted twice, the comparison fails."""
    for name in ("meaning", "kl"):
        twice = {**WEIGHTS, name: 2 * WEIGHTS[name]}
        assert "weights" in differences(one, one_process(folder, made(weights=twice)))
    twice = {**WEIGHTS, "contrast": 2 * WEIGHTS["contrast"]}
    found = differences(one, one_process(folder, made(weights=twice)))
    assert {"log", "weights"} <= set(found)


@pytest.mark.cell(trainer="sft", mode="stage {stage}", launch=ZERO)
@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize(
    ("stage", "peft", "parts"),
    [pytest.param(2, True, 2, marks=pytest.mark.matrix), (3, False, 1)],
    ids=["zero2", "zero3"],
)
def test_zero_in_two_processes_equals_one(
    folder: Path, stage: int, peft: bool, parts: int
) -> None:
    """LoRA in parts of a step under ZeRO-2; all weights under ZeRO-3."""
    changes = {"gradient_accumulation_steps": parts}

    def alone(**options: Any) -> sharded.Job:
        return job(batch=4, peft=peft, changes=changes, **options)

    two = launch(
        folder,
        "two",
        "zero",
        job(batch=2, peft=peft, changes=changes),
        stage=stage,
    )
    assert (two["kind"], two["processes"]) == ("DEEPSPEED", 2)
    assert two["sharded"] is (stage == 3)
    one = one_process(folder, alone())
    assert differences(one, two) == []
    measured = [
        sum(key.startswith("emotion_gradient") for entry in run["log"] for key in entry)
        for run in (one, two)
    ]
    assert measured[0] > 0 == measured[1]
    assert one["obstacle"] == ""
    assert "DeepSpeed runs the backward pass" in two["obstacle"]
    check_double_is_seen(folder, one, alone)
    assert "before the first `trainer.train()`" in two["again"]
    assert ("sharded them" in two["read"]) is (stage == 3)


@pytest.mark.cell(
    trainer="sft",
    mode="stage 3, resumed",
    launch=ZERO,
)
@pytest.mark.slow
@needs_deepspeed
def test_zero3_loads_sharded_saves_and_resumes(folder: Path) -> None:
    """An adapter over weights that were never whole on one process."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    early = job(batch=2, early=True, changes=saving)
    two = launch(folder, "two", "zero", early, stage=3)
    assert two["early"]
    assert two["sharded"]
    one = one_process(folder, job(batch=4))
    assert differences(one, two) == []
    saved = load_file(folder / "two" / "saved" / "adapter_model.safetensors")
    assert len(saved) == sum("lora_" in name for name in two["weights"])
    for name, tensor in saved.items():
        known = name.replace(".weight", ".default.weight")
        assert torch.equal(tensor, two["weights"][known])
    checkpoint = str(folder / "two" / "checkpoint-2")
    again = launch(folder, "again", "zero", job(batch=2, resume=checkpoint), stage=3)
    assert differences(one, again) == []


@pytest.mark.cell(trainer="loop", mode="full, LoRA, checkpointing", launch=FSDP2)
@pytest.mark.slow
def test_fsdp2_in_two_processes_equals_one(folder: Path) -> None:
    """All weights, all with activation checkpointing, and an adapter."""
    two = launch(folder, "two", "fsdp2", job(batch=0))
    for case, settings in sharded.FSDP2_CASES.items():
        one = sharded.run_loop(folder, WEIGHTS, **settings)
        assert (one["processes"], two[case]["processes"]) == (1, 2)
        assert loop_differences(one, two[case]) == []
        assert one["read"] == ""
        assert "sharded them" in two[case]["read"]
    for name in ("contrast", "meaning", "kl"):  # the control: each counted twice
        twice = {**WEIGHTS, name: 2 * WEIGHTS[name]}
        control = sharded.run_loop(folder, twice, **sharded.FSDP2_CASES["full"])
        assert "gradients" in loop_differences(control, two["full"])


def loop_differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Name what is not the same in two runs of the loop."""
    found = states(one, two)
    if one["losses"] != pytest.approx(two["losses"], rel=1e-4):
        found.append("losses")
    if not same_numbers(one["metrics"], two["metrics"]):
        found.append("metrics")
    pairs = zip(one["gradients"], two["gradients"], strict=True)
    if not all(close(a, b) for a, b in pairs):
        found.append("gradients")
    return found


@pytest.mark.cell(
    trainer="sft",
    mode="version 1, or one loader",
    launch=FSDP2,
    refused=True,
)
def test_launches_that_cannot_read_the_reference_are_refused(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FSDP as accelerate describes it to a trainer; it runs on accelerators alone."""
    trainer: Any = cases.make_sft(model(), tokenizer, tmp_path, peft=cases.adapter())
    check_launch(trainer, probed=False)

    def describe(**settings: Any) -> None:
        plugin = FullyShardedDataParallelPlugin(**settings)
        state = trainer.accelerator.state
        monkeypatch.setattr(state, "fsdp_plugin", plugin, raising=False)
        monkeypatch.setattr(trainer, "is_fsdp_enabled", True)

    describe(fsdp_version=1)
    with pytest.raises(ValueError, match="must be of version 2, got 1"):
        check_launch(trainer, probed=False)
    describe(fsdp_version=2, cpu_ram_efficient_loading=True)
    with pytest.raises(ValueError, match="every process must load the weights"):
        check_launch(trainer, probed=False)
    describe(fsdp_version=2, cpu_ram_efficient_loading=False)
    with pytest.raises(ValueError, match="a probe set is read with whole weights"):
        check_launch(trainer, probed=True)
    terms: Terms = cases.make_terms(vectors, reference)
    attached = cases.attach(trainer, terms=terms, outcome="failed")
    assert len(attached.emotions.regularizer.anchors) == 2


@pytest.mark.parametrize(("kind", "name"), [("cp", "context"), ("sp", "sequence")])
def test_sequences_split_over_processes_are_refused(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    name: str,
) -> None:
    trainer: Any = cases.make_sft(model(), tokenizer, tmp_path, peft=cases.adapter())
    state = trainer.accelerator.state
    monkeypatch.setattr(
        state, "parallelism_config", ParallelismConfig(dp_replicate_size=1)
    )
    check_launch(trainer, probed=False)  # the control: a plan that splits nothing
    split = ParallelismConfig(**{f"{kind}_size": 2})  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(state, "parallelism_config", split)
    for check in (
        lambda: check_launch(trainer, probed=False),
        lambda: check_loop(trainer.accelerator),
    ):
        with pytest.raises(ValueError, match=f"{name} parallelism gives it a part"):
            check()


def test_the_files_that_shard_say_what_attach_needs() -> None:
    folder = HERE.parent / "recipes" / "accelerate"

    def settings(name: str) -> Any:
        return load_config_from_file(str(folder / f"{name}.yaml"))

    fsdp = settings("fsdp2").fsdp_config
    assert fsdp["fsdp_version"] == 2
    assert fsdp["fsdp_cpu_ram_efficient_loading"] is False
    for stage in (2, 3):
        for name in (f"zero{stage}", f"zero{stage}_cpu"):
            assert settings(name).deepspeed_config["zero_stage"] == stage
