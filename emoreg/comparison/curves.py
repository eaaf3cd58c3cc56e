"""What a comparison's figures draw, as plain numbers for any drawing library."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.comparison import Comparison
from emoreg.comparison.figures import FigureSet
from emoreg.vectors.reader_names import RANDOM

ARM_LABELS = {
    "after": "after, with terms",
    "control": "control, no terms",
    "anchors": "anchors alone, no contrast",
}
VERSIONS = ("failing", "passing")
TRAINING_PANELS = 9
"""Curves that the page shows, of all that were logged."""
_HEAT_ROWS = 60
_TASK_CURVES = ("loss", "eval_loss", "reward", "kl", "entropy")
_READING = re.compile(r"emotion/(.+)/L(\d+)/([^/]+)/(slope|fail|pass|assistant)", re.S)
_KINDS = ("slope", "fail", "pass", "assistant")
_LOSSES = 3
"""Losses that come before all readings."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """One version's levels per prompt and their density."""

    values: Float[np.ndarray, " prompt"]
    grid: Float[np.ndarray, " point"]
    density: Float[np.ndarray, " point"]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Heat:
    """A change per emotion and layer."""

    title: str
    emotions: tuple[str, ...]
    layers: tuple[int, ...]
    values: Float[np.ndarray, "emotion layer"]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingPanel:
    """One logged quantity over the steps, one line per arm."""

    key: str
    lines: dict[str, tuple[list[float], list[float]]]
    """Steps and values by arm."""


def arm_order(arms: Sequence[str]) -> tuple[str, ...]:
    """Return the arms as figures show them: before, other arms, after."""
    middle = [arm for arm in arms if arm not in ("before", "after")]
    return ("before", *middle, "after")


def arm_label(arm: str) -> str:
    """Return the arm's name as a reader of the page understands it."""
    return ARM_LABELS.get(arm, arm)


def short(name: str, longest: int = 16) -> str:
    """Return the name cut in its middle to what fits beside an axis.

    What tells names apart mostly stands at their ends.
    """
    if len(name) <= longest:
        return name
    tail = (longest - 1) // 2
    return f"{name[: longest - 1 - tail]}…{name[-tail:]}"


def samples(
    comparison: Comparison,
) -> dict[str, dict[tuple[str, str], Sample]]:
    """Return by headline target, then by (arm, version), levels and densities.

    All targets share one grid, so that their panels may share an axis.
    """
    if not comparison.headline_targets:
        return {}
    values = {
        target: {
            (arm, version): _levels(comparison, target, arm, version)
            for arm in arm_order(comparison.arms)
            for version in VERSIONS
        }
        for target in comparison.headline_targets
    }
    pooled = [sample for found in values.values() for sample in found.values()]
    low, high = float(np.min(pooled)), float(np.max(pooled))
    margin = 0.12 * (high - low) or 1.0
    grid = np.linspace(low - margin, high + margin, 200)
    return {
        target: {
            key: Sample(values=sample, grid=grid, density=density(sample, grid))
            for key, sample in found.items()
        }
        for target, found in values.items()
    }


