"""Terms: gradients against closed formulas, and where each term has none."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emoreg.losses.anchors import (
    MeaningAnchor,
    ReferenceKL,
    prediction_mask,
    top_log_probs,
)
from emoreg.losses.band import BandPenalty
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.presets import Terms, decouple
from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    PassageReadings,
    Probe,
    alone,
    refuse_audit_items,
)
from emoreg.residual.layers import LayerPlan
from emoreg.training.reference import Reference
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors

LAYERS, EMOTIONS, WIDTH = (3, 5), ("sad", "tense", "calm"), 8
SHAPE = (len(LAYERS), len(EMOTIONS))
SIGNS = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
NAN = math.nan

Make = Callable[[], AbstractDecisionTerm]


def probe() -> Probe:
    return Probe(
        directions=torch.randn(*SHAPE, WIDTH),
        zero=torch.zeros(SHAPE),
        sigma=torch.ones(SHAPE),
        layers=LAYERS,
        emotions=EMOTIONS,
        reader="lda",
    )


def full(number: float) -> Tensor:
    return torch.full(SHAPE, number, dtype=torch.float64)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def contrast(gap: Tensor | float = 2.0, **settings: Any) -> ContrastPenalty:
    size = gap if isinstance(gap, Tensor) else full(gap) * SIGNS
    return ContrastPenalty(probe(), SIGNS, size, **{"decay": 0.0, **settings})


def band(low: float = -1.0, high: float = 1.0, gap: float = 0.5) -> BandPenalty:
    return BandPenalty(probe(), full(gap), low=full(low), high=full(high))


def decision(
    values: Tensor, failure: Tensor, reference: Tensor | None = None
) -> DecisionReadings:
    return DecisionReadings(values=values, failure=failure, reference=reference)


def gradient(
    term: AbstractDecisionTerm,
    values: Tensor,
    failure: Tensor,
    reference: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] = alone,
) -> tuple[Tensor, Tensor]:
    """Return the value of a term and its gradient at each reading.

    The step before had the same readings, and without a memory (decay 0) those are all
    that decides.
    """
    values = values.detach().clone().requires_grad_()
    term(decision(values, failure, reference), reduce)
    value = term(decision(values, failure, reference), reduce)
    (found,) = torch.autograd.grad(value, values)
    return value.detach(), found


def plain_contrast(
    values: Tensor,
    failure: Tensor,
    reference: Tensor | None,
    gap: Tensor,
    *,
    keep: float = 0.25,
    overshoot: float = 0.25,
    anchor: float = 0.5,
) -> Tensor:
    """The closed formula of a batch that knows all of its outcomes."""
    known = ~failure.isnan()
    values, failure = values[known], failure[known]
    held = torch.zeros_like(values) if reference is None else reference[known]
    start = torch.zeros_like(gap) if reference is None else gap
    weight = failure[:, None, None]
    shift = values - held
    failing = (weight * shift).sum(0) / weight.sum()
    succeeding = ((1 - weight) * shift).sum(0) / (1 - weight).sum().clamp(min=1e-6)
    x = SIGNS * (start + failing - succeeding.detach())
    tau = keep * (SIGNS * gap).clamp(min=0)
    low = torch.minimum((SIGNS * gap).clamp(max=0), full(-overshoot))
    hinge = torch.relu(x - tau) ** 2 + torch.relu(low - x) ** 2 / 4
    drift = ((1 - weight) * (values - held) ** 2).sum(0) / (1 - weight).sum()
    return hinge.mean() + anchor * drift.mean()


# ----------------------------------------------------------------- contrast


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_reference", [True, False])
def test_contrast_is_the_closed_formula(seed: int, with_reference: bool) -> None:
    torch.manual_seed(seed)
    values = 3 * torch.randn(7, *SHAPE, dtype=torch.float64)
    reference = values + torch.randn_like(values) if with_reference else None
    failure = numbers(1, 0, 0.3, NAN, 1, 0.8, 0)
    gap = 2 * torch.randn(SHAPE, dtype=torch.float64)
    settings = {"keep": 0.1, "overshoot": 0.5, "anchor": 0.7}
    value, found = gradient(contrast(gap, **settings), values, failure, reference)
    values.requires_grad_()
    wanted = plain_contrast(values, failure, reference, gap, **settings)
    (wanted_gradient,) = torch.autograd.grad(wanted, values)
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(found, wanted_gradient)
    assert float(found.abs().max()) > 1e-3
    other = plain_contrast(
        values, failure, reference, gap, **settings | {"anchor": 0.2}
    )
    assert not torch.allclose(value, other)  # control


@pytest.mark.parametrize("with_reference", [True, False])
def test_contrast_passes_gradcheck(with_reference: bool) -> None:
    values = 3 * torch.randn(3, *SHAPE, dtype=torch.float64)
    passed = torch.randn(2, *SHAPE, dtype=torch.float64)
    reference = torch.randn(5, *SHAPE).double() if with_reference else None
    failure = numbers(1, 1, 1, 0, 0)

    def rows(x: Tensor) -> DecisionReadings:
        return decision(torch.cat([x, passed]), failure, reference)

    def loss(x: Tensor) -> Tensor:
        # Where the step before was this one, value and gradient belong together.
        # Passing rows stay: the contrast takes no gradient through them.
        term = contrast()
        term(rows(x))
        return term(rows(x))

    assert torch.autograd.gradcheck(loss, values.requires_grad_())
    old = contrast(decay=0.9)

    def remembering(x: Tensor) -> Tensor:
        return old(rows(x))

    assert not torch.autograd.gradcheck(  # control: with a past they do not
        remembering, values, raise_exception=False
    )


@pytest.mark.parametrize("x", [-0.25, -0.2, 0.0, 0.3, 0.5])
def test_contrast_asks_for_nothing_between_overshoot_and_target(x: float) -> None:
    # The gap is 2 and a quarter of it may stay.
    values = (full(x) * SIGNS).expand(3, *SHAPE)
    value, found = gradient(contrast(anchor=0.0), values, numbers(1, 1, 0.5))
    assert float(value) == 0
    assert not found.any()
    for outside in (0.501, -0.251):  # control
        values = (full(outside) * SIGNS).expand(3, *SHAPE)
        assert gradient(contrast(anchor=0.0), values, numbers(1, 1, 1))[1].all()


def test_lowered_and_raised_emotions_are_pushed_apart() -> None:
    values = (full(2.0) * SIGNS).expand(2, *SHAPE)  # as coupled as the reference
    _, found = gradient(contrast(), values, numbers(1, 1))
    # Descent goes against the gradient: sad and tense down, calm up.
    assert torch.equal(found.sign(), SIGNS.expand_as(found))
    size = 2 * (2.0 - 0.5) / (2 * len(LAYERS) * len(EMOTIONS))
    torch.testing.assert_close(found.abs(), full(size).expand_as(found))
    _, swapped = gradient(  # control: the sign decides, not the place
        ContrastPenalty(probe(), -SIGNS, -full(2.0) * SIGNS, decay=0.0),
        -values,
        numbers(1, 1),
    )
    torch.testing.assert_close(swapped, -found)


def test_success_rows_feel_the_anchor_alone() -> None:
    values = torch.randn(4, *SHAPE, dtype=torch.float64) + 3
    failure = numbers(1, 0, 1, 0)
    bare, anchored = contrast(anchor=0.0), contrast(anchor=0.5)
    _, without = gradient(bare, values, failure)
    _, both = gradient(anchored, values, failure)
    assert not without[failure == 0].any()
    assert without[failure == 1].any()
    assert both[failure == 0].all()
    # Towards the success level, by the closed formula.
    wanted = 0.5 * 2 * values[failure == 0] / (2 * len(LAYERS) * len(EMOTIONS))
    torch.testing.assert_close(both[failure == 0], wanted)
    assert torch.equal(both[failure == 1], without[failure == 1])


def test_failing_rows_feel_nothing_of_the_anchor() -> None:
    failure = numbers(1, 0, 1, 0)
    values = torch.zeros(4, *SHAPE, dtype=torch.float64)
    values[failure == 0] = 5.0
    value, found = gradient(contrast(anchor=0.5), values, failure)
    bare, without = gradient(contrast(anchor=0.0), values, failure)
    assert float(value - bare) == pytest.approx(0.5 * 25)
    assert torch.equal(found[failure == 1], without[failure == 1])
    assert not torch.equal(found[failure == 0], without[failure == 0])  # control


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_shift_that_all_turns_share_is_no_decoupling(with_reference: bool) -> None:
    failure = numbers(1, 0, 1, 0.5, 0, 1)
    values = 0.1 * torch.randn(6, *SHAPE, dtype=torch.float64)
    values += 3 * failure[:, None, None] * SIGNS
    reference = 0.1 * torch.randn_like(values) if with_reference else None
    shared = -1.5 * SIGNS
    value, found = gradient(contrast(anchor=0.0), values, failure, reference)
    moved, also = gradient(contrast(anchor=0.0), values + shared, failure, reference)
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(also, found)
    failing = failure[:, None, None] * shared  # control: that of failing turns is
    less = gradient(contrast(anchor=0.0), values + failing, failure, reference)[0]
    assert float(less) < 0.9 * float(value)
    # What holds the shared shift off is the anchor.
    assert gradient(contrast(), values + shared, failure, reference)[0] > moved + 0.5


def test_the_anchor_holds_to_the_reference_where_there_is_one() -> None:
    values = torch.randn(3, *SHAPE, dtype=torch.float64)
    failure = numbers(0, 0, 0)
    value, found = gradient(contrast(), values, failure, values.clone())
    assert float(value) == 0
    assert not found.any()
    assert gradient(contrast(), values, failure)[1].all()  # control: else to zero


@pytest.mark.parametrize("seed", range(8))
def test_a_reference_that_lies_below_zero_is_not_pushed(seed: int) -> None:
    torch.manual_seed(seed)
    gap = 3 * torch.randn(SHAPE, dtype=torch.float64)
    values = torch.randn(4, *SHAPE, dtype=torch.float64)
    failure = numbers(1, 1, 1, 1)
    _, found = gradient(contrast(gap, anchor=0.0), values, failure, values.clone())
    coupled = (gap * SIGNS) > 0
    assert not found[:, ~coupled].any()
    assert found[:, coupled].all()  # control: what is coupled is pushed
    # What goes far past zero is pulled back, against the direction of the push.
    moved = values - 9 * SIGNS
    _, found = gradient(contrast(gap, anchor=0.0), moved, failure, values)
    assert torch.equal(found.sign(), -SIGNS.expand_as(found))


def test_the_guard_pulls_with_a_quarter_of_the_strength() -> None:
    def slope(x: float) -> float:
        values = (full(x) * SIGNS).unsqueeze(0)
        found = gradient(contrast(anchor=0.0), values, numbers(1))[1]
        return float((found * SIGNS).sum())

    assert slope(0.5 + 0.7) > 0 > slope(-0.25 - 0.7)
    assert slope(-0.25 - 0.7) == pytest.approx(-slope(0.5 + 0.7) / 4)


def test_a_half_failure_weighs_half() -> None:
    values = torch.randn(3, *SHAPE, dtype=torch.float64) + 4 * SIGNS
    _, found = gradient(contrast(anchor=0.0), values, numbers(1, 0.5, 0.25))
    torch.testing.assert_close(found[1] * 2, found[0])
    torch.testing.assert_close(found[2] * 4, found[0])
    _, certain = gradient(contrast(anchor=0.0), values, numbers(1, 1, 1))
    assert not torch.allclose(certain[1] * 2, certain[0])  # control


def test_the_running_mean_is_weighted_by_counts() -> None:
    term = contrast(decay=0.8, anchor=0.0)
    draws = [torch.randn(n, *SHAPE, dtype=torch.float64) for n in (1, 4, 2)]
    batches = [draw + 4 * SIGNS for draw in draws]
    level = torch.randn(2, *SHAPE, dtype=torch.float64)
    term(decision(level, numbers(0, 0)))  # successes, then none: their mean stays
    total, count = full(0.0), 0.0
    mean = full(2.0) * SIGNS  # the gap, before the first failure
    for values in batches:
        values.requires_grad_()
        value = term(decision(values, torch.ones(len(values)).double()))
        (found,) = torch.autograd.grad(value, values)
        x = SIGNS * (mean - level.mean(0))
        above = torch.relu(x - 0.5)
        torch.testing.assert_close(value.detach(), above.square().mean())
        slope = SIGNS * 2 * above / (len(values) * above.numel())
        torch.testing.assert_close(found, slope.expand_as(found))
        total, count = 0.8 * total + values.detach().sum(0), 0.8 * count + len(values)
        mean = total / count
    for past in (batches[:0], [level]):  # control: memory of both sides matters
        young = contrast(decay=0.8, anchor=0.0)
        for values in past:
            young(decision(values, numbers(0, 0)))
        other = young(decision(batches[-1], numbers(1, 1)))
        assert not torch.allclose(other, value)


def test_all_parts_of_a_step_meet_the_means_of_the_steps_before() -> None:
    draws = torch.randn(4, 6, *SHAPE, dtype=torch.float64) + 2 * SIGNS
    failure = numbers(1, 0, 0.5, 1, 0, 1)
    totals = {"failing_total": failure.sum(), "succeeding_total": (1 - failure).sum()}

    def steps(parts: list[slice], told: bool) -> tuple[Tensor, Tensor, dict]:
        """The last step's value and gradient after three steps in the same parts."""
        term, values, gradients = contrast(decay=0.8), full(0.0).sum(), []
        for draw in draws:
            values, gradients = full(0.0).sum(), []
            for place, part in enumerate(parts):
                x = draw[part].clone().requires_grad_()
                readings = decision(x, failure[part])
                again = told and place > 0
                value = term(replace(readings, continues=again, **totals))
                gradients.append(torch.autograd.grad(value, x)[0])
                values = values + value.detach()
        return values, torch.cat(gradients), term.state_dict()

    whole = steps([slice(0, 6)], told=True)
    parted = steps([slice(0, 1), slice(1, 4), slice(4, 6)], told=True)
    for one, other in zip(whole[:2], parted[:2], strict=True):
        torch.testing.assert_close(one, other)
    for name, tensor in whole[2].items():
        torch.testing.assert_close(tensor, parted[2][name])
    untold = steps([slice(0, 1), slice(1, 4), slice(4, 6)], told=False)  # control
    assert not torch.allclose(whole[1], untold[1])


