"""Taking readings and terms out of a trainer again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from emoreg.residual.layers import decoder_layers
from emoreg.training.attach import attach, detach
from emoreg.training.reference import Reference
from emoreg.vectors.emotion_vectors import EmotionVectors

ALL = {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 1.0}
Make = Callable[..., Any]


@pytest.fixture
def make(
    tiny_model: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Make:
    """Make a trainer of four steps, with terms or bare."""
    vectors = cases.make_vectors()

    def made(*, terms: bool = True, **changes: Any) -> Any:
        model = cases.lively(tiny_model("llama"))
        reference: Reference = cases.make_reference(model, tokenizer, vectors)
        trainer = cases.make_sft(
            model, tokenizer, tmp_path, max_steps=4, learning_rate=1e-3, **changes
        )
        known: EmotionVectors = vectors
        weights = ALL if terms else None
        return cases.attached(trainer, known, reference, weights) if terms else trainer

    return made


class AfterTwo(TrainerCallback):
    """Does something after the second of four steps."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        if state.global_step == 2:
            self.action()


def weightless(trainer: Any) -> None:
    for term in trainer.emotions.regularizer.terms:
        term.weight = 0.0


def test_detached_before_training_it_is_the_bare_trainer(make: Make) -> None:
    bare, detached, kept = make(terms=False), detach(make()), make()
    for trainer in (bare, detached, kept):
        trainer.train()
    assert cases.losses(detached) == cases.losses(bare)
    assert cases.equal(cases.weights(detached), cases.weights(bare))
    assert cases.logged(detached) == []
    assert not cases.equal(cases.weights(kept), cases.weights(bare))  # the control


def test_detached_in_the_middle_it_goes_on_without_terms(make: Make) -> None:
    detached, silenced, kept = make(), make(), make()
    detached.add_callback(AfterTwo(lambda: detach(detached)))
    silenced.add_callback(AfterTwo(lambda: weightless(silenced)))
    for trainer in (detached, silenced, kept):
        trainer.train()
    assert cases.losses(detached) == cases.losses(silenced)
    assert cases.equal(cases.weights(detached), cases.weights(silenced))
    assert not cases.equal(cases.weights(kept), cases.weights(silenced))
    assert (len(cases.logged(detached)), len(cases.logged(kept))) == (1, 4)
    assert not any(x._forward_hooks for x in decoder_layers(detached.model))


def test_what_was_not_attached_and_what_was_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="must have been attached to, and was not"):
        detach(make(terms=False))
    with pytest.raises(ValueError, match="must not be attached twice"):
        attach(detach(make()))
