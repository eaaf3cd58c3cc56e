"""Weights that follow from targets: the rule alone, and in real training.

Oracles: the rule written down again as sums over the whole past; gradients of separate
runs of the trainer, kept by a callback; the weights worked out from the errors and the
KL that the log shows.
"""

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.losses.band import BandPenalty
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.presets import Terms, decouple
from emoreg.losses.targets import Targets, TargetWeight, first_weight, updated
from emoreg.losses.term import DecisionReadings, Probe
from emoreg.training import term_weights
from emoreg.training.attach import attach
from emoreg.training.doctor.trial import Trial, undisturbed
from emoreg.training.gradients import length, trained_parameters
from emoreg.training.reference import Reference
from emoreg.training.watch import watch
from emoreg.vectors.emotion_vectors import EmotionVectors

NAN = float("nan")
GIVEN: dict[str, Any] = {"contrast": 2.0, "band": 0.3, "meaning": 1.0, "kl": 0.1}
RATIO = {
    "contrast-lda": 0.10,  # two readers share a fifth
    "contrast-mean-difference": 0.10,
    "band": 0.05,
    "meaning": 0.10,
}
BUDGET = 5e-4
"""Nat per token that a run of a few steps first keeps and then exceeds."""
STILL = {
    "optim": "sgd",
    "learning_rate": 0.0,
    "max_grad_norm": 1e9,
    "train_sampling_strategy": "sequential",
}

# -- the rule ------------------------------------------------------------------------


def by_the_book(
    errors: Sequence[float], *, start: float = 1.0, freezes: bool = True
) -> list[float]:
    """Weights after each error, from sums over all errors before it."""
    added: list[float] = []
    found = []
    for e in errors:
        log = 0.1 * e + sum(added)
        pushes = (log >= math.log(20) and e > 0) or (log <= -math.log(20) and e < 0)
        if not (freezes and pushes):
            added.append(0.02 * sorted([-0.2, e, 0.2])[1])
        log = 0.1 * e + sum(added)
        found.append(start * sorted([1 / 20, math.exp(min(log, 9.0)), 20.0])[1])
    return found


def follow(errors: Iterable[float], *, start: float = 1.0) -> list[TargetWeight]:
    """The weight after each error."""
    steps = itertools.accumulate(
        errors,
        lambda weight, e: weight.moved(e, missed=e > 0),
        initial=TargetWeight(start=start),
    )
    return list(steps)[1:]


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])
def test_a_weight_is_what_the_formula_says(scale: float) -> None:
    drawn = random.Random(3)
    centres = [0.1] * 1400 + [0.9] * 700
    errors = [scale * (drawn.random() - centre) for centre in centres]
    found = [w.weight for w in follow(errors, start=0.7)]
    assert found == pytest.approx(by_the_book(errors, start=0.7), rel=1e-9)
    unfrozen = by_the_book(errors, start=0.7, freezes=False)
    if max(found) < 13.9:
        assert found == pytest.approx(unfrozen, rel=1e-9)
    else:  # control: the limits were met, and what they freeze is seen
        assert max(found) == pytest.approx(14.0)
        assert found[-1] != pytest.approx(unfrozen[-1], rel=0.1)


def test_the_formula_is_the_one_by_steps() -> None:
    """`log weight += 0.1 (e - e_before) + 0.02 clip(e)`, where no limit is met."""
    errors = [0.7, 0.5, -0.1, -0.3, 0.05]
    log, before = 0.0, 0.0
    for e, found in zip(errors, follow(errors), strict=True):
        log += 0.1 * (e - before) + 0.02 * min(max(e, -0.2), 0.2)
        before = e
        assert found.weight == pytest.approx(math.exp(log), rel=1e-12)


