"""Twins, jumps and spikes: closed formulas, parts and processes, a real trainer."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
from datasets import Dataset
from test_more_terms import (
    ALL,
    SHAPE,
    SIZE,
    STREAM,
    decision,
    gradient,
    numbers,
    probe,
)
from test_terms import Summed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from emoreg import presets
from emoreg.losses.anchors import MeaningAnchor
from emoreg.losses.band import BandPenalty
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.jumps import JumpPenalty
from emoreg.losses.preventative import PreventativeSteering
from emoreg.losses.push import Push
from emoreg.losses.reroute import Complement
from emoreg.losses.spikes import HOTTEST, SpikePenalty, hottest
from emoreg.losses.state_anchor import StateAnchor
from emoreg.losses.term import AbstractDecisionTerm
from emoreg.losses.twins import TwinPenalty
from emoreg.residual.capture import capture
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.training.attach import attach
from emoreg.training.spike_caps import QUANTILE, spike_penalty
from emoreg.vectors.audit_split import AuditSplit
from emoreg.vectors.corpus import Corpus

NAN = math.nan
SIGNS = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
CAP = torch.linspace(-0.5, 1.0, 6, dtype=torch.float64).reshape(SHAPE)
FIRST = torch.tensor([True, False, False, True, False, True])
FAILURE = numbers(0, 1, 1, NAN, 1, 0)


def twins_term() -> TwinPenalty:
    return TwinPenalty(probe())


def jump(decay: float = 0.0) -> JumpPenalty:
    return JumpPenalty(probe(), SIGNS, decay=decay)


def spike() -> SpikePenalty:
    return SpikePenalty(probe(), CAP)


def draw(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator)


MAKE: dict[str, Callable[[], AbstractDecisionTerm]] = {
    "twins": twins_term,
    "jump": jump,
    "spike": spike,
}


def test_twins_are_a_mean_squared_distance_with_success_held() -> None:
    values, held = draw(6), draw(6, 1)
    failure = numbers(1, 0, 0.5, NAN, 1, 0)
    value, found = gradient(twins_term(), values, failure, held)
    x = values.clone().requires_grad_()
    squares = (x - held).square().mean((1, 2))
    failing, succeeding = numbers(1, 0, 0.5, 0, 1, 0), numbers(0, 1, 0.5, 0, 0, 1)
    wanted = (failing * squares).sum() / 2.5 + 0.5 * (succeeding * squares).sum() / 2.5
    (pull,) = torch.autograd.grad(wanted, x)
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(found, pull)
    assert not found[3].any()
    assert found[0].any()  # control


def test_a_jump_is_what_failure_did_to_the_turn_before() -> None:
    values = draw(6)
    value, found = gradient(jump(), values, FAILURE, first=FIRST)
    x = values.clone().requires_grad_()
    at = torch.tensor([1, 2, 4])  # failing turns with one before them
    jumps = x[at] - x[at - 1].detach()
    wanted = torch.relu(SIGNS * jumps.mean(0)).square().mean()
    (pull,) = torch.autograd.grad(wanted, x)
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(found, pull)
    assert not found[0].any()  # the turn before has no gradient
    assert found[1].any()
    # Control: were every segment in one conversation, the figure would be another.
    alike = torch.zeros(6, dtype=torch.bool)
    failing = numbers(1, 1, 1, 1, 1, 1)
    assert not torch.allclose(gradient(jump(), values, failing, first=alike)[0], value)


def test_failing_turns_without_one_before_them_are_no_jumps() -> None:
    values, failure = draw(6), numbers(1, 1, 1, NAN, 1, 0.5)  # two of them come first
    value, found = gradient(jump(), values, failure, first=FIRST)
    x = values.clone().requires_grad_()
    at = torch.tensor([1, 2, 4])
    jumps = x[at] - x[at - 1].detach()
    share = 3 / 4.5
    wanted = share * torch.relu(SIGNS * jumps.mean(0)).square().mean()
    (pull,) = torch.autograd.grad(wanted, x)
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(found, pull)
    assert value > 0  # control


@pytest.mark.parametrize("single", [True, False])
def test_a_run_without_jumps_is_told_once(
    single: bool, caplog: pytest.LogCaptureFixture
) -> None:
    term, first = jump(), torch.tensor([True, single])
    for _ in range(50):
        value = term(decision(draw(2), numbers(1, 1), first=first))
        assert float(value) == 0 or not single
    told = [r for r in caplog.records if "a jump is from the turn before" in r.message]
    assert len(told) == single


def test_a_jump_needs_no_passing_turn_and_is_nothing_where_none_rises() -> None:
    values = torch.zeros(4, *SHAPE, dtype=torch.float64)
    values[1] = values[3] = -SIGNS.expand(SHAPE)  # what failure must not raise, falls
    first, failure = torch.tensor([True, False] * 2), numbers(NAN, 1, NAN, 1)
    assert float(gradient(jump(), values, failure, first=first)[0]) == 0
    risen = gradient(jump(), -values, failure, first=first)[0]
    torch.testing.assert_close(float(risen), 1.0)
    with pytest.raises(ValueError, match=r"`first` must say which segments open"):
        jump()(decision(values, failure))


def test_spikes_cost_what_is_above_the_cap() -> None:
    values, failure = draw(5), numbers(1, 0, 0.5, NAN, 1)
    values[4] = NAN  # a turn without tokens
    value, found = gradient(spike(), values, failure)
    above = torch.relu(values[:3] - CAP)
    torch.testing.assert_close(value, above.square().mean((1, 2)).sum() / 4)
    torch.testing.assert_close(found[:3], 2 * above / 6 / 4)
    assert not found[3:].nan_to_num().any()
    assert bool(found.isfinite().all())
    assert above.any()  # control


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_hottest_tokens_are_numpys(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    readings = generator.normal(size=(3, 50, *SHAPE))
    turn = generator.integers(0, 4, size=(3, 50))
    turn[1][turn[1] == 2] = 0  # a turn without tokens
    found = hottest(torch.tensor(readings, dtype=dtype), torch.tensor(turn), 3)
    for row in range(3):
        for number in range(3):
            mine = readings[row][turn[row] == number + 1]
            if not len(mine):
                assert bool(found[row, number].isnan().all())
                continue
            top = -np.sort(-mine, axis=0)[: math.ceil(HOTTEST * len(mine))]
            np.testing.assert_allclose(found[row, number], top.mean(0), rtol=1e-5)
            if len(mine) > 1:  # control
                assert not np.allclose(found[row, number], mine.mean(0), rtol=1e-3)


def test_only_the_hottest_tokens_feel_a_spike() -> None:
    readings = torch.randn(1, 20, *SHAPE, dtype=torch.float64, requires_grad=True)
    turn = torch.ones(1, 20, dtype=torch.long)
    hottest(readings, turn, 1).sum().backward()
    assert readings.grad is not None
    touched = readings.grad[0] != 0
    assert bool((touched.sum(0) == 2).all())
    ranked = readings[0].detach().argsort(0, descending=True)
    assert bool(touched.gather(0, ranked)[:2].all())


ROWS = (slice(0, 3), slice(3, 6))


@pytest.mark.parametrize("name", MAKE)
def test_the_parts_of_a_step_add_up_to_it(name: str) -> None:
    values, held = draw(6), draw(6, 1)
    whole, pull = gradient(MAKE[name](), values, FAILURE, held, first=FIRST)

    def parts(**told: Any) -> tuple[Tensor, Tensor]:
        term, found = MAKE[name](), []
        term(decision(values, FAILURE, held, first=FIRST))  # the past
        for place, rows in enumerate(ROWS):
            x = values[rows].clone().requires_grad_()
            given = {"first": FIRST[rows], "continues": place > 0, **told}
            value = term(decision(x, FAILURE[rows], held[rows], **given))
            (own,) = torch.autograd.grad(value, x)
            found.append((value.detach(), own))
        values_of = torch.stack([value for value, _ in found])
        return values_of.sum(), torch.cat([own for _, own in found])

    totals = {"failing_total": numbers(3)[0], "succeeding_total": numbers(2)[0]}
    value, found = parts(**totals)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(found, pull)
    assert not torch.allclose(parts()[1], pull)  # control: each part as its own step


@pytest.mark.parametrize("name", MAKE)
def test_the_mean_over_two_processes_is_that_of_one(name: str) -> None:
    values, held = draw(6), draw(6, 1)
    whole, pull = gradient(MAKE[name](), values, FAILURE, held, first=FIRST)

    def of(rows: slice, reduce: Summed) -> tuple[Tensor, Tensor]:
        return gradient(
            MAKE[name](), values[rows], FAILURE[rows], held[rows], reduce,
            first=FIRST[rows],
        )  # fmt: skip

    heard = [Summed(), Summed()]
    for rows, reduce in zip(ROWS, heard, strict=True):
        of(rows, reduce)
    for _ in range(2):  # what was summed depends on what was heard
        said = [list(reduce.own) for reduce in heard]
        heard = [Summed(said[1]), Summed(said[0])]
        both = [of(rows, reduce) for rows, reduce in zip(ROWS, heard, strict=True)]
    torch.testing.assert_close((both[0][0] + both[1][0]) / 2, whole)
    torch.testing.assert_close(torch.cat([found for _, found in both]) / 2, pull)
    own = torch.cat([of(rows, Summed())[1] for rows in ROWS]) / 2  # control
    assert not torch.allclose(own, pull)


@pytest.mark.parametrize("name", MAKE)
def test_absent_segments_and_empty_batches_are_nothing(name: str) -> None:
    values, held = draw(6), draw(6, 1)
    value, found = gradient(MAKE[name](), values, FAILURE, held, first=FIRST)
    hole = torch.full((2, *SHAPE), NAN, dtype=torch.float64)
    more, longer = gradient(
        MAKE[name](),
        torch.cat([values, hole]),
        numbers(*FAILURE.tolist(), NAN, NAN),
        torch.cat([held, hole]),
        first=torch.cat([FIRST, torch.tensor([True, False])]),
    )
    torch.testing.assert_close(more, value)
    torch.testing.assert_close(longer[:6], found)
    assert not longer[6:].any()
    none = torch.zeros(0, *SHAPE, dtype=torch.float64)
    empty = torch.zeros(0, dtype=torch.bool)
    nothing, _ = gradient(MAKE[name](), none, numbers(), none, first=empty)
    assert float(nothing) == 0


class Still(TorchDispatchMode):
    """Refuses to copy from one device to another."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            assert found.device == args[0].device, "copied to the device"
        return found


