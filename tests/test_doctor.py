"""The doctor: each line passes and fails where it should, and no trace is left.

The trainers are real; what is broken is broken in the trainer, never in the doctor.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.trainer_utils import IntervalStrategy
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_trainer import SFTTrainer

from emoreg import presets
from emoreg.cli import main
from emoreg.losses.baselines import SquaredCorrelation
from emoreg.losses.energy import EnergyDistance
from emoreg.losses.jumps import JumpPenalty
from emoreg.losses.reroute import Complement, RerouteAnchor
from emoreg.residual.layers import decoder_layers
from emoreg.training.attach import attach
from emoreg.training.doctor import doctor as doctor_module
from emoreg.training.doctor.diagnosis import Finding, marked
from emoreg.training.doctor.doctor import doctor
from emoreg.training.doctor.trial import Trial, undisturbed, without_dropout
from emoreg.training.mixin import EmotionTrainerMixin
from emoreg.training.outcomes.feedback import Outcome
from emoreg.training.outcomes.sources import Feedback
from emoreg.training.reference import Reference
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.emotion_vectors import EmotionVectors

ALL = {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 1.0}
OFF = dict.fromkeys(ALL, 0.0)
NAME = "tiny/llama"


def only(name: str) -> dict[str, float]:
    return {**OFF, name: 1.0}


def named(owner: Any) -> Any:
    """Vectors or a reference that say which model they are of."""
    return replace(owner, provenance={**owner.provenance, "model": NAME})


@pytest.fixture
def build(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Make a sound SFTTrainer with monitor and terms; changes make it less so."""

    def make(weights: dict[str, float] | None = ALL, **changes: Any) -> Any:
        made = changes.pop("model", None) or model()
        made.config._name_or_path = NAME
        settings = {"peft": cases.adapter(), **changes}
        trainer = cases.make_sft(made, tokenizer, tmp_path, **settings)
        return cases.attached(trainer, named(vectors), named(reference), weights)

    return make


def line(trainer: Any, name: str) -> Finding:
    """The one line of that name."""
    diagnosis = doctor(trainer)
    found = [x for x in diagnosis.lines if x.name == name]
    assert len(found) == 1, str(diagnosis)
    assert bool(found[0].mend) == (found[0].status != "pass")
    return found[0]


# -- the whole -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"peft": None},
        {"padding_free": True},
        {"gradient_checkpointing": True},
        {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
        },
    ],
    ids=["lora", "full", "padding-free", "checkpointing", "reentrant"],
)
def test_a_sound_trainer_passes(
    build: Callable[..., Any], changes: dict[str, Any]
) -> None:
    diagnosis = doctor(build(**changes))
    known = {"trackers"} | (
        {"adapter off"} if changes.get("peft", 1) is None else set()
    )
    assert {x.name for x in diagnosis.lines if x.status != "pass"} == known
    assert not diagnosis.failed
    assert len({x.name for x in diagnosis.lines}) == len(diagnosis.lines) == 17
    said = {x.name: x.found for x in diagnosis.lines}
    assert "layers [2, 3] fired once" in said["hooks"]
    checked = "gradient checkpointing is on" in said["hooks"]
    assert checked == ("gradient_checkpointing" in changes)
    assert ("padding-free: rows are joined" in said["packing"]) == (
        "padding_free" in changes
    )
    text = str(diagnosis)
    assert text.splitlines()[0].startswith("pass  layers: reads layers [2, 3]")
    assert text.endswith(f"{17 - len(known)} pass, {len(known)} warn, 0 fail")


