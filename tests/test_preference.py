"""The seam on preference, unpaired and reward trainers of TRL.

They run more forwards than one in a step, and make two sequences of a row: readings and
terms must be of the policy's pass alone, and each outcome at its own turn.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
import trainer_cases as trainers
from datasets import Dataset
from trainer_cases import PREFERENCE as KINDS
from trainer_cases import preference_rows
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.residual.capture import capture
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.attach import attach
from emoreg.training.outcomes.columns import OUTCOMES
from emoreg.training.reference import Reference
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.emotion_vectors import EmotionVectors

Model = Callable[[], PreTrainedModel]
ALL = {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 1.0}
OFF = dict.fromkeys(ALL, 0.0)
PAIRED = ("dpo", "reward")


@pytest.fixture
def build(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Make a trainer with monitor and terms of these weights (None: bare)."""

    def make(
        kind: str,
        weights: dict[str, float] | None,
        *,
        rows: Dataset | None = None,
        peft: bool = True,
        seen: bool = True,
        callbacks: tuple = (),
        **changes: Any,
    ) -> Any:
        trainer = trainers.make_trainer(
            kind,
            model,
            tokenizer,
            tmp_path,
            peft=cases.adapter() if peft else None,
            rows=rows,
            callbacks=callbacks,
            **{"max_steps": 4, **changes},
        )
        if not seen:
            return trainer
        if kind == "reward" and weights:
            weights = {**weights, "kl": 0.0}
        return cases.attached(trainer, vectors, reference, weights)

    return make


# -- what the seam leaves alone --------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "peft"),
    [*((kind, True) for kind in KINDS), ("dpo", False)],
    ids=[*(f"{kind}-lora" for kind in KINDS), "dpo-full"],
)
def test_watching_and_weightless_terms_leave_training_as_it_was(
    build: Callable[..., Any], kind: str, peft: bool
) -> None:
    bare = build(kind, None, seen=False, peft=peft)
    watched, weightless = build(kind, None, peft=peft), build(kind, OFF, peft=peft)
    acting = build(kind, {**OFF, "contrast": 1.0}, peft=peft)
    for trainer in (bare, watched, weightless, acting):
        trainer.train()
    for trainer in (watched, weightless):
        assert cases.losses(trainer) == cases.losses(bare)
        assert cases.equal(cases.weights(trainer), cases.weights(bare))
        assert cases.logged(trainer)
    assert not cases.equal(cases.weights(acting), cases.weights(bare))  # control


# -- which pass is read ----------------------------------------------------------------


def batch_of(trainer: Any) -> dict[str, Any]:
    batch = next(iter(trainer.get_train_dataloader()))
    return dict(batch)