def slope_ranges(
    figures: FigureSet, reader: str, targets: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Return each target's axis: one for positive, one for negative base slopes."""
    at = figures.readers.index(reader)
    found: dict[bool, list[str]] = {}
    for target in targets:
        column = figures.targets.index(target)
        mean = figures.arms["before"].slope.estimate[at, :, column].mean()
        found.setdefault(bool(mean >= 0), []).append(target)
    ranges = {}
    for group in found.values():
        columns = [figures.targets.index(target) for target in group]
        arms = figures.arms.values()
        low = min(0.0, *(a.slope.low[at][:, columns].min() for a in arms))
        high = max(0.0, *(a.slope.high[at][:, columns].max() for a in arms))
        margin = 0.06 * (high - low) or 1.0
        ranges |= dict.fromkeys(group, (float(low - margin), float(high + margin)))
    return {target: ranges[target] for target in targets}


def heats(comparison: Comparison) -> list[Heat]:
    """Return after minus before and, with a control arm, after minus control."""
    figures = comparison.decision
    reader = figures.readers.index(comparison.audit_reader)
    n = len(comparison.emotions)
    after = figures.arms["after"].change
    assert after is not None
    maps = [("after minus before", after.estimate[reader, :, :n].T)]
    if figures.beyond_control is not None:
        beyond = figures.beyond_control.estimate[reader, :, :n].T
        maps.append(("after minus control", beyond))
    rows = _heat_rows(comparison, maps[0][1])
    return [
        Heat(
            title=title,
            emotions=tuple(comparison.emotions[row] for row in rows),
            layers=comparison.layers,
            values=values[rows],
        )
        for title, values in maps
    ]


def training_panels(comparison: Comparison) -> list[TrainingPanel]:
    """Return all logged curves, those that a reader looks for first.

    These are a few losses, then what the audit reader says of the headline emotions.
    """
    logs = comparison.training or {}
    keys: dict[str, None] = {}
    for log in logs.values():
        for entry in log:
            keys.update(dict.fromkeys(k for k in entry if _is_curve(k)))
    panels = []
    for key in keys:
        lines = {arm: _line(log, key) for arm, log in logs.items()}
        lines = {arm: line for arm, line in lines.items() if len(line[0]) > 1}
        if lines:
            panels.append(TrainingPanel(key=key, lines=lines))
    losses = sorted((p for p in panels if _is_loss(p.key)), key=_loss_rank)
    readings = [panel for panel in panels if not _is_loss(panel.key)]
    readings.sort(key=lambda panel: _reading_rank(comparison, panel.key))
    return losses[:_LOSSES] + readings + losses[_LOSSES:]


def _levels(
    comparison: Comparison, target: str, arm: str, version: str
) -> Float[np.ndarray, " prompt"]:
    reader, place, column = comparison.summary.index(
        comparison.audit_reader, "audit", target
    )
    return getattr(comparison.levels[arm], version)[:, reader, place, column]


def density(
    sample: Float[np.ndarray, " prompt"], grid: Float[np.ndarray, " point"]
) -> Float[np.ndarray, " point"]:
    """Return a Gaussian kernel density with Silverman's bandwidth."""
    spread = float(sample.std(ddof=1))
    quartiles = np.quantile(sample, [0.25, 0.75])
    robust = float(quartiles[1] - quartiles[0]) / 1.349
    width = 0.9 * (min(spread, robust) or spread) * len(sample) ** -0.2
    # Constant samples get the width of a grid step rather than a division by zero.
    width = max(width, float(grid[1] - grid[0]))
    distance = (grid[:, None] - sample[None, :]) / width
    kernel = np.exp(-0.5 * distance**2)
    return kernel.sum(axis=1) / (len(sample) * width * np.sqrt(2 * np.pi))


def _heat_rows(
    comparison: Comparison, change: Float[np.ndarray, "emotion layer"]
) -> list[int]:
    """Return emotions by family, then the others that changed most, at most 60."""
    family = [e for members in comparison.families.values() for e in members]
    rows = [comparison.emotions.index(e) for e in dict.fromkeys(family)]
    others = [row for row in range(len(change)) if row not in set(rows)]
    others.sort(key=lambda row: -float(np.abs(change[row]).max()))
    return rows + others[: max(0, _HEAT_ROWS - len(rows))]


def _is_curve(key: str) -> bool:
    # Random twins stand beside a run's own readings; here each line is an arm.
    twin = f"/{RANDOM}/" in key
    return _is_loss(key) or (_READING.fullmatch(key) is not None and not twin)


def _is_loss(key: str) -> bool:
    return key in _TASK_CURVES or key.startswith("emotion_loss/")


def _loss_rank(panel: TrainingPanel) -> tuple[int, str]:
    named = panel.key in _TASK_CURVES
    place = _TASK_CURVES.index(panel.key) if named else len(_TASK_CURVES)
    return place, panel.key


def _reading_rank(comparison: Comparison, key: str) -> tuple[Any, ...]:
    """Return where a reading comes: its slope, then failing, then passing turns."""
    found = _READING.fullmatch(key)
    assert found
    emotion, layer, reader, kind = found.groups()
    headline = comparison.headline_targets
    named = emotion in headline
    return (
        not named,
        kind == "assistant",
        reader != comparison.audit_reader,
        int(layer) not in comparison.layer_plan["audit"],
        int(layer),
        reader,
        headline.index(emotion) if named else 0,
        emotion,
        _KINDS.index(kind),
    )


def _line(
    log: Sequence[Mapping[str, Any]], key: str
) -> tuple[list[float], list[float]]:
    """Return steps and values of one logged quantity."""
    steps, values = [], []
    for number, entry in enumerate(log):
        value = entry.get(key)
        if isinstance(value, (int, float)) and np.isfinite(value):
            steps.append(float(entry.get("step", number)))
            values.append(float(value))
    return steps, values