def test_a_trainer_that_was_not_attached_fails(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    diagnosis = doctor(cases.make_sft(model(), tokenizer, tmp_path))
    assert diagnosis.failed
    assert [x.name for x in diagnosis.lines] == ["attached"]
    assert "emoreg.attach" in str(diagnosis)


def test_a_plain_trainer_and_a_monitor_alone_pass(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    plain = cases.make_plain(model(), tokenizer, tmp_path)
    assert not doctor(cases.attached(plain, vectors, reference, ALL)).failed
    watched = cases.make_plain(model(), tokenizer, tmp_path)
    diagnosis = doctor(cases.attached(watched, vectors, reference, None))
    assert not diagnosis.failed
    said = {x.name: x.found for x in diagnosis.lines}
    assert "no term has a weight" in said["gradient"]
    assert "nothing to scale" in said["accumulation"]


# -- no trace ------------------------------------------------------------------------


def states(trainer: Any) -> dict[str, str]:
    """What an examination might leave behind, apart from weights."""
    regularizer, model = trainer.emotions.regularizer, trainer.model
    terms = {t.name: t.state_dict() for t in regularizer.terms}
    found = {
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "torch": torch.get_rng_state().tolist(),
        "terms": {n: {k: v.tolist() for k, v in s.items()} for n, s in terms.items()},
        "weights": [term.weight for term in regularizer.terms],
        "ledger": {k: len(v) for k, v in regularizer.ledger._values.items()},
        "monitor": vars(regularizer.monitor).copy(),
        "regularizer": vars(regularizer).copy(),
        "checked": set(regularizer._checked),
        "metrics": {m: dict(found) for m, found in trainer._metrics.items()},
        "tokens": trainer._total_train_tokens,
        "names": sorted(vars(trainer)),
        "seam": {k: id(v) for k, v in vars(trainer.emotions).items()},
        "state": vars(trainer.state).copy(),
        "optimizer": trainer.optimizer,
        "loaders": len(trainer.accelerator._dataloaders),
        "gradient_state": dict(vars(trainer.accelerator.gradient_state)),
        "grads": [p.grad for p in model.parameters()],
        "trained": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "checkpointed": [
            vars(m).get("gradient_checkpointing") for m in model.modules()
        ],
        "dropout": [vars(m).get("p") for m in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
        ],
    }
    return {name: repr(value) for name, value in found.items()}


@pytest.mark.parametrize("started", [False, True], ids=["fresh", "half-way"])
@pytest.mark.parametrize("peft", [True, False], ids=["lora", "full"])
def test_it_leaves_no_trace(
    build: Callable[..., Any], peft: bool, started: bool
) -> None:
    """Training after an examination is the training without one, bit for bit."""
    changes = {
        "peft": LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj", "up_proj"])
        if peft
        else None,
        "gradient_checkpointing": True,
        "learning_rate": 1e-3,
        "max_steps": 3,
    }
    examined, other = build(**changes), build(**changes)
    if started:
        for trainer in (examined, other):
            torch.manual_seed(5)
            trainer.train()
            trainer.args.max_steps = 6
    weights, before = cases.weights(examined), states(examined)
    diagnosis = doctor(examined)
    assert len(diagnosis.lines) == 17
    assert cases.equal(cases.weights(examined), weights)
    after = states(examined)
    assert {k for k in before if before[k] != after[k]} == set()
    torch.manual_seed(5)
    examined.train()
    torch.manual_seed(5)
    other.train()
    assert cases.losses(examined) == cases.losses(other)
    assert cases.logged(examined) == cases.logged(other)
    assert cases.equal(cases.weights(examined), cases.weights(other))
    assert not cases.equal(cases.weights(examined), weights)


def test_without_care_it_would_leave_one(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the comparison above sees what `undisturbed` keeps."""

    @contextmanager
    def careless(trainer: Any) -> Iterator[None]:
        del trainer
        yield

    monkeypatch.setattr(doctor_module, "undisturbed", careless)
    trainer = build()
    before = states(trainer)
    doctor(trainer)
    after = states(trainer)
    changed = {k for k in before if before[k] != after[k]}
    assert changed >= {"torch", "ledger", "monitor", "metrics", "grads"}
    assert changed >= {"weights", "loaders", "gradient_state"}


def test_random_numbers_of_python_are_kept_too(build: Callable[..., Any]) -> None:
    """By itself: the type checks of these tests draw such numbers everywhere."""
    trainer = build(None)
    before = random.getstate()
    with undisturbed(trainer):
        random.random()
        assert random.getstate() != before
    assert random.getstate() == before


def test_a_crash_on_the_way_leaves_no_trace_either(build: Callable[..., Any]) -> None:
    class Failing(SFTTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            super().training_step(*args, **kwargs)
            raise MemoryError("no more")

    trainer = build(kind=Failing)
    weights, before = cases.weights(trainer), states(trainer)
    diagnosis = doctor(trainer)
    broken = {x.name for x in diagnosis.lines if "MemoryError: no more" in x.found}
    assert broken == {"hooks", "gradient", "accumulation"}
    assert cases.equal(cases.weights(trainer), weights)
    after = states(trainer)
    assert {k for k in before if before[k] != after[k]} == set()


# -- vectors, layers, precision ------------------------------------------------------


def test_vectors_of_another_width_or_depth_fail(build: Callable[..., Any]) -> None:
    trainer = build()
    assert line(trainer, "layers").status == "pass"
    regularizer = trainer.emotions.regularizer
    own = regularizer.monitor.vectors
    regularizer.monitor.vectors = cases.make_vectors(width=16)
    found = line(trainer, "layers")
    assert found.status == "fail"
    assert "16" in found.found
    regularizer.monitor.vectors = own
    term = regularizer.decision_terms[0]
    term.probe = replace(term.probe, layers=(7,))
    found = line(trainer, "layers")
    assert found.status == "fail"
    assert "7" in found.found


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        ({"model": NAME}, "pass", f"of '{NAME}'"),
        ({}, "warn", "vectors file does not name the model"),
        ({"model": "tiny/qwen"}, "warn", "model of the vectors is 'tiny/qwen'"),
        ({"model": NAME, "template_hash": "0" * 16}, "warn", "template_hash"),
    ],
    ids=["same", "nameless", "another", "template"],
)
def test_the_model_that_vectors_are_of(
    build: Callable[..., Any], said: dict[str, str], status: str, expected: str
) -> None:
    trainer = build(None)
    monitor = trainer.emotions.regularizer.monitor
    monitor.vectors = replace(monitor.vectors, provenance=said)
    found = line(trainer, "vectors")
    assert found.status == status
    assert expected in found.found


def test_a_reference_of_other_vectors_fails(build: Callable[..., Any]) -> None:
    trainer = build(None)
    monitor = trainer.emotions.regularizer.monitor
    directions = -monitor.vectors.directions
    monitor.vectors = replace(monitor.vectors, directions=directions)
    found = line(trainer, "vectors")
    assert found.status == "fail"
    assert monitor.vectors.hash in found.found


def test_float16_is_warned_of(build: Callable[..., Any]) -> None:
    trainer = build(None)
    assert line(trainer, "precision").found == "weights in float32"
    trainer.args.fp16 = True
    assert line(trainer, "precision").status == "warn"
    trainer.args.fp16 = False
    trainer.model.half()
    assert line(trainer, "precision").status == "warn"


# -- hooks and gradients -------------------------------------------------------------


def test_two_passes_in_one_loss_fail(build: Callable[..., Any]) -> None:
    class Twice(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, *args: Any, **kwargs: Any
        ) -> Any:
            first = super().compute_loss(model, dict(inputs), *args, **kwargs)
            return first + super().compute_loss(model, dict(inputs), *args, **kwargs)

    found = line(build(kind=Twice), "hooks")
    assert found.status == "fail"
    assert "2: 2, 3: 2" in found.found


def test_blocks_that_are_not_called_fail(
    build: Callable[..., Any], model: Callable[[], PreTrainedModel]
) -> None:
    silent = model()
    direct = {"__call__": lambda self, *args, **kwargs: self.forward(*args, **kwargs)}
    for block in decoder_layers(silent):
        block.__class__ = type("Direct", (type(block),), direct)
    # Attached without terms, which would have cached readings by the same hooks.
    found = line(build(None, model=silent), "hooks")
    assert found.status == "fail"
    assert "must fire" in found.found


def test_a_term_alone_has_the_gradient_it_adds(build: Callable[..., Any]) -> None:
    trainer = build({**OFF, "contrast": 1.0, "band": 1.0})
    with undisturbed(trainer):
        trial = Trial(trainer)
        terms = trainer.emotions.regularizer.decision_terms
        batch, found = trial.batch([0, 1]), {}
        for name, active, task in (
            ("terms", terms, False),
            ("both", terms, True),
            ("task", (), True),
            ("nothing", (), False),
        ):
            trial.step([batch], active, task=task)
            found[name] = trial.gradient()
    size = max(float(g.abs().max()) for g in found["terms"].values())
    assert size > 1e-2
    for name, both in found["both"].items():
        added = both - found["task"][name]
        assert torch.allclose(added, found["terms"][name], atol=1e-5 * size)
        assert not found["nothing"][name].any()
    assert any(g.any() for g in found["task"].values())


def test_the_line_says_how_large_a_gradient_is(build: Callable[..., Any]) -> None:
    trainer = build(only("contrast"))
    with undisturbed(trainer):
        trial, sizes, flat = Trial(trainer), {}, {}
        term = trainer.emotions.regularizer.decision_terms[0]
        for name, active in (("term", [term]), ("task", [])):
            trial.step([trial.batch([0, 1])], active, task=name == "task")
            named = trial.gradient()
            flat[name] = torch.cat([named[k].flatten() for k in sorted(named)])
            sizes[name] = float(flat[name].norm())
    cosine = float(flat["term"] @ flat["task"]) / (sizes["term"] * sizes["task"])
    found = line(trainer, "gradient of contrast-lda").found
    ratio = sizes["term"] / sizes["task"]
    assert found.startswith(f"{ratio:.2g} times the task's, {sizes['task']:.2g}")
    assert found.endswith(f"cosine {cosine:+.2f}")


def test_terms_that_train_nothing_fail(build: Callable[..., Any]) -> None:
    above = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=[3]
    )
    trainer = build(peft=above)
    by_name = {x.name: x for x in doctor(trainer).lines}
    for term in ("contrast-lda", "contrast-mean-difference", "band"):
        found = by_name[f"gradient of {term}"]
        assert found.status == "fail"
        assert "must carry gradient" in found.found
    found = by_name["gradient of meaning"]
    assert found.status == "fail"
    assert found.found.startswith("none, nor with")
    assert "at or below its layers" in found.mend
    assert "must carry gradient" in by_name["hooks"].found
    assert by_name["gradient of kl"].status == "pass"  # the head sees block 3


def test_a_frozen_model_fails(build: Callable[..., Any]) -> None:
    trainer = build()
    trainer.model.requires_grad_(False)
    found = line(trainer, "gradient")
    assert found.status == "fail"
    assert "no parameter is trained" in found.found


def test_a_task_without_labels_fails(build: Callable[..., Any]) -> None:
    trainer = build(only("contrast"))
    silent = trainer.train_dataset.map(
        lambda row: {"labels": [-100] * len(row["labels"])}
    )
    trainer.train_dataset = silent
    found = line(trainer, "gradient of the task")
    assert found.status == "fail"
    assert "labels" in found.mend


def test_a_term_that_asks_for_nothing_is_warned_of(build: Callable[..., Any]) -> None:
    trainer = build(only("band"))
    (band,) = [t for t in trainer.emotions.regularizer.decision_terms if t.weight]
    assert line(trainer, "gradient of band").status == "pass"
    band._low, band._high = band._low - 1e3, band._high + 1e3
    found = line(trainer, "gradient of band")
    assert found.status == "warn"
    assert "where it wants them" in found.found
    assert line(trainer, "accumulation").status == "warn"


def examined(
    terms: Any, parts: tuple[Any, ...], rows: Dataset | None = None, **changes: Any
) -> dict[str, Finding]:
    """The lines on a trainer with terms of one's own."""
    model, tokenizer, vectors, reference, folder = parts
    made = cases.make_sft(
        model(), tokenizer, folder, peft=cases.adapter(), rows=rows, **changes
    )
    monitor = Monitor(vectors)
    attach(made, monitor=monitor, terms=terms, outcome="failed", reference=reference)
    return {x.name: x for x in doctor(made).lines}


@pytest.fixture
def parts(
    model: Any, tokenizer: Any, vectors: Any, reference: Any, tmp_path: Path
) -> tuple[Any, ...]:
    return model, tokenizer, vectors, reference, tmp_path


def test_terms_that_are_zero_in_a_first_step_are_tried_in_a_second(
    parts: tuple[Any, ...],
) -> None:
    _, _, vectors, reference, _ = parts
    probe, signs = presets.loss_probe(vectors, reference)
    outside = Complement.outside([probe])
    terms = [
        JumpPenalty(probe, signs, level=torch.full((1, len(signs)), -1e3)),
        RerouteAnchor(outside, torch.ones(len(probe.layers))),
        SquaredCorrelation(probe),
        EnergyDistance(probe),
    ]
    found = examined(terms, parts)
    for term in terms[:3]:
        line = found[f"gradient of {term.name}"]
        assert line.status == "pass", line
        assert "asks for nothing yet" in line.found
    energy = found["gradient of energy"]
    assert energy.status == "warn"
    assert "before it has seen 64 failing and 64 passing turns" in energy.found


# -- accumulation, adapter -----------------------------------------------------------


class Deaf(EmotionTrainerMixin, SFTTrainer):
    """A trainer whose own `get_batch_samples` leaves the mixin's out."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        return SFTTrainer.get_batch_samples(self, *args, **kwargs)


@pytest.mark.parametrize("kind", [None, Deaf], ids=["sound", "deaf"])
def test_accumulation_that_loses_a_factor_fails(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    kind: type | None,
) -> None:
    class Sound(EmotionTrainerMixin, SFTTrainer):
        """A trainer that leaves it to the mixin."""

    trainer = cases.make_sft(
        model(),
        tokenizer,
        tmp_path,
        kind=kind or Sound,
        extra={
            "monitor": Monitor(vectors),
            "terms": cases.make_terms(vectors, reference, **ALL),
            "outcome": "failed",
        },
    )
    assert line(trainer, "accumulation").status == ("fail" if kind else "pass")


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_no_fault_of_accumulation(
    build: Callable[..., Any], model: Callable[[], PreTrainedModel], dropout: bool
) -> None:
    made: Any = model()
    if dropout:
        for block in decoder_layers(made):
            block.self_attn.attention_dropout = 0.5  # type: ignore[union-attr]
    trainer = build(model=made)
    assert line(trainer, "accumulation").status == "pass"
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    trainer.model.train()
    with torch.no_grad():
        one, two = (trainer.model(ids).logits for _ in range(2))
        with without_dropout(trainer.model):
            three, four = (trainer.model(ids).logits for _ in range(2))
        five, six = (trainer.model(ids).logits for _ in range(2))
    assert torch.equal(three, four)
    assert torch.equal(one, two) == torch.equal(five, six) == (not dropout)


def test_a_reference_that_is_not_the_base_fails(build: Callable[..., Any]) -> None:
    trainer = build()
    assert line(trainer, "adapter off").status == "pass"
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.1)  # trained since: no matter
    found = line(trainer, "adapter off")
    assert found.status == "pass"
    assert "without its adapter" in found.found
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.mul_(1.5)
    assert line(trainer, "adapter off").status == "fail"


def test_twins_readings_are_no_trained_reference(parts: tuple[Any, ...]) -> None:
    _, _, vectors, reference, _ = parts
    rows = Dataset.from_list(
        [
            {**cases.row((None, failed), k), "pair": str(k)}
            for k in range(4)
            for failed in (1.0, 0.0)
        ]
    )
    terms = presets.decouple(vectors, reference, paired=True)
    found = examined(terms, parts, rows)["adapter off"]
    assert (found.status, "from the readings" in found.found) == ("pass", True)


def test_without_an_adapter_the_reference_is_not_to_be_had(
    build: Callable[..., Any],
) -> None:
    trainer = build(peft=None)
    found = line(trainer, "adapter off")
    assert found.status == "warn"
    assert "no adapter to switch off" in found.found
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.mul_(1.5)
    assert line(trainer, "adapter off").status == "fail"


# -- rows ----------------------------------------------------------------------------


def test_much_padding_is_warned_of(build: Callable[..., Any]) -> None:
    long = cases.row((None, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0), 0)
    short = [cases.row((None, 1.0), k) for k in range(1, 8)]
    rows = Dataset.from_list([long, *short])
    found = line(build(None, rows=rows, per_device_train_batch_size=8), "padding")
    assert found.status == "warn"
    assert "on the right" in found.found
    even = build(None, rows=Dataset.from_list(short), per_device_train_batch_size=7)
    assert line(even, "padding").status == "pass"


def test_a_batch_without_a_mask_is_warned_of(build: Callable[..., Any]) -> None:
    trainer = build(None)
    inner = trainer.data_collator.collator

    def maskless(examples: list[Any]) -> dict[str, Any]:
        batch = inner(examples)
        return {k: v for k, v in batch.items() if k != "attention_mask"}

    trainer.data_collator.collator = maskless
    found = line(trainer, "padding")
    assert found.status == "warn"
    assert "no attention mask" in found.found


def test_packed_rows_are_told(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    build: Callable[..., Any],
    recwarn: pytest.WarningsRecorder,
) -> None:
    del recwarn  # that attention must keep documents apart
    assert "neither packed" in line(build(None), "packing").found

    def read(text: str) -> Outcome:
        return Outcome(failure=float("wrong" in text), source="mine")

    trainer: Any = cases.make_sft(
        model(), tokenizer, tmp_path, packing=True, max_length=2048
    )
    attach(
        trainer,
        monitor=Monitor(vectors),
        outcome=Feedback(parse=read),
        reference=reference,
    )
    found = line(trainer, "packing")
    assert (found.status, "rows are packed" in found.found) == ("pass", True)


def test_rows_at_the_limit_are_warned_of(build: Callable[..., Any]) -> None:
    lengths = [len(ids) for ids in build(None).train_dataset["input_ids"]]
    longest = max(lengths)
    free = line(build(None, max_length=longest + 1), "max_length")
    assert free.status == "pass"
    assert f"{longest + 1} tokens" in free.found
    found = line(build(None, max_length=longest), "max_length")
    assert found.status == "warn"
    assert found.found.startswith(f"{lengths.count(longest)} of 8 rows")


@pytest.mark.parametrize(
    ("turns", "kind"),
    [((None, 0.0), "failing"), ((None, 1.0), "passing"), ((None, None), "failing")],
)
def test_one_kind_of_outcome_fails(
    build: Callable[..., Any], turns: tuple, kind: str
) -> None:
    rows = Dataset.from_list([cases.row(turns, k) for k in range(4)])
    found = line(build(rows=rows), "outcomes")
    assert found.status == "fail"
    assert f"none is {kind}" in found.found
    assert "8 turns in 4 rows" in found.found


def test_one_kind_of_outcome_is_enough_where_none_compares_two(
    parts: tuple[Any, ...],
) -> None:
    _, _, vectors, reference, _ = parts
    probe, signs = presets.loss_probe(vectors, reference)
    rows = Dataset.from_list([cases.row((None, 1.0, 1.0), k) for k in range(4)])
    for terms in ([JumpPenalty(probe, signs)], ()):
        found = examined(terms, parts, rows)["outcomes"]
        assert found.status == "warn"
        assert "none is passing" in found.found
        assert "no term compares the two kinds" in found.mend


def test_without_outcomes_it_says_so(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    trainer = attach(
        cases.make_sft(model(), tokenizer, tmp_path),
        monitor=Monitor(vectors),
        reference=reference,
    )
    found = line(trainer, "outcomes")
    assert found.status == "warn"
    assert "no outcome column" in found.found


def test_shares_of_outcomes_are_counted(build: Callable[..., Any]) -> None:
    rows = Dataset.from_list(
        [cases.row((None, 1.0), 0), cases.row((None, 0.0), 1), cases.row((0.5, 1.0), 2)]
    )
    found = line(build(rows=rows), "outcomes").found
    assert "6 turns in 3 rows" in found
    assert "failing 42%, passing 25%, unknown 33%" in found


# -- the template and the sample -----------------------------------------------------


def test_the_sample_marks_what_is_read(build: Callable[..., Any]) -> None:
    trainer = build(None)
    diagnosis = doctor(trainer)
    assert diagnosis.sample == (
        "<|im_start|>user\njob 0 <|im_end|>\n"
        "<|im_start|>assistant▶\\n[unknown] «step 0 of 0»<|im_end|>\n"
        f"<|im_start|>user\n{cases.FAILS}<|im_end|>\n"
        "<|im_start|>assistant▶\\n[failed] «step 1 of 0»<|im_end|>\n"
    )
    assert "«step 1 of 0»" in str(diagnosis)


def test_long_text_is_cut_and_shares_are_told(
    build: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    markers = build(None).emotions.regularizer.markers
    text = (
        f"<|im_start|>user\n{'a' * 500}<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )
    ids = tokenizer(text)["input_ids"]
    for outcomes, said in (([0.25], "0.25 failed"), ([0.0], "passed"), ([], "unknown")):
        shown = marked(ids, outcomes, tokenizer, markers)  # type: ignore[arg-type]
        assert shown.endswith(f"assistant▶\\n[{said}] «yes»<|im_end|>")
        assert len(shown) < 250
    assert " ... " in shown


def test_another_template_fails(build: Callable[..., Any]) -> None:
    trainer = build(None)
    found = line(trainer, "chat template")
    assert found.status == "pass"
    assert "2 decision tokens and 14 Assistant tokens" in found.found
    own = trainer.processing_class.chat_template
    trainer.processing_class.chat_template = own.replace("<|im_start|>", "### ")
    found = line(trainer, "chat template")
    assert found.status == "fail"
    assert "not the one that `attach` saw" in found.found


def test_outcomes_that_do_not_fit_fail(build: Callable[..., Any]) -> None:
    trainer = build(None)
    rows = trainer.train_dataset.map(lambda row: {"failed": [*row["failed"], 1.0]})
    trainer.train_dataset = rows
    found = line(trainer, "chat template")
    assert found.status == "fail"
    assert "2 decision tokens" in found.found
    assert "3 outcomes" in found.found


# -- trackers ------------------------------------------------------------------------


def test_trackers(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    trainer = build(None)
    assert line(trainer, "trackers").status == "warn"
    for asked, said in (
        ("no_such_tracker", "can't be imported"),
        ("tensorboard", "no callback for it"),
    ):
        trainer.args.report_to = [asked]
        found = line(trainer, "trackers")
        assert found.status == "fail"
        assert said in found.found
    both = build(None, report_to=["tensorboard", "wandb"])
    found = line(both, "trackers")
    assert found.status == "pass"
    assert "offline" in found.found
    assert "every 1 steps" in found.found
    both.args.logging_strategy = IntervalStrategy.EPOCH
    assert "every epoch" in line(both, "trackers").found
    both.args.logging_strategy = IntervalStrategy.NO
    assert line(both, "trackers").status == "warn"


# -- other trainers ------------------------------------------------------------------


def prompts(kind: str) -> Dataset:
    rows = []
    for row in map(dict, cases.make_rows(4)):
        made = {"prompt": row["prompt"], "failed": row["failed"]}
        if kind == "dpo":
            worse = [{"role": "assistant", "content": "whatever"}]
            made |= {"chosen": row["completion"], "rejected": worse}
        rows.append(made)
    return Dataset.from_list(rows)


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_trainers_of_other_kinds(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    kind: str,
) -> None:
    """A preference pair is examined like a row; rollouts can't be tried out."""
    made: Any
    settings = cases.quiet(tmp_path)
    shared = {
        "model": model(),
        "train_dataset": prompts(kind),
        "processing_class": tokenizer,
        "peft_config": cases.adapter(),
    }
    if kind == "dpo":
        made = DPOTrainer(args=DPOConfig(**settings, max_length=None), **shared)
    else:
        sized = {**settings, "num_generations": 2, "max_completion_length": 6}
        made = GRPOTrainer(
            args=GRPOConfig(**sized),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            **shared,
        )
    trainer = cases.attached(made, vectors, reference, ALL)
    weights = cases.weights(trainer)
    diagnosis = doctor(trainer)
    assert not diagnosis.failed, str(diagnosis)
    assert cases.equal(cases.weights(trainer), weights)
    status = {x.name: x.status for x in diagnosis.lines}
    tried = {"hooks", "accumulation", "adapter off"}
    assert {status[name] for name in tried} == {"pass" if kind == "dpo" else "warn"}
    assert status["outcomes"] == status["chat template"] == "pass"
    assert "[failed]" in diagnosis.sample
    if kind == "grpo":
        assert "not checked: the trainer generates its rows" in str(diagnosis)
        assert diagnosis.sample.endswith("[failed] ")


# -- the command ---------------------------------------------------------------------

SCRIPT = """
import argparse
import sys
from pathlib import Path

import seam_cases as cases
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.training.outcomes.feedback import Outcome
from emoreg.training.reference import Reference
from emoreg.training.outcomes.sources import Feedback
from emoreg.vectors.emotion_vectors import EmotionVectors


def main(options):
    folder = Path(options.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    vectors = EmotionVectors.load(options.vectors)
    reference = Reference.load(options.reference)
    trainer = cases.make_sft(model, tokenizer, folder / "out", peft=cases.adapter())
    if not options.bare:
        cases.attached(trainer, vectors, reference, {"contrast": 1.0})
    if not options.idle:
        try:
            trainer.train()
        except Exception:
            pass
        (folder / "trained").touch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--model", "--vectors", "--reference"):
        parser.add_argument(name)
    for name in ("--bare", "--idle"):
        parser.add_argument(name, action="store_true")
    main(parser.parse_args())
"""


@pytest.fixture
def command(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> list[str]:
    """The command on a training script of one's own, up to the script's flags."""
    cases.write_files(tmp_path, model(), tokenizer)
    script = tmp_path / "own.py"
    script.write_text(SCRIPT)
    return [
        *("doctor", "--model", str(tmp_path / "model")),
        *("--vectors", str(tmp_path / "vectors.safetensors")),
        *("--trainer-script", str(script), "--"),
        *("--reference", str(tmp_path / "reference.safetensors")),
    ]


def test_the_command_examines_and_does_not_train(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, path, train = list(sys.argv), list(sys.path), SFTTrainer.train
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "pass  hooks: layers [2, 3] fired once" in said
    assert said.rstrip().endswith("0 fail")
    assert main([*command, "--bare"]) == 1
    assert "fail  attached: SFTTrainer has neither" in capsys.readouterr().out
    assert not (tmp_path / "model" / "trained").exists()
    assert (sys.argv, sys.path, SFTTrainer.train) == (argv, path, train)


def test_a_script_that_never_trains_is_told_in_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--idle"]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert said.startswith("emoreg: ")
    assert "must call `trainer.train()`" in said


def test_a_missing_script_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--trainer-script", str(tmp_path / "none.py")]) == 2
    assert "must be a file" in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Example: emoreg doctor --model demo --vectors vectors.safetensors" in said


@pytest.mark.slow
def test_the_command_runs_in_a_process_of_its_own(command: list[str]) -> None:
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-m", "emoreg.cli", *command, "--bare"],
        env={**os.environ, "PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "fail  attached" in done.stdout
