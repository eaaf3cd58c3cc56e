"""Reroute anchor, energy distance and the baselines: gradients against formulas."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_terms import Summed
from torch import Tensor

from emoreg.losses.baselines import SquaredCorrelation, SymmetricGap, rank_one
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.energy import EnergyDistance
from emoreg.losses.reroute import (
    Complement,
    RerouteAnchor,
    contrast_size,
    orthonormal,
    reroute_index,
)
from emoreg.losses.term import AbstractDecisionTerm, DecisionReadings, Probe, alone

LAYERS, EMOTIONS, WIDTH = (3, 5), ("sad", "tense", "calm"), 8
SHAPE = (len(LAYERS), len(EMOTIONS))
STREAM = (len(LAYERS), WIDTH)
NAN = math.nan

Make = Callable[[], AbstractDecisionTerm]


def probe(**changed: Any) -> Probe:
    generator = torch.Generator().manual_seed(7)
    made = Probe(
        directions=torch.randn(*SHAPE, WIDTH, generator=generator),
        zero=torch.zeros(SHAPE),
        sigma=torch.ones(SHAPE),
        layers=LAYERS,
        emotions=EMOTIONS,
        reader="lda",
    )
    return replace(made, **changed)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


SIZE = numbers(2.0, 5.0)
GAP = torch.linspace(-2, 3, 6, dtype=torch.float64).reshape(SHAPE)


def reroute(decay: float = 0.0) -> RerouteAnchor:
    return RerouteAnchor(Complement.outside([probe()]), SIZE, decay=decay)


def symmetric(decay: float = 0.0) -> SymmetricGap:
    return SymmetricGap(probe(), GAP, decay=decay)


def correlation(decay: float = 0.0) -> SquaredCorrelation:
    return SquaredCorrelation(probe(), decay=decay)


def energy(size: int = 4, anchor: float = 0.5) -> EnergyDistance:
    return EnergyDistance(probe(), size=size, anchor=anchor)


RUNNING: dict[str, tuple[Callable[..., AbstractDecisionTerm], tuple[int, int]]] = {
    "reroute": (reroute, STREAM),
    "symmetric": (symmetric, SHAPE),
    "correlation": (correlation, SHAPE),
}


def decision(
    values: Tensor, failure: Tensor, reference: Tensor | None = None, **more: Any
) -> DecisionReadings:
    return DecisionReadings(values=values, failure=failure, reference=reference, **more)


def gradient(
    term: AbstractDecisionTerm,
    values: Tensor,
    failure: Tensor,
    reference: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] = alone,
    *,
    again: bool = True,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Return the value of a term and its gradient at each reading.

    With `again` the step before had the same readings, and without a memory (decay 0)
    those are all that decides.
    """
    values = values.detach().clone().requires_grad_()
    readings = decision(values, failure, reference, **more)
    if again:
        term(readings, reduce)
    value = term(readings, reduce)
    (found,) = torch.autograd.grad(value, values)
    return value.detach(), found


