"""The matrix of trainers, modes, launches and versions: run it, and write its table.

    python scripts/matrix.py run --versions locked [-- pytest's arguments]
    python scripts/matrix.py table
    python scripts/matrix.py ranges

Tests that carry the marker `cell` are its cells. What each came to is written as it
ends, so a run that is cut off goes on where it stopped; a change of the code or of a
version starts anew. scripts/test_matrix.sh makes environments and calls this in each.
"""

import argparse
import hashlib
import json
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / ".matrix"
TABLE = ROOT / "docs" / "matrix.md"
PACKAGES = ("trl", "transformers", "peft", "accelerate", "datasets", "torch")
"""What the matrix varies, and the torch that stays as it is."""
ORDER = ("sft", "dpo", "kto", "reward", "grpo", "rloo", "plain", "loop")
NAMES = {
    "sft": "SFT",
    "dpo": "DPO",
    "kto": "KTO",
    "reward": "Reward",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "plain": "`Trainer`",
    "loop": "own loop",
}
HEAD = """\
# The matrix

Written by `bash scripts/test_matrix.sh`, not by hand: what the tests that carry the
marker `cell` came to.

- *passed*: readings, terms and gradients equal those of the plain setting (LoRA,
  float32, one batch, one process), or the trainer's own steps bit for bit, within the
  tolerance that the test states. A figure is the largest difference of the gradient, as
  a share of its largest entry.
- *refused*: `attach` or TRL stops with a sentence that says why.
- *not run*: where this table was written something was missing.

An empty cell has no result.
"""


def fingerprint() -> str:
    """Return a hash of the code, the tests and the versions that a result is of."""
    digest = hashlib.sha256()
    for folder in ("emoreg", "tests", "recipes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(json.dumps(versions()).encode())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of the packages that the matrix varies."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def cells(item: Any) -> Iterator[dict[str, Any]]:
    """Yield what a test is in the matrix, its marker filled with its parameters."""
    call = getattr(item, "callspec", None)
    params = {} if call is None else {k: str(v) for k, v in call.params.items()}
    for marker in item.iter_markers("cell"):
        cell = {"launch": "one process", "refused": False, **marker.kwargs}
        yield {
            key: value.format(**params) if isinstance(value, str) else value
            for key, value in cell.items()
        }


class Recorder:
    """Runs what is not there yet, and writes each result as it comes."""

    def __init__(self, file: Path) -> None:
        self.file, self.stamp = file, fingerprint()
        self.cells: dict[str, list[dict[str, Any]]] = {}
        held = [r for r in read(file) if r["stamp"] == self.stamp]
        self.done = {r["test"] for r in held if r["outcome"] != "failed"}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{json.dumps(r)}\n" for r in held), encoding="utf-8")

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        wanted = []
        for item in items:
            self.cells[item.nodeid] = list(cells(item))
            if self.cells[item.nodeid] and item.nodeid not in self.done:
                wanted.append(item)
        config.hook.pytest_deselected(items=[i for i in items if i not in wanted])
        items[:] = wanted

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed):
            reason = str(report.longrepr[2]) if report.skipped else ""
            if report.failed:
                reason = str(report.longrepr).splitlines()[-1][:200]
            result = {
                "test": report.nodeid,
                "stamp": self.stamp,
                "outcome": report.outcome,
                "reason": reason.removeprefix("Skipped: "),
                "seconds": round(report.duration, 2),
                "figures": dict(report.user_properties),
                "cells": self.cells[report.nodeid],
            }
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(f"{json.dumps(result)}\n")


def read(file: Path) -> list[dict[str, Any]]:
    """Return the results in a file, the latest of each test."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    return list({r["test"]: r for r in map(json.loads, lines)}.values())


def run(name: str, arguments: list[str]) -> int:
    """Run the cells that have no result yet, and return pytest's status."""
    folder = STORE / name
    recorder = Recorder(folder / "results.jsonl")
    (folder / "versions.json").write_text(json.dumps(versions()), encoding="utf-8")
    print(f"{name}: {', '.join(f'{k} {v}' for k, v in versions().items())}")
    print(f"{name}: {len(recorder.done)} results are there already")
    status = pytest.main(["-q", "-p", "no:cacheprovider", *arguments], [recorder])
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)


def text_of(outcomes: dict[str, list[dict[str, Any]]]) -> str:
    """Return what a cell came to, by name of the versions where they differ."""
    said = {name: _verdict(results) for name, results in outcomes.items()}
    if len(set(said.values())) == 1:
        return next(iter(said.values())) + _figure(outcomes)
    return "; ".join(f"{name}: {verdict}" for name, verdict in said.items())


def _verdict(results: list[dict[str, Any]]) -> str:
    """Return the worst of a cell's tests."""
    failed = [r for r in results if r["outcome"] == "failed"]
    skipped = [r for r in results if r["outcome"] == "skipped"]
    if failed:
        return "**failed**"
    if skipped:
        return f"not run: {skipped[0]['reason']}"
    refused = all(
        cell["refused"] or "refused" in r["figures"]
        for r in results
        for cell in r["cells"]
    )
    return "refused" if refused else "passed"


def _figure(outcomes: dict[str, list[dict[str, Any]]]) -> str:
    found = [
        float(r["figures"]["gradient"].split()[0])
        for results in outcomes.values()
        for r in results
        if "gradient" in r["figures"]
    ]
    return f", {max(found):.0e}" if found else ""


def table(names: list[str]) -> str:
    """Return the document, from the results of these versions."""
    grid: dict[str, dict[str, dict[str, dict[str, list]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    head = [
        "| versions | " + " | ".join(PACKAGES) + " | passed | failed | not run | s |"
    ]
    head.append("|" + "---|" * (len(PACKAGES) + 5))
    for name in names:
        results = read(STORE / name / "results.jsonl")
        packages = json.loads((STORE / name / "versions.json").read_text("utf-8"))
        for result in results:
            for cell in result["cells"]:
                place = grid[cell["launch"]][cell["mode"]][cell["trainer"]]
                place[name].append(result)
        counts = Counter(result["outcome"] for result in results)
        tallies = [counts[k] for k in ("passed", "failed", "skipped")]
        tallies.append(round(sum(result["seconds"] for result in results)))
        shown = [*(packages[p] for p in PACKAGES), *map(str, tallies)]
        head.append(f"| {name} | " + " | ".join(shown) + " |")
    parts = [HEAD.strip(), "\n".join(head)]
    for launch, modes in grid.items():
        trainers = [t for t in ORDER if any(t in row for row in modes.values())]
        lines = ["| | " + " | ".join(NAMES[t] for t in trainers) + " |"]
        lines.append("|---|" + "---|" * len(trainers))
        for mode, row in modes.items():
            texts = [text_of(row[t]) if t in row else "" for t in trainers]
            lines.append(f"| {mode} | " + " | ".join(texts) + " |")
        parts.append(f"## {launch[0].upper()}{launch[1:]}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def ranges() -> list[str]:
    """Return what pyproject.toml allows of the packages that are varied."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    allowed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    return [x for x in allowed if x.startswith(PACKAGES[:-1])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run", "table", "ranges"])
    parser.add_argument("--versions", default="locked")
    options, arguments = parser.parse_known_args()
    if options.action == "run":
        return run(options.versions, [a for a in arguments if a != "--"])
    if options.action == "ranges":
        print("\n".join(ranges()))
        return 0
    names = [
        n
        for n in ("lowest", "locked", "newest")
        if (STORE / n / "versions.json").is_file()
    ]
    TABLE.write_text(table(names), encoding="utf-8")
    print(f"Written: {TABLE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
