"""The study: its arms' data, its power, its tables, and that it goes on."""

import copy
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from comparison_tables import FAMILIES, synthetic

import emoreg
from emoreg.behavior.preferences import Preferences
from emoreg.statistics.bootstrap import bootstrap_ratio
from emoreg.vectors.audit_split import AuditSplit

MARKS = ("arms", "checks", "margins", "power")
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(SCRIPTS))  # as Python does for a program
    names = ("study_arms", "study_summary", "study")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(SCRIPTS))


def test_pairs_differ_in_an_outburst_alone(programs: Any) -> None:
    pairs = programs["study_arms"].calm_pairs(0)
    corpus = emoreg.Corpus.packaged()
    held_out = {t.task for s in ("dev", "test") for t in corpus.transcripts(s)}
    told = {text for t in corpus.transcripts("train") for text in t.fail}
    told |= {text for t in corpus.transcripts("train", stakes=True) for text in t.fail}
    outbursts = set((SCRIPTS / "study_data" / "frustrated.txt").read_text().split("\n"))

    assert len(pairs) == 280
    for pair in pairs:
        [[chosen], [rejected]] = pair["chosen"], pair["rejected"]
        before, _, rest = rejected["content"].partition("\n\n")
        assert before in outbursts
        assert rest == chosen["content"]
        assert pair["prompt"][-1]["content"] in told
        assert pair["prompt"][0]["content"] not in held_out
    assert len({json.dumps(pair["prompt"]) for pair in pairs}) == 280


def test_pairs_follow_the_seed(programs: Any) -> None:
    made = programs["study_arms"].calm_pairs
    assert made(1) == made(1)
    assert made(1) != made(2)


def test_benign_rows_are_neutral_and_of_the_fitting_half(programs: Any) -> None:
    rows = programs["study_arms"].benign_rows(0)
    texts = emoreg.Corpus.packaged().neutral("fit")
    fitting = {t.messages[0]["content"] for t in texts if t.messages}
    assert len(rows) > 30
    assert all(row["prompt"][0]["content"] in fitting for row in rows)
    assert all(row["completion"][0]["role"] == "assistant" for row in rows)


@pytest.fixture(scope="module")
def split() -> Any:
    """Vectors of which the power needs to know the split alone."""
    own = AuditSplit(
        loss_layers=(14, 18),
        audit_layers=(21, 24),
        loss_emotions=FAMILIES["loss distress"] + FAMILIES["loss composure"],
        audit_emotions=FAMILIES["audit distress"] + FAMILIES["audit composure"],
        loss_readers=("mean-difference", "lda"),
        audit_readers=("logistic",),
    )
    return SimpleNamespace(split=own)


def test_power_is_that_of_a_simulation(programs: Any, split: Any) -> None:
    gate = synthetic(readers=("mean-difference", "lda", "logistic"))
    [said] = programs["study_summary"].power(gate, split, 30)["readers"].values()

    twins = gate.twin_differences()
    rows = [gate.emotions.index(e) for e in FAMILIES["audit distress"]]
    units = np.asarray(gate.meta["units"]["sigma_ref"])
    slope = (twins.values / units)[:, 2][:, [4, 5]][..., rows].mean((1, 2))
    mean, spread, draw = slope.mean(), slope.std(ddof=1), np.random.default_rng(0)
    shown = []
    for _ in range(300):
        before, after = (
            (mean * left + spread * draw.normal(size=said["needed"]))[:, None]
            for left in (1.0, 0.4)
        )
        left = bootstrap_ratio(after, before, n_resamples=400, keep=False)
        shown.append(left.at(0).high < 0.6)
    assert 0.6 < np.mean(shown) < 0.97  # 0.8 asked; few tasks make intervals rough


