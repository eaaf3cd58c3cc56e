"""What changed between two arms, prompt by prompt, beyond the mean of a slope.

The headline targets by the audit reader at the audit layers, failing and passing
versions apart, and the slope between them; and which emotions changed at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.figures import FigureSet, Levels
from emoreg.statistics.bootstrap import Interval, Intervals, bootstrap_mean
from emoreg.statistics.distances import (
    Distances,
    bootstrap_wasserstein,
    swapped_distances,
)
from emoreg.statistics.effect_intervals import (
    PairedEffectIntervals,
    bootstrap_paired_effects,
)
from emoreg.statistics.multiple import false_discovery
from emoreg.statistics.permutation import sign_flip
from emoreg.statistics.power import smallest_detectable_effect
from emoreg.statistics.quantiles import QuantileShift, quantile_shift

SIDES = ("failing", "passing", "slope")
SHIFTED = ("audit distress", "desperate", "calm")
"""Targets whose deciles are held against each other."""
FEWEST = 3
"""Prompts below which effects have no interval."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Changes:
    """How an arm's readings differ from another's on the same prompts.

    Arrays are side x target; sides are `SIDES`. Effects are NaN where all prompts
    differ by the same.
    """

    arm: str
    against: str
    targets: tuple[str, ...]
    mean: Intervals
    """Mean paired difference in sigma_ref, arm minus the other; expanded BCa."""
    effects: PairedEffectIntervals
    wasserstein: Intervals
    """Distance of both distributions over prompts in sigma_ref, percentiles."""
    distances: Distances
    """The same distance beside its mean under swapped models; KS; and p-values."""
    p: Float[np.ndarray, "side target"]
    """Of the mean, by sign flips."""
    p_readers: Float[np.ndarray, "side target"]
    """The same adjusted for all readers that could have been looked at (max-T)."""
    q: dict[str, float]
    """By emotion, of the slope's change: the false discovery rate at which it would
    be called one, over all emotions read (Benjamini and Hochberg)."""
    shifts: dict[str, QuantileShift]
    """By side, failing and passing: deciles, level x target in `shifted`."""
    shifted: tuple[str, ...]

    @property
    def n(self) -> int:
        """Prompts compared."""
        return self.mean.n

    @property
    def detectable(self) -> float:
        """The smallest `d_z` that so many prompts show with 80 % power."""
        return smallest_detectable_effect(self.n)


def changes_of(
    levels: Mapping[str, Levels],
    figures: FigureSet,
    *,
    reader: str,
    targets: Sequence[str],
    emotions: Sequence[str],
    n_resamples: int,
    seed: int,
) -> tuple[Changes, ...]:
    """Return after against before and, with a control arm, after against control.

    Empty below `FEWEST` prompts or without targets.

    Args:
        levels: Per prompt levels by arm, at the places of `figures`.
        figures: Names the readers, places and targets of the levels' axes.
        reader: The audit reader.
        targets: The headline targets.
        emotions: Over which the false discovery rate is taken.
        n_resamples: Of each bootstrap, and flips of each permutation.
        seed: Of both.
    """
    if not targets or len(levels["before"].failing) < FEWEST:
        return ()
    place = figures.places.index("audit")
    at = [figures.targets.index(target) for target in targets]
    every = [figures.targets.index(emotion) for emotion in emotions]
    given: Any = {"n_resamples": n_resamples, "seed": seed}
    sides = {arm: _sides(own, place) for arm, own in levels.items()}
    return tuple(
        _changes(
            {"after": sides["after"], against: sides[against]},
            axes=(figures.readers.index(reader), at, every),
            names=(tuple(targets), tuple(emotions)),
            **given,
        )
        for against in ("before", "control")
        if against in levels
    )


def _sides(levels: Levels, place: int) -> Float[np.ndarray, "prompt side reader any"]:
    versions = [levels.failing[:, :, place], levels.passing[:, :, place]]
    return np.stack([*versions, versions[0] - versions[1]], axis=1)