@pytest.mark.parametrize("side", [1.0, -1.0], ids=["up", "down"])
def test_a_weight_stops_at_its_limit_and_leaves_it_at_once(side: float) -> None:
    long, back = [side * 0.5] * 3000, [side * -0.1] * 400
    held = follow([*long, *back], start=3.0)
    limit = 3.0 * 20**side
    assert held[2999].weight == pytest.approx(limit)
    assert held[2999].at_limit
    away = [k for k, w in enumerate(held[3000:]) if not w.at_limit]
    assert away[0] == 0
    # Control: a sum that went on would keep it there for hundreds of updates.
    wound_up = by_the_book([*long, *back], start=3.0, freezes=False)
    assert wound_up[-1] == pytest.approx(limit)


def test_an_error_at_a_limit_may_grow_and_come_back() -> None:
    """A spike is answered in proportion and leaves nothing behind."""
    found = follow([0.0, 1e6, 0.0])
    assert found[1].weight == pytest.approx(20.0)
    assert found[2].weight == 1.0


@pytest.mark.parametrize("error", [NAN, math.inf, -math.inf])
def test_an_unknown_error_moves_nothing(error: float) -> None:
    before = follow([0.3, 0.2])[-1]
    after = before.moved(error, missed=True)
    assert after.weight == before.weight
    assert after.stuck == 1
    assert after.moved(0.2, missed=True).stuck == 0
    assert after.moved(0.1, missed=True).weight == pytest.approx(
        by_the_book([0.3, 0.2, 0.1])[-1]
    )


def pair(contrast: float = 0.0, kl: float = 0.0) -> dict[str, TargetWeight]:
    """A contrast and a KL that have followed these errors."""
    return {
        "contrast": TargetWeight(start=1.0).moved(contrast, missed=contrast > 0),
        "kl": TargetWeight(start=1.0).moved(kl, missed=kl > 0),
    }


def moves(
    weights: dict[str, TargetWeight], contrast: float, kl: float
) -> tuple[float, float]:
    """How much each weight moves on these errors."""
    after = updated(weights, {"contrast": contrast, "kl": kl}, guards={"kl"})
    return tuple(after[k].weight - weights[k].weight for k in ("contrast", "kl"))  # type: ignore[return-value]


def test_the_kl_outranks_what_the_slope_asks_for() -> None:
    contrast, kl = moves(pair(), contrast=0.7, kl=-0.5)
    assert contrast > 0 > kl
    contrast, kl = moves(pair(), contrast=0.7, kl=0.5)
    assert kl > 0 > contrast
    # As far as the KL is over, but further if the slope itself asks for less.
    assert contrast == moves(pair(), contrast=-0.1, kl=0.5)[0]
    assert contrast > moves(pair(), contrast=-0.9, kl=0.5)[0]
    # Back in its budget, the slope is followed again.
    over = updated(pair(), {"contrast": 0.7, "kl": 0.5}, guards={"kl"})
    assert moves(over, contrast=0.7, kl=-0.1)[0] > 0
    # Also a weight whose own error is unknown.
    assert moves(pair(), contrast=NAN, kl=0.5)[0] == pytest.approx(contrast)


@pytest.mark.parametrize("contrast", [0.7, -0.3, NAN])
@pytest.mark.parametrize("before", [0.7, 0.0, -2.0])
def test_no_weight_grows_while_the_kl_is_unknown(
    contrast: float, before: float
) -> None:
    weights = pair(before, 0.1)
    moved, kl = moves(weights, contrast, NAN)
    assert moved <= 0
    assert kl == 0
    known = moves(weights, 0.7, -0.1)[0]
    assert known > 0 or before == 0.7  # control


def test_a_first_weight_pulls_a_share_of_the_task() -> None:
    weight = first_weight(0.2, [3.0, 5.0], [10.0, 30.0])
    assert weight == pytest.approx(0.04)
    assert weight * (10 + 30) == pytest.approx(0.2 * (3 + 5))


# -- what is measured ----------------------------------------------------------------


