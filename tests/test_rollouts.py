"""The seam on trainers that generate the rows they train on: GRPO and RLOO of TRL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
import trainer_cases as trainers
from datasets import Dataset
from trainer_cases import ROLLOUT as KINDS
from trainer_cases import prompts
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore

from emoreg.residual.capture import capture
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.mixin import EmotionTrainerMixin
from emoreg.training.outcomes.columns import OUTCOMES
from emoreg.training.reference import Reference
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.emotion_vectors import EmotionVectors

Model = Callable[[], PreTrainedModel]
OFF = {"contrast": 0.0, "band": 0.0, "meaning": 0.0, "kl": 0.0}
CONTRAST = {**OFF, "contrast": 1.0}


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
        seen: bool = True,
        callbacks: tuple = (),
        **changes: Any,
    ) -> Any:
        trainer = trainers.make_trainer(
            kind,
            model,
            tokenizer,
            tmp_path,
            peft=cases.adapter(),
            rows=rows,
            callbacks=callbacks,
            **{"max_steps": 2, **changes},
        )
        if not seen:
            return trainer
        return cases.attached(trainer, vectors, reference, weights)

    return make


def policy_readings(
    trainer: Any, rollouts: dict[str, Any], probe: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Readings and outcomes at the prompts' decision tokens, one row at a time."""
    markers = TurnMarkers.of(trainer.processing_class)
    values, failure = [], []
    for row in range(len(rollouts["prompt_ids"])):
        ids = rollouts["prompt_ids"][row][rollouts["prompt_mask"][row].bool()]
        places = markers.decision_tokens(ids[None])[0].nonzero().flatten()
        with capture(trainer.model, probe.layers, gradient=True) as captured:
            trainer.model(input_ids=ids[None])
            read = [probe.read(captured[i][0, places], layer=i) for i in probe.layers]
            values.append(torch.stack(read, dim=1))
        failure.append(rollouts[OUTCOMES][row, : len(places)])
    return torch.cat(values), torch.cat(failure)


@pytest.mark.parametrize("kind", KINDS)
def test_watching_and_weightless_terms_leave_training_as_it_was(
    build: Callable[..., Any], kind: str
) -> None:
    bare = build(kind, None, seen=False)
    watched, weightless = build(kind, None), build(kind, OFF)
    acting = build(kind, CONTRAST)
    for trainer in (bare, watched, weightless, acting):
        torch.manual_seed(7)  # of the generations
        trainer.train()
    for trainer in (watched, weightless):
        assert cases.losses(trainer) == cases.losses(bare)
        assert cases.equal(cases.weights(trainer), cases.weights(bare))
        assert cases.logged(trainer)
    assert not cases.equal(cases.weights(acting), cases.weights(bare))  # control


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_stay_with_their_prompts_through_shuffle_and_split(
    build: Callable[..., Any], kind: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    trainer = build(
        kind, None, max_steps=1, gradient_accumulation_steps=2, steps_per_generation=2
    )
    trainer.train()
    rows = list(map(dict, prompts()))
    rendered: list[Any] = [
        tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
        for row in rows
    ]
    order = []
    for part in trainer._buffered_inputs:
        for ids, mask, outcomes in zip(
            part["prompt_ids"], part["prompt_mask"], part[OUTCOMES], strict=True
        ):
            k = rendered.index(ids[mask.bool()].tolist())
            order.append(k)
            wanted = torch.tensor(
                [torch.nan if x is None else x for x in rows[k]["failed"]]
            )
            torch.testing.assert_close(outcomes[: len(wanted)], wanted, equal_nan=True)
            assert bool(outcomes[len(wanted) :].isnan().all())
    assert sorted(order) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert order != sorted(order)  # control: they were shuffled


@pytest.mark.cell(trainer="{kind}", mode="plain setting, by a plain forward")
@pytest.mark.cell(trainer="{kind}", mode="accumulation, what terms add")
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_terms_act_on_the_loss_forward_alone(
    build: Callable[..., Any], kind: str, steps: int
) -> None:
    """What the contrast adds to a first step, whole or in parts, by plain forwards."""
    settings = {
        "max_steps": 1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 8 // steps,
        "gradient_accumulation_steps": steps,
        "steps_per_generation": steps,
    }
    found: dict[str, Any] = {}
    for name, weights in (("with", CONTRAST), ("without", OFF)):
        keep = cases.Gradients()
        trainer = build(kind, weights, callbacks=(keep,), **settings)
        torch.manual_seed(7)
        trainer.train()
        found[name], parts = keep.steps[0], trainer._buffered_inputs
    oracle = build(kind, CONTRAST, **settings)
    wanted = cases.contrast_gradient(oracle, parts, policy_readings, cached=False)
    cases.check_added(found["with"], found["without"], wanted, tolerance=1e-3)


def test_the_mixin_equals_attach(
    build: Callable[..., Any],
    vectors: EmotionVectors,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(EmotionTrainerMixin, GRPOTrainer):
        """GRPO that takes terms itself."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(
                **settings,
                monitor=Monitor(vectors),
                terms=cases.make_terms(vectors, reference, **CONTRAST),
                outcome="failed",
            )

    attached = build("grpo", CONTRAST)
    monkeypatch.setitem(trainers.CLASSES, "grpo", (Own, GRPOConfig))
    own = build("grpo", None, seen=False)
    for trainer in (attached, own):
        torch.manual_seed(7)
        trainer.train()
    assert cases.logged(own) == cases.logged(attached)
    assert cases.equal(cases.weights(own), cases.weights(attached))


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_that_are_used_twice_keep_their_outcomes(
    build: Callable[..., Any], kind: str
) -> None:
    trainer = build(kind, CONTRAST, num_iterations=2, max_steps=4)
    torch.manual_seed(7)
    trainer.train()
    values = [e["emotion_loss/contrast-lda"] for e in cases.logged(trainer)]
    assert len(values) == 4
    assert all(value > 0 for value in values)


@pytest.mark.cell(trainer="{kind}", mode="eval during training")
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_reads_rollouts_too(build: Callable[..., Any], kind: str) -> None:
    trainer = build(kind, None, per_device_eval_batch_size=4)
    torch.manual_seed(7)
    trainer.evaluate()
    keys = cases.logged(trainer, "eval_emotion")[0]
    assert "eval_emotion/desperate/L2/lda/assistant" in keys
    assert "eval_emotion/desperate/L2/lda/fail" in keys


@pytest.mark.parametrize("kind", KINDS)
def test_the_anchors_run_beside_rollouts(build: Callable[..., Any], kind: str) -> None:
    trainer = build(kind, {**OFF, "meaning": 1.0, "kl": 1.0}, max_steps=2)
    torch.manual_seed(7)
    trainer.train()
    values = {
        k: v
        for entry in cases.logged(trainer, "emotion_loss")
        for k, v in entry.items()
    }
    assert values["emotion_loss/meaning"] >= 0
    assert values["emotion_loss/kl"] >= 0


def test_what_would_lose_outcomes_is_refused(build: Callable[..., Any]) -> None:
    without = prompts().remove_columns("failed")
    with pytest.raises(ValueError, match="must name a column of the training data"):
        build("grpo", None, rows=without)
    with pytest.raises(ValueError, match="`remove_unused_columns` must be False"):
        build("grpo", None, remove_unused_columns=True)
    short = prompts().map(lambda row: {"failed": row["failed"][:-1]})
    with pytest.raises(ValueError, match="one outcome per Assistant turn: prompt"):
        build("grpo", None, rows=short).train()
