"""Comparisons of synthetic tables whose slopes are known."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from comparison_tables import EMOTIONS, FAMILIES, LAYER_PLAN, synthetic, true_slope

from emoreg.comparison.compare import compare
from emoreg.comparison.readings import Readings
from emoreg.statistics.bootstrap import bootstrap_mean

FEW = {"n_resamples": 1000, "roles": FAMILIES}
EMOTIONS_READ = (
    "desperate",
    "calm",
    "upset",
    "anxious",
    "worried",
    "serene",
    "relaxed",
    "proud",
)


def measured(**changes):
    return synthetic(
        **{"emotions": EMOTIONS_READ, "layers": (9, 18, 21, 24), **changes}
    )


def guards(kl, story):
    return {
        "kl": {"value": kl, "low": kl - 0.01, "high": kl + 0.01, "n": 20},
        "story_top1": {"value": story, "low": None, "high": None, "n": 96},
    }


def change(comparison):
    found = comparison.decision.arms["after"].change
    assert found is not None
    return found


def with_meta(table, **changes):
    return replace(table, meta={**table.meta, **changes})


@pytest.fixture(scope="module")
def halved():
    """The terms leave 30 % of the slope, the control arm 90 %."""
    return compare(
        measured(guards=guards(0.0, 0.93)),
        measured(scale=0.3, seed=1, guards=guards(0.42, 0.92), arm="terms"),
        arms={
            "control": measured(scale=0.9, seed=2, guards=guards(0.40, 0.9), wobble=0.1)
        },
        gate=measured(prefix="dev", seed=3, n_prompts=24),
        **FEW,
    )


@pytest.fixture(scope="module")
def unchanged():
    """Neither arm does anything: the same model measured again."""
    return compare(
        measured(guards=guards(0.0, 0.93)),
        measured(seed=1, guards=guards(0.1, 0.8)),
        arms={"control": measured(seed=2, guards=guards(0.0, 0.93))},
        **FEW,
    )


def test_the_planted_slope_is_recovered(halved):
    figures = halved.summary
    for emotion in ("upset", "serene", "proud"):
        index = figures.index("logistic", "audit", emotion)
        interval = figures.arms["before"].slope.at(*index)
        # Prompts carry their own slopes with a spread of 0.64.
        assert interval.estimate == pytest.approx(true_slope(emotion), abs=0.4)
        assert interval.low < interval.estimate < interval.high
        assert interval.n == 32


def test_slopes_are_means_over_prompts_in_units():
    table = measured(n_prompts=9)
    units = {
        "sigma_ref": np.full(table.values.shape[1:], 4.0),
        "success_level": np.full(table.values.shape[1:], 0.5),
    }
    found = compare(table, table, reference_units=units, **FEW)
    twins = table.twin_differences()
    arm = found.decision.arms["before"]
    expected = bootstrap_mean(twins.values / 4, n_resamples=1000, expand=True)
    np.testing.assert_allclose(arm.slope.estimate[..., :8], expected.estimate)
    np.testing.assert_allclose(arm.slope.low[..., :8], expected.low)
    level = (twins.failing.mean(axis=0) - 0.5) / 4
    np.testing.assert_allclose(arm.fail_level[..., :8], level)
    upset = [EMOTIONS_READ.index(e) for e in ("upset", "anxious", "worried")]
    family = found.decision.targets.index("audit distress")
    pooled = expected.estimate[..., upset].mean(axis=-1)
    np.testing.assert_allclose(arm.slope.estimate[..., family], pooled)
    np.testing.assert_allclose(change(found).estimate, 0)


def test_groups_of_layers_are_averaged(halved):
    decision, summary = halved.decision, halved.summary
    layers = [decision.places.index(str(n)) for n in halved.layer_plan["audit"]]
    expected = decision.arms["after"].slope.estimate[:, layers].mean(axis=1)
    at = summary.places.index("audit")
    np.testing.assert_allclose(summary.arms["after"].slope.estimate[:, at], expected)


def test_what_the_control_did_not_do_is_not_said_of_it():
    grown = compare(
        measured(),
        measured(scale=1.6, seed=25),
        arms={"control": measured(seed=9)},
        **FEW,
    )
    said = grown.judgement.headline
    assert "grew by" in said
    assert "the control arm moved it" not in said
    assert "from the control arm, which is no nearer to none" in said
    turned = compare(
        measured(),
        measured(scale=-2.0, seed=25),
        arms={"control": measured(scale=0.0, seed=9)},
        **FEW,
    )
    told = " ".join(turned.judgement.findings)
    assert "what the terms added" not in told
    [check] = [c for c in turned.checks if c.name == "audit distress: beyond control"]
    assert check.status == "missed"


def test_a_planted_halving_is_found(halved):
    states = {check.name: check.status for check in halved.checks}
    assert set(states.values()) == {"passed"}
    assert "is at least halved" in halved.verdict
    assert "beyond the control arm" in halved.judgement.headline
    assert "n = 32 prompts" in halved.verdict
    assert "One seed" in halved.verdict
    assert "nothing of feelings" in halved.verdict
    ratio = halved.summary.arms["after"].ratio
    index = halved.summary.index("logistic", "audit", "audit distress")
    assert ratio.estimate[index] == pytest.approx(0.3, abs=0.07)


def test_the_excess_over_control_is_held_against_the_kl_budget(halved):
    check = next(check for check in halved.checks if check.name.startswith("KL"))
    assert check.value == pytest.approx(0.02)
    assert (check.low, check.high) == pytest.approx((0.0, 0.04))


def test_after_is_held_against_every_other_arm():
    arms = {name: measured(scale=0.3, seed=3) for name in ("anchors", "near")}
    arms["anchors"] = measured(scale=0.9, seed=2)
    before, after = measured(), measured(scale=0.3, seed=1)
    found = compare(before, after, arms=arms, **FEW)
    index = found.summary.index("logistic", "audit", "audit distress")
    gaps: dict[str, Any] = {
        arm: own.after_minus for arm, own in found.summary.arms.items()
    }
    assert gaps["before"] is gaps["after"] is found.summary.beyond_control is None
    slopes = {arm: own.slope.estimate for arm, own in found.summary.arms.items()}
    for arm in arms:
        assert gaps[arm].estimate == pytest.approx(slopes["after"] - slopes[arm])
    assert gaps["anchors"].at(*index).excludes(0.0)
    text = found.verdict
    assert re.search("After minus anchors: −0.5.* further than that arm", text)
    assert re.search("After minus near: .* no difference was found", text)


def test_no_effect_is_claimed_where_there_is_none(unchanged):
    states = {check.name: check.status for check in unchanged.checks}
    assert states["audit distress: there before"] == "passed"
    assert states["audit distress: halved"] == "missed"
    assert states["audit distress: beyond control"] == "missed"
    assert states["KL within budget"] == "missed"
    assert states["meaning kept"] == "missed"
    headline = unchanged.judgement.headline
    assert headline.startswith("No reduction of the audit distress slope was found by")
    assert "no difference from the control arm was found by these checks" in headline
    assert "Missed: reduced for every reader, KL within budget" in headline


def test_nothing_before_means_nothing_to_reduce():
    found = compare(measured(scale=0), measured(scale=0, seed=1), **FEW)
    assert found.judgement.headline.startswith("No audit distress slope to reduce")
    states = {check.name: check.status for check in found.checks}
    assert states["audit distress: there before"] == "missed"
    assert states["audit distress: halved"] == "withheld"
    assert "cannot be told apart without a control" in found.verdict


def test_a_halving_that_is_not_certain_is_not_called_one():
    before, after = (
        measured(n_prompts=10),
        measured(n_prompts=10, scale=0.4, wobble=0.5),
    )
    found = compare(before, after, **FEW)
    states = {check.name: check.status for check in found.checks}
    assert states["audit distress: halved for certain"] == "missed"
    assert "is at least halved" not in found.verdict


def test_a_slope_that_turned_over_is_said_to_have():
    found = compare(measured(), measured(scale=-0.9, seed=1), **FEW)
    assert "turned over" in found.judgement.headline
    states = {check.name: check.status for check in found.checks}
    assert states["audit distress: halved"] == "missed"


def test_ratios_are_withheld_below_three_standard_errors(halved):
    figures = halved.summary
    proud = figures.index("logistic", "audit", "proud")
    upset = figures.index("logistic", "audit", "upset")
    assert abs(figures.base_errors[proud]) < 3 < figures.base_errors[upset]
    assert not figures.ratio_shown[proud]
    assert np.isnan(figures.arms["after"].ratio.estimate[proud])
    assert np.isfinite(figures.arms["after"].ratio.estimate[upset])
    shown = figures.ratio_shown
    assert np.all(np.abs(figures.base_errors[shown]) > 3)


def test_the_gate_table_decides_on_ratios():
    before, after = measured(), measured(scale=0.3, seed=1)
    silent = measured(scale=0, prefix="dev", seed=4)
    gated = compare(before, after, gate=silent, **FEW)
    open_ = compare(before, after, **FEW)
    index = gated.summary.index("logistic", "audit", "audit distress")
    assert open_.summary.ratio_shown[index]
    assert not gated.summary.ratio_shown[index]
    assert "other prompts" in gated.gate
    assert "these same prompts" in open_.gate
    assert "no ratio" in gated.verdict


def test_own_units_stand_in_and_are_named():
    found = compare(measured(units=False), measured(scale=0.3, units=False), **FEW)
    assert "own twin differences before" in found.units
    index = found.decision.index("lda", "18", "upset")
    d_z = found.decision.arms["before"].d_z[index]
    assert found.decision.arms["before"].slope.estimate[index] == pytest.approx(d_z)


def test_few_prompts_show_figures_and_withhold_the_verdict():
    found = compare(measured(n_prompts=7), measured(n_prompts=7, scale=0.3), **FEW)
    assert found.judgement.withheld
    assert found.verdict.startswith("Verdict withheld: 7 prompts")
    assert {check.status for check in found.checks} == {"withheld"}
    assert np.isfinite(found.summary.arms["after"].slope.estimate).all()


def test_missing_parts_are_noted():
    bare = {"readers": ("lda",), "plan": None, "positions": ("decision",)}
    found = compare(measured(**bare), measured(**bare, scale=0.5), **FEW)
    assert found.audit_reader == "lda"
    assert found.layer_plan["audit"] == (9, 18, 21, 24)
    assert found.assistant is None
    notes = " ".join(found.notes)
    assert all(
        word in notes for word in ("audit reader", "No audit layers", "Assistant")
    )


def test_missing_assistant_readings_are_noted_and_lose_nothing_else():
    def silent(prompts: int):
        table = measured(n_prompts=12, scale=0.3)
        rows = table.segments.to_pylist()
        names = sorted({row["prompt"] for row in rows})[:prompts]
        for place, row in enumerate(rows):
            if row["position"] == "assistant" and row["prompt"] in names:
                table.values[place] = np.nan
        return compare(measured(n_prompts=12), table, **FEW)

    whole, some, none = (silent(count) for count in (0, 9, 12))
    assert not any("Assistant tokens" in note for note in whole.notes)
    assert any("leave out 9 prompts" in note for note in some.notes)
    assert none.assistant is None
    assert any("No table for Assistant tokens" in note for note in none.notes)
    for found in (some, none):
        assert found.verdict == whole.verdict


def test_resamples_are_as_many_as_are_asked_for():
    found = compare(measured(), measured(scale=0.3), n_resamples=300)
    drawn = [own.resamples for own in found.cliffs.values()]
    assert {0 if one is None else len(one) for one in drawn} == {300}


def test_prompts_with_missing_readings_are_dropped_everywhere():
    after = measured(n_prompts=12, scale=0.3)
    after.values[0] = np.nan
    found = compare(measured(n_prompts=12), after, **FEW)
    assert found.summary.arms["before"].slope.n == 11
    assert "1 of 12 prompts" in found.notes[0]


def test_the_order_of_prompts_does_not_matter():
    before, after = measured(n_prompts=9), measured(n_prompts=9, scale=0.3, seed=1)
    order = np.random.default_rng(0).permutation(after.segments.num_rows)
    shuffled = replace(
        after,
        segments=after.segments.take(order),
        values=after.values[order],
        resid_norm=after.resid_norm[order],
    )
    one, two = (compare(before, table, **FEW) for table in (after, shuffled))
    np.testing.assert_allclose(change(one).low, change(two).low)


@pytest.mark.parametrize("item", ["vectors_hash", "prompts_hash"])
def test_other_hashes_are_refused(item):
    other = with_meta(measured(n_prompts=8), **{item: "other"})
    message = rf"`{item}` must be the same .* 'other' in 'control'; measure both"
    with pytest.raises(ValueError, match=message):
        compare(measured(n_prompts=8), measured(n_prompts=8), arms={"control": other})


@pytest.mark.parametrize(
    ("changes", "item"),
    [
        ({"layers": (9, 18, 21)}, "layers"),
        ({"emotions": EMOTIONS_READ[:5]}, "emotions"),
        ({"readers": ("lda", "logistic")}, "readers"),
    ],
)
def test_other_axes_are_refused(changes, item):
    with pytest.raises(ValueError, match=f"`{item}` must be the same"):
        compare(measured(n_prompts=8), measured(n_prompts=8, **changes), **FEW)


def test_the_gate_may_have_other_prompts_but_not_other_vectors():
    gate = with_meta(measured(prefix="dev", n_prompts=8), prompts_hash="dev")
    table = measured(n_prompts=8)
    assert compare(table, table, gate=gate, **FEW).gate.startswith("8 other prompts")
    with pytest.raises(ValueError, match=r"`vectors_hash` .* in 'gate'"):
        compare(table, table, gate=with_meta(gate, vectors_hash="x"), **FEW)


def test_other_prompts_are_refused():
    other = measured(n_prompts=9)
    with pytest.raises(ValueError, match=r"twins of the same prompts.*'task-08'"):
        compare(measured(n_prompts=8), other, **FEW)


def test_one_outcome_class_is_refused():
    table = measured(n_prompts=8)
    failing = np.array([v == "fail" for v in table.segments["variant"].to_pylist()])
    only = Readings(
        segments=table.segments.filter(failing),
        values=table.values[failing],
        resid_norm=table.resid_norm[failing],
        readers=table.readers,
        layers=table.layers,
        emotions=table.emotions,
        meta=table.meta,
    )
    with pytest.raises(ValueError, match="needs both outcome classes"):
        compare(only, only, **FEW)


@pytest.mark.parametrize("name", ["before", "after"])
def test_arm_names_are_not_taken_twice(name):
    table = measured(n_prompts=8)
    with pytest.raises(ValueError, match="`arms` must not be named"):
        compare(table, table, arms={name: table}, **FEW)


def test_units_of_another_shape_are_refused():
    table = measured(n_prompts=8)
    with pytest.raises(ValueError, match="`sigma_ref` must have shape"):
        compare(table, table, reference_units={"sigma_ref": [[[1.0]]]}, **FEW)
    zero = {"sigma_ref": np.zeros(table.values.shape[1:])}
    with pytest.raises(ValueError, match="`sigma_ref` must be positive"):
        compare(table, table, reference_units=zero, **FEW)


def test_the_table_has_every_figure_once(halved):
    rows = halved.table()
    keys = ("arm", "position", "reader", "layer", "target")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
    n_targets = len(EMOTIONS_READ) + 4
    # Two positions, four layers and as many groups as hold measured layers.
    groups = len(halved.layer_plan)
    assert len(rows) == 3 * 2 * 3 * (4 + groups) * n_targets
    row = next(r for r in rows if r["arm"] == "after" and r["target"] == "proud")
    assert row["ratio"] is None
    json.dumps(rows, allow_nan=False)


def test_the_document_is_json_with_the_documented_keys(halved):
    document = json.loads(halved.to_json())
    assert document["schema"] == "emoreg.report/1"
    assert set(document) == {
        *("schema", "verdict", "checks", "primary", "arms", "n_prompts", "prompts"),
        *("readers", "layers", "emotions", "families", "layer_plan", "audit_reader"),
        *("units", "gate", "notes", "settings", "figures", "meta", "training", "run"),
        *("behavior", "changes", "conduct", "plane", "rails", "rounds"),
    }
    assert document["verdict"]["text"] == halved.verdict
    figures = document["figures"]["decision"]
    shape = np.shape(figures["arms"]["after"]["slope"])
    axes = ("readers", "places", "targets")
    assert shape == tuple(len(figures[axis]) for axis in axes)
    assert "units" not in document["meta"]["before"]
    row = document["primary"][0]
    assert row["cliffs_delta_low"] <= row["cliffs_delta"] <= row["cliffs_delta_high"]
    assert document["arms"] == ["before", "after", "control"]


def test_the_packaged_roles_are_the_default():
    table = measured(n_prompts=8)
    found = compare(table, table, n_resamples=100)
    assert found.families["audit distress"] == ("upset", "anxious", "worried")


def test_all_roles_are_known_to_the_synthetic_tables():
    assert set(EMOTIONS_READ) < set(EMOTIONS)
    assert LAYER_PLAN["audit"] == [21, 24]
