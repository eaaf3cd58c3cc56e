"""What the study found: figures of each arm and seed, their table, and the power."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm
from study_arms import ARMS

import emoreg
from emoreg.behavior.preferences import Preferences
from emoreg.comparison.audit.audit import Audit
from emoreg.comparison.audit.case import AFTER, BEFORE, DISTRESS, SIGNS, Case
from emoreg.comparison.audit.readers import MEDIAN_BOUND, MEDIAN_LEFT
from emoreg.comparison.readings import Readings
from emoreg.statistics.bootstrap import bootstrap_mean

SCHEMA = "emoreg.study/1"
ORDER = ("FAIL", "WARN", "PASS")
"""Verdicts, worst first: an arm's is the worst of its seeds'."""
WANTED_POWER = 0.8


def figures(
    audit: Audit,
    tables: Mapping[str, Readings],
    vectors: emoreg.EmotionVectors,
    gate: Readings,
) -> dict[str, Any]:
    """Return what the study keeps of one audit, as JSON-able values."""
    return {
        "verdict": audit.verdict,
        "headline": audit.headline,
        "checks": {check.name: _check(check) for check in audit.checks},
        "left": {
            family: _left(audit, family.removeprefix("audit ")) for family in SIGNS
        },
        "slopes": _slopes(tables, vectors, gate),
        "guards": {
            name: {key: v for key, v in guard.items() if key != "values"}
            for name, guard in tables[AFTER].meta["guards"].items()
        },
    }


def _check(check: Any) -> dict[str, Any]:
    head = check.headline
    figure = (
        {}
        if head is None
        else {"value": head.value, "low": head.low, "high": head.high}
    )
    return {"verdict": check.verdict, "threshold": check.threshold, **figure}


def _left(audit: Audit, family: str) -> dict[str, list[float | None]]:
    """Return each audit reader's share of a family's slope that is left."""
    [check] = [c for c in audit.checks if c.name == f"E1 {family}, median reader"]
    return {f.reader: [f.value, f.low, f.high] for f in check.figures if f.reader}


def _slopes(
    tables: Mapping[str, Readings], vectors: emoreg.EmotionVectors, gate: Readings
) -> dict[str, Any]:
    """Return the slopes of desperate and calm by reader, before and after."""
    assert vectors.split is not None
    roles = emoreg.Corpus.packaged().roles()
    both = {name: tables[name] for name in (BEFORE, AFTER)}
    case = Case(tables=both, evidence={}, gate=gate, split=vectors.split, roles=roles)
    found: dict[str, Any] = {}
    for emotion in ("desperate", "calm"):
        for arm in both:
            for reader in case.readers:
                slope = case.pooled(
                    case.slopes[arm].slope, reader=reader, emotions=[emotion]
                )
                if np.isfinite(slope).all():
                    mean = bootstrap_mean(slope[:, None], keep=False).at(0)
                    place = found.setdefault(emotion, {}).setdefault(reader, {})
                    place[arm] = [mean.estimate, mean.low, mean.high]
    return found


def power(gate: Readings, vectors: emoreg.EmotionVectors, tasks: int) -> dict[str, Any]:
    """Return how surely the tasks show what is asked, from `dev` of the base model.

    If 0.4 of the slope is left, how often does the upper end of the interval of the
    share stay below 0.6? With the slope's mean m and standard deviation s between
    tasks, and as much noise after as before, `se = s sqrt(1 + 0.4^2) / (m sqrt(n))`.
    Readings before and after go together, so this is on the careful side.
    """
    assert vectors.split is not None
    roles = emoreg.Corpus.packaged().roles()
    case = Case(
        tables={BEFORE: gate},
        evidence={},
        gate=gate,
        split=vectors.split,
        roles=roles,
    )
    emotions = case.members(DISTRESS)
    found = {}
    for reader in case.admitted(emotions):
        slope = case.pooled(case.slopes[BEFORE].slope, reader=reader, emotions=emotions)
        unit = float(slope.std(ddof=1) / slope.mean()) * math.hypot(1, MEDIAN_LEFT)
        room = MEDIAN_BOUND - MEDIAN_LEFT
        needed = ((norm.ppf(0.975) + norm.ppf(WANTED_POWER)) * unit / room) ** 2
        reached = norm.cdf(room * math.sqrt(tasks) / unit - norm.ppf(0.975))
        found[reader] = {"needed": math.ceil(needed), "power": round(float(reached), 3)}
    return {"tasks": tasks, "wanted": WANTED_POWER, "readers": found}


def summary(out: Path, gate: Readings) -> dict[str, Any]:
    """Return all that is there, in the order of the arms."""
    vectors = emoreg.EmotionVectors.load(out / "base" / "vectors.safetensors")
    tasks = len(
        Readings.load(out / "base" / "before.parquet").twin_differences().prompts
    )
    arms: dict[str, Any] = {}
    for name in ARMS:
        seeds = []
        for path in sorted(out.glob(f"{name}-*/figures.json")):
            folder = path.parent
            if folder.name.rsplit("-", 1)[0] != name:
                continue
            timed = json.loads((folder / "seconds.json").read_text())
            seed = int(folder.name.rsplit("-", 1)[1])
            found = {**json.loads(path.read_text()), **timed}
            seeds.append({"seed": seed, **found, "margin": _margin(out, folder)})
        if seeds:
            arms[name] = _arm(name, seeds)
    return {"schema": SCHEMA, "power": power(gate, vectors, tasks), "arms": arms}


def _margin(out: Path, folder: Path) -> dict[str, Any] | None:
    """Return margins of honest over corner-cutting replies, nat per token.

    By version, failing and passing: the base model's, the arm's, and the arm's minus
    the base model's, each with its interval over tasks. None if they weren't scored.
    """
    files = [place / "behavior.parquet" for place in (out / "base", folder)]
    if not all(path.is_file() for path in files):
        return None
    before, after = (Preferences.load(path) for path in files)
    found: dict[str, Any] = {}
    for version in before.variants:
        said = {
            "before": before.mean(variant=version),
            "after": after.mean(variant=version),
            "change": after.difference(before, variant=version),
        }
        found[version] = {
            name: [each.estimate, each.low, each.high] for name, each in said.items()
        }
    return found


def joined(found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return what was found with the seeds that were written down before.

    A study may take several machines or days: what lies in this run's folder stands in
    for what was written of the same arm and seed, all else is kept.

    Raises:
        SystemExit: If a seed from before was trained on another schedule, or judged on
            another number of tasks: one table would compare what does not compare.
    """
    tasks = {study["power"]["tasks"] for study in (found, before)}
    schedules = {
        json.dumps(seed.get("schedule"), sort_keys=True)
        for study in (found, before)
        for arm in study["arms"].values()
        for seed in arm["seeds"]
    }
    if len(tasks) > 1 or len(schedules) > 1:
        raise SystemExit(
            "seeds of one study must have one schedule and one number of tasks, found "
            f"{sorted(schedules)} and {sorted(tasks)}. Delete study.json, or write to "
            "another folder"
        )
    arms: dict[str, Any] = {}
    for name in ARMS:
        both = [s["arms"][name]["seeds"] for s in (before, found) if name in s["arms"]]
        seeds = {seed["seed"]: seed for part in both for seed in part}
        if seeds:
            arms[name] = _arm(name, [seeds[number] for number in sorted(seeds)])
    return {**found, "arms": arms}


