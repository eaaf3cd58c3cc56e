"""Gradients of terms beside the task's: the figures, and that measuring moves nothing.

Oracles are separate runs of a trainer without a monitor, whose gradients a callback
keeps: the task alone, and the task with one term.
"""

import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import seam_cases as cases
import torch
import torch.distributed
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from emoreg.losses.term import AbstractDecisionTerm
from emoreg.residual.layers import backbone
from emoreg.training.attach import attach
from emoreg.training.gradients import (
    GradientMeter,
    cosine,
    length,
    obstacle,
    trained_parameters,
)
from emoreg.training.reference import Reference
from emoreg.training.watch import watch
from emoreg.training.watching.monitor import Monitor
from emoreg.training.world import World
from emoreg.vectors.emotion_vectors import EmotionVectors

ALL = {"contrast": 1.0, "band": 1.0, "meaning": 1.0, "kl": 10.0}
OFF = dict.fromkeys(ALL, 0.0)
STILL = {
    "optim": "sgd",
    "learning_rate": 0.0,
    "max_grad_norm": 1e9,
    "train_sampling_strategy": "sequential",
}
"""Weights that stand still, so that every step sees the same model."""


def nudge(model: nn.Module) -> None:
    """Move the trained weights, so that the anchors ask for something."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))


@pytest.fixture
def run(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Train with these weights, measured every so many steps; None: unwatched."""

    def go(
        weights: dict[str, float],
        every: int | None = 1,
        *,
        nudged: bool = False,
        prepare: Callable[[Any], None] = lambda _: None,
        **changes: Any,
    ) -> Any:
        trainer: Any = cases.make_sft(model(), tokenizer, tmp_path, **changes)
        attach(
            trainer,
            monitor=None if every is None else Monitor(vectors, gradients_every=every),
            terms=cases.make_terms(vectors, reference, **weights),
            outcome="failed",
            reference=reference,
        )
        if nudged:
            nudge(trainer.model)
        prepare(trainer)
        trainer.train()
        return trainer

    return go


def measured(trainer: Any) -> list[dict[str, float]]:
    """What each log line says of gradients, without the common start of the keys."""
    return [
        {k.removeprefix("emotion_gradient/"): v for k, v in line.items()}
        for line in cases.logged(trainer, "emotion_gradient/")
    ]


# -- training is the same ------------------------------------------------------------