def sides(x: Tensor, failure: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted means of failing and of succeeding segments, all known."""
    weight = failure[:, None, None]
    return (weight * x).sum(0) / weight.sum(), ((1 - weight) * x).sum(0) / (
        1 - weight
    ).sum()


def plain_reroute(values: Tensor, failure: Tensor, reference: Tensor) -> Tensor:
    """The closed formula, on streams that have their part in the span."""
    failing, succeeding = sides(values - reference, failure)
    moved = failing - succeeding.detach()
    total = torch.zeros((), dtype=torch.float64)
    for row, directions in enumerate(probe().directions.double()):
        q = torch.linalg.qr(directions.T).Q
        outside = moved[row] - q @ (q.T @ moved[row])
        total = total + outside.square().sum() / SIZE[row] / len(LAYERS)
    return total


@pytest.mark.parametrize("factor", [0.0, 0.7])
def test_the_reroute_anchor_can_hold_success_too(factor: float) -> None:
    """What failing and succeeding segments share is free, unless it is held."""
    values, reference = draw("reroute", 6)
    failure = numbers(1, 0, 1, 0, 0, 1)
    term = RerouteAnchor(Complement.outside([probe()]), SIZE, decay=0.0, anchor=factor)
    value, found = gradient(term, values, failure, reference)
    plain, without = gradient(reroute(), values, failure, reference)
    x = values.detach().clone().requires_grad_()
    moved = (x - reference)[failure == 0]
    held = (moved.square().sum(-1) / SIZE).mean()
    (pull,) = torch.autograd.grad(held, x)
    torch.testing.assert_close(value, plain + factor * held.detach())
    torch.testing.assert_close(found, without + factor * pull)
    assert bool(found[failure == 0].any()) == bool(factor)


def plain_symmetric(values: Tensor, failure: Tensor, reference: Any) -> Tensor:
    failing, succeeding = sides(
        values if reference is None else values - reference, failure
    )
    gap = 0.0 if reference is None else GAP
    return (gap + failing - succeeding).square().mean()


def plain_correlation(values: Tensor, failure: Tensor, _: Any) -> Tensor:
    p, f = values - values.mean(0), (failure - failure.mean())[:, None, None]
    spread = p.square().mean(0) * f.square().mean(0)
    return ((p * f).mean(0).square() / spread).mean()


PLAIN = {
    "reroute": plain_reroute,
    "symmetric": plain_symmetric,
    "correlation": plain_correlation,
}


def draw(name: str, count: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Readings and the reference's, as the term's probe would have read them."""
    shape = RUNNING[name][1]
    values = spread * torch.randn(count, *shape, dtype=torch.float64)
    reference = torch.randn_like(values)
    if name == "reroute":  # outside the span, as a complement reads
        read = Complement.outside([probe()])
        for row, layer in enumerate(LAYERS):
            for x in (values, reference):
                x[:, row] = read.read(x[:, row].clone(), layer=layer).double()
    return values, reference


# ------------------------------------------------------- all with running means


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", RUNNING)
def test_a_term_is_its_closed_formula(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    values, held = draw(name, 7)
    failure = numbers(1, 0, 0.3, 0, 1, 0.8, 0)
    for reference in (held,) if name == "reroute" else (held, None):
        value, found = gradient(RUNNING[name][0](), values, failure, reference)
        x = values.clone().requires_grad_()
        wanted = PLAIN[name](x, failure, reference)
        (wanted_gradient,) = torch.autograd.grad(wanted, x)
        # A complement reads in float32: what is left of the span shows there.
        near: Any = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(value, wanted.detach(), **near)
        torch.testing.assert_close(found, wanted_gradient, **near)
        assert float(found.abs().max()) > 1e-3
        other = PLAIN[name](values, 1 - failure.flip(0), reference)  # control
        assert not torch.allclose(value, other, rtol=1e-3)


@pytest.mark.parametrize("name", RUNNING)
def test_value_and_gradient_belong_together_without_a_past(name: str) -> None:
    values, reference = draw(name, 3)
    passed, held = draw(name, 2)
    failure = numbers(1, 1, 1, 0, 0)
    reference = torch.cat([reference, held])

    def rows(x: Tensor) -> DecisionReadings:
        return decision(torch.cat([x, passed]), failure, reference)

    def loss(x: Tensor) -> Tensor:
        term = RUNNING[name][0]()
        term(rows(x))
        return term(rows(x))

    assert torch.autograd.gradcheck(loss, values.requires_grad_())
    old = RUNNING[name][0](decay=0.9)
    old(rows(values.detach() + torch.randn_like(values)))

    def remembering(x: Tensor) -> Tensor:
        return old(rows(x))

    assert not torch.autograd.gradcheck(  # control: with a past they do not
        remembering, values, raise_exception=False
    )


TWO_SIDED = {"symmetric", "correlation"}


@pytest.mark.parametrize("name", RUNNING)
def test_only_baselines_pull_at_success(name: str) -> None:
    values, reference = draw(name, 5)
    failure = numbers(1, 0, 1, 0, 0)
    _, found = gradient(RUNNING[name][0](), values, failure, reference)
    assert found[failure == 1].any()
    assert bool(found[failure == 0].any()) == (name in TWO_SIDED)


@pytest.mark.parametrize("name", RUNNING)
def test_rows_one_by_one_are_the_whole_step(name: str) -> None:
    failure = numbers(1, 0, 0.5, 1, 0, 1)
    draws = [draw(name, 6) for _ in range(3)]
    totals: Any = {
        "failing_total": failure.sum(),
        "succeeding_total": (1 - failure).sum(),
    }

    def steps(parts: list[slice], told: bool) -> tuple[Tensor, Tensor, dict]:
        """The last step's value and gradient after three steps in the same parts."""
        term = RUNNING[name][0](decay=0.8)
        value, rows = numbers(0).sum(), []
        for values, reference in draws:
            value, rows = numbers(0).sum(), []
            for place, part in enumerate(parts):
                again = told and place > 0
                more, found = gradient(
                    term,
                    values[part],
                    failure[part],
                    reference[part],
                    again=False,
                    continues=again,
                    **totals,
                )
                value, rows = value + more, [*rows, found]
        return value, torch.cat(rows), term.state_dict()

    whole = steps([slice(0, 6)], told=True)
    assert whole[1].any()
    rows = [slice(k, k + 1) for k in range(6)]
    for parts in (rows, [slice(0, 2), slice(2, 6)]):
        apart = steps(parts, told=True)
        torch.testing.assert_close(whole[0], apart[0])
        torch.testing.assert_close(whole[1], apart[1])
        for key, tensor in whole[2].items():
            torch.testing.assert_close(tensor, apart[2][key])
    untold = steps(rows, told=False)  # control: parts that are steps of their own
    assert not torch.allclose(whole[1], untold[1])


@pytest.mark.parametrize("cut", [1, 3, 6])
@pytest.mark.parametrize("name", RUNNING)
def test_two_processes_do_what_one_does(name: str, cut: int) -> None:
    values, reference = draw(name, 7)
    past, before = draw(name, 3)
    failure = numbers(1, 0, 0.25, NAN, 1, 0.5, 0)

    def ready() -> AbstractDecisionTerm:
        term = RUNNING[name][0](decay=0.7)
        term(decision(past, numbers(1, 0, 0.5), before))
        return term

    value, found = gradient(ready(), values, failure, reference)
    shards = [
        (values[rows], failure[rows], reference[rows])
        for rows in (slice(None, cut), slice(cut, None))
    ]
    heard = []
    for shard in shards:
        reduce = Summed()
        gradient(ready(), *shard, reduce)
        heard.append(reduce.own)
    both = [
        gradient(ready(), *shard, Summed(others))
        for shard, others in zip(shards, reversed(heard), strict=True)
    ]
    # Trainers average gradients over processes.
    torch.testing.assert_close((both[0][0] + both[1][0]) / 2, value)
    rows = torch.cat([part for _, part in both]) / 2
    torch.testing.assert_close(rows, found)
    apart = [gradient(ready(), *shard)[1] for shard in shards]  # control
    assert not torch.allclose(torch.cat(apart) / 2, found)


ALL: dict[str, tuple[Make, tuple[int, int]]] = {
    "reroute": (reroute, STREAM),
    "symmetric": (symmetric, SHAPE),
    "correlation": (correlation, SHAPE),
    "energy": (energy, SHAPE),
}


def ready_with(make: Make, past: list[DecisionReadings]) -> AbstractDecisionTerm:
    term = make()
    for readings in past:
        term(readings)
    return term


@pytest.mark.parametrize("name", ALL)
def test_unknown_and_absent_segments_change_nothing(name: str) -> None:
    make, shape = ALL[name]
    past = [
        decision(
            torch.randn(6, *shape).double(),
            numbers(1, 0, 1, 0, 0.5, 0.5),
            torch.randn(6, *shape).double(),
        )
    ]
    known = 3 * torch.randn(4, *shape, dtype=torch.float64)
    held = torch.randn_like(known)
    failure = numbers(1, 0, 0.5, 1)
    value, found = gradient(ready_with(make, past), known, failure, held)
    assert found.any()
    for filler in (NAN, math.inf, 7.0):
        hole = torch.full((2, *shape), filler, dtype=torch.float64)
        both = numbers(*failure.tolist(), NAN, NAN)
        more, longer = gradient(
            ready_with(make, past),
            torch.cat([known, hole]),
            both,
            torch.cat([held, hole]),
        )
        torch.testing.assert_close(more, value)
        torch.testing.assert_close(longer[:4], found)
        assert torch.equal(longer[4:], torch.zeros_like(longer[4:]))
    hole = torch.zeros(2, *shape, dtype=torch.float64)  # control: known ones do
    more, _ = gradient(
        ready_with(make, past),
        torch.cat([known, hole]),
        numbers(*failure.tolist(), 1, 0),
        torch.cat([held, hole + 3]),
    )
    assert not torch.allclose(more, value)


@pytest.mark.parametrize("name", ALL)
def test_batches_with_one_side_or_none_are_finite(name: str) -> None:
    make, shape = ALL[name]
    for failure in (numbers(1, 1, 1), numbers(0, 0, 0), numbers(NAN, NAN, NAN)):
        values = 3 * torch.randn(3, *shape, dtype=torch.float64)
        value, found = gradient(make(), values, failure, torch.zeros_like(values))
        assert bool(value.isfinite())
        assert bool(found.isfinite().all())
    empty = torch.zeros(0, *shape, dtype=torch.float64)
    value, found = gradient(make(), empty, numbers())
    assert float(value) == 0
    assert found.shape == empty.shape


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_keeps_the_past(name: str) -> None:
    make, shape = ALL[name]

    def step() -> DecisionReadings:
        values = 3 * torch.randn(6, *shape, dtype=torch.float64)
        return decision(values, numbers(1, 0, 1, 0, 0.5, 1), torch.randn_like(values))

    old, last = ready_with(make, [step(), step()]), step()
    state = old.state_dict()
    copy = {key: tensor.clone() for key, tensor in state.items()}
    sees = (last.values, last.failure, last.reference)
    wanted = gradient(old, *sees, again=False)
    resumed, fresh = make(), make()
    resumed.load_state_dict(state)
    found = gradient(resumed, *sees, again=False)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    other = gradient(fresh, *sees, again=False)  # control
    assert not torch.equal(other[0], wanted[0])
    # What was handed over is not written into.
    assert all(torch.equal(state[key], copy[key]) for key in state)


@pytest.mark.parametrize("weight", [-0.1, NAN, math.inf])
def test_a_weight_that_is_negative_or_no_number_is_refused(weight: float) -> None:
    outside = Complement.outside([probe()])
    makers: list[Callable[[float], object]] = [
        lambda w: RerouteAnchor(outside, SIZE, weight=w),
        lambda w: EnergyDistance(probe(), weight=w),
        lambda w: SymmetricGap(probe(), GAP, weight=w),
        lambda w: SquaredCorrelation(probe(), weight=w),
        lambda w: rank_one(probe(), GAP, layer=5, emotion="sad", weight=w),
    ]
    for make in makers:
        make(0.0)  # control: off is allowed
        with pytest.raises(ValueError, match="`weight` must be a finite number >= 0"):
            make(weight)


def test_settings_outside_their_range_are_refused() -> None:
    for decay in (-0.1, 1.0):
        for make in (reroute, symmetric):
            with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\)"):
                make(decay=decay)
    for size in (numbers(1, 0), numbers(1, NAN)):
        with pytest.raises(ValueError, match="`size` must be above 0 at every layer"):
            RerouteAnchor(Complement.outside([probe()]), size)
    with pytest.raises(ValueError, match="`size` must be at least 2, got 1"):
        energy(size=1)


# ------------------------------------------------------------------- reroute


def test_the_complement_is_what_no_direction_reads() -> None:
    read = Complement.outside([probe()])
    x = torch.randn(9, WIDTH)
    for row, layer in enumerate(LAYERS):
        outside = read.read(x, layer=layer)
        along = outside @ probe().directions[row].T
        assert float(along.abs().max()) < 1e-5
        assert float((x @ probe().directions[row].T).abs().max()) > 0.1  # control
        # What it takes away lies in the span, and once is enough.
        q = torch.linalg.qr(probe().directions[row].T).Q
        torch.testing.assert_close(x - outside, (x @ q) @ q.T, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            read.read(outside, layer=layer), outside, rtol=0, atol=1e-5
        )
    assert read.width == WIDTH


def widened(directions: Tensor) -> Probe:
    shape = directions.shape[:2]
    return probe(
        directions=directions, zero=torch.zeros(shape), sigma=torch.ones(shape)
    )


def test_directions_that_depend_on_others_take_nothing_away() -> None:
    one = probe()
    twice = torch.cat([one.directions, 3 * one.directions[:, :1]], dim=1)
    basis = orthonormal(twice)
    assert basis.shape == twice.shape
    product = basis @ basis.mT
    wanted = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])).expand_as(product)
    torch.testing.assert_close(product, wanted, rtol=0, atol=1e-5)
    x = torch.randn(4, WIDTH)
    again = [0, 0, 1, 2]
    doubled = widened(one.directions[:, again])
    for layer in LAYERS:
        torch.testing.assert_close(
            Complement.outside([doubled]).read(x, layer=layer),
            Complement.outside([one]).read(x, layer=layer),
            rtol=0,
            atol=1e-5,
        )
    # More directions than the stream is wide leave nothing.
    wide = Complement.outside([widened(torch.randn(2, 20, WIDTH))])
    left = wide.read(x, layer=3)
    assert float(left.abs().max()) < 1e-5