def probe(emotions: tuple[str, ...]) -> Probe:
    """A probe at one layer; these tests give the readings themselves."""
    size = len(emotions)
    return Probe(
        directions=torch.eye(size, 8).unsqueeze(0),
        zero=torch.zeros(1, size),
        sigma=torch.ones(1, size),
        layers=(2,),
        emotions=emotions,
        reader="lda",
    )


def read(*segments: tuple[list[float], float]) -> DecisionReadings:
    """Readings of one layer, each with its failure."""
    values = torch.tensor([[value] for value, _ in segments])
    return DecisionReadings(
        values=values.requires_grad_(),
        failure=torch.tensor([failure for _, failure in segments]),
    )


def test_the_slope_left_is_a_share_of_the_references() -> None:
    names = ("desperate", "calm", "bored")
    signs, gap = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([[2.0, -1.0, -0.5]])
    term = ContrastPenalty(probe(names), signs, gap)
    assert math.isnan(term.left)
    term(read(([9.0, 9.0, 9.0], 1.0), ([0.0, 0.0, 0.0], NAN)))
    assert math.isnan(term.left)  # no segment is in the means that the batch met
    term(read(([1.0, 1.0, 1.0], 0.0)))
    assert math.isnan(term.left)  # no succeeding one yet
    term(read(([1.0, 0.0, 0.0], 1.0)))
    # Failing 9 each, succeeding 1 each; failure never moved `bored`.
    assert float(term.left) == pytest.approx((8 - 8) / 3)
    other = ContrastPenalty(probe(names), signs, gap)
    other(read(([1.5, 0.25, 7.0], 1.0), ([0.5, 0.5, 0.0], 0.0)))
    other(read(([0.0, 0.0, 0.0], 1.0)))
    assert float(other.left) == pytest.approx((1.0 + 0.25) / (2.0 + 1.0))


def test_the_place_in_the_band_is_in_its_widths() -> None:
    low, high = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    for value, place in ((1.0, -0.5), (3.0, 0.5), (-1.0, 0.5), (0.5, -0.25)):
        band = BandPenalty(probe(("calm",)), torch.zeros(1, 1), low=low, high=high)
        assert math.isnan(band.outside)
        band(read(([value], 1.0), ([50.0], 0.0), ([NAN], NAN)))
        assert math.isnan(band.outside)
        band(read(([7.0], 0.0)))
        assert float(band.outside) == pytest.approx(place)
        band(read(([9.0], 1.0)))
        kept = BandPenalty(probe(("calm",)), torch.zeros(1, 1), low=low, high=high)
        kept.load_state_dict(band.state_dict())
        assert float(kept.outside) == float(band.outside) != pytest.approx(place)
        kept.load_state_dict({})  # of a version that kept nothing


def test_the_parts_of_a_step_meet_the_same_place_in_the_band() -> None:
    low, high = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    band = BandPenalty(probe(("calm",)), torch.zeros(1, 1), low=low, high=high)
    band(read(([1.0], 1.0)))
    band(read(([5.0], 1.0)))
    before = float(band.outside)
    band(replace(read(([5.0], 1.0)), continues=True))
    assert float(band.outside) == before == -0.5
    band(read(([1.0], 1.0)))
    assert float(band.outside) > before  # control: the next step lets it in