def contrast() -> ContrastPenalty:
    return ContrastPenalty(probe(), SIGNS, CAP)


def band() -> BandPenalty:
    return BandPenalty(probe(), CAP, low=CAP - 1, high=CAP)


def state() -> StateAnchor:
    return StateAnchor(Complement.outside([probe()]), SIZE)


EVERY = ALL | {
    name: (make, STREAM if make is state else SHAPE)
    for name, make in {
        **MAKE,
        "contrast": contrast,
        "band": band,
        "state": state,
    }.items()
}


@pytest.mark.parametrize("name", EVERY)
def test_terms_neither_copy_to_the_device_nor_wait_for_it(name: str) -> None:
    """On a device without numbers, where asking for one raises."""
    make, shape = EVERY[name]
    on: dict[str, Any] = {"device": "meta"}
    values = torch.zeros(6, *shape, dtype=torch.float64, requires_grad=True, **on)
    readings = decision(
        values,
        torch.zeros(6, dtype=torch.float64, **on),
        torch.zeros_like(values),
        first=torch.zeros(6, dtype=torch.bool, **on),
    )
    term = make()
    if name != "twins":  # control: what it was made with is elsewhere before
        with pytest.raises(AssertionError, match="copied"), Still():
            make()(readings)
    term(readings)
    with Still():
        assert term(readings).requires_grad


