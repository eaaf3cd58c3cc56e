"""The table of readings: what was measured, where, on which text, by which reader."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from emoreg.comparison.samples import average_samples
from emoreg.comparison.table_file import (
    AXES_KEY,
    FORMAT,
    META_KEY,
    VALUE_COLUMNS,
    Axes,
    TableWriter,
    check_array,
)
from emoreg.vectors.twins import (
    RoundDifferences,
    SegmentColumns,
    TwinDifferences,
    TwinPairs,
    average_rounds,
    pair_twins,
    split_rounds,
)

SEGMENT_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("style", pa.string()),
        ("variant", pa.string()),
        ("turn", pa.int32()),
        ("failure", pa.float32()),
        ("position", pa.string()),
        ("n_tokens", pa.int32()),
        ("token_start", pa.int32()),
        ("token_end", pa.int32()),
    ]
)
"""The columns every segments table holds; further columns are kept as they are."""

FIXED, ON_POLICY = "fixed", "on-policy"
"""What was read: text that was given, or replies that the model itself wrote."""
_INDEX = ("segment", "reader", "layer", "emotion")
"""The columns that say which number a row is, in the order of the axes."""
_CHUNK = 500_000
"""Readings that `save` hands on at a time."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Readings:
    """Readings of one model on one set of prompts, dense over readers and layers.

    Example:
        `Readings.load("before.parquet").twin_differences().values.mean(axis=0)` is
        the failure slope per reader, layer and emotion.
    """

    segments: pa.Table
    """One row per prompt, variant, Assistant turn and position group."""
    values: Float[np.ndarray, "segment reader layer emotion"]
    """Projections on the unit directions, float32; NaN where not measured."""
    resid_norm: Float[np.ndarray, "segment layer"]
    """Norm of the segment's mean residual stream, float32."""
    readers: tuple[str, ...]
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-able: model, arm, hashes, units, guards, layer plan, command."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", checked_segments(self.segments))
        for name in ("readers", "layers", "emotions"):
            _check_axis(name, getattr(self, name))
        expected = {
            "values": (
                self.segments.num_rows,
                len(self.readers),
                len(self.layers),
                len(self.emotions),
            ),
            "resid_norm": (self.segments.num_rows, len(self.layers)),
        }
        for name, shape in expected.items():
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            check_array(name, array, shape)
            object.__setattr__(self, name, array)
        try:
            json.dumps(self.meta)
        except TypeError as error:
            raise TypeError(
                f"`meta` must hold JSON values only, found {error}; convert arrays "
                "with `.tolist()` and paths with `str`."
            ) from error

    @property
    def n_missing(self) -> int:
        """How many readings are NaN."""
        return int(np.isnan(self.values).sum())

    def twin_differences(self, position: str = "decision") -> TwinDifferences:
        """Return per prompt the mean over its rounds of failing minus passing.

        Raises:
            ValueError: If prompts have one version only, or one class is missing.
        """
        one = self.averaged()
        return average_rounds(one.values, one._pairs(position))

    def of_readers(self, readers: Sequence[str]) -> "Readings":
        """Return the part of some readers, with their units."""
        rows = [self.readers.index(reader) for reader in readers]
        meta, units = self.meta, self.meta.get("units")
        if units:
            kept = {name: [table[row] for row in rows] for name, table in units.items()}
            meta = {**meta, "units": kept}
        return replace(
            self, values=self.values[:, rows], readers=tuple(readers), meta=meta
        )

    def own(self) -> "Readings":
        """Return the part without the audit's readers, which not all emotions have."""
        audit = self.meta.get("audit_readers", ())
        kept = [reader for reader in self.readers if reader not in audit]
        return self.of_readers(kept) if audit else self

    @property
    def text(self) -> str:
        """Which text was read, `FIXED` or `ON_POLICY`; older tables are all fixed."""
        return self.meta.get("text", FIXED)

    def averaged(self) -> "Readings":
        """Return the means over samples, where there are any: a prompt counts once."""
        if "sample" not in self.segments.column_names:
            return self
        segments, (values, norms) = average_samples(
            self.segments, self.values, self.resid_norm
        )
        return replace(self, segments=segments, values=values, resid_norm=norms)

    def by_round(self, position: str = "decision") -> RoundDifferences:
        """Return failing minus passing per prompt and feedback round."""
        one = self.averaged()
        return split_rounds(one.values, one._pairs(position))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the long table to parquet, whole or not at all.

        One row per segment, reader, layer and emotion; `cosine` is the projection
        over `resid_norm`, `z` is against passing decision tokens of the reference
        and null where `meta["units"]` is missing.
        """
        axes = Axes(readers=self.readers, layers=self.layers, emotions=self.emotions)
        step = max(1, _CHUNK // int(np.prod(axes.shape)))
        with TableWriter(path, self.segments, axes, self.meta) as writer:
            for start in range(0, self.segments.num_rows, step):
                part = slice(start, min(start + step, self.segments.num_rows))
                numbers = range(part.start, part.stop)
                writer.write(numbers, self.values[part], self.resid_norm[part])
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Readings":
        """Read a table written by `save`; the dense arrays come back exactly.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, foreign or incomplete.
        """
        source = Path(path)
        if not source.is_file():
            raise FileNotFoundError(
                f"`path` must be a readings file, found nothing at {source}; write "
                "one with `emoreg measure` or `Readings.save`."
            )
        try:
            with pq.ParquetFile(source) as file:
                axes, meta = _marks(file.schema_arrow, source)
                return cls(**_dense(file, axes, source), meta=meta)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{source} must be a whole parquet file, found one that cannot be "
                f"read ({error}); it may be truncated: measure again or copy it anew."
            ) from error

    def _pairs(self, position: str) -> TwinPairs:
        names = ("prompt", "variant", "turn", "failure", "position")
        columns = {name: self.segments[name].to_pylist() for name in names}
        return pair_twins(SegmentColumns(**columns), position=position)


def checked_segments(table: pa.Table) -> pa.Table:
    """Return the segments with the required columns first and in their types."""
    missing = [name for name in SEGMENT_SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(
            f"`segments` must have the columns {SEGMENT_SCHEMA.names}, found none "
            f"named {missing}; see SEGMENT_SCHEMA."
        )
    if table.num_rows == 0:
        raise ValueError(
            "`segments` must have at least one row, found an empty table; check the "
            "prompts: no Assistant turn was measured."
        )
    taken = sorted(set(VALUE_COLUMNS) & set(table.column_names))
    if taken:
        raise ValueError(
            f"`segments` must not have columns named {taken}, which the saved table "
            "uses itself; rename them."
        )
    for name in SEGMENT_SCHEMA.names:
        place = table.column_names.index(name)
        cast = table[name].cast(SEGMENT_SCHEMA.field(name).type)
        table = table.set_column(place, name, cast)
    others = [name for name in table.column_names if name not in SEGMENT_SCHEMA.names]
    return table.select([*SEGMENT_SCHEMA.names, *others]).replace_schema_metadata(None)


def _check_axis(name: str, labels: tuple[str, ...] | tuple[int, ...]) -> None:
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(
            f"`{name}` must be distinct and not empty, found {labels!r}; give each "
            "index of the array one label."
        )


def _marks(schema: pa.Schema, source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a file's axes and `meta`, if it is a table of readings."""
    stored = schema.metadata or {}
    missing = [name for name in VALUE_COLUMNS if name not in schema.names]
    if META_KEY not in stored or AXES_KEY not in stored or missing:
        raise ValueError(
            f"{source} must be a readings table written by emoreg, found parquet "
            f"without {'columns ' + ', '.join(missing) if missing else 'its marks'}"
            "; pass a file written by `emoreg measure` or `Readings.save`."
        )
    axes = json.loads(stored[AXES_KEY])
    if axes.get("format") != FORMAT:
        raise ValueError(
            f"{source} must have format {FORMAT!r}, found {axes.get('format')!r}; "
            "read it with the version of emoreg that wrote it."
        )
    return axes, json.loads(stored[META_KEY])


