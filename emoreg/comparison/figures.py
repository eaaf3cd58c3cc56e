"""The numbers of a comparison: levels, slopes, changes and ratios with intervals.

Everything here is in units of `sigma_ref` and has one number per prompt. A *place* is
a layer or a group of layers; a *target* is an emotion or a family of emotions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float

from emoreg.statistics.bootstrap import Intervals, bootstrap_mean
from emoreg.statistics.effects import cliffs_delta, paired_effects
from emoreg.statistics.pair_intervals import bootstrap_pair
from emoreg.vectors.twins import TwinDifferences

RATIO_STANDARD_ERRORS = 3.0
"""A ratio is given only where the base slope exceeds this many standard errors."""
RATIO_CROSSING = 0.001
"""And where at most this share of resampled base slopes has the other sign."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Units:
    """What one `sigma_ref` and the success level are, per reader, layer, emotion."""

    sigma: Float[np.ndarray, "reader layer emotion"]
    success_level: Float[np.ndarray, "reader layer emotion"]
    source: str
    """Where they come from, in words."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Levels:
    """Mean readings of both versions of each prompt, in sigma_ref above success."""

    failing: Float[np.ndarray, "prompt reader place target"]
    passing: Float[np.ndarray, "prompt reader place target"]

    @property
    def slope(self) -> Float[np.ndarray, "prompt reader place target"]:
        """Failing minus passing."""
        return self.failing - self.passing

    def over(self, groups: Sequence[Sequence[int]]) -> "Levels":
        """Average over groups of places, one new place per group."""
        return Levels(
            failing=_pool(self.failing, groups), passing=_pool(self.passing, groups)
        )

    def and_over(self, groups: Sequence[Sequence[int]]) -> "Levels":
        """Return the places that there are, and behind them one per group."""
        if not groups:
            return self
        pooled = self.over(groups)
        return Levels(
            failing=np.concatenate([self.failing, pooled.failing], axis=2),
            passing=np.concatenate([self.passing, pooled.passing], axis=2),
        )


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArmFigures:
    """One arm's figures; arrays are reader x place x target."""

    slope: Intervals
    d_z: Float[np.ndarray, "reader place target"]
    cliffs_delta: Float[np.ndarray, "reader place target"]
    fail_level: Float[np.ndarray, "reader place target"]
    pass_level: Float[np.ndarray, "reader place target"]
    change: Intervals | None
    """Slope minus the slope before, paired by prompt; None for before itself."""
    ratio: Intervals | None
    """Slope over the slope before; NaN where `FigureSet.ratio_shown` is False."""
    after_minus: Intervals | None
    """Slope after minus this arm's: what the terms did beyond it. None for before and
    after themselves."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FigureSet:
    """All figures of one position, reader x place x target for every arm."""

    position: str
    readers: tuple[str, ...]
    places: tuple[str, ...]
    targets: tuple[str, ...]
    arms: dict[str, ArmFigures]
    base_errors: Float[np.ndarray, "reader place target"]
    """The base slope over its standard error, which decides on ratios."""
    ratio_shown: Bool[np.ndarray, "reader place target"]

    @property
    def beyond_control(self) -> Intervals | None:
        """Slope after minus slope of the control arm; None without one."""
        control = self.arms.get("control")
        return None if control is None else control.after_minus

    def at(self, places: Mapping[str, str]) -> "FigureSet":
        """Return the figures of some places, each by its new name."""
        rows = [self.places.index(place) for place in places.values()]
        arms = {
            arm: ArmFigures(
                **{x.name: _picked(getattr(own, x.name), rows) for x in fields(own)}
            )
            for arm, own in self.arms.items()
        }
        return replace(
            self,
            places=tuple(places),
            arms=arms,
            base_errors=self.base_errors[:, rows],
            ratio_shown=self.ratio_shown[:, rows],
        )

    def index(self, reader: str, place: str, target: str) -> tuple[int, int, int]:
        """Return the index of one figure."""
        return (
            self.readers.index(reader),
            self.places.index(place),
            self.targets.index(target),
        )


def levels_of(
    twins: TwinDifferences, units: Units, families: Sequence[Sequence[int]]
) -> Levels:
    """Return levels in sigma_ref, each family's mean appended to the emotions."""
    both = []
    for version in (twins.failing, twins.passing):
        scaled = (version - units.success_level) / units.sigma
        both.append(with_families(scaled, families))
    return Levels(failing=both[0], passing=both[1])


def with_families(
    values: Float[np.ndarray, "*place emotion"], families: Sequence[Sequence[int]]
) -> Float[np.ndarray, "*place target"]:
    """Return values with each family's mean appended to the emotions."""
    return np.concatenate([values, _pool_last(values, families)], axis=-1)