def test_what_prevents_is_copied_to_the_device_once() -> None:
    push = Push(
        directions=torch.randn(*SHAPE, 8),
        layers=(3, 5),
        emotions=("sad", "tense", "calm"),
        reader="lda",
        norms={3: 2.0, 5: 4.0},
    )
    term, device = PreventativeSteering(push, strength=0.1), torch.device("meta")
    term.additions(device)
    with Still():
        found = term.additions(device)
    assert {x.device for x in found.values()} == {device}


def test_a_jump_penalty_goes_on_from_a_checkpoint() -> None:
    term = jump(decay=0.9)
    term(decision(draw(6), FAILURE, first=FIRST))
    other = jump(decay=0.9)
    other.load_state_dict(term.state_dict())
    readings = decision(draw(6, 3), FAILURE, first=FIRST)
    torch.testing.assert_close(other(readings), term(readings))
    assert not torch.allclose(jump(decay=0.9)(readings), term(readings))  # control


def paired_rows(count: int = 4) -> Dataset:
    """Twins of two feedbacks each, the second of which passes in both."""
    rows = []
    for k in range(count):
        for failed in (1.0, 0.0):
            rows.append({**cases.row((None, failed, 0.0), k), "pair": f"job-{k}"})
    return Dataset.from_list(rows)


Fixtures = tuple[Any, Any, Any, Any]


