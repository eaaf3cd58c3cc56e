"""Figures as most checks need them: a mean with its interval, one per emotion."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from emoreg.statistics.bootstrap import bootstrap_mean
from emoreg.validation.check import Curves, Figure


def mean_figure(
    name: str,
    values: Float[np.ndarray, " cluster"],
    *,
    controls: Mapping[str, float],
    reader: str,
    layer: int,
    count: int | None = None,
) -> Figure:
    """Return the mean over clusters with its 95 % bootstrap interval.

    `count` says how many texts it rests on, where those are not the clusters.
    """
    bounds = bootstrap_mean(values, keep=False)
    return Figure(
        name=name,
        value=float(bounds.estimate),
        low=float(bounds.low),
        high=float(bounds.high),
        controls=controls,
        count=len(values) if count is None else count,
        reader=reader,
        layer=layer,
    )


def emotion_figures(
    name: str,
    values: Mapping[str, float],
    *,
    reader: str,
    layer: int,
    chance: float | None = None,
    counts: Mapping[str, int] | int = 0,
    lower_is_better: bool = False,
) -> list[Figure]:
    """Return a figure for each emotion, beside chance where that is known."""
    return [
        Figure(
            name=name,
            value=float(value),
            controls={} if chance is None else {"chance": chance},
            count=counts if isinstance(counts, int) else counts[emotion],
            reader=reader,
            layer=layer,
            emotion=emotion,
            lower_is_better=lower_is_better,
        )
        for emotion, value in values.items()
    ]


def layer_curves(
    title: str,
    y_title: str,
    layers: Sequence[int],
    series: Mapping[str, Iterable[Any]],
) -> Curves:
    """Return lines over the layers."""
    return Curves(
        title=title,
        x_title="layer",
        y_title=y_title,
        x=tuple(float(layer) for layer in layers),
        series={name: tuple(map(float, values)) for name, values in series.items()},
    )
