"""One slope per cluster: how a reading goes with failure, or with each attempt."""

from typing import Any

import numpy as np
from jaxtyping import Float


def cluster_slopes(
    values: Float[np.ndarray, " row *figure"],
    exposure: Float[np.ndarray, " row"],
    clusters: Any,
    *,
    covariates: Float[np.ndarray, "row covariate"] | None = None,
) -> tuple[Any, Float[np.ndarray, " cluster *figure"]]:
    """Return each cluster's name and its slope of the values on the exposure.

    Least squares of `value = a_i + b_i exposure + c' covariates` with level and slope
    of each cluster `i` its own and `c` shared, the default form of the mixed model
    `p ~ f + turn + log length + (1 + f | prompt)`: solved by taking level and slope
    out of values and covariates within each cluster first (Frisch-Waugh-Lovell). A
    failure slope has exposure 1 for failing and 0 for passing turns; a dose slope the
    number of failed attempts. Hand the slopes to `bootstrap_mean`, two models'
    difference too, and `bootstrap_ratio` or `fieller_ratio` for their ratio.

    A cluster whose exposure never varies has no slope and gets NaN; pass
    `missing="drop"` further on. `c` comes from all clusters, which ties their slopes
    together a little; the bootstrap over slopes takes that as fixed.

    Args:
        values: One number per row (a turn, a sample) and figure.
        exposure: One number per row.
        clusters: The row's cluster: any labels that can be sorted.
        covariates: What else is held fixed, one column each.

    Raises:
        ValueError: If rows do not match, a number is not finite, or the covariates
            do not vary within clusters beyond level and slope.

    Example:
        >>> value, failed = np.array([1.0, 3.0, 2.0, 5.0]), np.array([0.0, 1, 0, 1])
        >>> names, slopes = cluster_slopes(value, failed, ["a", "a", "b", "b"])
        >>> names.tolist(), slopes.tolist()
        (['a', 'b'], [2.0, 3.0])
    """
    names, where = np.unique(np.asarray(clusters), return_inverse=True)
    y = np.asarray(values, dtype=np.float64)
    x = np.asarray(exposure, dtype=np.float64)
    z = np.empty((len(y), 0)) if covariates is None else np.asarray(covariates, float)
    _check_rows(y, x, z, where)
    flat = y.reshape(len(y), -1)
    slopes = _slopes(flat, x, where, len(names))
    if z.shape[1]:
        lean = _slopes(z, x, where, len(names))
        rest = _rest(flat, x, where, slopes)
        slopes = slopes - lean @ _shared(_rest(z, x, where, lean), rest, z)
    return names, slopes.reshape(len(names), *y.shape[1:])


def _check_rows(*columns: np.ndarray) -> None:
    if len({len(column) for column in columns}) > 1:
        raise ValueError(
            "values, exposure, covariates and clusters must have the same rows, found "
            f"{[len(column) for column in columns]}."
        )
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError(
            "values, exposure and covariates must be finite; leave out rows without a "
            "reading."
        )


def _shared(
    rest_z: Float[np.ndarray, "row covariate"],
    rest_y: Float[np.ndarray, "row figure"],
    z: Float[np.ndarray, "row covariate"],
) -> Float[np.ndarray, "covariate figure"]:
    """Return the coefficients of the covariates, level and slope taken out of all."""
    shared, _, rank, _ = np.linalg.lstsq(rest_z, rest_y, rcond=None)
    varies = np.abs(rest_z).max(axis=0) > 1e-9 * (1 + np.abs(z).max(axis=0))
    if rank < z.shape[1] or not varies.all():
        raise ValueError(
            f"{z.shape[1]} covariates need to vary within clusters beyond level and "
            "slope (three rows or more in some), and not all alike; leave out those "
            "that do not."
        )
    return shared


def _slopes(
    values: Float[np.ndarray, "row figure"],
    exposure: Float[np.ndarray, " row"],
    where: np.ndarray,
    n: int,
) -> Float[np.ndarray, "cluster figure"]:
    """Return least-squares slopes within clusters, NaN where exposure is constant."""
    x = exposure - _means(exposure[:, None], where, n)[where, 0]
    square = np.bincount(where, x**2, minlength=n)
    top = np.zeros((n, values.shape[1]))
    np.add.at(top, where, x[:, None] * values)
    varies = square > 1e-18 * (1 + np.bincount(where, exposure**2, minlength=n))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(varies[:, None], top / square[:, None], np.nan)


def _rest(
    values: Float[np.ndarray, "row figure"],
    exposure: Float[np.ndarray, " row"],
    where: np.ndarray,
    slopes: Float[np.ndarray, "cluster figure"],
) -> Float[np.ndarray, "row figure"]:
    """Return what level and slope of each cluster leave of the values."""
    n = len(slopes)
    x = exposure - _means(exposure[:, None], where, n)[where, 0]
    centred = values - _means(values, where, n)[where]
    return centred - x[:, None] * np.nan_to_num(slopes)[where]


def _means(
    values: Float[np.ndarray, "row figure"], where: np.ndarray, n: int
) -> Float[np.ndarray, "cluster figure"]:
    total = np.zeros((n, values.shape[1]))
    np.add.at(total, where, values)
    return total / np.bincount(where, minlength=n)[:, None]