@pytest.fixture
def parts(model: Any, tokenizer: Any, vectors: Any, reference: Any) -> Fixtures:
    return model, tokenizer, vectors, reference


def trainer_on(
    rows: Dataset, terms: Any, parts: Fixtures, folder: Path, **changes: Any
) -> Any:
    model, tokenizer, _, reference = parts
    made = cases.make_sft(model(), tokenizer, folder, rows=rows, **changes)
    return attach(made, terms=terms, outcome="failed", reference=reference)


def test_failing_rows_are_given_what_their_twins_read(
    parts: Fixtures, tmp_path: Path
) -> None:
    _, _, vectors, reference = parts
    terms = presets.decouple(vectors, reference, paired=True)
    rows = paired_rows()
    found = trainer_on(rows, terms, parts, tmp_path)
    plain = trainer_on(
        rows, presets.decouple(vectors, reference), parts, tmp_path / "plain"
    )
    of = found.emotions.regularizer.decision_terms[0]
    twin = next(iter(found.emotions._held.values()))
    assert isinstance(of, TwinPenalty)
    held, own = (
        torch.tensor([x[0] for x in t.train_dataset["emoreg_reference"]])[..., twin]
        for t in (found, plain)
    )
    failing, passing = held[0::2], held[1::2]
    torch.testing.assert_close(passing, own[1::2])
    torch.testing.assert_close(failing[:, 1], own[1::2][:, 1])  # the failing turn
    torch.testing.assert_close(failing[:, [0, 2]], own[0::2][:, [0, 2]])
    assert not torch.allclose(own[0::2][:, 1], own[1::2][:, 1])  # control


def last_of(trainer: Any, name: str, count: int = 4) -> float:
    """A term's mean over the last log lines, which are of all rows."""
    key = f"emotion_loss/{name}"
    found = [x[key] for x in cases.logged(trainer) if key in x]
    return float(np.mean(found[-count:]))


def test_twins_training_brings_failing_turns_to_passing_ones(
    parts: Fixtures, tmp_path: Path
) -> None:
    _, _, vectors, reference = parts
    weights: dict[str, Any] = {"band": 0.0, "meaning": 0.0, "kl": 0.0}

    def apart(contrast: float) -> float:
        terms = presets.decouple(
            vectors, reference, paired=True, contrast=contrast, **weights
        )
        folder = tmp_path / f"{contrast}"
        given = trainer_on(
            paired_rows(), terms, parts, folder, max_steps=24, learning_rate=1e-3
        )
        given.train()
        return last_of(given, "twins-lda")

    assert apart(5.0) < 0.5 * apart(1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.remove_columns("pair"), "needs a column 'pair'"),
        (lambda rows: rows.select([0, 2, 3]), "one twin"),
        (
            lambda rows: rows.remove_columns("failed").add_column(
                "failed", [[None, 1.0, 1.0]] * len(rows)
            ),
            "fail alike",
        ),
    ],
)  # fmt: skip
def test_rows_without_twins_are_refused(
    change: Callable[[Dataset], Dataset], says: str, parts: Fixtures, tmp_path: Path
) -> None:
    _, _, vectors, reference = parts
    terms = presets.decouple(vectors, reference, paired=True)
    with pytest.raises(ValueError, match=says):
        trainer_on(change(paired_rows()), terms, parts, tmp_path)


def test_paired_takes_no_share_and_no_targets(parts: Fixtures) -> None:
    _, _, vectors, reference = parts
    with pytest.raises(ValueError, match=r"`keep` and `targets` must be left out"):
        presets.decouple(vectors, reference, paired=True, keep=0.25)


@pytest.mark.parametrize("name", ["jump", "spike"])
def test_a_run_that_only_fails_can_hold_jumps_and_spikes(
    name: str, parts: Fixtures, tmp_path: Path
) -> None:
    _, _, vectors, reference = parts
    used, signs = presets.loss_probe(vectors, reference)
    low = torch.full((1, len(used.emotions)), -1.0)
    rows = Dataset.from_list([cases.row((None, 1.0, 1.0), k) for k in range(8)])

    def left(weight: float) -> float:
        term = (
            JumpPenalty(used, signs, level=low, weight=weight, decay=0.0)
            if name == "jump"
            else SpikePenalty(used, low, weight=weight)
        )
        folder = tmp_path / f"{weight}"
        given = trainer_on(
            rows, [term], parts, folder, max_steps=24, learning_rate=1e-3
        )
        assert "emoreg_reference" not in given.train_dataset.column_names
        given.train()
        return last_of(given, name)

    assert 0 <= left(5.0) < 0.5 * left(1e-6)


