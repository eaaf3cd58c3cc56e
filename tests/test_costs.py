"""What readings and terms cost: time, bytes and operations, each against an oracle."""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import seam_cases as cases
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    Reduce,
    alone,
)
from emoreg.residual.capture import capture
from emoreg.training.attach import attach
from emoreg.training.reference import Reference
from emoreg.training.watch import watch
from emoreg.training.watching import costs as costs_module
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.emotion_vectors import EmotionVectors

ROOT = Path(__file__).resolve().parent.parent


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(costs_module, "time", made)
    return made


class Slow(AbstractDecisionTerm):
    """A term that takes its time, and pulls at nothing."""

    name, weight = "slow", 1.0

    def __init__(self, probe: Any, take: Callable[[], None]) -> None:
        self.probe, self._take = probe, take

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        del reduce
        self._take()
        return 0.0 * readings.values.nan_to_num(0.0).sum()


class Elsewhere(TrainerCallback):
    """Moves the clock in the optimizer's step, and between steps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._clock.move(0.3)

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._clock.move(50.0)

    def on_log(self, *_: Any, **__: Any) -> None:
        self._clock.move(7.0)


@pytest.fixture
def probe(vectors: EmotionVectors, reference: Reference) -> Any:
    terms = cases.make_terms(vectors, reference)
    return next(t for t in terms if isinstance(t, AbstractDecisionTerm)).probe


def priced(trainer: Any) -> list[dict[str, float]]:
    return cases.logged(trainer, "emotion_cost/")


# -- time ----------------------------------------------------------------------------


def test_time_is_that_of_our_own_work(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    probe: Any,
    clock: Clock,
    tmp_path: Path,
) -> None:
    """A forward pass takes 0.2 s, a term 0.05, the optimizer 0.3, the rest nothing."""
    trained, parts = model(), 2
    trainer: Any = cases.make_sft(
        trained,
        tokenizer,
        tmp_path,
        callbacks=[Elsewhere(clock)],
        eval_rows=cases.make_rows(2),
        gradient_accumulation_steps=parts,
        max_steps=4,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=1,
    )
    weights = {"contrast": 0.0, "band": 0.0, "meaning": 1.0, "kl": 0.0}
    terms = cases.make_terms(vectors, reference, **weights)
    attach(
        trainer,
        monitor=Monitor(vectors, gradients_every=0),
        terms=[Slow(probe, lambda: clock.move(0.05)), *terms],
        outcome="failed",
        reference=reference,
    )
    trained.register_forward_pre_hook(lambda *_: clock.move(0.2))
    trainer.train()
    first, second = priced(trainer)
    # The anchor's own forward pass is ours: in the first of four steps.
    own = [parts * 0.05 + 0.2 / 2, parts * 0.05]
    whole = [x + parts * 0.2 + 0.3 for x in own]
    for line, ours, step in zip((first, second), own, whole, strict=True):
        assert line["emotion_cost/ms_per_step"] == pytest.approx(1000 * ours, rel=1e-3)
        assert line["emotion_cost/percent"] == pytest.approx(
            100 * ours / step, rel=1e-3
        )
    assert clock.now > 300  # control: evaluation and log lines took much longer


def test_a_log_lines_own_time_is_in_the_next_one(clock: Clock) -> None:
    costs = costs_module.Costs(torch.device("cpu"))
    said = []
    for _ in range(2):
        costs.begin()
        clock.move(1.0)
        costs.end()
        clock.move(9.0)  # someone else's work between two steps
        with costs.own():
            said.append(costs.metrics(alone, 1))
            clock.move(0.25)
    assert said[0] == {"emotion_cost/ms_per_step": 0.0, "emotion_cost/percent": 0.0}
    assert said[1]["emotion_cost/ms_per_step"] == pytest.approx(250)
    assert said[1]["emotion_cost/percent"] == pytest.approx(20)
    assert costs.metrics(alone, 1) == {}  # there was no step since


def test_processes_share_their_mean(clock: Clock) -> None:
    costs = costs_module.Costs(torch.device("cpu"))
    costs.begin()
    with costs.own():
        clock.move(0.1)
    clock.move(0.3)
    costs.end()
    # The other process spent three times as much.
    said = costs.metrics(lambda x: x + torch.tensor([0.3, 0.4]), 2)
    assert said["emotion_cost/ms_per_step"] == pytest.approx(200)
    assert said["emotion_cost/percent"] == pytest.approx(50)


def test_a_slow_term_is_seen_on_a_real_clock_and_moves_nothing(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    probe: Any,
    tmp_path: Path,
) -> None:
    bare: Any = cases.make_sft(model(), tokenizer, tmp_path, max_steps=2)
    slow: Any = cases.make_sft(model(), tokenizer, tmp_path, max_steps=2)
    before = cases.weights(bare)
    attach(
        slow,
        monitor=Monitor(vectors, gradients_every=0),
        terms=[Slow(probe, lambda: time.sleep(0.1))],
        outcome="failed",
        reference=reference,
    )
    for trainer in (bare, slow):
        trainer.train()
    assert priced(bare) == []
    assert len(priced(slow)) == 2
    for line in priced(slow):
        assert line["emotion_cost/ms_per_step"] >= 100
        assert 0 < line["emotion_cost/percent"] < 100
    assert cases.losses(slow) == cases.losses(bare)
    assert cases.equal(cases.weights(slow), cases.weights(bare))
    assert not cases.equal(before, cases.weights(bare))  # control: it moves


def test_a_loops_step_is_from_one_to_the_next(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    probe: Any,
    clock: Clock,
    tmp_path: Path,
) -> None:
    trained = model()
    plain: Any = cases.make_plain(trained, tokenizer, tmp_path)
    rows = list(map(dict, plain.train_dataset))
    batch, failed = cases.collate(rows[:2]), [row["failed"] for row in rows[:2]]
    made = watch(
        trained,
        tokenizer,
        monitor=Monitor(vectors, gradients_every=0),
        terms=[Slow(probe, lambda: clock.move(0.05))],
        reference=reference,
        quiet=True,
    )
    with made as w:
        for _ in range(3):
            loss = trained(**batch).loss
            clock.move(0.2)
            (loss + w.terms(batch, failed)).backward()
            w.after_backward()
        found = w.metrics()
    assert found["emotion_cost/ms_per_step"] == pytest.approx(50)
    assert found["emotion_cost/percent"] == pytest.approx(20)


@pytest.mark.slow
def test_the_benchmark_runs_to_its_end(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On an untrained model; the times mean nothing here."""
    cases.write_files(tmp_path, model(), tokenizer)
    files = [f"--{x}={tmp_path / x}.safetensors" for x in ("vectors", "reference")]
    script = load_script("bench_training")
    script.main(
        ["--model", str(tmp_path / "model"), *files, "--repeats=1", "--twins=1"]
    )
    said = capsys.readouterr().out.splitlines()
    lines = {line[:18].strip(): line[18:].split() for line in said}
    assert set(script.ARMS) <= set(lines)
    assert all(float(lines[arm][1]) > 0 for arm in script.ARMS)
    # Terms and readings are logged with what they cost, the bare trainer is not.
    assert "%" not in lines["bare again"]
    assert all("%" in lines[arm] for arm in set(script.ARMS) - set(script.BARE))