# -- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"slope_reduction": 0.0}, "`slope_reduction` must be a share"),
        ({"slope_reduction": 1.1}, "`slope_reduction` must be a share"),
        ({"slope_reduction": NAN}, "`slope_reduction` must be a share"),
        ({"calm_band": (1.0, 1.0)}, "`calm_band` must be a finite floor"),
        ({"calm_band": (0.0, math.inf)}, "`calm_band` must be a finite floor"),
        ({"calm_band": (NAN, 1.0)}, "`calm_band` must be a finite floor"),
        ({"calm_band": (-2.0, -0.5)}, "`calm_band` must reach up to 0"),
        ({"kl_budget": 0.0}, "`kl_budget` must be above 0, got 0: with no change"),
        ({"kl_budget": -0.1}, "`kl_budget` must be a finite number"),
        ({"kl_budget": NAN}, "`kl_budget` must be a finite number"),
        ({"kl_budget": math.inf}, "`kl_budget` must be a finite number"),
    ],
)
def test_targets_that_cannot_be_met_are_refused(
    asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Targets(**asked)


def test_targets_say_their_errors() -> None:
    targets = Targets(slope_reduction=0.75, calm_band=(0.0, 1.0), kl_budget=0.05)
    assert targets == Targets()
    assert targets.slope_error(1.0) == pytest.approx(0.75)
    assert targets.slope_error(0.25) == pytest.approx(0)
    assert targets.kl_error(0.1) == pytest.approx(1.0)
    assert targets.kl_error(0.0) == pytest.approx(-1.0)
    assert Targets(slope_reduction=1.0).keep == 0


@pytest.fixture
def trainer(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Any:
    return cases.make_sft(model(), tokenizer, tmp_path, peft=cases.adapter())


def wide(reference: Reference) -> Reference:
    """A reference whose `success_std` is one of its units, as in a trained model."""
    return replace(reference, success_std=reference.sigma_ref)


@pytest.mark.parametrize(
    ("made", "asked", "said"),
    [
        ({"keep": 0.5}, {}, "`slope_reduction=0.75` must be what the terms ask for"),
        (
            {"keep": 0.25, "calm_band": (0.0, 2.0)},
            {},
            r"`calm_band=\(0.0, 1.0\)` must be what the terms ask for",
        ),
        (
            {"keep": 0.25, "calm_band": (0.5, 1.0)},
            {"calm_band": (0.5, 1.0)},
            "`calm_band` must not have a floor above what the contrast",
        ),
        ({"contrast": 0.0}, {}, "must have a ContrastPenalty.*`slope_reduction`"),
        ({"kl": 0.0}, {}, "must have a ReferenceKL.*`kl_budget`"),
        (
            {"targets": Targets(kl_budget=0.01)},
            {},
            "`targets` must be those that the terms were made for",
        ),
    ],
    ids=["keep", "band", "floor", "no contrast", "no kl", "two targets"],
)
def test_targets_that_contradict_the_terms_are_refused(
    trainer: Any,
    vectors: EmotionVectors,
    reference: Reference,
    made: dict[str, Any],
    asked: dict[str, Any],
    said: str,
) -> None:
    terms = decouple(vectors, wide(reference), **made)
    with pytest.raises(ValueError, match=said):
        attach(trainer, terms=terms, outcome="failed", targets=Targets(**asked))


def test_targets_that_fit_the_terms_are_taken(
    trainer: Any,
    vectors: EmotionVectors,
    reference: Reference,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The control of the refusals; without a band on calm, a warning says so."""
    terms = decouple(vectors, wide(reference), band=0.0, keep=0.25)
    attach(trainer, terms=terms, outcome="failed", targets=Targets())
    assert "`calm_band` is not held" in caplog.text


@pytest.mark.parametrize("also", [{"keep": 0.25}, {"calm_band": (0.0, 1.0)}])
def test_a_target_is_said_once(
    vectors: EmotionVectors, reference: Reference, also: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="must be left out beside `targets`"):
        decouple(vectors, reference, targets=Targets(), **also)


# -- in training ---------------------------------------------------------------------


@pytest.fixture
def run(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Train with these targets, or none, and these first weights."""

    def go(
        targets: Targets | None,
        given: dict[str, Any] | None = None,
        *,
        prepare: Callable[[Any], None] = lambda _: None,
        resume: Path | None = None,
        **changes: Any,
    ) -> Any:
        settings = {"peft": cases.adapter(), "learning_rate": 3e-3, **changes}
        made: Any = cases.make_sft(model(), tokenizer, tmp_path, **settings)
        weights = GIVEN if given is None else given
        asked = {"targets": targets} if targets else {"keep": Targets().keep}
        terms = decouple(vectors, wide(reference), **asked, **weights)
        attach(made, terms=terms, outcome="failed")
        prepare(made)
        made.train(resume_from_checkpoint=resume and str(resume))
        return made

    return go


def terms_of(trainer: Any) -> dict[str, Any]:
    """The trainer's terms by name."""
    regularizer = trainer.emotions.regularizer
    return {regularizer.names[id(term)]: term for term in regularizer.terms}


def column(trainer: Any, key: str) -> list[Any]:
    """A figure of every logged step, None where it is missing."""
    lines = [x for x in trainer.state.log_history if "loss" in x]
    return [line.get(key) for line in lines]


def nudged(trainer: Any) -> None:
    """Have all anchors pull, with all their passages, in every step."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in trained_parameters(trainer.model).values():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    for term in trainer.emotions.regularizer.terms:
        if hasattr(term, "every"):
            term.every, term.passages = 1, 8


def test_first_weights_are_the_ratio_of_separate_runs_gradients(
    run: Callable[..., Any],
) -> None:
    """Four batches of the task alone, and of it with one term."""

    def gradients(active: str) -> list[dict[str, torch.Tensor]]:
        def prepare(trainer: Any) -> None:
            nudged(trainer)
            for name, term in terms_of(trainer).items():
                term.weight = float(name == active)

        keep = cases.Gradients()
        run(None, callbacks=[keep], prepare=prepare, max_steps=4, **STILL)
        return keep.steps

    found = run(Targets(), prepare=nudged, max_steps=5, **STILL)
    task = gradients("")
    pulled = sum(float(length(g)) for g in task)
    wanted = {}
    for name, ratio in RATIO.items():
        both = gradients(name)
        own = sum(
            float(length({k: a[k] - b[k] for k in a}))
            for a, b in zip(both, task, strict=True)
        )
        wanted[name] = ratio * pulled / own
        weights = column(found, f"emotion_weight/{name}")
        given = weights[:3]
        assert weights[3:] == pytest.approx([wanted[name]] * 2, rel=1e-3)
        assert given == [given[0]] * 3
        assert given[0] != pytest.approx(wanted[name], rel=0.1)
    assert len({round(w, 6) for w in wanted.values()}) == len(wanted)
    assert set(column(found, "emotion_weight/kl")) == {GIVEN["kl"]}


def test_a_first_weight_of_a_term_near_its_rest_is_bounded(
    run: Callable[..., Any],
) -> None:
    given = {**GIVEN, "contrast": 1e-4}
    found = terms_of(run(Targets(), given, prepare=nudged, max_steps=4, **STILL))
    assert found["contrast-lda"].weight == pytest.approx(20 * 5e-5)
    assert found["band"].weight != pytest.approx(20 * GIVEN["band"], rel=0.1)


def test_logged_weights_follow_from_logged_errors(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule by the book on the errors that the log shows, and those from its KL."""
    monkeypatch.setattr(term_weights, "EVERY", 2)
    found = run(Targets(kl_budget=BUDGET), max_steps=16)
    updates = range(1, 16, 2)
    total = count = 0.0
    over = {}
    # The KL runs at the second step, and at every fourth from there.
    for step, value in enumerate(column(found, "emotion_loss/kl")):
        if value is not None:
            total, count = 0.8 * total + value, 0.8 * count + 1
        if step in updates:
            over[step] = (total / count - BUDGET) / BUDGET
    logged = column(found, "emotion_error/kl")
    assert [logged[k] for k in updates] == pytest.approx(list(over.values()), rel=1e-4)
    assert min(over.values()) < 0 < max(over.values())  # both were met
    follow_book(found, "kl", over, start=GIVEN["kl"])
    for name in ("contrast-lda", "contrast-mean-difference", "band"):
        errors = column(found, f"emotion_error/{name}")
        assert errors[:3] == [None] * 3  # while the first weight is measured
        followed = {
            k: min(errors[k], -over[k]) if over[k] > 0 else errors[k]
            for k in updates
            if k >= 3
        }
        follow_book(found, name, followed)
    left = float(terms_of(found)["contrast-lda"].left)
    last = column(found, "emotion_error/contrast-lda")[-1]
    assert last == pytest.approx(left - 0.25, rel=1e-5)
    assert set(column(found, "emotion_error/meaning")) == {None}  # it has no target


def follow_book(
    trainer: Any, name: str, errors: dict[int, Any], start: float | None = None
) -> None:
    """The logged weights of a term are those of the errors, by the step of each."""
    weights = column(trainer, f"emotion_weight/{name}")
    wanted = dict(zip(errors, by_the_book(list(errors.values())), strict=True))
    if start is None:  # measured; by the first update
        first = next(iter(errors))
        start = float(weights[first] or NAN) / wanted[first]
    shown = [k for k in errors if weights[k] is not None]
    assert len(shown) >= 4
    assert [weights[k] for k in shown] == pytest.approx(
        [start * wanted[k] for k in shown], rel=1e-5
    )
    # Control: they moved.
    assert weights[shown[-1]] != pytest.approx(weights[shown[0]], rel=1e-3)


# -- safety --------------------------------------------------------------------------


def test_a_target_that_is_out_of_reach_clamps_warns_once_and_goes_on(
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(term_weights, "EVERY", 1)
    monkeypatch.setattr(term_weights, "_PATIENCE", 4)
    with caplog.at_level(logging.WARNING, logger=term_weights.__name__):
        found = run(Targets(kl_budget=1e-7), max_steps=14)
    said = [r for r in caplog.records if "Targets are missed" in r.message]
    assert len(said) == 1
    assert "kl has weight 2, 20 times its first" in said[0].message
    weight = {name: term.weight for name, term in terms_of(found).items()}
    assert weight["kl"] == pytest.approx(20 * GIVEN["kl"])
    for name in ("contrast-lda", "contrast-mean-difference", "band"):
        first = column(found, f"emotion_weight/{name}")[3]
        assert weight[name] < GIVEN["band"]
        assert weight[name] == pytest.approx(first, rel=1e-6)  # at its least at once
    assert len(cases.losses(found)) == 14
    assert all(map(math.isfinite, cases.losses(found)))
    assert all(bool(p.isfinite().all()) for p in found.model.parameters())


def test_a_target_within_reach_is_not_warned_of(
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The control of the warning."""
    monkeypatch.setattr(term_weights, "EVERY", 1)
    monkeypatch.setattr(term_weights, "_PATIENCE", 4)
    run(Targets(kl_budget=10.0), max_steps=10)
    assert "Targets are missed" not in caplog.text


def test_outcomes_of_one_kind_alone_leave_the_contrast_and_say_so(
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a succeeding turn no slope is known: an unknown error moves nothing."""
    monkeypatch.setattr(term_weights, "EVERY", 1)
    monkeypatch.setattr(term_weights, "_PATIENCE", 4)
    rows = [cases.row((None, 1.0), k) for k in range(8)]
    found = run(Targets(kl_budget=10.0), rows=cases.Dataset.from_list(rows))
    assert "contrast-lda has weight" in caplog.text
    assert set(column(found, "emotion_error/contrast-lda")) == {None}
    assert len(set(column(found, "emotion_weight/contrast-lda")[3:])) == 1
    assert len(set(column(found, "emotion_weight/band")[3:])) > 1  # control


def test_gradients_that_cannot_be_measured_leave_the_given_weights(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    reentrant = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    }
    found = run(Targets(), max_steps=3, **reentrant)
    assert "stay the given ones: gradients can't be measured" in caplog.text
    assert column(found, "emotion_weight/contrast-lda") == [GIVEN["contrast"] / 2] * 3
    weights = found.emotions.regularizer.state_dict()["targets"]["weights"]
    assert {"contrast-lda", "contrast-mean-difference", "band", "kl"} == set(weights)


def test_a_term_that_is_switched_off_stays_off(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the KL, whose last error then holds nothing back."""
    monkeypatch.setattr(term_weights, "EVERY", 1)

    class Off(cases.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            del args
            off = {2: "band", 8: "kl"}.get(state.global_step)
            if off is not None:
                terms[off].weight = 0.0

    terms: dict[str, Any] = {}
    found = run(
        Targets(kl_budget=1e-7),
        prepare=lambda trainer: terms.update(terms_of(trainer)),
        callbacks=[Off()],
        max_steps=12,
    )
    assert terms["band"].weight == terms["kl"].weight == 0.0
    contrast = column(found, "emotion_weight/contrast-lda")
    assert contrast[9] > 2 * contrast[7]


# -- nothing else changes ------------------------------------------------------------


def test_without_targets_weights_stay_and_nothing_is_added(
    run: Callable[..., Any],
) -> None:
    found = run(None, max_steps=3)
    for name, term in terms_of(found).items():
        share = 2 if name.startswith("contrast") else 1
        assert term.weight == GIVEN[name.split("-")[0]] / share
    regularizer = found.emotions.regularizer
    assert "targets" not in regularizer.state_dict()
    assert regularizer.gradients.every == 0
    keys = {key for line in found.state.log_history for key in line}
    assert not any(k.startswith(("emotion_error", "emotion_gradient")) for k in keys)


def test_what_targets_do_beside_setting_weights_moves_no_bit(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gains of 0 and every first weight the given one."""
    without = run(None, max_steps=6)
    monkeypatch.setattr(term_weights, "EVERY", 1)
    free = run(Targets(), max_steps=6)
    monkeypatch.setattr("emoreg.losses.targets.PROPORTIONAL", 0.0)
    monkeypatch.setattr("emoreg.losses.targets.INTEGRAL", 0.0)
    monkeypatch.setattr(term_weights, "AT_REST", math.inf)
    held = run(Targets(), max_steps=6)
    assert column(held, "emotion_gradient/task")[0]
    assert cases.losses(held) == cases.losses(without)
    assert cases.equal(cases.weights(held), cases.weights(without))
    assert not cases.equal(cases.weights(free), cases.weights(without))  # control


def test_trial_steps_leave_targets_alone(
    trainer: Any,
    vectors: EmotionVectors,
    reference: Reference,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What `emoreg.doctor` does before training: gradients are not measured there."""
    terms = decouple(vectors, wide(reference), targets=Targets(), **GIVEN)
    attach(trainer, terms=terms, outcome="failed")
    regularizer = trainer.emotions.regularizer
    before = regularizer.term_weights.state_dict()
    with undisturbed(trainer):
        trial = Trial(trainer)
        trial.step([trial.first_batch()], regularizer.terms, task=True)
    assert regularizer.term_weights.state_dict() == before
    assert regularizer.gradients.every == 1
    assert "stay the given ones" not in caplog.text


# -- checkpoints ---------------------------------------------------------------------


def test_a_resumed_run_equals_the_uncut_one(
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Cut while first weights are measured, and after weights were set."""
    monkeypatch.setattr(term_weights, "EVERY", 2)
    changes = {"max_steps": 9, "save_strategy": "steps", "save_steps": 3}
    targets = Targets(kl_budget=BUDGET)
    uncut = run(targets, **changes)
    for cut in (3, 6):
        folder = tmp_path / f"checkpoint-{cut}"
        kept = torch.load(folder / "emoreg_terms.pt", weights_only=True)
        pending = {"contrast-lda", "contrast-mean-difference", "band", "meaning"}
        waiting = {"meaning"} if cut == 6 else pending
        assert set(kept["targets"]["norms"]) == waiting
        resumed = run(targets, resume=folder, **changes)
        assert cases.losses(resumed) == cases.losses(uncut)
        assert cases.logged(resumed) == cases.logged(uncut)
        assert cases.equal(cases.weights(resumed), cases.weights(uncut))
        ours, theirs = (
            x.emotions.regularizer.state_dict()["targets"] for x in (uncut, resumed)
        )
        assert cases.equal(ours.pop("kl"), theirs.pop("kl"))
        assert ours == theirs
    # Control: without what the targets kept it is another run, which is told.
    del kept["targets"]
    torch.save(kept, folder / "emoreg_terms.pt")
    forgetful = run(targets, resume=folder, **changes)
    assert "no weights that targets have set" in caplog.text
    assert not cases.equal(cases.weights(forgetful), cases.weights(uncut))


# -- a loop --------------------------------------------------------------------------


@pytest.fixture
def loop(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., list[dict[str, Any]]]:
    """Run a loop over the rows twice: each step's log, and the targets' state."""
    plain: Any = cases.make_plain(model(), tokenizer, tmp_path)
    rows = list(map(dict, plain.train_dataset))
    batches = [rows[i : i + 2] for i in range(0, len(rows), 2)] * 2

    def go(*, task: bool = True, terms: Terms | None = None) -> list[dict[str, Any]]:
        trained = model()
        if terms is None:
            terms = decouple(vectors, wide(reference), targets=Targets(), **GIVEN)
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4)
        lines = []
        with watch(trained, tokenizer, terms=terms, quiet=True) as w:
            for batch in batches:
                inputs = cases.collate(batch)
                loss = trained(**inputs).loss
                failed = [row["failed"] for row in batch]
                added = w.terms(inputs, failed, task=loss if task else None)
                (loss + added).backward()
                w.after_backward()
                optimizer.step()
                optimizer.zero_grad()
                lines.append(w.metrics())
            lines.append(w.state_dict()["terms"]["targets"])
        return lines

    return go


def test_a_loop_sets_the_weights_too(
    loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(term_weights, "EVERY", 5)
    *lines, state = loop()
    key = "emotion_weight/contrast-lda"
    tasks = [x["emotion_gradient/task"] for x in lines[:4]]
    owns = [x["emotion_gradient/contrast-lda"] for x in lines[:4]]
    start = RATIO["contrast-lda"] * sum(tasks) / sum(owns)  # the given weight is 1
    assert [x[key] for x in lines[:3]] == [1.0] * 3
    assert lines[3][key] == pytest.approx(start, rel=1e-5)
    error = lines[4]["emotion_error/contrast-lda"]
    assert lines[4][key] == pytest.approx(
        by_the_book([error], start=start)[0], rel=1e-5
    )
    assert state["given"]["contrast-lda"] == lines[-1][key]


def test_terms_that_are_used_again_begin_anew(
    loop: Callable[..., Any],
    vectors: EmotionVectors,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(term_weights, "EVERY", 5)
    terms = decouple(vectors, wide(reference), targets=Targets(), **GIVEN)
    given = [term.weight for term in terms]
    first = loop(terms=terms)
    assert [term.weight for term in terms] != given  # control
    for one, two in zip(first[:-1], loop(terms=terms)[:-1], strict=True):
        assert {k: v for k, v in two.items() if "_cost/" not in k} == {
            k: v for k, v in one.items() if "_cost/" not in k
        }


def test_a_loop_that_does_not_say_its_task_keeps_the_given_weights(
    loop: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    *lines, _ = loop(task=False)
    assert "pass `task=` to `terms`" in caplog.text
    assert lines[4]["emotion_weight/contrast-lda"] == 1.0
    assert lines[4]["emotion_weight/band"] == GIVEN["band"]