def test_a_real_trainers_spikes_are_those_of_a_plain_forward(
    parts: Fixtures, tmp_path: Path
) -> None:
    _, tokenizer, vectors, reference = parts
    used, _ = presets.loss_probe(vectors, reference)
    term = SpikePenalty(used, torch.zeros(1, len(used.emotions)), weight=1.0)
    rows = Dataset.from_list([cases.row((None, 1.0, 0.0), k) for k in range(2)])
    given = trainer_on(rows, [term], parts, tmp_path, max_steps=1, learning_rate=0.0)
    given.train()
    (found,) = [
        x["emotion_loss/spike"]
        for x in cases.logged(given)
        if "emotion_loss/spike" in x
    ]
    markers, model, spikes = TurnMarkers.of(tokenizer), parts[0](), []
    for row in map(dict, rows):
        ids = torch.tensor(
            [conversation_ids(tokenizer, row["prompt"] + row["completion"])]
        )
        with capture(model, used.layers) as captured, torch.no_grad():
            model(input_ids=ids)
            read = used.read(captured[used.layers[0]], layer=used.layers[0])[0]
        opened = markers.decision_tokens(ids)[0].cumsum(0)
        spoken = markers.assistant_tokens(ids)[0]
        for turn in (2, 3):  # those whose outcome is known
            mine = read[spoken & (opened == turn)]
            top = mine.sort(0, descending=True).values[: math.ceil(len(mine) / 10)]
            spikes.append(torch.relu(top.mean(0)).square().mean())
    torch.testing.assert_close(found, float(torch.stack(spikes).mean()), rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    assert found > 1e-3  # control


def test_the_cap_is_a_percentile_over_passing_turns(
    parts: Fixtures,
) -> None:
    model, tokenizer, vectors, reference = parts
    talks = cases.twins(24)
    term = spike_penalty(model(), tokenizer, talks, vectors, reference, quiet=True)
    used, _ = presets.loss_probe(vectors, reference)
    columns = [used.emotions.index(emotion) for emotion in term.probe.emotions]
    assert term.probe.emotions == ("desperate", "panicked")  # calm is not to fall
    markers, network, spikes = TurnMarkers.of(tokenizer), model(), []
    for talk in talks:
        if talk.variant == "pass":
            ids = torch.tensor([conversation_ids(tokenizer, talk.messages)])
            with capture(network, used.layers) as captured, torch.no_grad():
                network(input_ids=ids)
                read = used.read(captured[used.layers[0]], layer=used.layers[0])
            spoken = markers.assistant_tokens(ids)
            turn = markers.decision_tokens(ids).cumsum(1) * spoken
            mine = read[0][turn[0] == 2][:, columns]
            top = mine.sort(0, descending=True).values[: math.ceil(len(mine) / 10)]
            spikes.append(top.mean(0))
    wanted = np.quantile(torch.stack(spikes).numpy(), QUANTILE, axis=0)
    np.testing.assert_allclose(term.cap[0], wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="at least 20 Assistant turns after passing"):
        spike_penalty(model(), tokenizer, talks[:4], vectors, reference, quiet=True)


def test_what_the_vectors_keep_for_the_audit_is_not_trained_on(parts: Fixtures) -> None:
    """Whatever roles are given: the split is the vectors' own."""
    _, _, vectors, reference = parts
    split = AuditSplit(
        loss_layers=(2,),
        audit_layers=(3,),
        loss_emotions=("desperate",),
        audit_emotions=("calm", "content"),
        loss_readers=("lda",),
        audit_readers=("logistic",),
    )
    own = replace(vectors, split=split)
    units = replace(reference, vectors_hash=own.hash)
    roles = replace(Corpus.packaged().roles(), raise_=())
    with pytest.raises(ValueError, match="emotion 'calm' belongs to the audit"):
        presets.decouple(own, units, roles=roles)
    terms = presets.decouple(own, units, roles=roles, band=0.0)
    assert "band" not in {term.name for term in terms}
    (meaning,) = [term for term in terms if isinstance(term, MeaningAnchor)]
    assert meaning.probe.emotions == ("desperate", "panicked")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="`cap` must be finite"):
        SpikePenalty(probe(), CAP * math.inf)
    with pytest.raises(ValueError, match="cached readings must be there"):
        twins_term()(decision(draw(2), numbers(1, 0)))
    with pytest.raises(ValueError, match="must be in"):
        jump(decay=1.0)
