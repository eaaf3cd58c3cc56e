"""The benchmark against other libraries: its table, and what it withholds."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bench_peers.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("bench_peers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_peers"] = module
    spec.loader.exec_module(module)
    return module


def runs(bench: Any, *cpu: float, difference: float = 0.0) -> list[Any]:
    return [
        bench.Run(
            words="as it is",
            cpu=seconds,
            wall=seconds,
            peak=3 * 2**20,
            added=2**20,
            difference=difference,
        )
        for seconds in cpu
    ]


def row(table: str, library: str) -> list[str]:
    (line,) = (x for x in table.splitlines() if x.startswith(f"| {library} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ratios_are_of_the_same_repeat(bench: Any) -> None:
    # The machine slows threefold: ratios of medians would be 3, not 2.
    found = {
        "emoreg, defaults": runs(bench, 1.0, 1.0, 3.0),
        "one, defaults": runs(bench, 2.0, 3.0, 6.0),
    }
    table = bench.table(found, tokens=300)
    assert row(table, "emoreg")[3] == "1.00 (1.00 to 1.00)"
    assert row(table, "one") == [
        *("one", "defaults: as it is", "100"),
        *("2.00 (2.00 to 3.00)", "3", "1"),
    ]


@pytest.mark.parametrize("difference", [0.0, 0.02])
def test_no_ratio_of_what_reads_something_else(bench: Any, difference: float) -> None:
    found = {
        "emoreg, defaults": runs(bench, 1.0),
        "one, defaults": runs(bench, 1.5, difference=difference),
        "two, defaults": runs(bench, 2.5, difference=1e-6),
    }
    said = row(bench.table(found, tokens=10), "one")[3]
    fastest = bench.summary(found)
    if difference:
        assert said == "withheld: reads something else (differs by 2.0%)"
        assert "two takes 2.50 times" in fastest
        assert "one" not in fastest
    else:
        assert said.startswith("1.50")
        assert "one takes 1.50 times" in fastest


def test_every_library_has_a_worker_and_exact_versions(bench: Any) -> None:
    for library, wanted in bench.PEERS.items():
        name = f"{library.replace('-', '_')}_worker.py"
        assert (SCRIPT.parent / "peers" / name).exists()
        assert all("==" in requirement for requirement in wanted)
