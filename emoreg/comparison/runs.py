"""Many runs: what the reports below a folder found, read from their files alone.

A report is a `report.json` (`emoreg compare`) or an `audit.json` (`emoreg audit`). Its
run is named by its folder: `data-0/audit/audit.json` is arm `data`, seed 0, and what
ends in no number is a run without a seed. Nothing is measured or computed again.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, final

from emoreg.comparison import export
from emoreg.comparison.audit import audit

Kind = Literal["audit", "report"]
FILES = ("report.json", "audit.json")
PAGE = "runs.html"
PLACES = ("audit", "report")
"""Folders of a run that hold a report of it and do not name it."""
STATUSES = {
    "audit": ("passed", "missed", "not evidence", "not run", "no threshold"),
    "report": ("passed", "missed", "withheld"),
}
KEY_CHECKS = {
    "E1 distress, median reader": "share of distress left",
    "E1 composure, median reader": "share of composure left",
    "KL": "KL, nat per token",
}
"""Checks of an audit whose headline figure stands for it, and what it is."""
KEY_FIGURES = {
    ("before", "slope"): "slope before, σ_ref",
    ("control", "slope"): "slope of the control, σ_ref",
    ("after", "slope"): "slope after, σ_ref",
    ("after", "ratio"): "share left",
}
"""Figures of a comparison that stand for it, and what they are."""
_SCHEMAS = (export.SCHEMA, audit.SCHEMA)
KEY_TARGETS = ("audit distress", "desperate")
"""Of the first of these that a comparison has."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """A figure with its interval, as far as the file has them."""

    value: float | None
    low: float | None = None
    high: float | None = None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one check came to."""

    status: str
    """A word of `STATUSES`, or `warning`: missed where that does not fail."""
    amount: Amount
    anchor: str
    """Where the report's page speaks of it."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One report file of one run."""

    arm: str
    seed: int | None
    kind: Kind
    path: PurePosixPath
    """Of the file, below the folder."""
    page: PurePosixPath | None
    """Of its page; None where it stands without one."""
    verdict: str
    """One word of an audit; empty of a comparison, whose verdict is a sentence."""
    headline: str
    checks: Mapping[str, Outcome]
    figures: Mapping[str, Amount]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """All reports below a folder, by arm and seed."""

    folder: Path
    runs: tuple[Run, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Files that were not read, and why."""

    def of(self, kind: Kind) -> dict[str, tuple[Run, ...]]:
        """Return the reports of a kind by arm, seeds in order."""
        found: dict[str, tuple[Run, ...]] = {}
        for run in self.runs:
            if run.kind == kind:
                found[run.arm] = (*found.get(run.arm, ()), run)
        return found

    def save(self, folder: str | Path) -> Path:
        """Write `runs.html` into a folder, which links the reports; return its path.

        Raises:
            ValueError: If the folder cannot be written.
        """
        from emoreg.comparison.runs_page import render_runs
        from emoreg.vectors.whole_files import write_whole

        folder = Path(folder)
        export.require_writable(folder)
        start = os.path.relpath(self.folder.resolve(), folder.resolve())
        page = render_runs(self, start=PurePosixPath(Path(start).as_posix()))
        return write_whole(folder / PAGE, page.encode())


def read_runs(folder: str | Path) -> Runs:
    """Read every report below a folder.

    Files that are cut off, or of other programs, are skipped and named.

    Raises:
        ValueError: If the folder is none, or nothing below it is called a report.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"`folder` must be a folder with reports below it, found {folder}. Pass "
            "the one in which runs have their folders"
        )
    runs, skipped = [], {}
    for file in _files(folder):
        path = PurePosixPath(file.relative_to(folder).as_posix())
        try:
            runs.append(_read(file, path, folder))
        except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
            skipped[shown(path)] = _why(error)
    if not runs and not skipped:
        raise ValueError(
            f"there must be a {' or '.join(FILES)} below `folder`, found none in "
            f"{folder}. Write one with `emoreg compare` or `emoreg audit`"
        )
    runs.sort(key=lambda r: (r.arm, -1 if r.seed is None else r.seed, str(r.path)))
    return Runs(folder=folder, runs=tuple(runs), skipped=skipped)


