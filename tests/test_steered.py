"""Targets kept under a push, and a push while training alone."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
import trainer_cases as trainers
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.losses.steered import Push, SteeredRobustness
from emoreg.residual.layers import decoder_layers
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.attach import attach
from emoreg.training.auxiliary import Target, spoken_rows
from emoreg.training.layouts import Layout
from emoreg.training.reference import Reference
from emoreg.training.steered_rows import SteeredRows, rows_to_steer
from emoreg.training.watch import watch
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.steering import mean_norms

Model = Callable[[], PreTrainedModel]
CPU = torch.device("cpu")
LAYER = cases.LOSS_LAYER


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What is measured once for all tests of this file."""
    return {}


@pytest.fixture
def norms(
    model: Model, tokenizer: PreTrainedTokenizerFast, kept: dict[str, Any]
) -> dict[int, float]:
    if not kept:
        corpus = Corpus.packaged()
        kept["norms"] = mean_norms(model(), tokenizer, corpus, cases.LAYERS)
    return kept["norms"]


@pytest.fixture
def targets(tokenizer: PreTrainedTokenizerFast) -> list[Target]:
    """The Assistant's tokens of the rows that the seam's tests train on."""
    rows = [row["prompt"] + row["completion"] for row in map(dict, cases.make_rows())]
    ids = [tokenizer.apply_chat_template(row, return_dict=False) for row in rows]
    data = Dataset.from_list([{"input_ids": one} for one in ids])
    markers = TurnMarkers.of(tokenizer)
    return spoken_rows(data, Layout.of(data, None), markers, count=len(data))


@pytest.fixture
def make(
    vectors: EmotionVectors,
    reference: Reference,
    norms: dict[int, float],
    targets: list[Target],
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[..., SteeredRows]:
    """An anchor whose norms were measured."""

    def build(rows: list[Target] | None = None, **settings: Any) -> SteeredRows:
        term = SteeredRobustness.of(vectors, reference, **settings)
        term.measured(norms)
        return SteeredRows(term, targets if rows is None else rows, tokenizer)

    return build


@contextmanager
def hooked(
    model: PreTrainedModel, layer: int, vector: Tensor, where: Tensor
) -> Iterator[None]:
    """Add a vector at some tokens of a block's output, by hand."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        moved = stream.clone()
        moved[where] = moved[where] + vector
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = decoder_layers(model)[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def decisions(tokenizer: PreTrainedTokenizerFast, ids: Tensor) -> Tensor:
    """Where the generation prompt ends, found in the text."""
    (prompt,) = tokenizer(["<|im_start|>assistant\n"], add_special_tokens=False)[
        "input_ids"
    ]
    marks = torch.zeros(len(ids), dtype=torch.bool)
    for at in range(len(prompt), len(ids) + 1):
        if ids[at - len(prompt) : at].tolist() == prompt:
            marks[at - 1] = True
    return marks


def plain_loss(
    model: PreTrainedModel,
    anchor: SteeredRows,
    rows: list[int],
    tokenizer: PreTrainedTokenizerFast,
    *,
    layer: int,
    vector: Tensor | None,
) -> Tensor:
    """The cross-entropy on the Assistant's tokens, each row by itself."""
    losses = []
    for target in (anchor.rows[row] for row in rows):
        ids, held = torch.tensor(list(target.ids)), torch.tensor(list(target.held))
        if vector is None:
            logits = model(input_ids=ids[None]).logits[0]
        else:
            where = held | decisions(tokenizer, ids)
            with hooked(model, layer, vector, where[None]):
                logits = model(input_ids=ids[None]).logits[0]
        each = cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
        losses.append(each[held[1:]])
    return torch.cat(losses).mean()


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, found, strict=True) if g is not None}


# -- value and gradient ----------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 2])
def test_value_and_gradient_are_those_of_a_hand_made_hook(
    model: Model,
    make: Callable[..., SteeredRows],
    tokenizer: PreTrainedTokenizerFast,
    norms: dict[int, float],
    step: int,
) -> None:
    anchor, rows = make(strength=1.0), [0, 3, 2]  # of three lengths, so padded
    dose, own = anchor.term.draw(step), model()
    value = anchor.loss(own, rows, CPU, step)
    added = dose.strength * norms[LAYER] * dose.direction
    other = model()
    wanted = plain_loss(other, anchor, rows, tokenizer, layer=LAYER, vector=added)
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    found, expected = gradients(own, value), gradients(other, wanted)
    size = max(float(g.abs().max()) for g in expected.values())
    apart, _, _ = cases.gap(found, expected)
    assert apart < 1e-4 * size
    # Control: without the push it is another gradient.
    plain = plain_loss(other, anchor, rows, tokenizer, layer=LAYER, vector=None)
    assert cases.gap(found, gradients(other, plain))[0] > 0.01 * size


def test_a_dose_of_nothing_is_the_plain_cross_entropy_bit_for_bit(
    model: Model, make: Callable[..., SteeredRows], tokenizer: PreTrainedTokenizerFast
) -> None:
    anchor, own = make(strength=0.0), model()
    value = anchor.loss(own, [1], CPU, 4)
    plain = plain_loss(own, anchor, [1], tokenizer, layer=LAYER, vector=None)
    assert torch.equal(value, plain)
    assert not torch.equal(make(strength=0.1).loss(own, [1], CPU, 4), plain)  # control


def test_checkpointing_changes_nothing(
    model: Model, make: Callable[..., SteeredRows]
) -> None:
    anchor, found = make(strength=1.0), []
    for reentrant in (None, False, True):
        own = model().train()
        if reentrant is not None:
            settings = {"use_reentrant": reentrant}
            own.gradient_checkpointing_enable(settings)
            own.enable_input_require_grads()
        anchor.loss(own, [0, 1], CPU, 0).backward()
        named = own.named_parameters()
        found.append({n: p.grad for n, p in named if p.grad is not None})
    for other in found[1:]:
        assert cases.gap(found[0], other)[0] < 1e-5