def test_a_complement_is_outside_of_all_its_probes() -> None:
    other = probe(directions=torch.randn(*SHAPE, WIDTH), reader="mean-difference")
    read = Complement.outside([probe(), other])
    assert read.reader == "lda+mean-difference"
    assert (read.layers, read.emotions) == (LAYERS, EMOTIONS)
    outside = read.read(torch.randn(5, WIDTH), layer=5)
    for one in (probe(), other):
        assert float((outside @ one.directions[1].T).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="all read the same layers"):
        Complement.outside([probe(), probe(layers=(3, 6))])
    with pytest.raises(ValueError, match=r"`probes` must be some.*got layers \[\]"):
        Complement.outside([])
    with pytest.raises(ValueError, match="a placebo must act on random directions"):
        Complement.outside([probe(), probe(reader="random")])
    with pytest.raises(ValueError, match="reader 'logistic' belongs to the audit"):
        Complement.outside([probe(), probe(reader="logistic")])


def test_reroute_without_cached_readings_is_refused() -> None:
    values, reference = draw("reroute", 2)
    with pytest.raises(ValueError, match="whose cached readings must be there"):
        reroute()(decision(values, numbers(1, 0)))
    reroute()(decision(values, numbers(1, 0), reference))  # control


def test_a_drift_that_all_turns_share_is_no_rerouting() -> None:
    values, reference = draw("reroute", 6)
    failure = numbers(1, 0, 1, 0.5, 0, 1)
    shared = draw("reroute", 1)[0]
    value, found = gradient(reroute(), values, failure, reference)
    moved, also = gradient(reroute(), values + shared, failure, reference)
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(also, found)
    failing = failure[:, None, None] * shared  # control: that of failing turns is
    more, _ = gradient(reroute(), values + failing, failure, reference)
    assert abs(float(more - value)) > 0.1 * float(value)


