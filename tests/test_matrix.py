"""The matrix: a run goes on where it stopped, and the table says what came of it."""

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CELLS = """
import os, pytest

@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.cell(trainer="{kind}", mode="packing")
def test_one(kind, record_property):
    record_property("gradient", "2.0e-06 1.0e-07")
    assert kind == "sft" or "WHOLE" in os.environ

@pytest.mark.cell(trainer="kto", mode="packing")
def test_two():
    pytest.skip("no packer")

@pytest.mark.cell(trainer="sft", mode="twice", refused=True)
def test_three():
    pass

def test_no_cell():
    raise AssertionError
"""


@pytest.fixture
def matrix() -> ModuleType:
    """The script as a module."""
    spec = spec_from_file_location("matrix", ROOT / "scripts" / "matrix.py")
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def result(outcome: str, **more: Any) -> dict[str, Any]:
    return {
        "test": f"test_{len(more)}",
        "outcome": outcome,
        "reason": "no GPU",
        "figures": {},
        "cells": [{"trainer": "sft", "mode": "m", "launch": "l", "refused": False}],
        **more,
    }


def test_a_cell_is_as_bad_as_its_worst_test(matrix: ModuleType) -> None:
    good, bad = result("passed"), result("failed")
    figure = result("passed", figures={"gradient": "3.2e-05 1e-6"})
    assert matrix.text_of({"locked": [good, good]}) == "passed"
    assert matrix.text_of({"locked": [good, figure]}) == "passed, 3e-05"
    assert matrix.text_of({"locked": [good, bad]}) == "**failed**"
    assert matrix.text_of({"locked": [result("skipped")]}) == "not run: no GPU"
    two = {"lowest": [bad], "locked": [good]}
    assert matrix.text_of(two) == "lowest: **failed**; locked: passed"
    refusal = [{**good["cells"][0], "refused": True}]
    assert matrix.text_of({"locked": [result("passed", cells=refusal)]}) == "refused"


def test_the_ranges_are_those_of_the_project(matrix: ModuleType) -> None:
    lowest = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    pinned = dict(
        line.split("==")
        for line in lowest.splitlines()
        if "==" in line and not line.startswith("#")
    )
    floors = dict(one.split(",")[0].split(">=") for one in matrix.ranges())
    assert set(pinned) == set(floors)
    for name, floor in floors.items():
        assert pinned[name] == floor or pinned[name] == f"{floor}.0"


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What passed is not run again, what failed is; a change starts anew."""
    for folder in ("scripts", "docs", "tests"):
        (tmp_path / folder).mkdir()
    for name in ("scripts/matrix.py", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    tests = tmp_path / "tests" / "test_cells.py"
    tests.write_text(CELLS)

    def run(*arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "scripts/matrix.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    override = ("run", "-o", "addopts=", "--rootdir", ".")
    assert "1 failed, 2 passed, 1 skipped" in run(*override)
    assert "1 passed, 4 deselected" in run(*override, WHOLE="1")
    assert "5 deselected" in run(*override)
    run("table")
    said = (tmp_path / "docs" / "matrix.md").read_text(encoding="utf-8")
    assert "| packing | passed, 2e-06 | passed, 2e-06 | not run: no packer |" in said
    assert "| twice | refused |  |  |" in said
    tests.write_text(f"{CELLS}\n")
    assert "1 failed, 2 passed, 1 skipped" in run(*override)  # control