# -- bytes ---------------------------------------------------------------------------


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Address and size of each piece of memory under these tensors."""
    found = [t.untyped_storage() for t in tensors]
    return {s.data_ptr(): s.nbytes() for s in found}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captured_layers_take_the_bytes_that_the_formula_says(
    model: Callable[[], PreTrainedModel], dtype: torch.dtype, checkpointed: bool
) -> None:
    """For each layer rows x tokens x d_model x bytes, unless autograd has it."""
    made: Any = model()
    made.to(dtype).train()
    if checkpointed:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    ids, layers = torch.randint(0, 250, (2, 24)), (1, 2, 3)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with capture(made, layers, gradient=True) as captured:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = made(input_ids=ids, labels=ids).loss
        streams = storages([captured[layer] for layer in layers])
    formula = ids.numel() * 32 * dtype.itemsize
    assert list(streams.values()) == [formula] * 3
    assert loss.requires_grad
    saved = storages(kept)
    added = sum(size for at, size in streams.items() if at not in saved)
    # Float32 norms save their input, a checkpoint the input of its block; in half
    # precision the norms save a float32 copy and nobody the stream itself.
    wanted = {
        torch.float32: 0,
        torch.bfloat16: formula if checkpointed else 3 * formula,
    }
    assert added == wanted[dtype]


# -- operations ----------------------------------------------------------------------


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SMALL = {
    "num_hidden_layers": 10,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def test_operations_on_no_device_are_those_of_a_real_run() -> None:
    script = load_script("count_operations")
    rows, tokens = 2, 12
    model = script.build(**SMALL)
    shape = torch.empty(rows, tokens, dtype=torch.long, device="meta")
    counted = script.train_step(model, shape)
    real = model.to_empty(device="cpu").float()
    for p in real.parameters():
        p.data.normal_(std=0.02)
    ids, mask = torch.randint(0, 64, (rows, tokens)), torch.zeros(1, 1, tokens, tokens)
    with FlopCounterMode(display=False) as counter:
        real(input_ids=ids, labels=ids, attention_mask=mask).loss.backward()
    assert counted.products == counter.get_total_flops() > 0
    script.keep_as_adapter(real)
    less = script.train_step(real, ids).products
    assert counted.products / 3 < less < counted.products  # the forward pass is a third


def test_the_monitors_products_are_the_formulas() -> None:
    """2 x tokens x readers x layers x emotions x d_model: each stream is read once."""
    script = load_script("count_operations")
    rows, tokens, turns = 2, 12, 3
    model = script.build(**SMALL)
    found = script.monitor_step(model, rows, tokens, turns=turns).products
    readers, layers, emotions = 3, 3, 2
    wanted = 2 * rows * tokens * readers * layers * emotions * 32
    assert found == pytest.approx(wanted, rel=0.05)
    assert found != pytest.approx(wanted / 2, rel=0.05)
