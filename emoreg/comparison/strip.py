"""A run seen through its checkpoints: how readings moved while it trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.alignment import Aligned, align, checked_arms
from emoreg.comparison.compare import HEADLINE
from emoreg.comparison.export import plain, require_writable, to_text
from emoreg.comparison.figures import FigureSet, figure_set
from emoreg.comparison.phrases import HALF
from emoreg.comparison.readings import Readings
from emoreg.statistics.bootstrap import Interval
from emoreg.vectors.whole_files import write_whole

SCHEMA = "emoreg.strip/1"
_SAID = ("model", "vectors_hash", "prompts_hash")
PLACE = "audit"
"""The group of layers that a strip is of."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One target at one checkpoint; step 0 is the model before training."""

    step: int
    slope: Interval
    """Failing minus passing, in `sigma_ref`, over prompts."""
    left: Interval | None
    """Share of the slope at step 0; None there, and where that carries no ratio."""
    slopes: tuple[float, ...]
    """Each prompt's own."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """Frames by target, in the order of steps.

    Example:
        `strip({0: before, 100: at_100, 200: at_200}).save("strip/")`
    """

    frames: Mapping[str, tuple[Frame, ...]]
    threshold: float
    """Share of the slope whose crossing is looked for."""
    reader: str
    layers: tuple[int, ...]
    meta: Mapping[str, Any]
    """What was measured: model, hashes, unit, number of prompts."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, from 0."""
        return tuple(frame.step for frame in next(iter(self.frames.values())))

    def crossed(self, target: str) -> int | None:
        """Return the first step from which the share left stays below the threshold.

        Or at it, in size, by all of its interval; None if there is none. One
        checkpoint below among others above is a dip, and no crossing; nor has a slope
        crossed that turned over.
        """
        first = None
        for frame in self.frames[target]:
            left = frame.left
            # The share counts in size: a slope that turned over is not small.
            size = None if left is None else max(-left.low, left.high)
            below = size is not None and size <= self.threshold
            first = (frame.step if first is None else first) if below else None
        return first

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values, schema "emoreg.strip/1"."""
        return {
            "schema": SCHEMA,
            "steps": list(self.steps),
            "threshold": self.threshold,
            "reader": self.reader,
            "layers": list(self.layers),
            "crossed": {target: self.crossed(target) for target in self.frames},
            "frames": {
                target: [_frame(frame) for frame in frames]
                for target, frames in self.frames.items()
            },
            "meta": plain(dict(self.meta)),
        }

    def save(self, folder: str | Path) -> Path:
        """Write index.html and strip.json into a folder; return the page.

        Raises:
            ValueError: If the folder can't be written.
        """
        from emoreg.comparison.strip_page import render_strip

        folder = Path(folder)
        require_writable(folder)
        write_whole(folder / "strip.json", to_text(self.to_dict()).encode())
        return write_whole(folder / "index.html", render_strip(self).encode())


def strip(
    tables: Mapping[int, Readings],
    *,
    gate: Readings | None = None,
    threshold: float = HALF,
    seed: int = 0,
    n_resamples: int = 10_000,
) -> Strip:
    """Return the headline slopes of every checkpoint, in one unit, on the same prompts.

    Args:
        tables: By step; 0, the model before training, must be among them.
        gate: Readings of the model before training on other prompts (`dev`), which
            decide where a share is given. Without it the same prompts decide.
        threshold: Share of the slope whose crossing is looked for.
        seed: Of the bootstrap.
        n_resamples: Of it.

    Raises:
        ValueError: If step 0 is missing or alone, the tables do not belong together,
            or no headline target was read.
    """
    names, arms = _arms(tables)
    gate = None if gate is None else gate.own()
    aligned = align(arms, roles=None, gate=gate, reference_units=None)
    before, layers = arms["before"], aligned.layer_plan[PLACE]
    pool = [[before.layers.index(layer) for layer in layers]]
    levels = {name: found.over(pool) for name, found in aligned.levels.items()}
    targets = (*before.emotions, *aligned.families)
    shown = _shown(targets, before.emotions)
    figures = figure_set(
        levels,
        base=aligned.base.over(pool),
        labels=(before.readers, (PLACE,), targets),
        n_resamples=n_resamples,
        seed=seed,
    )
    slopes = {step: levels[name].slope for step, name in names.items()}
    return Strip(
        frames={
            target: tuple(
                _framed(figures, slopes[step], step, name, target, aligned)
                for step, name in names.items()
            )
            for target in shown
        },
        threshold=threshold,
        reader=aligned.audit_reader,
        layers=tuple(layers),
        meta={
            **{name: before.meta.get(name) for name in _SAID},
            "unit": aligned.units.source,
            "ratios decided on": aligned.gate,
            "n_prompts": len(aligned.prompts),
        },
    )


def _arms(
    tables: Mapping[int, Readings],
) -> tuple[dict[int, str], dict[str, Readings]]:
    """Return the name of each step's arm, in order, and the arms' tables."""
    steps = sorted(tables)
    if steps[:1] != [0] or len(steps) < 2:
        raise ValueError(
            "`tables` must hold step 0, the model before training, and at least one "
            f"later step, found {steps}. Measure the base model too"
        )
    names = {step: str(step) for step in steps}
    names |= {0: "before", steps[-1]: "after"}
    own = {step: tables[step].own() for step in steps}
    between = {names[step]: own[step] for step in steps[1:-1]}
    return names, checked_arms(own[0], own[steps[-1]], between)


def _framed(
    figures: FigureSet,
    slopes: Float[np.ndarray, "prompt reader place target"],
    step: int,
    arm: str,
    target: str,
    aligned: Aligned,
) -> Frame:
    at = figures.index(aligned.audit_reader, PLACE, target)
    own = figures.arms[arm]
    left = None
    if own.ratio is not None and figures.ratio_shown[at]:
        left = own.ratio.at(*at)
    return Frame(
        step=step,
        slope=own.slope.at(*at),
        left=left,
        slopes=tuple(float(value) for value in slopes[(slice(None), *at)]),
    )


def _frame(frame: Frame) -> dict[str, Any]:
    return {
        "step": frame.step,
        "slope": frame.slope.rounded(),
        "left": None if frame.left is None else frame.left.rounded(),
        "slopes": [float(f"{value:.4g}") for value in frame.slopes],
    }


def _shown(targets: Sequence[str], emotions: Sequence[str]) -> list[str]:
    """Return the headline targets that were read."""
    found = [target for target in HEADLINE if target in targets]
    if not found:
        raise ValueError(
            f"`tables` must have readings of some of {', '.join(HEADLINE)}; found "
            f"{', '.join(emotions)}. Measure emotions of a family too"
        )
    return found
