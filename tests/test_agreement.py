"""How far the graders agree with a second reader who saw no rules."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from emoreg.behavior.impossible.graders import CONDUCTS
from emoreg.behavior.impossible.tasks import load_tasks
from emoreg.statistics.kappa import kappa

SCRIPT = Path(__file__).parent.parent / "scripts" / "grader_agreement.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("grader_agreement", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_labels_are_conducts_of_packaged_tasks(script: Any) -> None:
    names = {task.name for task in load_tasks()}
    rows = script.labelled()
    assert {row["label"] for row in rows} == {*CONDUCTS}
    assert {row["task"] for row in rows} <= names
    assert len(rows) >= 60


@pytest.mark.slow
def test_rules_and_reader_agree(script: Any) -> None:
    rows = script.labelled()
    grades = script.graded(rows, allow_weak=True)
    pairs = [(g, row["label"]) for g, row in zip(grades, rows, strict=True)]
    found = kappa(pairs)
    assert found.estimate >= 0.8
    assert found.low >= 0.7
    # The control: labels of other episodes agree by chance.
    shifted = [row["label"] for row in (*rows[7:], *rows[:7])]
    assert kappa(list(zip(grades, shifted, strict=True))).estimate < 0.3


def test_kappa_is_the_textbooks() -> None:
    # 20 both yes, 15 both no, 5 and 10 apart: (0.7 - 0.5) / (1 - 0.5).
    pairs = [("y", "y")] * 20 + [("n", "n")] * 15 + [("y", "n")] * 5 + [("n", "y")] * 10
    found = kappa(pairs)
    assert found.estimate == pytest.approx(0.4)
    assert found.low < 0.4 < found.high
