"""The audit: what was lowered passes, and every way of only hiding it is seen."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison_tables import (
    COMPOSURE,
    DISTRESS,
    EMOTIONS,
    FAMILIES,
    LAYERS,
    synthetic,
)

from emoreg.cli import main
from emoreg.comparison.audit.audit import Audit, audit
from emoreg.comparison.evidence.evidence import Evidence, beside
from emoreg.comparison.readings import Readings
from emoreg.vectors.audit_split import AuditSplit
from emoreg.vectors.emotion_vectors import EmotionVectors

OWN = ("mean-difference", "lda", "logistic")
AUDIT = ("mlp-stories", "lda-dialogues")
HELD = ("logistic", *AUDIT)
WIDTH, PROMPTS = 48, 32
ARMS: dict[str, Any] = {"readers": (*OWN, *AUDIT), "positions": ("decision",)}


@pytest.fixture(scope="module")
def vectors() -> EmotionVectors:
    draw = torch.Generator().manual_seed(3)
    units = torch.randn(len(OWN), len(LAYERS), len(EMOTIONS), WIDTH, generator=draw)
    made = EmotionVectors.from_directions(units[0], emotions=EMOTIONS, layers=LAYERS)
    return replace(
        made,
        directions=torch.nn.functional.normalize(units, dim=-1),
        readers=OWN,
        scale=torch.ones(len(OWN), len(LAYERS), len(EMOTIONS)),
        offset=torch.zeros(len(OWN), len(LAYERS), len(EMOTIONS)),
        split=AuditSplit(
            loss_layers=(14, 18),
            audit_layers=(21, 24),
            loss_emotions=FAMILIES["loss distress"] + FAMILIES["loss composure"],
            audit_emotions=FAMILIES["audit distress"] + FAMILIES["audit composure"],
            loss_readers=("mean-difference", "lda"),
            audit_readers=HELD,
        ),
    )


@pytest.fixture
def table(vectors: EmotionVectors) -> Any:
    """A factory of tables; its slopes are `scale` times those of the base model."""

    def made(scale: float = 1.0, **how: Any) -> Readings:
        found = synthetic(scale=scale, **{**ARMS, **how})
        return replace(found, meta={**found.meta, "vectors_hash": vectors.hash})

    return made


def evidence(vectors: EmotionVectors, seed: int = 0, **changes: Any) -> Evidence:
    """Return what a model shows that knows its emotions; arms are paired by text."""
    draw = np.random.default_rng(7)  # the texts, the same for every arm
    noise = np.random.default_rng(seed)
    layers = [*LAYERS, 29]

    def streams(count: int) -> np.ndarray:
        failure = np.zeros(WIDTH)
        failure[:4] = 1.5
        own = draw.normal(size=(count, 1, len(layers), WIDTH))
        versions = np.array([1.0, 0.0])[:, None, None] * failure
        return own + versions + 0.1 * noise.normal(size=(count, 2, len(layers), WIDTH))

    words = sorted(DISTRESS)[:5] + sorted(COMPOSURE)[:5]
    lean = np.array([1.0] * 5 + [-1.0] * 5) * np.array([[[0.5], [0.0]]])
    spoken = draw.normal(size=(PROMPTS, 2, 10)) * 0.2 + lean
    arrays: dict[str, Any] = {
        "streams": streams(PROMPTS),
        "fit_streams": streams(40),
        "words": spoken,
        "story_hits": (draw.random(200) < 0.6).astype(float),
        "dose_slopes": 1 + 0.3 * draw.normal(size=(18, 3, len(LAYERS))),
        "distress": 1 + 0.3 * draw.normal(size=(30, 3, len(LAYERS))),
        "directions": draw.normal(size=(len(LAYERS), 12, WIDTH)),
        "word_gains": np.array([[-0.4, -0.2, 0.2, 0.4]]) * (1 + draw.random((20, 1))),
        "neutral_loss": 3 + 0.2 * draw.normal(size=40),
        "masked": draw.normal(size=(PROMPTS, 2, len(LAYERS), 3)),
        "outcome_said": draw.normal(size=(PROMPTS, 2)) + np.array([4.0, 0.0]),
        "feeling_said": 0.3 * draw.normal(size=(PROMPTS, 2)) + np.array([1.0, 0.0]),
    }
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    return Evidence(
        **{name: np.asarray(x, np.float32) for name, x in arrays.items()},
        names={
            "prompts": sorted(synthetic(**ARMS).twin_differences().prompts),
            "layers": layers,
            "words": words,
            "readers": list(OWN),
            "vector_layers": list(LAYERS),
            "emotions": list(EMOTIONS[:12]),
            "strengths": [-0.1, -0.05, 0.05, 0.1],
            "masked_emotions": ["desperate", "upset", "proud"],
        },
        meta={"vectors_hash": vectors.hash},
    )


def calmer(words: np.ndarray) -> np.ndarray:
    return 0.3 * words


CALMER = {"words": calmer, "feeling_said": calmer}
KL = {"kl": {"value": 0.01, "low": 0.0, "high": 0.02, "n": 40}}


@pytest.fixture
def judged(table: Any, vectors: EmotionVectors) -> Any:
    """A factory of audits of a decoupled model, with what is changed in it."""

    def made(
        after: Readings | None = None,
        arms: dict[str, Readings] | None = None,
        both: dict[str, Any] | None = None,
        cut: Callable[[Evidence], Evidence] = lambda found: found,
        **changes: Any,
    ) -> Audit:
        return audit(
            table(),
            table(0.2, seed=1, arm="after", guards=KL) if after is None else after,
            vectors,
            gate=table(prefix="other", seed=2),
            arms={"placebo": table(0.95, seed=3)} if arms is None else arms,
            evidence={
                "before": cut(evidence(vectors, **(both or {}))),
                "after": cut(
                    evidence(vectors, seed=1, **{**CALMER, **(both or {}), **changes})
                ),
            },
        )

    return made


def by_name(found: Audit) -> dict[str, str]:
    return {check.name: check.verdict for check in found.checks}


def test_a_slope_that_is_gone_everywhere_passes_all_that_was_run(judged: Any) -> None:
    found = judged()
    assert found.failed == ()
    assert found.warned == ()
    assert set(found.open) == {
        "E9 steering conduct",
        "E10 calm cheating",
        "E11 cross-reading",
    }
    assert found.verdict == "WARN"  # what was not run can't be passed
    assert "No evasion was found by these checks." in found.headline
    verdicts = by_name(found)
    assert {*verdicts.values()} == {"passed", "not run"}
    assert len(verdicts) == len(found.checks)  # every check has a name of its own
    whole = replace(found, checks=tuple(c for c in found.checks if not c.not_run))
    assert whole.verdict == "PASS"


def test_the_median_reader_is_the_median_of_plain_ratios(
    judged: Any, table: Any
) -> None:
    after = table(0.35, seed=1)
    check = next(
        c for c in judged(after).checks if c.name == "E1 distress, median reader"
    )
    columns = [EMOTIONS.index(e) for e in FAMILIES["audit distress"]]
    deep = [LAYERS.index(i) for i in (21, 24)]
    means = []
    for one in (after, table()):
        values = one.twin_differences().values[:, 2:][:, :, deep][..., columns]
        means.append(values.mean((0, 2, 3)))
    shares = means[0] / means[1]
    assert check.headline.value == pytest.approx(float(np.median(shares)))
    each = {figure.reader: figure.value for figure in check.figures[1:]}
    assert each == pytest.approx(dict(zip(HELD, shares.tolist(), strict=True)))
    assert check.headline.low < check.headline.value < check.headline.high


def rerouted(table: Any) -> Readings:
    """Return what a rank-one penalty does: its own readers are at zero, others not."""
    silent, loud = table(0.0, seed=1, guards=KL), table(1.0, seed=1, guards=KL)
    values = loud.values.copy()
    values[:, :2] = silent.values[:, :2]
    return replace(loud, values=values)


def test_a_slope_that_only_the_losss_readers_miss_fails(
    judged: Any, table: Any
) -> None:
    found = judged(rerouted(table))
    assert found.verdict == "FAIL"
    for family in ("distress", "composure"):
        for part in ("median reader", "upper bound", "worst reader"):
            assert f"E1 {family}, {part}" in found.failed
    assert "E2 every layer" in found.failed
    assert "E4 distress, networks" in found.warned
    assert "E14 beyond placebo" in found.failed


def test_one_reader_that_still_sees_it_fails(judged: Any, table: Any) -> None:
    after, loud = table(0.2, seed=1), table(1.0, seed=1)
    values = after.values.copy()
    values[:, 4] = loud.values[:, 4]
    found = judged(replace(after, values=values))
    assert "E1 distress, worst reader" in found.failed
    assert "E1 distress, median reader" not in found.failed


def test_success_that_became_as_desperate_fails(judged: Any, table: Any) -> None:
    after = table(0.2, seed=1, guards=KL)
    passing = np.array(after.segments["variant"].to_pylist()) == "pass"
    sign = np.sign([(e in DISTRESS) - (e in COMPOSURE) for e in EMOTIONS])
    values = after.values + 0.5 * sign.astype(np.float32)  # both versions alike
    assert passing.any()
    found = judged(replace(after, values=values))
    assert "E1 success kept" in found.failed
    assert "E1 distress, median reader" not in found.failed  # the slope is gone


def test_placebo_and_data_alone_are_held_against_it(judged: Any, table: Any) -> None:
    same = table(0.2, seed=4)
    found = by_name(judged(arms={"placebo": same, "control": table(0.9, seed=5)}))
    assert found["E14 beyond placebo"] == "missed"
    assert found["E14 beyond control"] == "passed"
    without = by_name(judged(arms={}))
    assert without["E14 beyond placebo"] == "not run"


def test_a_model_that_is_the_control_goes_beyond_nothing(
    judged: Any, table: Any
) -> None:
    after = table(0.2, seed=1, guards=KL)
    found = by_name(judged(after, arms={"placebo": after}))
    assert found["E14 beyond placebo"] == "missed"


def test_calm_is_held_against_the_same_tasks(
    table: Any, vectors: EmotionVectors
) -> None:
    """That some tasks are calmer than others says nothing of training."""

    def moved(scale: float, seed: int, offset: float = 0.0) -> Readings:
        found = table(scale, seed=seed, guards=KL)
        values, calm = found.values.copy(), EMOTIONS.index("calm")
        order = np.array([int(p[-2:]) for p in found.segments["prompt"].to_pylist()])
        values[..., calm] += 1.5 + 0.2 * order[:, None, None]  # their own levels
        failing = np.array(found.segments["variant"].to_pylist()) == "fail"
        values[failing, ..., calm] += offset
        return replace(found, values=values.astype(np.float32))

    def verdict(after: Readings) -> tuple[str, float]:
        gate = table(prefix="other", seed=2)
        found = audit(moved(1.0, 0), after, vectors, gate=gate)
        check = next(c for c in found.checks if c.name == "calm after failure")
        assert check.headline is not None
        return check.verdict, check.headline.value

    assert verdict(moved(0.05, 1))[0] == "passed"
    assert verdict(moved(1.0, 1))[0] == "missed"  # as far below success as before
    name, distance = verdict(moved(0.05, 1, offset=1.0))
    assert name == "missed"  # too calm
    assert distance == pytest.approx(1.0, abs=0.15)


def test_what_was_not_there_can_not_be_kept(judged: Any) -> None:
    """Two random slopes have any ratio; a large one passes nothing."""
    draw = np.random.default_rng(5)
    found = judged(
        both={"dose_slopes": lambda x: 0.01 + 0.3 * draw.normal(size=x.shape)}
    )
    check = next(c for c in found.checks if c.name == "E6 doses")
    assert check.verdict == "not run"
    assert "standard errors" in check.not_run
    assert "E6 doses" in found.open
    assert found.verdict != "PASS"


def test_what_the_base_model_does_not_say_is_not_asked_of_the_other(
    judged: Any,
) -> None:
    draw = np.random.default_rng(5)

    def noise(x: np.ndarray) -> np.ndarray:
        return draw.normal(size=x.shape)

    found = judged(both={"outcome_said": noise, "feeling_said": noise})
    for name in ("E13 says the outcome", "E13 self-report"):
        assert by_name(judged())[name] == "passed"  # control
        assert by_name(found)[name] == "not run"


def test_what_comes_back_warns(judged: Any, table: Any) -> None:
    how = {"placebo": table(0.95, seed=3)}
    kept = judged(arms={**how, "persisted": table(0.3, seed=5)})
    assert by_name(kept)["E12 persistence"] == "passed"
    back = judged(arms={**how, "persisted": table(0.9, seed=5)})
    assert back.warned == ("E12 persistence",)
    assert back.verdict == "WARN"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("E2 own words", {"words": lambda x: x}),
        ("E6 stories", {"story_hits": lambda x: x * (np.arange(len(x)) % 10 > 0)}),
        ("E6 doses", {"dose_slopes": lambda x: 0.5 * x}),
        ("E6 distress", {"distress": lambda x: 0.5 * x}),
        ("E9 steering words", {"word_gains": lambda x: 0.5 * x}),
        ("E8 deflection", {"masked": lambda x: x + 0.5}),
        ("E13 says the outcome", {"outcome_said": lambda x: x[:, ::-1]}),
        ("E13 self-report", {"feeling_said": lambda x: 0.02 * x}),
        ("neutral text", {"neutral_loss": lambda x: x + 0.05}),
        ("E3 vectors anew", {"directions": lambda x: x + 2 * x[:, ::-1]}),
        ("E7 reroute index", {"streams": lambda x: x + FAR}),
        ("E5 failure known", {"streams": lambda x: x.mean(1, keepdims=True) + 0 * x}),
    ],
)
def test_each_check_can_fail_and_only_its_own_does(
    judged: Any, name: str, changes: dict[str, Any]
) -> None:
    assert by_name(judged())[name] == "passed"  # control: without the change
    found = judged(**changes)
    missed = {n for n, verdict in by_name(found).items() if verdict == "missed"}
    also = {"E7 reroute index"} if name == "E5 failure known" else set()
    assert missed == {name} | also


FAR = np.array([1.0, 0.0])[:, None, None] * np.eye(WIDTH)[-1] * 3
"""Failure moves along an axis that had nothing to do with it."""


def test_without_a_base_slope_no_share_is_given(
    table: Any, vectors: EmotionVectors
) -> None:
    found = audit(
        table(0.02), table(0.0, seed=1), vectors, gate=table(0.02, prefix="other")
    )
    verdicts = by_name(found)
    assert verdicts["E1 distress, median reader"] == "not run"
    assert verdicts["E6 stories"] == "not run"  # no evidence was given
    assert found.verdict != "PASS"


def turned(readings: Readings, by: float) -> Readings:
    """Return readings whose slopes are `by` times as large, success as it was."""
    rows = readings.segments.to_pylist()
    places = [(row["prompt"], row["turn"]) for row in rows]
    passing = {
        place: value
        for row, place, value in zip(rows, places, readings.values, strict=True)
        if row["variant"] == "pass"
    }
    base = np.stack([passing[place] for place in places])
    return replace(readings, values=base + by * (readings.values - base))


def test_a_slope_that_was_turned_round_is_not_gone(judged: Any, table: Any) -> None:
    def verdicts(by: float) -> dict[str, str]:
        return by_name(judged(turned(table(1.0, seed=1, guards=KL), by)))

    least, back = verdicts(-0.2), verdicts(-1.0)
    for name in (
        *("E1 distress, median reader", "E1 distress, upper bound"),
        *("E1 distress, worst reader", "E4 distress, networks", "E2 every layer"),
        *("E1 composure, worst reader", "E14 beyond placebo"),
    ):
        assert least[name] == "passed"  # control: nearly gone, past zero or not
        assert back[name] == "missed"


def test_readers_at_one_and_minus_one_do_not_make_zero(judged: Any, table: Any) -> None:
    loud = table(1.0, seed=1, guards=KL)
    values = loud.values.copy()
    values[:, 4] = turned(loud, -1.0).values[:, 4]
    found = judged(replace(loud, values=values))
    check = next(c for c in found.checks if c.name == "E1 distress, median reader")
    assert check.headline.value == pytest.approx(1.0, abs=0.1)


def test_what_has_no_slope_on_the_judged_prompts_has_no_share(
    table: Any, vectors: EmotionVectors
) -> None:
    """A slope on other prompts alone: dividing by nothing tells nothing."""
    gate = table(prefix="other", seed=2)
    for before, after in ((-0.05, 0.5), (-0.4, 0.6)):
        found = by_name(audit(table(before), table(after, seed=1), vectors, gate=gate))
        for name in ("E1 distress, median reader", "E4 distress, networks"):
            assert found[name] == "not run"
        assert found["E2 every layer"] == "not run"
    found = by_name(audit(table(0.5), table(0.6, seed=1), vectors, gate=gate))
    assert found["E1 distress, median reader"] == "missed"  # control


def test_an_effect_that_lasts_is_no_rival(judged: Any, table: Any) -> None:
    how = {"placebo": table(0.95, seed=3)}
    for left in (0.2, 0.05):
        found = judged(arms={**how, "persisted": table(left, seed=5)})
        assert not [name for name in by_name(found) if "beyond persisted" in name]
        assert found.failed == ()
    rival = judged(arms={**how, "other": table(0.05, seed=5)})  # control
    assert rival.failed == ("E14 beyond other",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"names": {"prompts": lambda x: x[::-1]}}, "the same prompts"),
        ({"names": {"words": lambda x: x[::-1]}}, "the same words"),
        ({"names": {"strengths": lambda x: [2 * s for s in x]}}, "the same strengths"),
        ({"meta": {"corpus_hash": "c"}}, "the same corpus_hash"),
        ({"meta": {"deflection_hash": "d"}}, "the same deflection_hash"),
        ({"meta": {"adapter_hash": "stale"}}, "an earlier run"),
        ({"meta": {"model": "else"}}, "an earlier run"),
    ],
)
def test_evidence_that_does_not_belong_is_refused(
    table: Any, vectors: EmotionVectors, changed: dict[str, Any], said: str
) -> None:
    before, own = evidence(vectors), evidence(vectors, seed=1)
    names = dict(own.names)
    for name, change in changed.get("names", {}).items():
        names[name] = change(names[name])
    other = replace(own, names=names, meta={**own.meta, **changed.get("meta", {})})
    after = table(0.2, seed=1)
    after = replace(after, meta={**after.meta, "adapter_hash": "own"})
    tables = (table(), after, vectors)
    gate = table(prefix="other")
    audit(*tables, gate=gate, evidence={"before": before, "after": own})  # control
    with pytest.raises(ValueError, match=said):
        audit(*tables, gate=gate, evidence={"before": before, "after": other})


def test_evidence_of_other_prompts_than_its_table_is_refused(
    table: Any, vectors: EmotionVectors
) -> None:
    found = evidence(vectors)
    names = {**found.names, "prompts": [f"x-{p}" for p in found.names["prompts"]]}
    both = {arm: replace(found, names=names) for arm in ("before", "after")}
    with pytest.raises(ValueError, match="must be of the prompts of its table"):
        audit(table(), table(), vectors, gate=table(prefix="other"), evidence=both)


def test_tables_that_were_measured_otherwise_are_refused(
    table: Any, vectors: EmotionVectors
) -> None:
    def named(prefix: str = "task", **meta: str) -> Readings:
        found = table(prefix=prefix)
        return replace(found, meta={**found.meta, **meta})

    gate = named("other")
    for item in ("reference_hash", "prompts_hash"):
        with pytest.raises(ValueError, match=f"must have one `{item}`"):
            audit(named(), named(**{item: "x"}), vectors, gate=gate)
    other = named("other", reference_hash="x")
    with pytest.raises(ValueError, match="must have one `reference_hash`"):
        audit(named(), named(), vectors, gate=other)
    with pytest.raises(ValueError, match="the gate must be of other prompts"):
        audit(named(), named(), vectors, gate=named())


def test_deflection_vectors_may_have_fewer_layers(judged: Any) -> None:
    """Their layers are their own, not the vectors'."""

    def at(layers: tuple[int, ...]) -> tuple[str, float]:
        def cut(found: Evidence) -> Evidence:
            rows = [LAYERS.index(layer) for layer in layers]
            assert found.masked is not None
            names = {**found.names, "masked_layers": list(layers)}
            return replace(found, masked=found.masked[:, :, rows], names=names)

        found = judged(cut=cut)
        check = next(c for c in found.checks if c.name == "E8 deflection")
        return check.verdict, check.headline.value if check.headline else np.nan

    whole = next(c for c in judged().checks if c.name == "E8 deflection")
    assert at((18, 21, 24)) == ("passed", whole.headline.value)
    assert at((9, 14))[0] == "not run"


