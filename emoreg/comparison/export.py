"""Write a comparison out: table rows, the JSON document, and the report's folder."""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from emoreg.comparison.behavior import behavior_document
from emoreg.comparison.changes import changes_document
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.conduct import conduct_document
from emoreg.comparison.cross import cross_document
from emoreg.comparison.figures import FigureSet
from emoreg.comparison.moves import plane_document
from emoreg.comparison.pressure import pressure_document
from emoreg.comparison.rails import rails_document
from emoreg.comparison.rounds import rounds_document
from emoreg.statistics.bootstrap import Intervals
from emoreg.vectors.whole_files import write_whole

SCHEMA = "emoreg.report/1"
_INTERVALS = ("slope", "change", "ratio", "after_minus")
_ELSEWHERE = ("units", "guards", "plane", "transcripts")
_POINTS = ("d_z", "cliffs_delta", "fail_level", "pass_level")


def rows(sets: Sequence[FigureSet]) -> list[dict[str, Any]]:
    """Return one row per arm, position, reader, layer or group, and target.

    Numbers that were withheld or do not apply are None.
    """
    table = []
    for figures in sets:
        axes = (figures.readers, figures.places, figures.targets)
        for arm in figures.arms:
            columns = _columns(figures, arm)
            for index in np.ndindex(*(len(axis) for axis in axes)):
                reader, place, target = (
                    axis[i] for axis, i in zip(axes, index, strict=True)
                )
                table.append(
                    {
                        "arm": arm,
                        "position": figures.position,
                        "reader": reader,
                        "layer": place,
                        "target": target,
                        "n": figures.arms[arm].slope.n,
                        **{k: _number(v[index]) for k, v in columns.items()},
                    }
                )
    return table


def document(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON-able values, schema "emoreg.report/1"."""
    judgement = comparison.judgement
    return {
        "schema": SCHEMA,
        "verdict": {
            "headline": judgement.headline,
            "findings": list(judgement.findings),
            "caveats": list(judgement.caveats),
            "text": judgement.verdict,
            "withheld": judgement.withheld,
        },
        "checks": [plain(asdict(check)) for check in judgement.checks],
        "primary": primary_rows(comparison),
        "arms": list(comparison.arms),
        "n_prompts": len(comparison.prompts),
        "prompts": list(comparison.prompts),
        "readers": list(comparison.decision.readers),
        "layers": list(comparison.layers),
        "emotions": list(comparison.emotions),
        "families": plain(comparison.families),
        "layer_plan": plain(comparison.layer_plan),
        "audit_reader": comparison.audit_reader,
        "units": comparison.units,
        "gate": comparison.gate,
        "notes": list(comparison.notes),
        "settings": plain(comparison.settings),
        "figures": {
            "decision": _arrays(comparison.decision),
            "summary": _arrays(comparison.summary),
            "assistant": _arrays(comparison.assistant),
            "assistant_summary": _arrays(comparison.assistant_summary),
        },
        # The units are [reader][layer][emotion] each and stand in the readings file;
        # so do the guards' single values, whose figures are "rails", and transcripts.
        "meta": {
            arm: plain({k: v for k, v in meta.items() if k not in _ELSEWHERE})
            for arm, meta in comparison.meta.items()
        },
        "rails": plain(rails_document(comparison.meta)),
        "rounds": plain(rounds_document(comparison.rounds)),
        "changes": changes_document(comparison.changes),
        "plane": plane_document(comparison.plane, comparison.moves),
        "behavior": plain(behavior_document(comparison.behavior)),
        "conduct": plain(conduct_document(comparison.conduct)),
        # Only where it was asked for.
        **(
            {"pressure": plain(pressure_document(comparison.pressure))}
            if comparison.pressure
            else {}
        ),
        **({"cross": cross_document(comparison.cross)} if comparison.cross else {}),
        "training": plain(comparison.training),
        "run": plain(comparison.run),
    }


def summary(comparison: Comparison) -> dict[str, float]:
    """Return the headline figures for a tracker, as plain numbers by name.

    Names are `emoreg/<target>/<arm>/<figure>`; figures that were withheld are left out.
    """
    return {
        f"emoreg/{row['target']}/{row['arm']}/{name}": row[name]
        for row in primary_rows(comparison)
        for name in ("slope", "slope_low", "slope_high", "ratio")
        if row.get(name) is not None
    }


def primary_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the headline targets by the audit reader at the audit layers."""
    figures = comparison.summary
    table = []
    for number, target in enumerate(comparison.headline_targets):
        index = figures.index(comparison.audit_reader, "audit", target)
        for arm in figures.arms:
            row = {k: _number(v[index]) for k, v in _columns(figures, arm).items()}
            delta = comparison.cliffs[arm]
            row["cliffs_delta_low"] = _number(delta.low[number])
            row["cliffs_delta_high"] = _number(delta.high[number])
            table.append({"target": target, "arm": arm, **row})
    return table


def to_text(content: Mapping[str, Any]) -> str:
    """Return JSON text without NaN or infinities."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


def save(comparison: Comparison, folder: Path) -> Path:
    """Write index.html, report.json and figures, each whole or not at all."""
    require_writable(folder)
    from emoreg.comparison.plots import draw
    from emoreg.comparison.report import render

    # The numbers come first: a fault in drawing must not lose them.
    content = to_text(comparison.to_dict())
    write_whole(folder / "report.json", content.encode())
    pictures = draw(comparison)
    page = render(comparison, pictures=tuple(pictures))
    for name, picture in pictures.items():
        write_whole(folder / name, picture)
    # The page comes last: where it stands, everything it speaks of stands too.
    return write_whole(folder / "index.html", page.encode())


def require_writable(folder: Path) -> None:
    """Make the folder and prove that a file can be written there.

    Raises:
        ValueError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"`folder` must be a folder that can be written, found {folder} "
            f"({error.strerror}); choose another one or change its permissions."
        ) from error