def own_units(twins: TwinDifferences) -> Units:
    """Return units from a table's own twins, for want of a calibrated reference."""
    spread = twins.values.std(axis=0, ddof=1)
    # A reading that hardly varies would otherwise turn rounding into large slopes.
    floor = 0.1 * np.median(spread, axis=-1, keepdims=True)
    sigma = np.maximum(spread, floor)
    if not (sigma > 0).all():
        raise ValueError(
            "The twin differences before must vary between prompts, found none that "
            "do for some reader and layer; pass `reference_units` or other prompts."
        )
    return Units(
        sigma=sigma,
        success_level=twins.passing.mean(axis=0),
        source="the spread of these prompts' own twin differences before training",
    )


def figure_set(
    arms: Mapping[str, Levels],
    *,
    base: Levels,
    labels: tuple[Sequence[str], Sequence[str], Sequence[str]],
    position: str = "decision",
    n_resamples: int,
    seed: int,
) -> FigureSet:
    """Compute every figure of every arm from levels per prompt.

    Intervals are BCa for means and differences, percentiles for ratios, and widened
    for few prompts (`bootstrap.expanded`), which changes nothing where there are many.

    Args:
        arms: Levels by arm, "before" and "after" among them; the verdict holds
            "after" against "control".
        base: The reference model's levels that decide where ratios are given.
        labels: Names of readers, places and targets.
        position: Where the readings were taken.
        n_resamples: Bootstrap resamples, shared by all figures.
        seed: Seed of the resamples.
    """
    errors = slope_in_standard_errors(base.slope)
    shown = np.abs(errors) > RATIO_STANDARD_ERRORS
    settings: Any = {"n_resamples": n_resamples, "seed": seed, "expand": True}
    figures: dict[str, ArmFigures] = {}
    for name, levels in arms.items():
        if name == "before":
            continue
        pair = bootstrap_pair(
            arms["before"].slope, levels.slope, ratios=shown, **settings
        )
        ratio = _firm(pair.ratio)
        shown = shown & np.isfinite(ratio.estimate)
        after_minus = None
        if name != "after":
            gap = arms["after"].slope - levels.slope
            after_minus = bootstrap_mean(gap, keep=False, **settings)
        if "before" not in figures:
            figures["before"] = _figures(arms["before"], pair.first)
        figures[name] = _figures(
            levels, pair.second, change=pair.change, ratio=ratio, beyond=after_minus
        )
    readers, places, targets = (tuple(names) for names in labels)
    return FigureSet(
        position=position,
        readers=readers,
        places=places,
        targets=targets,
        arms=figures,
        base_errors=errors,
        ratio_shown=shown,
    )


def slope_in_standard_errors(
    slope: Float[np.ndarray, "prompt *figure"],
) -> Float[np.ndarray, "*figure"]:
    """Return the mean slope over its standard error across prompts."""
    error = slope.std(axis=0, ddof=1) / np.sqrt(len(slope))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(slope.mean(axis=0) / error)


def _picked(figures: Any, places: Sequence[int]) -> Any:
    """Return the figures of some places, be they intervals, an array or none."""
    if isinstance(figures, Intervals):
        ends = {x: getattr(figures, x)[:, places] for x in ("estimate", "low", "high")}
        return replace(figures, **ends)
    return None if figures is None else figures[:, places]


def _figures(
    levels: Levels,
    slope: Intervals,
    *,
    change: Intervals | None = None,
    ratio: Intervals | None = None,
    beyond: Intervals | None = None,
) -> ArmFigures:
    """Return an arm's figures: these, and those that have no interval."""
    return ArmFigures(
        slope=slope,
        d_z=paired_effects(levels.passing, levels.failing).d_z,
        cliffs_delta=cliffs_delta(levels.failing, levels.passing),
        fail_level=levels.failing.mean(axis=0),
        pass_level=levels.passing.mean(axis=0),
        change=change,
        ratio=ratio,
        after_minus=beyond,
    )


def _firm(ratio: Intervals) -> Intervals:
    """Return ratios with NaN where the base slope could have the other sign."""
    assert ratio.crossing is not None
    firm = ratio.crossing <= RATIO_CROSSING  # not so where it is NaN
    ends = {
        name: np.where(firm, getattr(ratio, name), np.nan)
        for name in ("estimate", "low", "high")
    }
    return replace(ratio, **ends, crossing=None)


def _pool(
    values: Float[np.ndarray, "prompt reader place target"],
    groups: Sequence[Sequence[int]],
) -> Float[np.ndarray, "prompt reader group target"]:
    return np.stack([values[:, :, list(g)].mean(axis=2) for g in groups], axis=2)


def _pool_last(
    values: Float[np.ndarray, "*place emotion"], families: Sequence[Sequence[int]]
) -> Float[np.ndarray, "*place family"]:
    if not families:
        return values[..., :0]
    return np.stack([values[..., list(f)].mean(axis=-1) for f in families], axis=-1)