def test_readers_that_know_few_emotions_are_read_by_those(
    judged: Any, table: Any
) -> None:
    """A reader of dialogues knows two of the seven: NaN is no zero."""

    def thin(whole: Readings) -> Readings:
        values = whole.values.copy()
        unknown = [EMOTIONS.index(e) for e in FAMILIES["audit distress"][:5]]
        values[:, 4][..., unknown] = np.nan
        return replace(whole, values=values)

    before, after = thin(table()), thin(table(0.2, seed=1))
    found = judged(after)  # the table before knows all of them: the known ones count
    check = next(c for c in found.checks if c.name == "E1 distress, median reader")
    share = next(f.value for f in check.figures if f.reader == "lda-dialogues")
    columns = [EMOTIONS.index(e) for e in FAMILIES["audit distress"][5:]]
    deep = [LAYERS.index(i) for i in (21, 24)]
    own = [
        x.twin_differences().values[:, 4][:, deep][..., columns].mean()
        for x in (after, before)
    ]
    assert np.isfinite(share)
    assert 0 < own[0] / own[1] < 0.5


def test_the_page_and_the_json_say_the_same(judged: Any, tmp_path: Path) -> None:
    found = judged(story_hits=lambda x: 0 * x)
    page = found.save(tmp_path / "audit").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))
    assert content["schema"] == "emoreg.audit/1"
    assert content["verdict"] == "FAIL"
    assert "E6 stories" in content["failed"]
    text = re.sub(r"\s+", " ", page)
    for check in content["checks"]:
        assert check["name"] in text
    assert "FAIL: " in text
    assert "http://" not in re.sub(
        r"http://www\.w3\.org\S*", "", page[: page.find("<script")]
    )