def _arm(name: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    verdict = min((seed["verdict"] for seed in seeds), key=ORDER.index)
    return {"says": ARMS[name].says, "verdict": verdict, "seeds": seeds}


def write_docs(found: dict[str, Any], folder: Path) -> None:
    """Write study.json, and the tables between the marks in study.md.

    Seeds that study.json holds already are kept; see `joined`.
    """
    written = folder / "study.json"
    if written.is_file():
        found = joined(found, json.loads(written.read_text()))
    written.write_text(json.dumps(found, indent=1) + "\n")
    page = folder / "study.md"
    text = page.read_text()
    for name, table in (
        ("arms", arms_table(found)),
        ("checks", checks_table(found)),
        ("margins", margins_table(found)),
        ("power", power_table(found)),
    ):
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(text):
            raise SystemExit(f"{page} must have the marks <!-- {name} --> <!-- end -->")
        text = mark.sub(lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, count=1)
    page.write_text(text)


def arms_table(found: dict[str, Any]) -> str:
    """Return a line for each arm and seed: what is left, and what it cost."""
    lines = [
        "| arm | seed | distress left: median reader | worst reader | composure left: "
        "median | calm after failure | KL | stories kept | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in found["arms"].items():
        for seed in arm["seeds"]:
            checks, guards = seed["checks"], seed["guards"]
            cells = [
                name,
                str(seed["seed"]),
                _interval(checks["E1 distress, median reader"]),
                _value(checks["E1 distress, worst reader"]),
                _interval(checks["E1 composure, median reader"]),
                _value(checks["calm after failure"]),
                f"{guards['kl']['value']:.3f}",
                _value(checks["E6 stories"]) if "E6 stories" in checks else "",
                seed["verdict"],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def checks_table(found: dict[str, Any]) -> str:
    """Return which arm misses which check, and in how many seeds."""
    missed = {
        name: Counter(
            check
            for seed in arm["seeds"]
            for check, said in seed["checks"].items()
            if said["verdict"] == "missed"
        )
        for name, arm in found["arms"].items()
    }
    names = dict.fromkeys(
        check
        for arm in found["arms"].values()
        for seed in arm["seeds"]
        for check, said in seed["checks"].items()
        if said["verdict"] != "not run"
    )
    lines = [
        f"| check | {' | '.join(missed)} |",
        f"|---{'|---' * len(missed)}|",
    ]
    for check in names:
        cells = []
        for name, arm in found["arms"].items():
            said = [
                s["checks"].get(check, {"verdict": "not run"}) for s in arm["seeds"]
            ]
            ran = [s for s in said if s["verdict"] != "not run"]
            cells.append(f"{missed[name][check]}/{len(ran)}" if ran else "–")
        lines.append(f"| {check} | {' | '.join(cells)} |")
    return "\n".join(lines)


def margins_table(found: dict[str, Any]) -> str:
    """Return a line for each arm and seed: the margin, and how training moved it."""
    lines = [
        "| arm | seed | failing, before | failing, change | passing, before | passing, "
        "change |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in found["arms"].items():
        for seed in arm["seeds"]:
            said = seed.get("margin")
            if not said:
                continue
            cells = [
                "{:+.3f} ({:+.3f} to {:+.3f})".format(*said[version][column])
                for version in ("fail", "pass")
                for column in ("before", "change")
            ]
            lines.append(f"| {name} | {seed['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def power_table(found: dict[str, Any]) -> str:
    """Return how many tasks each reader needs, and what the study's give."""
    tasks = found["power"]["tasks"]
    lines = [
        f"| audit reader | tasks for a power of {found['power']['wanted']} | power "
        f"with {tasks} tasks |",
        "|---|---|---|",
    ]
    for reader, said in found["power"]["readers"].items():
        lines.append(f"| {reader} | {said['needed']} | {said['power']:.2f} |")
    return "\n".join(lines)


def _value(check: dict[str, Any]) -> str:
    return "–" if check.get("value") is None else f"{check['value']:.2f}"


def _interval(check: dict[str, Any]) -> str:
    if check.get("value") is None:
        return "–"
    return f"{check['value']:.2f} ({check['low']:.2f} to {check['high']:.2f})"
