"""E11: state and wording told apart, in the audit's unit; reported, never a verdict."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_tables import EMOTIONS, FAMILIES, synthetic
from test_audit import ARMS, HELD, by_name
from test_audit import judged as judged  # a fixture
from test_audit import table as table  # likewise
from test_audit import vectors as vectors  # likewise
from test_cross import sampled

from emoreg.cli import main
from emoreg.comparison.audit.audit import Audit, audit
from emoreg.comparison.audit.case import Case
from emoreg.comparison.audit.cross import cross_check
from emoreg.comparison.readings import Readings
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors

E11 = "E11 cross-reading"
OWN = {"text": "on-policy", "generation": {"tokens": 8}, "samples": 1}


@pytest.fixture
def three(vectors: EmotionVectors) -> Callable[..., dict[str, Readings]]:
    """A factory of tables of own text; slopes are shares of the base model's."""

    def made(cross: float, after: float, **changes: Any) -> dict[str, Readings]:
        spoken = {**ARMS, "positions": ("assistant",), **changes}
        tables = [
            synthetic(scale=scale, seed=seed, **spoken)
            for seed, scale in enumerate((1.0, cross, after), start=10)
        ]
        more: list[dict[str, Any]] = [
            {**OWN, "text_hash": "a"},
            {"prompts_hash": "b"},
            {**OWN, "text_hash": "b"},
        ]
        return {
            name: sampled(table, vectors_hash=vectors.hash, **meta)
            for name, table, meta in zip(
                ("before", "cross", "after"), tables, more, strict=True
            )
        }

    return made


@pytest.fixture
def case(table: Any, vectors: EmotionVectors) -> Case:
    assert vectors.split is not None
    return Case(
        tables={"before": table(), "after": table(0.2, seed=1)},
        evidence={},
        gate=table(prefix="other", seed=2),
        split=vectors.split,
        roles=Corpus.packaged().roles(),
        n_resamples=500,
    )


@pytest.mark.parametrize(
    ("cross", "after", "verdict", "said"),
    [
        (1.0, 0.3, "passed", "At least half"),
        (0.3, 0.3, "missed", "claim none"),
        (1.0, 1.0, "not run", ""),
    ],
)
def test_state_passes_wording_misses_and_no_change_has_no_share(
    case: Case, three: Any, cross: float, after: float, verdict: str, said: str
) -> None:
    found = cross_check(case, three(cross, after))
    assert found.verdict == verdict
    assert said in "".join(found.notes)
    assert found.figures


def test_figures_are_plain_means_over_the_audits_readers(
    case: Case, three: Any
) -> None:
    tables = three(0.8, 0.3)
    found = {f.name: f.value for f in cross_check(case, tables).figures}
    readers = [ARMS["readers"].index(reader) for reader in HELD]
    columns = [EMOTIONS.index(e) for e in FAMILIES["audit distress"]]
    deep = [synthetic().layers.index(i) for i in (21, 24)]
    before, cross, after = (
        t.twin_differences("assistant")
        .values[:, readers][:, :, deep][..., columns]
        .mean()  # sigma_ref is 1
        for t in tables.values()
    )
    parts = {
        "change of audit distress on own text": after - before,
        "text part, audit distress": cross - before,
        "state part, audit distress": after - cross,
        "share of state, audit distress": (after - cross) / (after - before),
    }
    for name, value in parts.items():
        assert found[name] == pytest.approx(value)


def test_prompts_without_a_word_are_left_out(case: Case, three: Any) -> None:
    tables = three(1.0, 0.3)
    after = tables["after"]
    values = after.values.copy()
    rows = np.array(after.segments["prompt"].to_pylist()) == "task-00"
    values[rows] = np.nan
    found = cross_check(case, {**tables, "after": replace(after, values=values)})
    assert {figure.count for figure in found.figures} == {31}
    assert found.verdict == "passed"


def test_a_miss_is_said_and_changes_no_verdict(
    judged: Callable[..., Audit], vectors: EmotionVectors, table: Any, three: Any
) -> None:
    plain = judged()
    own = three(0.3, 0.3)
    given = (table(), table(0.2, seed=1), vectors)
    found = audit(*given, gate=table(prefix="other", seed=2), cross=own)
    assert by_name(found)[E11] == "missed"
    assert found.reported == (E11,)
    assert E11 not in (*found.failed, *found.warned, *found.open)
    assert f"no claim that the state changed: {E11}" in found.headline
    assert found.to_dict()["reported"] == [E11]
    assert E11 in plain.open  # without text of their own it is not run
    assert plain.reported == ()


def test_own_text_is_no_table_of_the_audit(
    vectors: EmotionVectors, table: Any, three: Any
) -> None:
    own = three(1.0, 0.3)
    with pytest.raises(ValueError, match="must be of given text, 'before' is on-pol"):
        audit(own["before"], own["after"], vectors, gate=table(prefix="other"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vectors_hash": "x"}, "must be read by the model of `before`"),
        ({"prompts_hash": "x"}, "whose hash is b"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(
    case: Case, three: Any, change: dict[str, str], expected: str
) -> None:
    tables = three(1.0, 0.3)
    meta = {**tables["cross"].meta, **change}
    tables["cross"] = replace(tables["cross"], meta=meta)
    with pytest.raises(ValueError, match=expected):
        cross_check(case, tables)


def test_own_text_of_another_model_is_refused(case: Case, three: Any) -> None:
    tables = {
        name: replace(t, meta={**t.meta, "model": "other"})
        for name, t in three(1.0, 0.3).items()
    }
    with pytest.raises(ValueError, match="`model` must be the same"):
        cross_check(case, tables)


@pytest.mark.slow
def test_the_command_takes_three_tables(
    tmp_path: Path, vectors: EmotionVectors, table: Any, three: Any
) -> None:
    vectors.save(tmp_path / "v.safetensors")
    paths = {
        **{"b": table(), "a": table(0.2, seed=1), "g": table(prefix="other", seed=2)},
        **three(1.0, 0.3),
    }
    for name, one in paths.items():
        one.save(tmp_path / f"{name}.parquet")
    b, a, g, *own = (str(tmp_path / f"{name}.parquet") for name in paths)
    arguments = ["audit", "--before", b, "--after", a, "--gate", g, "--cross", *own]
    arguments += ["--vectors", str(tmp_path / "v.safetensors")]
    assert main([*arguments, "--out", str(tmp_path / "audit")]) in (0, 1)
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "At least half of the change on the models" in page