EMPTY = {
    "no failures": numbers(0, 0, 0),
    "nothing known": numbers(NAN, NAN, NAN),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_batch_without_failures_leaves_their_running_mean(name: str) -> None:
    term = contrast(decay=0.5)
    values = torch.randn(3, *SHAPE, dtype=torch.float64) + 4
    value, found = gradient(term, values, EMPTY[name])  # also as the very first batch
    assert bool(value.isfinite())
    assert bool(found.isfinite().all())
    term(decision(values, numbers(1, 0.5, 0)))
    before = {key: tensor.clone() for key, tensor in term.state_dict().items()}
    value, found = gradient(term, values, EMPTY[name])
    assert bool(value.isfinite())
    assert found.any() == (name == "no failures")  # the success anchor
    after = term.state_dict()
    kept = {key for key in before if torch.equal(before[key], after[key])}
    counted = {"succeeding_sum", "succeeding_count"} if name == "no failures" else set()
    assert kept == before.keys() - counted
    term(decision(values, numbers(0, 1, 0)))  # control
    assert not torch.equal(before["failing_sum"], term.state_dict()["failing_sum"])


def test_a_batch_without_segments_is_zero() -> None:
    for term in (contrast(), band()):
        values = torch.zeros(0, *SHAPE, dtype=torch.float64)
        value, found = gradient(term, values, numbers())
        assert float(value) == 0
        assert found.shape == values.shape


@pytest.mark.parametrize("make", [contrast, band])
def test_unknown_and_absent_segments_change_nothing(make: Make) -> None:
    known = 3 * torch.randn(4, *SHAPE, dtype=torch.float64)
    held = torch.randn_like(known)
    failure = numbers(1, 0, 0.5, 1)
    value, found = gradient(make(), known, failure, held)
    # Absent turns: the outcome is NaN, and so may be the readings on both sides.
    for filler in (NAN, math.inf, 7.0):
        hole = full(filler).expand(2, *SHAPE)
        values, reference = torch.cat([known, hole]), torch.cat([held, hole])
        both = numbers(*failure.tolist(), NAN, NAN)
        more, longer = gradient(make(), values, both, reference)
        torch.testing.assert_close(more, value)
        torch.testing.assert_close(longer[:4], found)
        assert torch.equal(longer[4:], torch.zeros_like(longer[4:]))
        # Only the cached reference may be missing.
        more, longer = gradient(make(), torch.cat([known, known[:2]]), both, reference)
        torch.testing.assert_close(more, value)
        assert bool(longer.isfinite().all())
    # Control: multiplying by a weight of zero does not keep NaN out.
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    weight, reference = torch.tensor([1.0, 0.0]), torch.tensor([0.0, NAN])
    kept = torch.where(weight > 0, (x - reference).square(), 0.0).sum()
    assert bool(torch.autograd.grad(kept, x)[0].isnan().any())


@dataclass
class Summed:
    """A sum over processes, given what the other process summed at each call."""

    others: list[Tensor] | None = None

    def __post_init__(self) -> None:
        self.own: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.own.append(x.detach().clone())
        if self.others is None:
            return x
        return x + self.others[len(self.own) - 1]


def sharded(
    make: Make, past: Tensor, shards: list[tuple[Tensor, Tensor, Tensor | None]]
) -> tuple[Tensor, Tensor]:
    """Return mean value and gradient of two processes that reduce by summing."""

    def ready() -> AbstractDecisionTerm:
        # The same past on both sides, as after some steps.
        term = make()
        term(decision(past, torch.ones(len(past)).double()))
        return term

    heard = []
    for values, failure, reference in shards:
        reduce = Summed()
        gradient(ready(), values, failure, reference, reduce)
        heard.append(reduce.own)
    found = [
        gradient(ready(), *shard, Summed(others))
        for shard, others in zip(shards, reversed(heard), strict=True)
    ]
    value = torch.stack([value for value, _ in found]).mean()
    # Trainers average gradients over processes.
    return value, torch.cat([rows for _, rows in found]) / 2


@pytest.mark.parametrize("cut", [1, 3, 6])
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("make", [lambda: contrast(decay=0.7), band])
def test_two_processes_do_what_one_does(
    make: Make, with_reference: bool, cut: int
) -> None:
    values = 3 * torch.randn(7, *SHAPE, dtype=torch.float64)
    reference = torch.randn_like(values) if with_reference else None
    past = torch.randn(2, *SHAPE, dtype=torch.float64)
    # A process may have no failure at all, or nothing but failures.
    failure = numbers(1, 0, 0.25, NAN, 1, 0.5, 0)
    term = make()
    term(decision(past, numbers(1, 1)))
    value, found = gradient(term, values, failure, reference)
    parts = [
        (values[rows], failure[rows], None if reference is None else reference[rows])
        for rows in (slice(None, cut), slice(cut, None))
    ]
    mean, rows = sharded(make, past, parts)
    torch.testing.assert_close(mean, value)
    torch.testing.assert_close(rows, found)
    # Control: each process for itself is not the same.
    apart = []
    for part in parts:
        term = make()
        term(decision(past, numbers(1, 1)))
        apart.append(gradient(term, *part)[1])
    assert not torch.allclose(torch.cat(apart) / 2, found)


def test_reference_rows_lower_the_noise_and_leave_the_expected_gradient() -> None:
    # Tasks differ by an offset of their own; training moved all by the same.
    count, moved = 40, -0.4
    offset = torch.randn(count, *SHAPE, dtype=torch.float64)
    offset -= offset.mean(0)
    gap = 6.0 * full(1.0) * SIGNS
    reference = gap + offset
    values = reference + moved * SIGNS

    def gradients(with_reference: bool) -> Tensor:
        return torch.stack(
            [
                gradient(
                    contrast(gap, anchor=0.0),
                    values[i : i + 1],
                    numbers(1),
                    reference[i : i + 1] if with_reference else None,
                )[1][0]
                for i in range(count)
            ]
        )

    bare, held = gradients(False), gradients(True)
    assert bare.abs().min() > 0  # the hinge is open in every row, so it is linear
    torch.testing.assert_close(held.mean(0), bare.mean(0))
    assert float(held.std(0).max()) < 1e-9 < 0.1 < float(bare.std(0).min())
    # Control: a gap that is not the tasks' mean would show.
    wrong, every = contrast(gap * 1.2, anchor=0.0), torch.ones(count).double()
    shifted = gradient(wrong, values, every, reference)[1]
    assert not torch.allclose(shifted.sum(0), bare.mean(0))


def test_the_running_mean_survives_a_checkpoint() -> None:
    draws = [torch.randn(3, *SHAPE, dtype=torch.float64) + 4 for _ in range(3)]
    failure = numbers(1, 0.5, 0)
    old = contrast(decay=0.9)
    for values in draws[:2]:
        old(decision(values, failure))
    state = old.state_dict()
    copy = {key: tensor.clone() for key, tensor in state.items()}
    wanted = gradient(old, draws[2], failure)
    resumed, fresh = contrast(decay=0.9), contrast(decay=0.9)
    resumed.load_state_dict(state)
    found = gradient(resumed, draws[2], failure)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert not torch.equal(gradient(fresh, draws[2], failure)[0], wanted[0])  # control
    # What was handed over is not written into.
    assert all(torch.equal(state[key], copy[key]) for key in state)


@pytest.mark.parametrize("make", [lambda: contrast(decay=0.9), band])
def test_each_run_begins_a_term_anew(make: Make) -> None:
    term, failure = make(), numbers(1, 0)
    draws = [torch.randn(2, *SHAPE, dtype=torch.float64) + 4 for _ in range(2)]
    runs, states = [], []
    for _ in range(2):
        term.reset()
        states.append({k: v.clone() for k, v in term.state_dict().items()})
        runs.append([term(decision(values, failure)) for values in draws])
    for name, first in states[0].items():
        assert torch.equal(first, states[1][name])
        assert not torch.equal(first, term.state_dict()[name])  # control
    assert runs[0] == runs[1]


def test_each_run_begins_with_the_weight_that_was_given() -> None:
    term = band()
    term.weight = 0.5
    for weights in ([2.0], [2.0, 3.0]):
        term.reset()
        assert term.weight == 0.5
        for weight in weights:
            term.weigh(weight)
            assert term.weight == weight
    term.weight = 0.25  # by hand, after that
    term.reset()
    assert term.weight == 0.25


def test_autocast_costs_no_precision() -> None:
    """Readings are made in float32, also of a stream that lies far from zero."""
    read = probe()
    stream = torch.randn(50, WIDTH) + 50 * torch.randn(WIDTH)
    plain = read.read(stream, layer=LAYERS[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(read.read(stream, layer=LAYERS[0]), plain)
        product = stream @ read.directions[0].T  # control
    assert not torch.allclose(product.float(), stream @ read.directions[0].T, atol=0.1)


# --------------------------------------------------------------------- band


@pytest.mark.parametrize("with_reference", [True, False])
def test_band_is_the_closed_formula_and_passes_gradcheck(with_reference: bool) -> None:
    values = 3 * torch.randn(5, *SHAPE, dtype=torch.float64)
    reference = torch.randn_like(values) if with_reference else None
    failure = numbers(1, 0, 0.5, 1, NAN)
    term = band(-0.7, 0.9, gap=0.3)

    def plain(x: Tensor) -> Tensor:
        if reference is not None:
            x = x - reference + 0.3
        outside = torch.relu(-0.7 - x) ** 2 + torch.relu(x - 0.9) ** 2
        weight = failure.nan_to_num(0.0)
        return (outside.mean((1, 2)) * weight).sum() / weight.sum()

    value, found = gradient(term, values, failure, reference)
    values.requires_grad_()
    wanted = plain(values)
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(found, torch.autograd.grad(wanted, values)[0])
    assert torch.autograd.gradcheck(
        lambda x: term(decision(x, failure, reference)), values
    )


def test_inside_the_band_there_is_nothing_and_outside_both_ways() -> None:
    reference = torch.randn(3, *SHAPE, dtype=torch.float64)
    failure = numbers(1, 1, 0)
    for u, sign in ((-1.0, 0), (0.0, 0), (1.0, 0), (-1.5, -1), (1.5, 1)):
        for held in (None, reference):
            values = full(u).expand(3, *SHAPE)
            if held is not None:
                values = held + (u - 0.5)  # the gap is a half
            value, found = gradient(band(), values, failure, held)
            assert (float(value) > 1e-12) == bool(sign)
            assert (found[:2].sign().where(found[:2].abs() > 1e-9, 0) == sign).all()
            assert not found[2].any()  # passing turns are no matter of the band


# ------------------------------------------------------------------ anchors


def passages(scale: float = 2.0) -> tuple[PassageReadings, Tensor]:
    values = scale * torch.randn(2, 5, *SHAPE, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    made = PassageReadings(values=values, reference=torch.randn_like(values), mask=mask)
    return made, values


def test_meaning_is_the_mean_huber_distance_over_real_tokens() -> None:
    readings, values = passages()
    term = MeaningAnchor(probe())

    def plain(x: Tensor) -> Tensor:
        kept = (x - readings.reference)[readings.mask]
        size = kept.abs()
        return torch.where(size < 1, size**2 / 2, size - 0.5).mean()

    values.requires_grad_()
    value = term(replace(readings, values=values))
    torch.testing.assert_close(value, plain(values))
    (found,) = torch.autograd.grad(value, values)
    torch.testing.assert_close(found, torch.autograd.grad(plain(values), values)[0])
    assert not found[~readings.mask].any()
    assert found[readings.mask].all()
    assert torch.autograd.gradcheck(lambda x: term(replace(readings, values=x)), values)
    far = (values.detach() - readings.reference)[readings.mask].abs()
    assert (far < 1).any()  # control: both branches were taken
    assert (far > 1).any()
    assert float(term(replace(readings, values=readings.reference))) == 0


def test_padding_cannot_reach_the_meaning_anchor() -> None:
    readings, values = passages()
    term = MeaningAnchor(probe())
    wanted = term(readings)
    for filler in (NAN, math.inf, -3.0):
        spoiled = values.clone()
        spoiled[~readings.mask] = filler
        held = readings.reference.clone()
        held[~readings.mask] = filler
        spoiled.requires_grad_()
        value = term(
            PassageReadings(values=spoiled, reference=held, mask=readings.mask)
        )
        torch.testing.assert_close(value.detach(), wanted)
        assert bool(torch.autograd.grad(value, spoiled)[0].isfinite().all())
    nothing = replace(readings, mask=torch.zeros_like(readings.mask))
    assert float(term(nothing)) == 0


def exact_kl(model: Tensor, reference: Tensor) -> Tensor:
    p, q = reference.double().log_softmax(-1), model.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def test_kl_bounds_the_exact_one_from_below_and_reaches_it() -> None:
    vocab = 40
    reference = 2 * torch.randn(9, vocab)
    model = reference + torch.randn(9, vocab)
    exact = float(exact_kl(model, reference))
    assert exact > 0.1
    bounds = [
        float(ReferenceKL(k=k)(model, *top_log_probs(reference, k)))
        for k in (1, 2, 5, 10, 20, 30, vocab - 1)
    ]
    # More of the reference is kept, more of the difference is seen.
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(exact, rel=1e-4)
    assert 0 < bounds[0] < 0.9 * exact


@pytest.mark.parametrize("k", [1, 6, 19])
def test_kl_has_the_gradient_of_the_merged_distributions(k: int) -> None:
    vocab = 20
    reference = 2 * torch.randn(7, vocab)
    model = (reference + torch.randn(7, vocab)).requires_grad_()
    value = ReferenceKL(k=k)(model, *top_log_probs(reference, k))
    (found,) = torch.autograd.grad(value, model)
    p, q = reference.double().softmax(-1), model.double().softmax(-1)
    top = torch.zeros_like(p).scatter_(1, p.topk(k).indices, 1.0).bool()

    def merged(x: Tensor) -> list[Tensor]:
        rows = zip(x, top, strict=True)
        return [torch.cat([row[kept], row[~kept].sum()[None]]) for row, kept in rows]

    pairs = zip(merged(p), merged(q), strict=True)
    plain = torch.stack([(a * (a / b).log()).sum() for a, b in pairs]).mean()
    (wanted,) = torch.autograd.grad(plain, model)
    torch.testing.assert_close(value.double(), plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    if k == 1:  # control: merging does change the gradient
        (full_gradient,) = torch.autograd.grad(exact_kl(model, reference), model)
        assert not torch.allclose(found, full_gradient, atol=1e-3)


@pytest.mark.parametrize("scale", [0.5, 5.0, 80.0])
def test_the_reference_itself_has_no_kl(scale: float) -> None:
    logits = (scale * torch.randn(6, 50)).requires_grad_()
    for k in (1, 8, 49):
        value = ReferenceKL(k=k)(logits, *top_log_probs(logits.detach(), k))
        (found,) = torch.autograd.grad(value, logits)
        assert abs(float(value)) < 1e-5
        assert float(found.abs().max()) < 1e-5
    # Control, and no infinity where the model gives a likely token no chance.
    far = (-logits).detach().requires_grad_()
    value = ReferenceKL(k=8)(far, *top_log_probs(logits.detach(), 8))
    assert float(value.detach()) > 0.05
    assert bool(torch.autograd.grad(value, far)[0].isfinite().all())


def test_the_tokens_that_predict_a_held_one() -> None:
    held = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    wanted = torch.zeros_like(held)
    for row, column in np.ndindex(*held.shape):
        wanted[row, column] = column + 1 < held.shape[1] and held[row, column + 1]
    assert torch.equal(prediction_mask(held), wanted)
    # A turn's first token is predicted at the decision token, outside the turn.
    assert wanted.sum(1).tolist() == [2, 3, 0, 3]


# ----------------------------------------------------------------- refusals

SPOILED_WEIGHTS = (-0.1, math.nan, math.inf)


@pytest.mark.parametrize("weight", SPOILED_WEIGHTS)
def test_a_weight_that_is_negative_or_no_number_is_refused(weight: float) -> None:
    makers: list[Callable[[float], object]] = [
        lambda w: contrast(weight=w),
        lambda w: BandPenalty(
            probe(), full(0.0), low=full(-1.0), high=full(1.0), weight=w
        ),
        lambda w: MeaningAnchor(probe(), weight=w),
        lambda w: ReferenceKL(weight=w),
    ]
    for make in makers:
        make(0.0)  # control: off is allowed
        with pytest.raises(ValueError, match="`weight` must be a finite number >= 0"):
            make(weight)


def test_settings_outside_their_range_are_refused() -> None:
    for name in ("keep", "decay"):
        for value in (-0.1, 1.0):
            with pytest.raises(ValueError, match=rf"`{name}` must be in \[0, 1\)"):
                contrast(**{name: value})
    with pytest.raises(ValueError, match="`low` must be below `high`"):
        band(1.0, 1.0)


ROLES = Roles(
    core=(),
    lower=("desperate", "tense"),
    raise_=("calm",),
    audit_lower=("upset", "worried"),
    audit_raise=("serene",),
)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"emotions": ["calm", "serene", "upset"]}, "emotion 'serene', 'upset' belong"),
        ({"layers": [3, 7], "audit_layers": [7, 9]}, r"layer 7 belongs.*layers: 7, 9"),
        ({"reader": "logistic"}, r"reader 'logistic' belongs.*\(audit readers: logi"),
    ],
)
def test_what_the_audit_judges_by_is_refused_by_name(asked: dict, message: str) -> None:
    refuse_audit_items(  # control
        ROLES, emotions=["calm"], layers=[3], audit_layers=[7], reader="lda"
    )
    with pytest.raises(ValueError, match=message):
        refuse_audit_items(ROLES, **asked)


# -------------------------------------------------------------------- preset

PLAN = LayerPlan.for_depth(10)
NAMES = ("upset", "calm", "happy", "desperate", "serene", "tense", "worried")
READERS = ("mean-difference", "lda", "logistic")


@pytest.fixture
def vectors() -> EmotionVectors:
    directions = torch.randn(len(READERS), len(PLAN.monitor), len(NAMES), WIDTH)
    shape = directions.shape[:3]
    return EmotionVectors(
        directions=directions / directions.norm(dim=-1, keepdim=True),
        readers=READERS,
        layers=PLAN.monitor,
        emotions=NAMES,
        centre=torch.randn(len(PLAN.monitor), WIDTH),
        raw_norm=torch.ones(shape[1:]),
        scale=torch.ones(shape),
        offset=torch.zeros(shape),
    )


@pytest.fixture
def reference(vectors: EmotionVectors) -> Reference:
    shape = vectors.directions.shape[:3]
    return Reference(
        sigma_ref=torch.rand(shape) + 0.5,
        success_level=torch.randn(shape),
        success_std=torch.rand(shape) + 0.5,
        gap=torch.randn(shape),
        readers=READERS,
        layers=vectors.layers,
        emotions=NAMES,
        plan=PLAN,
        stories=((1, 2),),
        neutral=((3, 4),),
        vectors_hash=vectors.hash,
    )


def by_name(terms: Terms) -> dict:
    return {term.name: term for term in terms}


def test_the_preset_builds_its_terms(
    vectors: EmotionVectors, reference: Reference
) -> None:
    weights: dict = {"contrast": 0.7, "band": 0.2, "meaning": 0.3, "kl": 0.4}
    terms = decouple(vectors, reference, roles=ROLES, **weights)
    assert (terms.reference, terms.roles) == (reference, ROLES)
    found = by_name(terms)
    assert {name: term.weight for name, term in found.items()} == {
        "contrast-lda": 0.35,
        "contrast-mean-difference": 0.35,
        "band": 0.2,
        "meaning": 0.3,
        "kl": 0.4,
    }
    for reader in ("lda", "mean-difference"):
        read = found[f"contrast-{reader}"].probe
        assert read.emotions == ("desperate", "tense", "calm")
        assert (read.layers, read.reader) == (PLAN.loss, reader)
        check_units(read, vectors, reference)
    assert found["band"].probe.emotions == ("calm",)
    # All that has a vector is anchored, but for what the audit judges by.
    assert set(found["meaning"].probe.emotions) == {
        *("calm", "happy", "desperate", "tense"),
    }
    for name in ("band", "meaning"):
        assert (found[name].probe.layers, found[name].probe.reader) == (
            PLAN.loss,
            "lda",
        )
        check_units(found[name].probe, vectors, reference)


def test_the_preset_acts_on_the_readers_that_are_asked_for(
    vectors: EmotionVectors, reference: Reference
) -> None:
    asked = decouple(vectors, reference, readers=["mean-difference"], roles=ROLES)
    found = by_name(asked)
    assert list(found) == ["contrast-mean-difference", "band", "meaning", "kl"]
    assert found["contrast-mean-difference"].weight == 1.0
    assert found["meaning"].probe.reader == "mean-difference"
    with pytest.raises(ValueError, match="`readers` must name a reader"):
        decouple(vectors, reference, readers=[], roles=ROLES)
    with pytest.raises(ValueError, match=r"`reader` must be .*'lad'"):
        decouple(vectors, reference, readers=["lda", "lad"], roles=ROLES)


def check_units(read: Probe, vectors: EmotionVectors, reference: Reference) -> None:
    """Zero is the success level, one is `sigma_ref` above it."""
    x = torch.randn(6, WIDTH)
    which = READERS.index(read.reader)
    columns = [NAMES.index(name) for name in read.emotions]
    for layer in read.layers:
        row = PLAN.monitor.index(layer)
        level = reference.success_level[which, row, columns]
        sigma = reference.sigma_ref[which, row, columns]
        projection = vectors.project(x, layer=layer, reader=read.reader)[:, columns]
        wanted = (projection - level) / sigma
        torch.testing.assert_close(read.read(x, layer=layer), wanted)
        assert not torch.allclose(projection, wanted)  # control


def test_the_presets_gap_and_band_are_in_the_units_of_the_terms(
    vectors: EmotionVectors, reference: Reference
) -> None:
    band_of = (-0.5, 1.5)
    terms = by_name(decouple(vectors, reference, roles=ROLES, calm_band=band_of))
    rows = [PLAN.monitor.index(layer) for layer in PLAN.loss]
    part = {
        name: getattr(reference, name)[1][rows].double()
        for name in ("gap", "sigma_ref", "success_std")
    }
    size = (len(rows), 3)
    # The contrast of rows that stand where the reference stood.
    columns = [NAMES.index(name) for name in ("desperate", "tense", "calm")]
    values = torch.randn(2, *size, dtype=torch.float64)
    value, _ = gradient(terms["contrast-lda"], values, numbers(1, 1), values.clone())
    coupled = SIGNS * (part["gap"] / part["sigma_ref"])[:, columns]
    wanted = coupled.clamp(min=0).square().mean()  # nothing may stay
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    # The band's edges, in standard deviations of passing decision tokens.
    spread = (part["success_std"] / part["sigma_ref"])[:, [NAMES.index("calm")]]
    for edge, outwards in zip(band_of, (-1, 1), strict=True):
        for step in (1e-3, -1e-3):
            at = (edge * spread + outwards * step).unsqueeze(0)
            value, _ = gradient(terms["band"], at, numbers(1))
            assert (float(value) > 0) == (step > 0)


def test_the_preset_does_without_calm_and_refuses_none_at_all(
    vectors: EmotionVectors, reference: Reference
) -> None:
    def only(*names: str) -> Terms:
        columns = [NAMES.index(name) for name in names]
        part = vectors.subset(names)
        tables = {
            name: getattr(reference, name)[:, :, columns]
            for name in ("sigma_ref", "success_level", "success_std", "gap")
        }
        other = replace(reference, emotions=names, vectors_hash=part.hash, **tables)
        return decouple(part, other, roles=ROLES)

    names = ["contrast-lda", "contrast-mean-difference", "meaning", "kl"]
    assert list(by_name(only("tense", "happy"))) == names
    with pytest.raises(ValueError, match=r"some of the loss emotions.*contain none"):
        only("happy", "upset")


def test_the_preset_refuses_other_vectors_and_audit_items(
    vectors: EmotionVectors, reference: Reference
) -> None:
    other = replace(reference, vectors_hash="0123456789abcdef")
    message = f"it has the hash 0123456789abcdef, they have {vectors.hash}"
    with pytest.raises(ValueError, match=message):
        decouple(vectors, other, roles=ROLES)
    with pytest.raises(ValueError, match="reader 'logistic' belongs to the audit"):
        decouple(vectors, reference, readers=["logistic"], roles=ROLES)
    mixed = replace(ROLES, lower=("desperate", "upset"))
    with pytest.raises(ValueError, match="emotion 'upset' belongs to the audit"):
        decouple(vectors, reference, roles=mixed)
    shared = replace(PLAN, audit=(*PLAN.audit, PLAN.loss[0]))
    with pytest.raises(ValueError, match=f"layer {PLAN.loss[0]} belongs to the audit"):
        decouple(vectors, replace(reference, plan=shared), roles=ROLES)
    with pytest.raises(ValueError, match="`weight` must be a finite number"):
        decouple(vectors, reference, roles=ROLES, kl=-1.0)


def test_the_packaged_roles_keep_loss_and_audit_apart() -> None:
    roles = Corpus.packaged().roles()
    refuse_audit_items(roles, emotions=[*roles.lower, *roles.raise_])
    assert set(roles.lower).isdisjoint(roles.raise_)