def _columns(figures: FigureSet, arm: str) -> dict[str, np.ndarray]:
    """Return every figure of an arm as one array per name."""
    own = figures.arms[arm]
    columns: dict[str, np.ndarray] = {}
    blank = np.full(own.d_z.shape, np.nan)
    for name in _INTERVALS:
        columns |= _ends(name, getattr(own, name), blank)
    for name in _POINTS:
        columns[name] = getattr(own, name)
    return columns


def _ends(
    name: str, interval: Intervals | None, blank: np.ndarray
) -> dict[str, np.ndarray]:
    if interval is None:
        return {name: blank, f"{name}_low": blank, f"{name}_high": blank}
    return {
        name: interval.estimate,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
    }


def _arrays(figures: FigureSet | None) -> dict[str, Any] | None:
    """Return a figure set with arrays indexed [reader][place][target]."""
    if figures is None:
        return None
    arms = {}
    for arm in figures.arms:
        columns = _columns(figures, arm)
        arms[arm] = {
            name: _nested(array)
            for name, array in columns.items()
            if np.isfinite(array).any()
        }
    return {
        "position": figures.position,
        "readers": list(figures.readers),
        "places": list(figures.places),
        "targets": list(figures.targets),
        "n": figures.arms["before"].slope.n,
        "arms": arms,
        "ratio_shown": figures.ratio_shown.tolist(),
        "base_standard_errors": _nested(figures.base_errors),
    }


def _nested(array: np.ndarray) -> list[Any]:
    """Return nested lists of five significant digits, None for what is not finite."""
    flat = [
        float(f"{value:.5g}") if math.isfinite(value) else None
        for value in array.ravel().tolist()
    ]
    return np.array(flat, dtype=object).reshape(array.shape).tolist()


def _number(value: Any) -> float | None:
    """Return five significant digits, None for what is not finite."""
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """Return JSON-able values; what JSON does not know becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