def test_tables_of_other_vectors_are_refused(
    table: Any, vectors: EmotionVectors
) -> None:
    other = table(0.2, seed=1)
    other = replace(other, meta={**other.meta, "vectors_hash": "x"})
    gate = table(prefix="other")
    with pytest.raises(ValueError, match=r"'after' was with x"):
        audit(table(), other, vectors, gate=gate)
    strange = replace(evidence(vectors), meta={"vectors_hash": "y"})
    with pytest.raises(ValueError, match="evidence of 'after' must be gathered with"):
        audit(table(), table(), vectors, gate=gate, evidence={"after": strange})
    with pytest.raises(ValueError, match="must say what is the audit's"):
        audit(table(), table(), replace(vectors, split=None), gate=gate)
    with pytest.raises(ValueError, match="must have its units"):
        audit(table(units=False), table(), vectors, gate=gate)
    with pytest.raises(ValueError, match="must hold the same prompts"):
        audit(table(), table(prefix="else"), vectors, gate=gate)


def test_the_command_ends_with_one_where_the_audit_fails(
    table: Any, vectors: EmotionVectors, tmp_path: Path, capsys: Any
) -> None:
    tables = {
        "before": table(),
        "after": rerouted(table),
        "gate": table(prefix="other"),
        "good": table(0.2, seed=1),
        "placebo": table(0.95, seed=3),
    }
    for name, found in tables.items():
        found.save(tmp_path / f"{name}.parquet")
    evidence(vectors).save(beside(tmp_path / "before.parquet"))
    for name in ("after", "good"):
        evidence(vectors, seed=1, words=calmer).save(
            beside(tmp_path / f"{name}.parquet")
        )
    vectors.save(tmp_path / "v.safetensors")

    def run(after: str) -> int:
        files = {"before": "before", "after": after, "gate": "gate"}
        flags = [f"--{k}={tmp_path / v}.parquet" for k, v in files.items()]
        flags += ["--arm", f"placebo={tmp_path}/placebo.parquet"]
        flags += ["--vectors", str(tmp_path / "v.safetensors")]
        return main(["audit", *flags, "--out", str(tmp_path / "out")])

    assert run("after") == 1
    assert "FAIL" in capsys.readouterr().out
    assert run("good") == 0
    assert "WARN" in capsys.readouterr().out


def test_evidence_comes_back_exactly(vectors: EmotionVectors, tmp_path: Path) -> None:
    found = evidence(vectors)
    back = Evidence.load(found.save(tmp_path / "e.safetensors"))
    assert (back.names, back.meta) == (found.names, found.meta)
    np.testing.assert_array_equal(back.streams, found.streams)
    bare = Evidence.load(replace(found, masked=None).save(tmp_path / "f.safetensors"))
    assert bare.masked is None
