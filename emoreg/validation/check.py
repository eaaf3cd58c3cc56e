"""What a check of emotion vectors found: figures, each beside its controls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from emoreg.statistics.bootstrap import Interval

Verdict = Literal["passed", "missed", "not evidence", "not run", "no threshold"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One number, with what it would be if the directions meant nothing."""

    name: str
    """What it is, with its unit where it has one: `top-1`, `rho`, `AUROC`."""
    value: float
    low: float | None = None
    """Lower end of the 95 % interval, where it is a mean."""
    high: float | None = None
    controls: Mapping[str, float] = field(default_factory=dict)
    """The same figure by chance or of control directions: `chance`, `random`,
    `shuffled`, `embedding`."""
    count: int = 0
    """How many texts, pairs or choices it rests on."""
    reader: str = ""
    layer: int | None = None
    emotion: str = ""
    lower_is_better: bool = False
    from_zero: bool = False
    """Whether nearer to zero is better, from either side."""

    @classmethod
    def of(
        cls,
        name: str,
        found: Interval,
        *,
        reader: str = "",
        layer: int | None = None,
        lower_is_better: bool = False,
        from_zero: bool = False,
    ) -> "Figure":
        """Return an estimate with its interval as a figure."""
        return cls(
            name=name,
            value=found.estimate,
            low=found.low,
            high=found.high,
            count=found.n,
            reader=reader,
            layer=layer,
            lower_is_better=lower_is_better,
            from_zero=from_zero,
        )

    def reaches(self, threshold: float) -> bool:
        """Whether the value is at least as good as `threshold`; NaN is not."""
        return self._good(self.value, threshold)

    def control_reaches(self, threshold: float) -> bool:
        """Whether a control is as good, so that reaching it says nothing."""
        found = (v for v in self.controls.values() if not math.isnan(v))
        return any(self._good(v, threshold) for v in found)

    def _good(self, value: float, threshold: float) -> bool:
        if self.from_zero:
            return abs(value) <= threshold
        return value <= threshold if self.lower_is_better else value >= threshold


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matrix:
    """A table of numbers to be drawn as a heat map."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float[np.ndarray, "row column"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curves:
    """Named series over a common axis, to be drawn as lines."""

    title: str
    x_title: str
    y_title: str
    x: tuple[float, ...]
    series: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Check:
    """One check: its question, its figures, and what they say of emotions and layers.

    The verdict follows from the headline figure, its controls and the threshold alone.
    """

    name: str
    """Short and stable; the key in the JSON."""
    question: str
    """What it asks, in one sentence a reader of the page understands."""
    method: str
    """How it was answered: texts, positions, statistic, source."""
    headline: Figure | None = None
    threshold: float | None = None
    """What the headline figure must reach; None where nothing is claimed."""
    figures: tuple[Figure, ...] = ()
    """All figures, the headline among them; `reader`, `layer`, `emotion` tell apart."""
    emotions: Mapping[str, bool] = field(default_factory=dict)
    """Per emotion, whether it holds there; only those that the check can judge."""
    layers: Mapping[int, float] = field(default_factory=dict)
    """Per layer, the figure by which a layer may be preferred (higher is better)."""
    pictures: tuple[Matrix | Curves, ...] = ()
    notes: tuple[str, ...] = ()
    """Plain sentences: limits, what was dropped and why."""
    not_run: str = ""
    """Why it was not run; empty if it was."""

    @property
    def verdict(self) -> Verdict:
        """Return what the headline says against threshold and controls."""
        if self.not_run:
            return "not run"
        if self.headline is None or self.threshold is None:
            return "no threshold"
        if not self.headline.reaches(self.threshold):
            return "missed"
        control = self.headline.control_reaches(self.threshold)
        return "not evidence" if control else "passed"