def test_the_anchor_is_the_square_of_the_index() -> None:
    failure = numbers(1, 0, 1, 0, 1)
    streams, before = (
        torch.randn(5, *STREAM, dtype=torch.float64).float() for _ in range(2)
    )

    def contrast(x: Tensor) -> Tensor:
        failing, succeeding = sides(x.double(), failure)
        return (failing - succeeding).float()

    read = Complement.outside([probe()])
    size = contrast_size(before, failure)
    torch.testing.assert_close(size, contrast(before).square().sum(1))
    values, reference = (
        torch.stack([read.read(x[:, k], layer=i) for k, i in enumerate(LAYERS)], dim=1)
        for x in (streams, before)
    )
    term = RerouteAnchor(read, size, decay=0.0)
    value, _ = gradient(term, values, failure.float(), reference)
    index = reroute_index(contrast(streams), contrast(before), read.directions)
    torch.testing.assert_close(value, index.square().mean())
    # A change along the directions is none of its business.
    along = torch.einsum("e,led->ld", torch.randn(3), probe().directions)
    moved = reroute_index(contrast(before) + along, contrast(before), read.directions)
    assert float(moved.max()) < 1e-5
    away = read.read(torch.randn(WIDTH), layer=3).expand(STREAM)  # control
    there = reroute_index(contrast(before) + away, contrast(before), read.directions)
    assert float(there[0]) == pytest.approx(float(away[0].norm() / size[0].sqrt()))