def _dense(file: pq.ParquetFile, axes: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return the constructor's arguments from the long table, in any row order.

    A column at a time: of millions of rows, all of them take gigabytes.
    """
    readers, layers, emotions = axes["readers"], axes["layers"], axes["emotions"]
    shape = (axes["n_segments"], len(readers), len(layers), len(emotions))
    order = _row_order(file.read(columns=list(_INDEX)), axes, shape)
    if order is None:
        raise ValueError(
            f"{source} must hold each segment, reader, layer and emotion once "
            f"({int(np.prod(shape))} rows), found rows that do not "
            "fill the grid; rows were removed or repeated: load the original file."
        )

    def column(name: str) -> pa.ChunkedArray:
        return file.read(columns=[name])[name]

    grid = order.reshape(shape)
    norms = column("resid_norm").to_numpy()[grid[:, 0, :, 0]]
    first = pa.array(grid[:, 0, 0, 0])
    segments = {}
    for name in file.schema_arrow.names:
        if name in VALUE_COLUMNS:
            continue
        taken = column(name).take(first).combine_chunks()
        if pa.types.is_dictionary(taken.type):
            taken = taken.cast(pa.string())
        segments[name] = taken
    return {
        "segments": pa.table(segments),
        "values": column("projection").to_numpy()[order].reshape(shape),
        "resid_norm": norms,
        "readers": tuple(readers),
        "layers": tuple(layers),
        "emotions": tuple(emotions),
    }


def _row_order(
    table: pa.Table, axes: dict[str, Any], shape: tuple[int, ...]
) -> Int[np.ndarray, " row"] | None:
    """Return which row is each of the grid's, or None if they do not fill it."""
    if table.num_rows != int(np.prod(shape)):
        return None
    place = np.zeros(table.num_rows, np.int64)
    for name, size in zip(_INDEX, shape, strict=True):
        if name == "segment":
            index = table[name].to_numpy()
        else:
            column = table[name].combine_chunks()
            if not pa.types.is_dictionary(column.type):
                column = column.dictionary_encode()
            numbers = {label: number for number, label in enumerate(axes[f"{name}s"])}
            known = [numbers.get(label, -1) for label in column.dictionary.to_pylist()]
            index = np.asarray(known, np.int64)[column.indices.to_numpy()]
        if index.min(initial=0) < 0 or index.max(initial=0) >= size:
            return None
        place = place * size + index
    order = np.full(len(place), -1)
    order[place] = np.arange(len(place))
    return None if (order < 0).any() else order