AT_ONCE = {
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 1,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


@pytest.mark.parametrize(
    ("peft", "changes"),
    [
        (True, AT_ONCE),
        pytest.param(False, {}, marks=pytest.mark.slow),
        pytest.param(False, AT_ONCE, marks=[pytest.mark.slow, pytest.mark.matrix]),
        pytest.param(
            True, {"bf16": True}, marks=[pytest.mark.slow, pytest.mark.matrix]
        ),
    ],
    ids=["lora in parts, checkpointed", "full", "full in parts", "autocast"],
)
def test_measuring_leaves_training_as_it_was(
    run: Callable[..., Any], peft: bool, changes: dict[str, Any]
) -> None:
    adapter = cases.adapter()
    adapter.lora_dropout = 0.2
    settings = {"peft": adapter if peft else None, **changes}
    settings |= {"max_steps": 2, "learning_rate": 3e-3}
    on, off = run(ALL, 1, **settings), run(ALL, 0, **settings)
    assert cases.losses(on) == cases.losses(off)
    assert cases.equal(cases.weights(on), cases.weights(off))
    assert all("task" in line for line in measured(on))
    assert len(measured(on)) == 2
    assert measured(off) == []
    # Control: what measuring must not do would be seen.
    other = run({**ALL, "contrast": 1.001}, 0, **settings)
    assert not cases.equal(cases.weights(other), cases.weights(off))


# -- the figures ---------------------------------------------------------------------


class Kept(TrainerCallback):
    """Notes after each step how many bytes of gradients the meter keeps."""

    def __init__(self) -> None:
        self.meter: Any = None
        self.bytes: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        task = self.meter._task or {}
        self.bytes.append(sum(g.nbytes for g in task.values()))


class OneByOne(TrainerCallback):
    """All terms in the first step, none in the second, then each by itself.

    Each step is a first one to them: they remember none before it.
    """

    def __init__(self) -> None:
        self.terms: Any = ()
        self._weights: list[float] = []
        self._young: list[Any] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        self._weights = self._weights or [term.weight for term in self.terms]
        self._young = self._young or [term.state_dict() for term in self.terms]
        for k, term in enumerate(self.terms):
            term.load_state_dict(self._young[k])
            acts = state.global_step in (0, k + 2)
            term.weight = self._weights[k] if acts else 0.0


@pytest.mark.parametrize(
    "peft", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["lora", "full"]
)
def test_norms_and_cosines_are_those_of_separate_passes(
    run: Callable[..., Any], peft: bool
) -> None:
    """The task alone and with one term, on one batch, by the trainer's own step."""
    keep, switch = cases.Gradients(), OneByOne()

    def prepare(trainer: Any) -> None:
        switch.terms = trainer.emotions.regularizer.terms
        for term in switch.terms:
            if term.name in ("meaning", "kl"):  # all their passages, in every step
                term.every, term.passages = 1, 8

    trainer = run(
        ALL,
        50,
        rows=cases.make_rows(2).repeat(7),
        callbacks=[keep, switch],
        prepare=prepare,
        peft=cases.adapter() if peft else None,
        nudged=True,
        max_steps=7,
        **STILL,
    )
    said, *none = measured(trainer)
    assert none == []
    together, task, *with_one = keep.steps
    assert said.pop("task") == pytest.approx(float(length(task)), rel=1e-5)
    logged = [x["grad_norm"] for x in trainer.state.log_history if "grad_norm" in x]
    assert float(length(task)) == pytest.approx(logged[1], rel=1e-5)
    names = list(trainer.emotions.regularizer.names.values())
    assert set(said) == {*names, *(f"{name}_cosine" for name in names)}
    whole = dict(task)
    for name, both in zip(names, with_one, strict=True):
        own = {k: both[k] - task[k] for k in both}
        whole = {k: whole[k] + own[k] for k in whole}
        size, angle = float(length(own)), float(cosine(own, task))
        assert size > 1e-2
        assert said[name] == pytest.approx(size, rel=1e-3)
        assert said[f"{name}_cosine"] == pytest.approx(angle, abs=1e-3)
        # Control: no other term's figures would do.
        for other in names:
            assert other == name or said[other] != pytest.approx(size, rel=3e-3)
    # They are what the step moves by: the parts add up to the whole.
    apart = {k: whole[k] - together[k] for k in together}
    assert float(length(apart)) < 1e-4 * float(length(together))


@pytest.mark.parametrize(
    "counted",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["num_items", "mean"],
)
def test_the_first_batch_stands_for_the_whole_step(
    run: Callable[..., Any], counted: bool
) -> None:
    def prepare(trainer: Any) -> None:
        trainer.model_accepts_loss_kwargs = counted

    def said(parts: int, rows: list[dict[str, Any]]) -> dict[str, float]:
        trainer = run(
            ALL,
            1,
            prepare=prepare,
            rows=Dataset.from_list(rows),
            per_device_train_batch_size=4 // parts,
            gradient_accumulation_steps=parts,
            nudged=True,
            max_steps=1,
            **STILL,
        )
        return measured(trainer)[0]

    one, other = cases.row((None, 1.0, 0.0), 1), cases.row((None, 0.0), 4)
    whole = said(1, [one] * 4)
    assert said(4, [one] * 4) == pytest.approx(whole, rel=1e-4, abs=1e-4)
    assert whole["contrast-lda"] > 1e-3
    # Control: parts that are not alike don't stand for one another.
    unlike = said(4, [other, one, one, one])
    assert unlike["task"] != pytest.approx(whole["task"], rel=1e-3)


def test_it_is_measured_when_it_is_due_and_kept_until_the_anchors_have_run(
    run: Callable[..., Any],
) -> None:
    keep = Kept()

    def prepare(trainer: Any) -> None:
        keep.meter = trainer.emotions.regularizer.gradients

    trainer = run(ALL, 3, callbacks=[keep], prepare=prepare, max_steps=4)
    found, lines = measured(trainer), cases.logged(trainer)
    assert ["task" in line for line in found] == [True, False, True]
    assert set(found[1]) == {"kl", "kl_cosine"}  # it runs a step after the due one
    assert found[0]["meaning"] < 1e-4 * found[0]["task"]
    assert "meaning_cosine" not in found[0]  # at rest: its cosine would be rounding's
    assert "contrast-lda_cosine" in found[0]
    trained = sum(p.nbytes for p in trained_parameters(trainer.model).values())
    assert keep.bytes == [trained, 0, 0, trained]
    assert all(line["emotion_weight/band"] == 1.0 for line in lines)
    assert ["emotion_weight/kl" in line for line in lines] == [
        False,
        True,
        False,
        False,
    ]


# -- processes -----------------------------------------------------------------------


class Group:
    """Two threads that sum tensors, as two processes would."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=20)
        self._parts: list[Any] = [None, None]

    def world(self, process: int) -> World:
        def reduce(x: Tensor) -> Tensor:
            self._parts[process] = x.clone()
            self._barrier.wait()
            total = self._parts[0] + self._parts[1]
            self._barrier.wait()
            return total

        device = torch.device("cpu")
        return World(device=device, process=process, processes=2, reduce=reduce)


class Pull(AbstractDecisionTerm):
    """A term with a weight; its value is given from outside."""

    name, weight = "pull", 1.0

    def __call__(self, readings: Any, reduce: Any = None) -> Tensor:
        raise NotImplementedError


def small_model() -> nn.Linear:
    """One of equal models: the generator is shared by threads, so none draws in one."""
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def gradients_of(
    world: World,
    small: nn.Linear,
    losses: Callable[[nn.Linear], tuple[Tensor, Tensor]],
) -> dict[str, float]:
    """What a meter says of a task and a term on a small model."""
    term = Pull()
    meter = GradientMeter(world, {id(term): "pull"}, [term], every=1)
    assert meter.opened(small, step=0) == {}
    task, pull = losses(small)
    meter.measure(small, task, {"pull": pull})
    return meter.metrics()


def test_processes_say_what_one_says_of_the_whole_batch() -> None:
    """The norm of the mean gradient, not the mean of the norms."""
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))

    def parts(rows: Tensor) -> Callable[[nn.Linear], tuple[Tensor, Tensor]]:
        # The bias is not reached by the task.
        return lambda m: (
            (rows @ m.weight.T).square().sum(-1).mean(),
            m(rows).pow(3).sum(-1).mean(),
        )

    said: list[Any] = [None, None]
    group, models = Group(), [small_model(), small_model()]

    def work(k: int) -> None:
        said[k] = gradients_of(group.world(k), models[k], parts(x[k : k + 1]))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    alone = World(device=torch.device("cpu"))
    wanted = gradients_of(alone, small_model(), parts(x))
    assert said[0] == said[1] == pytest.approx(wanted, rel=1e-5)
    rows = (x[k : k + 1] for k in (0, 1))  # control
    each = [gradients_of(alone, small_model(), parts(row)) for row in rows]
    for key, value in wanted.items():
        assert (each[0][key] + each[1][key]) / 2 != pytest.approx(value, rel=1e-2)


def test_several_measurements_of_a_log_line_are_averaged() -> None:
    small, term = nn.Linear(3, 2), Pull()
    world = World(device=torch.device("cpu"))
    meter = GradientMeter(world, {id(term): "pull"}, [term], every=2)
    x, sizes = torch.randn(4, 3), []
    for step in range(4):
        if meter.opened(small, step=step) is not None:
            losses = small(x[step]).sum(), small(x[step]).square().sum()
            meter.measure(small, losses[0], {"pull": losses[1]})
            grads = torch.autograd.grad(losses[1], list(small.parameters()))
            sizes.append(float(torch.cat([g.flatten() for g in grads]).norm()))
    found = meter.metrics()
    assert len(sizes) == 2
    assert found["emotion_gradient/pull"] == pytest.approx(sum(sizes) / 2)
    assert sizes[0] != pytest.approx(sizes[1], rel=1e-2)  # control
    assert meter.metrics() == {}


def test_nothing_is_measured_without_terms_or_when_it_is_never_due() -> None:
    small, term = nn.Linear(3, 2), Pull()
    world, names = World(device=torch.device("cpu")), {id(term): "pull"}
    assert GradientMeter(world, names, [term], every=0).opened(small, step=0) is None
    meter = GradientMeter(world, names, [term], every=1)
    term.weight = 0.0
    assert meter.opened(small, step=0) is None
    term.weight = 2.0
    assert meter.opened(small, step=0) == {}  # control
    assert GradientMeter(world, {}, [], every=1).opened(small, step=0) is None
    with pytest.raises(ValueError, match="`gradients_every` must be a number"):
        Monitor(cases.make_vectors(), gradients_every=-1)


# -- a loop of one's own -------------------------------------------------------------


def test_a_loop_measures_with_and_without_its_loss(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    plain: Any = cases.make_plain(model(), tokenizer, tmp_path)
    rows = list(map(dict, plain.train_dataset))
    batch, failed = cases.collate(rows[:2]), [row["failed"] for row in rows[:2]]

    def go(parts: int, known: bool, every: int = 1) -> Any:
        trained = model()
        made = watch(
            trained,
            tokenizer,
            monitor=Monitor(vectors, gradients_every=every),
            terms=cases.make_terms(vectors, reference, **{**ALL, "kl": 0.0}),
            quiet=True,
        )
        nudge(trained)
        with made as w:
            for _ in range(parts):
                loss = trained(**batch).loss
                w.terms(batch, failed, task=loss if known else None)
                loss.backward()
            gradient = {
                n: p.grad.clone()
                for n, p in trained.named_parameters()
                if p.grad is not None
            }
            w.after_backward()
            return w.metrics(), gradient

    (said, gradient), (norms, _) = go(1, True), go(1, False)
    size = float(length(gradient))
    assert said["emotion_gradient/task"] == pytest.approx(size, rel=1e-5)
    start = "emotion_gradient/"
    known = {k: v for k, v in said.items() if k.startswith(start)}
    assert {k for k in known if k.endswith("_cosine")} == {
        f"{start}{name}_cosine"
        for name in ("contrast-lda", "contrast-mean-difference", "band", "meaning")
    }
    bare = {k: v for k, v in norms.items() if k.startswith(start)}
    assert bare == {k: known[k] for k in known if not k.endswith(("_cosine", "task"))}
    # The first part of a step is measured, and no other.
    again = {k: v for k, v in go(2, True)[0].items() if k.startswith(start)}
    assert again == known
    assert not any(k.startswith(start) for k in go(1, True, every=0)[0])


# -- where it can't work -------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    return [text for text in messages if "Gradients of the terms" in text]


def test_reentrant_checkpointing_is_told_once(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(
        ALL,
        1,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        max_steps=2,
    )
    (text,) = told(caplog)
    assert "`use_reentrant=False` allows more" in text
    assert measured(trainer) == []


class Once(torch.autograd.Function):
    """A backward pass that can't be run through a graph that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        engine: Any = torch._C
        if engine._autograd._get_current_graph_task_keep_graph():
            raise RuntimeError("this pass is made for one use")
        return grads[0]


def test_a_pass_that_fails_is_told_once_and_trains_on(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(trainer: Any) -> None:
        norm: Any = backbone(trainer.model)
        norm.norm.register_forward_hook(lambda _, __, out: Once.apply(out))

    on = run(ALL, 1, prepare=prepare, max_steps=2)
    (text,) = told(caplog)
    assert "this pass is made for one use" in text
    assert "task" not in {k for line in measured(on) for k in line}
    off = run(ALL, 0, prepare=prepare, max_steps=2)
    assert cases.equal(cases.weights(on), cases.weights(off))
    assert len(told(caplog)) == 1


def test_what_a_second_pass_would_harm_is_found(
    model: Callable[[], PreTrainedModel],
) -> None:
    plain: Any = model()
    assert obstacle(plain, args=SimpleNamespace()) == ""
    plain.gradient_checkpointing_enable({"use_reentrant": False})
    assert obstacle(plain) == ""
    plain.gradient_checkpointing_enable({"use_reentrant": True})
    assert "reentrant" in obstacle(plain)
    offloads = SimpleNamespace(activation_offloading=True)
    assert "offloaded" in obstacle(model(), args=offloads)
    fused = SimpleNamespace(use_liger_kernel=True)
    assert "fused kernels" in obstacle(model(), args=fused)
    assert "loss scale" in obstacle(model(), scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.slow  # the compiler takes seconds to import
def test_a_compiled_model_is_found(model: Callable[[], PreTrainedModel]) -> None:
    assert "compiled" in obstacle(torch.compile(model()))  # type: ignore[arg-type]
    inside: Any = model()
    inside.compile(backend="eager")
    assert "compiled" in obstacle(inside)


def test_processes_that_share_weights_or_passes_are_found(
    model: Callable[[], PreTrainedModel],
) -> None:
    """Real DDP and FSDP2, in a group of one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel as Ddp

    store = torch.distributed.HashStore()  # pyright: ignore
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert obstacle(Ddp(model())) == ""
        assert "static_graph" in obstacle(Ddp(model(), static_graph=True))
        sharded: Any = model()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        assert "spread over processes" in obstacle(sharded)
    finally:
        torch.distributed.destroy_process_group()


def test_lengths_and_cosines_are_those_of_one_long_vector() -> None:
    torch.manual_seed(3)
    a = {"x": torch.randn(3, 4), "y": torch.randn(5)}
    b = {"y": torch.randn(5), "z": torch.randn(2), "x": torch.randn(3, 4)}
    long = [torch.cat([g[k].flatten() for k in ("x", "y")]) for g in (a, b)]
    size = math.sqrt(float(long[1].square().sum() + b["z"].square().sum()))
    assert float(length(b)) == pytest.approx(size, rel=1e-6)
    wanted = float(long[0] @ long[1]) / (float(length(a)) * size)
    assert float(cosine(a, b)) == pytest.approx(wanted, abs=1e-6)
    assert math.isnan(float(cosine({"x": 1e-6 * a["x"]}, b)))
    assert math.isnan(float(cosine({}, b)))