def shown(path: PurePosixPath | str) -> str:
    """Return a path as text that can be written, whatever bytes its name has."""
    return os.fsencode(str(path)).decode("utf-8", "replace")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the report files; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in FILES if name in names)


def _read(file: Path, path: PurePosixPath, folder: Path) -> Run:
    document = json.loads(file.read_text(encoding="utf-8"))
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == audit.SCHEMA:
        kind, parts = "audit", _of_audit(document)
    elif schema == export.SCHEMA:
        kind, parts = "report", _of_report(document)
    else:
        raise _Foreign
    page = path.with_name("index.html")
    arm, seed = _name(path, folder)
    return Run(
        arm=arm,
        seed=seed,
        kind=kind,
        path=path,
        page=page if (folder / page).is_file() else None,
        **parts,
    )


class _Foreign(ValueError):
    """A file of another program."""


def _why(error: Exception) -> str:
    """Return why a file was not read, in words that quote nothing of it."""
    if isinstance(error, _Foreign):
        return f"another program's: its schema is neither of {', '.join(_SCHEMAS)}"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return "not whole: no JSON text"
    return "not as its schema says: entries are missing or of other kinds"


def _name(path: PurePosixPath, folder: Path) -> tuple[str, int | None]:
    """Return arm and seed of the run whose report lies at a path."""
    parts = list(path.parent.parts)
    if parts and parts[-1] in PLACES:
        parts.pop()
    name = shown("/".join(parts) or folder.resolve().name or "run")
    found = re.fullmatch(r"(.+)-([0-9]{1,9})", name, re.DOTALL)
    return (found.group(1), int(found.group(2))) if found else (name, None)


def _of_audit(document: Mapping[str, Any]) -> dict[str, Any]:
    # The last: a miss that says what may be claimed and changes no verdict.
    warned = [*map(_text, document["warned"]), *map(_text, document["reported"])]
    checks: dict[str, Outcome] = {}
    for number, check in enumerate(document["checks"]):
        status = _known(check["verdict"], "audit")
        name, found = _text(check["name"]), check["headline"] or {}
        checks[name] = Outcome(
            status="warning" if status == "missed" and name in warned else status,
            amount=_amount(found.get("value"), found.get("low"), found.get("high")),
            anchor=f"check-{number}",
        )
    keys = {said: name for name, said in KEY_CHECKS.items() if name in checks}
    return {
        "verdict": _text(document["verdict"]),
        "headline": _text(document["headline"]),
        "checks": checks,
        "figures": {said: checks[name].amount for said, name in keys.items()},
    }


def _of_report(document: Mapping[str, Any]) -> dict[str, Any]:
    checks = {
        _text(check["name"]): Outcome(
            status=_known(check["status"], "report"),
            amount=_amount(check["value"], check["low"], check["high"]),
            anchor="h-checks",
        )
        for check in document["checks"]
    }
    return {
        "verdict": "",
        "headline": _text(document["verdict"]["headline"]),
        "checks": checks,
        "figures": _key_figures(document["primary"]),
    }


def _key_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Amount]:
    """Return the key target's figures by the audit reader at the audit layers."""
    by_arm = {(row["target"], row["arm"]): row for row in rows}
    target = next((t for t in KEY_TARGETS if (t, "after") in by_arm), None)
    found = {}
    for (arm, name), said in KEY_FIGURES.items():
        row = by_arm.get((target, arm))
        if row is not None:
            parts = (row[name], row[f"{name}_low"], row[f"{name}_high"])
            found[f"{target}: {said}"] = _amount(*parts)
    return found


def _amount(value: Any, low: Any, high: Any) -> Amount:
    return Amount(value=_number(value), low=_number(low), high=_number(high))


def _number(value: Any) -> float | None:
    """Return a finite number, None for none.

    Raises:
        TypeError: If it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return float(value) if math.isfinite(value) else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _known(status: Any, kind: Kind) -> str:
    if status not in STATUSES[kind]:
        raise ValueError
    return status