def test_the_head_sees_predicting_tokens_alone(
    model: Model, make: Callable[..., SteeredRows]
) -> None:
    anchor, own, seen = make(), model(), []
    head: Any = own.get_output_embeddings()
    handle = head.register_forward_hook(lambda *a: seen.append(tuple(a[2].shape[:-1])))
    anchor.loss(own, [0, 2], CPU, 0)
    held = sum(sum(anchor.rows[row].held) for row in (0, 2))
    own(input_ids=torch.tensor([list(anchor.rows[0].ids)]))
    handle.remove()
    # Control: afterwards the head sees everything again.
    assert seen == [(1, held), (1, len(anchor.rows[0].ids))]


# -- doses -----------------------------------------------------------------------------


def test_doses_are_spread_as_the_formula_says(
    vectors: EmotionVectors, reference: Reference
) -> None:
    layers = (1, LAYER)
    term = SteeredRobustness.of(vectors, reference, layers=layers)
    doses = [term.draw(step) for step in range(1000)]
    placebos = [dose for dose in doses if dose.placebo]
    assert 0.2 == pytest.approx(len(placebos) / 1000, abs=4 * math.sqrt(0.16 / 1000))
    strengths = torch.tensor([dose.strength for dose in doses])
    assert 0 <= float(strengths.min()) < 0.004 < 0.076 < float(strengths.max()) < 0.08
    assert float(strengths.mean()) == pytest.approx(0.04, abs=0.004)
    at = sum(dose.layer == layers[0] for dose in doses) / 1000
    assert at == pytest.approx(0.5, abs=0.07)
    lengths = torch.stack([dose.direction.norm() for dose in doses])
    torch.testing.assert_close(lengths, torch.ones(1000))
    for dose in doses:
        own = vectors.direction(
            "desperate", layer=dose.layer, reader="mean-difference"
        )
        assert torch.equal(dose.direction, own) != dose.placebo
    drawn = torch.stack([dose.direction for dose in placebos])
    cosines = (drawn @ drawn.T).triu(1)
    assert float(cosines.abs().max()) < 0.9  # each a direction of its own
    assert float(drawn.mean(0).norm()) < 0.2  # and of no common one


def test_doses_follow_from_seed_and_step_alone(
    vectors: EmotionVectors, reference: Reference
) -> None:
    first, second, other = (
        SteeredRobustness.of(vectors, reference, seed=seed) for seed in (5, 5, 6)
    )
    second.draw(17)
    torch.rand(3)
    for step in (3, 1, 40):
        mine, same = first.draw(step), second.draw(step)
        assert (mine.strength, mine.placebo) == (same.strength, same.placebo)
        assert torch.equal(mine.direction, same.direction)
        assert mine.strength != other.draw(step).strength  # control
    assert first.draw(1).strength != first.draw(2).strength


def test_a_resumed_run_is_the_uncut_one(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    def run(name: str, *, seed: int = 0, resume: bool = False) -> Any:
        trainer: Any = cases.make_sft(
            model(), tokenizer, tmp_path / name, save_strategy="steps", save_steps=4
        )
        term = SteeredRobustness.of(vectors, reference, every=2, seed=seed)
        attach(trainer, terms=[term])
        cut = str(tmp_path / "whole" / "checkpoint-4") if resume else None
        trainer.train(resume_from_checkpoint=cut)
        return trainer

    whole, other = run("whole"), run("other", seed=1)
    resumed = run("resumed", resume=True)
    assert cases.equal(cases.weights(whole), cases.weights(resumed))
    assert cases.logged(whole)[-2:] == cases.logged(resumed)[-2:]
    assert not cases.equal(cases.weights(whole), cases.weights(other))  # control


# -- what it does ----------------------------------------------------------------------


def test_the_targets_are_kept_under_the_push_by_training_alone(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    make: Callable[..., SteeredRows],
    norms: dict[int, float],
    tmp_path: Path,
) -> None:
    """A model that has learnt its targets loses them when pushed, and need not."""
    strength = 12.0  # weights grow at this rate, and with them the stream
    vector = strength * norms[LAYER] * vectors.direction("desperate", layer=LAYER)

    def costs(trained: PreTrainedModel) -> tuple[float, float]:
        """The loss of all rows unpushed, and at full dose."""
        anchor, rows = make(), list(range(8))
        with torch.no_grad():
            plain, pushed = (
                plain_loss(trained, anchor, rows, tokenizer, layer=LAYER, vector=v)
                for v in (None, vector)
            )
        return float(plain), float(pushed)

    def run(start: dict[str, Tensor], weight: float | None) -> Any:
        own = model()
        own.load_state_dict(start)
        made: Any = cases.make_sft(own, tokenizer, tmp_path, max_steps=24)
        if weight is not None:
            dose = {"strength": strength, "every": 1, "passages": 4}
            term = SteeredRobustness.of(vectors, reference, weight=weight, **dose)
            attach(made, terms=[term])
        made.train()
        made.model.eval()
        return made

    learnt = run(model().state_dict(), None).model
    before, start = costs(learnt), learnt.state_dict()
    assert before[1] > before[0] + 0.5
    without = costs(run(start, 0.0).model)
    trained = run(start, 1.0)
    after = costs(trained.model)
    assert after[1] < 0.5 * before[1]
    assert after[1] < 0.5 * without[1]
    assert after[1] - after[0] < 0.5 * (without[1] - without[0])
    line = cases.logged(trained)[0]
    assert line["emotion_weight/steered"] == 1.0
    assert line["emotion_loss/steered"] > 0