def read_policy(
    trainer: Any, batch: dict[str, Any], probe: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Readings and outcomes at decision tokens, by a plain forward of the policy."""
    ids = batch["input_ids"]
    outcomes = batch[OUTCOMES]
    markers = TurnMarkers.of(trainer.processing_class)
    with capture(trainer.model, probe.layers, gradient=True) as captured:
        trainer.model(input_ids=ids, attention_mask=batch["attention_mask"])
        values, failure = [], []
        for row in range(len(ids)):
            at = markers.decision_tokens(ids[row : row + 1])[0]
            at &= batch["attention_mask"][row].bool()
            places = at.nonzero().flatten()
            values.append(
                torch.stack(
                    [
                        probe.read(captured[i][row, places], layer=i)
                        for i in probe.layers
                    ],
                    dim=1,
                )
            )
            failure.append(outcomes[row, : len(places)])
        return torch.cat(values), torch.cat(failure)


@pytest.mark.cell(trainer="{kind}", mode="plain setting, by a plain forward")
@pytest.mark.parametrize("kind", KINDS)
def test_terms_act_on_the_policys_pass_alone(
    build: Callable[..., Any], kind: str
) -> None:
    """What the contrast adds to a first step is that of one plain forward pass."""
    settings = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0}
    found: dict[str, Any] = {}
    for name, weights in (("with", {**OFF, "contrast": 1.0}), ("without", OFF)):
        keep = cases.Gradients()
        trainer = build(kind, weights, callbacks=(keep,), **settings)
        batch = batch_of(trainer)
        trainer.train()
        found[name] = keep.steps[0]
    oracle = build(kind, {**OFF, "contrast": 1.0}, **settings)
    assert torch.equal(batch_of(oracle)["input_ids"], batch["input_ids"])
    wanted = cases.contrast_gradient(oracle, [batch], read_policy, cached=True)
    cases.check_added(found["with"], found["without"], wanted, tolerance=1e-4)


@pytest.mark.cell(trainer="{kind}", mode="eval during training")
@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_evaluation_reads_the_policy_and_not_its_reference(
    build: Callable[..., Any], kind: str, vectors: EmotionVectors, reference: Reference
) -> None:
    trainer = build(kind, None, per_device_eval_batch_size=8)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    trainer.evaluate()
    logged = cases.logged(trainer, "eval_emotion")[0]
    monitor = Monitor(vectors)
    monitor.prepare(reference)
    probe = next(p for p in monitor.probes if p.reader == "lda")
    batch = dict(next(iter(trainer.get_eval_dataloader())))
    column = probe.emotions.index("desperate")
    key = f"eval_emotion/desperate/L{probe.layers[0]}/lda/fail"

    def mean_at_failing() -> float:
        values, failure = read_policy(trainer, batch, probe)
        weight = failure.nan_to_num(0.0)
        return float((values[:, 0, column].detach() * weight).sum() / weight.sum())

    assert logged[key] == pytest.approx(mean_at_failing(), rel=1e-3, abs=1e-4)
    with trainer.model.disable_adapter():  # control: the reference reads otherwise
        assert logged[key] != pytest.approx(mean_at_failing(), rel=1e-2, abs=1e-2)


# -- outcomes of two sequences ---------------------------------------------------------


@pytest.mark.parametrize("kind", PAIRED)
def test_the_halves_of_a_pair_may_have_outcomes_of_their_own(
    build: Callable[..., Any], kind: str
) -> None:
    shared = preference_rows(kind, 4)
    told = [
        {
            **row,
            "failed": {
                "chosen": row["failed"],
                "rejected": [0.75] * len(row["failed"]),
            },
        }
        for row in map(dict, shared)
    ]
    size = {"per_device_train_batch_size": 4}
    once = batch_of(build(kind, None, rows=shared, **size))[OUTCOMES]
    apart = batch_of(build(kind, None, rows=Dataset.from_list(told), **size))[OUTCOMES]
    assert once.shape[0] == 8
    torch.testing.assert_close(once[:4], once[4:], equal_nan=True)
    torch.testing.assert_close(apart[:4], once[:4], equal_nan=True)
    known = ~apart[4:].isnan()
    assert bool((apart[4:][known] == 0.75).all())
    assert known.sum() == sum(len(row["failed"]) for row in map(dict, shared))


@pytest.mark.parametrize("kind", PAIRED)
def test_cached_readings_follow_their_own_sequence(
    build: Callable[..., Any], kind: str
) -> None:
    """At unmoved weights each reading equals the cached one of its turn."""
    trainer = build(kind, {**OFF, "contrast": 1.0}, per_device_train_batch_size=4)
    batch = batch_of(trainer)
    held = batch["emoreg_reference"]
    probe = trainer.emotions.regularizer.decision_terms[0].probe
    values, _ = read_policy(trainer, batch, probe)
    width = values[0].numel()
    rows = [held[r][~held[r].isnan().all(1)][:, :width] for r in range(len(held))]
    torch.testing.assert_close(
        torch.cat(rows), values.detach().flatten(1), atol=1e-3, rtol=1e-3
    )
    rolled = torch.cat(rows[1:] + rows[:1])  # control: the order is seen
    assert not torch.allclose(rolled, values.detach().flatten(1), atol=0.1)


def test_outcomes_by_half_need_both_halves(build: Callable[..., Any]) -> None:
    rows = [
        {**row, "failed": {"chosen": row["failed"]}}
        for row in map(dict, preference_rows("dpo", 2))
    ]
    with pytest.raises(ValueError, match=r"each of \('chosen', 'rejected'\), got"):
        build("dpo", None, rows=Dataset.from_list(rows))


def test_a_pair_that_max_length_cuts_is_refused(build: Callable[..., Any]) -> None:
    build("dpo", None, max_length=400, truncation_mode="keep_end")  # control
    with pytest.raises(ValueError, match="decision tokens in 60 tokens"):
        build("dpo", None, max_length=60, truncation_mode="keep_end")


def test_a_reward_model_has_no_predictions_to_hold(
    build: Callable[..., Any], vectors: EmotionVectors, reference: Reference
) -> None:
    trainer = build("reward", None, seen=False)
    terms = cases.make_terms(vectors, reference, **OFF | {"kl": 1.0})
    with pytest.raises(ValueError, match="kl needs a language-model head"):
        attach(trainer, terms=terms, outcome="failed")


def test_a_stream_of_rows_is_refused(build: Callable[..., Any]) -> None:
    rows = preference_rows("dpo", 4).to_iterable_dataset()
    with pytest.raises(ValueError, match="must have a length"):
        build("dpo", None, rows=rows)


# -- accumulation ----------------------------------------------------------------------


@pytest.mark.cell(trainer="{kind}", mode="accumulation, what terms add")
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing_that_terms_add(
    build: Callable[..., Any], kind: str
) -> None:
    added = {}
    for size in (4, 2):  # KTO needs two rows at least
        steps = {}
        for name, weights in (("with", {**OFF, "contrast": 1.0}), ("without", OFF)):
            keep = cases.Gradients()
            trainer = build(
                kind,
                weights,
                rows=preference_rows(kind, 4),
                callbacks=(keep,),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=4 // size,
                max_steps=1,
                optim="sgd",
                max_grad_norm=0.0,
            )
            trainer.train()
            steps[name] = keep.steps[0]
        added[size] = {n: steps["with"][n] - steps["without"][n] for n in steps["with"]}
    largest, mean, size_of = cases.gap(added[4], added[2])
    assert mean < 1e-4 * size_of
    assert largest < 1e-3
    assert size_of > 0