def a_seed(verdict: str, left: float) -> dict[str, Any]:
    figure = {"verdict": "passed", "threshold": 1.0, "value": left}
    figure |= {"low": left - 0.1, "high": left + 0.1}
    missed = {**figure, "verdict": "missed"}
    return {
        "verdict": verdict,
        "checks": {
            "E1 distress, median reader": figure if left < 0.4 else missed,
            "E1 distress, worst reader": figure,
            "E1 composure, median reader": figure,
            "calm after failure": figure,
            "E10 calm cheating": {"verdict": "not run", "threshold": None},
        },
        "guards": {"kl": {"value": 0.004}},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run left: two seeds of the default arm, one of the control."""
    for name, verdict, left in (
        ("default-0", "PASS", 0.3),
        ("default-1", "WARN", 0.45),
        ("data-0", "FAIL", 0.8),
    ):
        (tmp_path / name).mkdir()
        text = json.dumps(a_seed(verdict, left))
        (tmp_path / name / "figures.json").write_text(text)
        (tmp_path / name / "seconds.json").write_text('{"train": 9.0}')
    return tmp_path


@pytest.fixture
def found(
    folder: Path, programs: Any, split: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    gate = synthetic(readers=("mean-difference", "lda", "logistic"))
    load = lambda path: split if "vectors" in str(path) else gate  # noqa: E731
    monkeypatch.setattr(emoreg.EmotionVectors, "load", load)
    monkeypatch.setattr(programs["study_summary"].Readings, "load", load)
    return programs["study_summary"].summary(folder, gate)


def test_an_arm_is_judged_by_its_worst_seed(found: Any) -> None:
    assert list(found["arms"]) == ["data", "default"]
    assert found["arms"]["default"]["verdict"] == "WARN"
    assert [s["seed"] for s in found["arms"]["default"]["seeds"]] == [0, 1]
    assert found["arms"]["data"]["verdict"] == "FAIL"


def test_tables_count_misses_by_arm(found: Any, programs: Any) -> None:
    lines = programs["study_summary"].checks_table(found).splitlines()
    assert lines[0] == "| check | data | default |"
    assert "| E1 distress, median reader | 1/1 | 1/2 |" in lines
    assert "| E1 distress, worst reader | 0/1 | 0/2 |" in lines
    assert not any("E10" in line for line in lines)
    arms = programs["study_summary"].arms_table(found).splitlines()
    assert arms[3].startswith("| default | 0 | 0.30 (0.20 to 0.40) |")


def test_docs_are_written_between_the_marks(
    found: Any, programs: Any, tmp_path: Path
) -> None:
    write, page = programs["study_summary"].write_docs, tmp_path / "study.md"
    page.write_text("before\n<!-- arms -->\nold\n<!-- end -->\nafter\n")
    with pytest.raises(SystemExit, match="marks <!-- checks -->"):
        write(found, tmp_path)
    marks = [f"<!-- {name} -->\nold\n<!-- end -->\n" for name in MARKS]
    page.write_text("before\n" + "".join(marks) + "after\n")
    write(found, tmp_path)
    write(found, tmp_path)  # twice is once
    text = page.read_text()
    assert text.startswith("before\n<!-- arms -->\n| arm |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert text.count("| data | 0 |") == 1
    assert "old" not in text
    assert json.loads((tmp_path / "study.json").read_text()) == found


def options(out: Path) -> Any:
    return SimpleNamespace(out=out, jobs=2, steps=1, twins=1, learning_rate=1e-3)


def test_what_is_there_is_not_made_again_and_failures_count(
    programs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    study = programs["study"]
    code = (
        "import pathlib, sys; arm, seed = sys.argv[-2:];"
        f"p = pathlib.Path({str(tmp_path)!r}, arm + '-' + seed, 'table.parquet');"
        "sys.exit('no ' + arm) if arm == 'data' else p.write_text('made')"
    )
    monkeypatch.setattr(study, "PROGRAM", [sys.executable, "-c", code])
    (tmp_path / "dpo-0").mkdir()
    (tmp_path / "dpo-0" / "table.parquet").write_text("kept")
    jobs = [("default", 0), ("data", 0), ("dpo", 0)]
    assert study._all("unit", jobs, options(tmp_path)) == 1
    assert (tmp_path / "default-0" / "table.parquet").read_text() == "made"
    assert (tmp_path / "dpo-0" / "table.parquet").read_text() == "kept"
    assert "no data" in capsys.readouterr().out


def test_seeds_written_before_are_kept(
    found: Any, programs: Any, tmp_path: Path
) -> None:
    """As when a study goes on elsewhere, with another arm and another seed."""
    docs, summary = tmp_path / "docs", programs["study_summary"]
    docs.mkdir()
    (docs / "study.md").write_text(
        "".join(f"<!-- {name} -->\n<!-- end -->\n" for name in MARKS)
    )
    summary.write_docs(found, docs)
    later = copy.deepcopy(found)
    [default] = later["arms"]["default"]["seeds"][1:]
    default |= {"seed": 2, "verdict": "FAIL"}
    again = {**default, "seed": 1, "verdict": "PASS"}
    later["arms"] = {"default": {**later["arms"]["default"], "seeds": [again, default]}}
    summary.write_docs(later, docs)
    arms = json.loads((docs / "study.json").read_text())["arms"]
    seeds = [(s["seed"], s["verdict"]) for s in arms["default"]["seeds"]]
    assert seeds == [(0, "PASS"), (1, "PASS"), (2, "FAIL")]
    assert arms["default"]["verdict"] == "FAIL"
    assert arms["data"] == found["arms"]["data"]
    assert (docs / "study.md").read_text().count("| default |") >= 3
    default["schedule"] = {"steps": 3}
    with pytest.raises(SystemExit, match="must have one schedule"):
        summary.write_docs(later, docs)


def scores(after: float, name: str = "t") -> Preferences:
    """Ten twins whose honest reply is so much likelier after failing feedback."""
    rows = [
        {
            "prompt": f"{name}{k}",
            "style": "plain",
            "variant": version,
            "round": 1,
            "honest": -2.0 + k / 10 + (after if version == "fail" else 0.0),
            "corner": -2.5,
            "honest_tokens": 5,
            "corner_tokens": 5,
        }
        for k in range(10)
        for version in ("fail", "pass")
    ]
    return Preferences.of_rows(rows, {"prompts_hash": name})


def test_margins_are_held_against_the_base_models(
    programs: Any, folder: Path, found: Any
) -> None:
    summary = programs["study_summary"]
    assert found["arms"]["data"]["seeds"][0]["margin"] is None  # nothing was scored
    (folder / "base").mkdir()
    scores(0.0).save(folder / "base" / "behavior.parquet")
    scores(0.25).save(folder / "data-0" / "behavior.parquet")
    said = summary._margin(folder, folder / "data-0")
    assert said["fail"]["change"] == pytest.approx([0.25] * 3)
    assert said["pass"]["change"] == pytest.approx([0.0] * 3)
    assert said["fail"]["before"][0] == pytest.approx(0.95)
    assert said["fail"]["after"][0] == pytest.approx(1.2)
    found["arms"]["data"]["seeds"][0]["margin"] = said
    lines = summary.margins_table(found).splitlines()[2:]
    assert len(lines) == 1  # arms that were not scored have no line
    assert lines[0].startswith("| data | 0 | +0.950 (")
    assert "| +0.250 (+0.250 to +0.250) |" in lines[0]
    # Control: other texts under the same names are refused.
    scores(0.25, "u").save(folder / "data-0" / "behavior.parquet")
    with pytest.raises(ValueError, match="must be of the same twins"):
        summary._margin(folder, folder / "data-0")