def _changes(
    sides: Mapping[str, Float[np.ndarray, "prompt side reader any"]],
    *,
    axes: tuple[int, list[int], list[int]],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    n_resamples: int,
    seed: int,
) -> Changes:
    (arm, end), (against, start) = sides.items()
    reader, at, every = axes
    targets, emotions = names
    first, second = start[:, :, reader][..., at], end[:, :, reader][..., at]
    drawn: Any = {"n_resamples": n_resamples, "seed": seed}
    flipped: Any = {"n_flips": n_resamples, "seed": seed}
    gap = (end - start)[..., at]
    p, p_readers = np.empty((2, len(SIDES), len(at)))
    for index in np.ndindex(p.shape):
        # One call is one family: all readers of one target and side.
        tests = sign_flip(gap[:, index[0], :, index[1]], **flipped)
        p[index], p_readers[index] = tests.p[reader], tests.p_max[reader]
    moved = (end - start)[:, SIDES.index("slope"), reader][:, every]
    q = false_discovery(sign_flip(moved, **flipped).p)
    shifted = tuple(target for target in targets if target in SHIFTED)
    chosen = [targets.index(target) for target in shifted]
    return Changes(
        arm=arm,
        against=against,
        targets=targets,
        mean=bootstrap_mean(second - first, keep=False, expand=True, **drawn),
        effects=bootstrap_paired_effects(first, second, **drawn),
        wasserstein=bootstrap_wasserstein(first, second, **drawn),
        distances=swapped_distances(first[:, None], second[:, None], **flipped),
        p=p,
        p_readers=p_readers,
        q=dict(zip(emotions, q.tolist(), strict=True)),
        shifts={
            side: quantile_shift(
                first[:, number][:, chosen], second[:, number][:, chosen], **drawn
            )
            for number, side in enumerate(SIDES[:2])
        },
        shifted=shifted,
    )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeRow:
    """One target and side of `Changes`, in single numbers."""

    target: str
    side: str
    mean: Interval
    d_z: Interval
    d_av: Interval
    wasserstein: Interval
    wasserstein_by_chance: float
    """Its mean if both arms' labels are swapped at random within prompts."""
    wasserstein_p: float
    ks: float
    ks_p: float
    p: float
    p_readers: float


def change_rows(changes: Changes) -> list[ChangeRow]:
    """Return a row for each target and side, targets in the page's order."""
    far = changes.distances
    return [
        ChangeRow(
            target=target,
            side=side,
            mean=changes.mean.at(*at),
            d_z=changes.effects.d_z.at(*at),
            d_av=changes.effects.d_av.at(*at),
            wasserstein=changes.wasserstein.at(*at),
            wasserstein_by_chance=float(far.wasserstein_null[at]),
            wasserstein_p=float(far.wasserstein_p[at]),
            ks=float(far.ks[at]),
            ks_p=float(far.ks_p[at]),
            p=float(changes.p[at]),
            p_readers=float(changes.p_readers[at]),
        )
        for column, target in enumerate(changes.targets)
        for row, side in enumerate(SIDES)
        for at in [(row, column)]
    ]


def changes_document(changes: Sequence[Changes]) -> list[dict[str, Any]]:
    """Return `changes` as JSON-able values, in five significant digits.

    One entry per pair of arms: "arm", "against", "n", "smallest_detectable_d_z" (80 %
    power, two-sided 0.05), "rows" (a `ChangeRow` each; an interval is "estimate",
    "low", "high"), "q" by emotion, and "quantile_shifts": by side and target "levels",
    "first" (the quantiles of `against`), "shift", "low", "high". What is not finite is
    null.
    """
    return [
        {
            "arm": own.arm,
            "against": own.against,
            "n": own.n,
            "smallest_detectable_d_z": _digits(own.detectable),
            "rows": [
                {name: _value(getattr(row, name)) for name in ChangeRow.__slots__}
                for row in change_rows(own)
            ],
            "q": {emotion: _digits(q) for emotion, q in own.q.items()},
            "quantile_shifts": {
                side: {
                    target: _shift(shift, number)
                    for number, target in enumerate(own.shifted)
                }
                for side, shift in own.shifts.items()
            },
        }
        for own in changes
    ]


def _shift(shift: QuantileShift, column: int) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {"levels": [*shift.levels]}
    for name in ("first", "shift", "low", "high"):
        found[name] = [_digits(v) for v in getattr(shift, name)[:, column]]
    return found


def _value(value: Any) -> Any:
    if isinstance(value, Interval):
        return {n: _digits(getattr(value, n)) for n in ("estimate", "low", "high")}
    return value if isinstance(value, str) else _digits(value)


def _digits(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None