def test_the_size_of_a_contrast_needs_both_sides() -> None:
    streams = torch.randn(4, *STREAM)
    streams[3] = NAN  # an absent segment may hold anything
    failure = torch.tensor([1.0, 0.0, 0.5, NAN])
    found = contrast_size(streams, failure)
    failing, succeeding = sides(streams[:3], failure[:3])
    torch.testing.assert_close(found, (failing - succeeding).square().sum(1))
    with pytest.raises(ValueError, match="failing and succeeding segments, found 0"):
        contrast_size(streams[:3], torch.zeros(3))


# -------------------------------------------------------------------- energy


def plain_energy(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The distance of `a` (weighted) from `b`; `b` pairs with others alone."""
    share = weight / weight.sum()
    across = torch.einsum("sble,s->le", (a[:, None] - b[None]).abs(), share) / len(b)
    within = torch.einsum("stle,s,t->le", (a[:, None] - a[None]).abs(), share, share)
    own = (b[:, None] - b[None]).abs().sum((0, 1)) / (len(b) * (len(b) - 1))
    return (2 * across - within - own).mean()


def filled(a: Tensor, weight: Tensor, b: Tensor, **settings: Any) -> EnergyDistance:
    """The term whose banks hold `a` and `b`."""
    term = energy(size=len(a), **settings)
    term.load_state_dict(
        {
            "failing_values": a.detach(),
            "failing_weights": weight,
            "succeeding_values": b,
            "succeeding_weights": torch.ones(len(b)).double(),
        }
    )
    return term


@pytest.mark.parametrize("seed", range(4))
def test_energy_has_value_and_gradient_of_the_whole_distance(seed: int) -> None:
    torch.manual_seed(seed)
    a = torch.randn(6, *SHAPE, dtype=torch.float64) + 1
    b = 2 * torch.randn(6, *SHAPE, dtype=torch.float64)
    weight = numbers(1, 1, 0.5, 1, 0.25, 1)
    term = filled(a, weight, b, anchor=0.0)
    value, found = gradient(term, a, weight, again=False)
    x = a.clone().requires_grad_()
    wanted = plain_energy(x, b, weight)
    (wanted_gradient,) = torch.autograd.grad(wanted, x)
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(found, wanted_gradient)
    # Control: the present batch alone would get half of what spreads it out.
    apart = (x[:, None] - a[None]).abs()
    share = weight / weight.sum()
    half = torch.einsum("stle,s,t->le", apart, share, share).mean()
    other = torch.autograd.grad(half, x)[0] / 2
    assert not torch.allclose(found, wanted_gradient + other)
    assert torch.autograd.gradcheck(
        lambda y: filled(y, weight, b, anchor=0.0)(decision(y, weight)), x
    )


def test_energy_says_nothing_until_its_banks_are_full() -> None:
    term, said = energy(size=4), []
    for k in range(12):
        values = torch.randn(1, *SHAPE, dtype=torch.float64) + 2
        value, found = gradient(term, values, numbers(float(k % 2)), again=False)
        said.append(float(value) != 0)
        assert bool(found.any()) == said[-1]
    # Eight single rows fill both banks of four; what is added counts from then on.
    assert said == [False] * 8 + [True] * 4


def test_energy_sees_a_spread_that_the_mean_does_not() -> None:
    torch.manual_seed(0)
    level = torch.randn(200, *SHAPE, dtype=torch.float64)
    wide = 3 * (level - level.mean(0)) + level.mean(0)
    weight = torch.ones(200).double()
    value, found = gradient(
        filled(wide, weight, level, anchor=0.0), wide, weight, again=False
    )
    # What is far out is pulled in, though the means are equal.
    away = wide - level.mean(0)
    assert bool((found * away > 0)[away.abs() > 3].all())
    same, _ = gradient(  # control: two draws of one distribution
        filled(torch.randn_like(level), weight, level, anchor=0.0),
        torch.randn_like(level),
        weight,
        again=False,
    )
    assert float(value) > 5 * abs(float(same))
    contrast, _ = sides(torch.cat([wide, level]), torch.cat([weight, 0 * weight]))
    torch.testing.assert_close(contrast, level.mean(0))  # what a mean sees


def test_energy_moves_success_by_its_anchor_alone() -> None:
    a, b = torch.randn(2, 4, *SHAPE, dtype=torch.float64)
    values = torch.randn(4, *SHAPE, dtype=torch.float64)
    failure, weight = numbers(1, 0, 1, 0), numbers(1, 1, 1, 1)
    _, bare = gradient(filled(a, weight, b, anchor=0.0), values, failure, again=False)
    _, both = gradient(filled(a, weight, b), values, failure, again=False)
    assert not bare[failure == 0].any()
    assert bare[failure == 1].any()
    wanted = 0.5 * 2 * values[failure == 0] / (2 * math.prod(SHAPE))
    torch.testing.assert_close(both[failure == 0], wanted)
    torch.testing.assert_close(both[failure == 1], bare[failure == 1])


def test_energy_in_parts_and_in_processes() -> None:
    a, b = torch.randn(2, 4, *SHAPE, dtype=torch.float64)
    ones = numbers(1, 1, 1, 1)
    values = 2 * torch.randn(7, *SHAPE, dtype=torch.float64)
    failure = numbers(1, 0, 0.25, NAN, 1, 0.5, 0)
    value, found = gradient(filled(a, ones, b), values, failure, again=False)
    known = failure.nan_to_num(0.0)
    totals: Any = {
        "failing_total": known.sum(),
        "succeeding_total": (1 - failure).nan_to_num(0.0).sum(),
    }
    term, parts = filled(a, ones, b), []
    for k in range(7):
        row = slice(k, k + 1)
        parts.append(
            gradient(
                term,
                values[row],
                failure[row],
                again=False,
                continues=k > 0,
                **totals,
            )
        )
    torch.testing.assert_close(torch.stack([v for v, _ in parts]).sum(), value)
    torch.testing.assert_close(torch.cat([g for _, g in parts]), found)
    whole = filled(a, ones, b)
    whole(decision(values, failure))
    for key, tensor in whole.state_dict().items():
        torch.testing.assert_close(term.state_dict()[key], tensor)
    # Two processes with the same banks; their sums alone are exchanged.
    shards, heard = [slice(0, 3), slice(3, 7)], []
    for rows in shards:
        reduce = Summed()
        filled(a, ones, b)(decision(values[rows], failure[rows]), reduce)
        heard.append(reduce.own)
    both = [
        gradient(
            filled(a, ones, b),
            values[rows],
            failure[rows],
            None,
            Summed(others),
            again=False,
        )
        for rows, others in zip(shards, reversed(heard), strict=True)
    ]
    torch.testing.assert_close((both[0][0] + both[1][0]) / 2, value)
    torch.testing.assert_close(torch.cat([g for _, g in both]) / 2, found)
    # As many collectives before the banks are full, or processes would wait for ever.
    young, full = Summed(), len(heard[0])
    energy(size=4)(decision(values[:3], failure[:3]), young)
    assert len(young.own) == full


# ----------------------------------------------------------------- baselines


def test_rank_one_is_a_contrast_of_one_number() -> None:
    term = rank_one(probe(), GAP, layer=5, emotion="tense", weight=0.5)
    assert isinstance(term, ContrastPenalty)
    assert (term.name, term.weight) == ("rank-one", 0.5)
    read = term.probe
    assert (read.layers, read.emotions, read.width) == ((5,), ("tense",), 1)
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(read.read(x, layer=5), probe().read(x, layer=5)[:, 1:2])
    values = torch.randn(5, 1, 1, dtype=torch.float64)
    failure = numbers(1, 0, 1, 0, 1)
    for shift in (3.0, -3.0):
        moved = values + shift * failure[:, None, None]
        failing, succeeding = sides(moved, failure)
        gap = float((failing - succeeding).squeeze())
        slope = 2 * gap if gap > 0 else gap / 2
        term = rank_one(probe(), GAP, layer=5, emotion="tense")
        term(decision(moved, failure))  # fills the running means
        for _ in range(200):  # until the reference's start is forgotten
            value, found = gradient(term, moved, failure, again=False)
        assert float(value) == pytest.approx(gap**2 if gap > 0 else gap**2 / 4)
        torch.testing.assert_close(found.flatten(), slope * failure / failure.sum())
    for wrong in ({"layer": 4, "emotion": "sad"}, {"layer": 3, "emotion": "glad"}):
        with pytest.raises(ValueError, match="`layer` and `emotion` must be of the"):
            rank_one(probe(), GAP, **wrong)


def test_the_symmetric_gap_pulls_success_up_as_it_pulls_failure_down() -> None:
    values = torch.zeros(4, *SHAPE, dtype=torch.float64)
    failure = numbers(1, 0, 1, 0)
    values[failure == 1] = 2.0
    _, found = gradient(symmetric(), values, failure)
    assert bool((found[failure == 1] > 0).all())
    torch.testing.assert_close(found[failure == 0], -found[failure == 1])
    # Control: the one-sided term leaves success alone.
    signs = torch.ones(3, dtype=torch.float64)
    one = ContrastPenalty(probe(), signs, GAP.abs(), decay=0.0, anchor=0.0)
    assert not gradient(one, values, failure)[1][failure == 0].any()


def test_the_correlation_can_be_lowered_by_spreading_out() -> None:
    failure = torch.cat([torch.ones(50), torch.zeros(50)]).double()
    values = torch.randn(100, *SHAPE, dtype=torch.float64) + failure[:, None, None]
    value, found = gradient(correlation(), values, failure)
    for side in (0, 1):  # against the gradient, each side spreads about its mean
        rows = values[failure == side]
        away = rows - rows.mean(0)
        pull = -(found[failure == side] * away).sum(0)
        assert bool((pull > 0).all())
    wider = values + (values - torch.where(failure[:, None, None] > 0, 1.0, 0.0))
    less, _ = gradient(correlation(), wider, failure)
    assert float(less) < 0.7 * float(value)
    # Control: the gap itself is as it was, and its term sees that.
    before, _ = gradient(symmetric(), values, failure)
    after, _ = gradient(symmetric(), wider, failure)
    assert float(after) > 0.7 * float(before)


# ------------------------------------------------------------------ a trainer


def test_a_trainer_caches_what_the_reroute_anchor_needs(
    model: Callable[[], Any],
    tokenizer: Any,
    vectors: Any,
    reference: Any,
    tmp_path: Path,
) -> None:
    import seam_cases as cases  # it imports trl, which the other tests do without

    from emoreg.training.attach import attach
    from emoreg.training.outcomes.columns import REFERENCE

    def train(weight: float) -> list[float]:
        terms = cases.make_terms(vectors, reference, kl=0.0, meaning=0.0)
        acting = [t for t in terms if isinstance(t, ContrastPenalty)]
        outside = Complement.outside([one.probe for one in acting])
        size = torch.ones(len(outside.layers))
        held = RerouteAnchor(outside, size, weight=weight)
        kept: Any = {
            "rows": cases.make_rows(2),
            "max_steps": 40,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 1,
            "learning_rate": 1e-3,
        }
        trainer: Any = cases.make_sft(model(), tokenizer, tmp_path, **kept)
        attach(trainer, terms=[*acting, held], outcome="failed", reference=reference)
        cached = torch.tensor(trainer.train_dataset[0][REFERENCE])
        read = [term.probe for term in (*acting, held)]
        assert cached.shape[-1] == sum(len(p.layers) * p.width for p in read)
        trainer.train()
        logged = cases.logged(trainer, "emotion_loss")
        return [entry["emotion_loss/reroute"] for entry in logged]

    anchored = train(30.0)
    # Nothing has moved before the first step, whose part of the running mean counts
    # from the second on: then it is what the untrained model's cache says, zero.
    assert anchored[0] == 0
    assert anchored[1] < 1e-8
    assert all(value > 0 for value in anchored[2:])
    loose = train(1e-6)  # control: as good as off, and more is moved
    assert anchored[-1] < 0.5 * loose[-1]


def test_a_loop_of_ones_own_is_told_why_it_cannot(
    model: Callable[[], Any], tokenizer: Any, vectors: Any, reference: Any
) -> None:
    import seam_cases as cases

    from emoreg.training.watch import watch

    acting = cases.make_terms(vectors, reference, kl=0.0, meaning=0.0).terms[0]
    assert isinstance(acting, ContrastPenalty)
    outside = Complement.outside([acting.probe])
    term = RerouteAnchor(outside, torch.ones(len(outside.layers)))
    network = model()
    ids = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "tests: 1 failed"},
            {"role": "assistant", "content": "again"},
        ],
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    with watch(network, tokenizer, terms=[term], reference=reference) as watched:
        network(input_ids=ids)
        with pytest.raises(ValueError, match="loops of your own cache none"):
            watched.terms({"input_ids": ids}, failed=[[1.0]])
