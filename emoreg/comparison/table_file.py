"""The long table of readings on disk: written as readings come, whole or not at all."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

FORMAT = "emoreg.readings/1"
META_KEY, AXES_KEY = b"emoreg", b"emoreg.axes"
"""Where a file's schema keeps what was measured, and the labels of its axes."""
VALUE_COLUMNS = (
    "segment",
    "reader",
    "layer",
    "emotion",
    "resid_norm",
    "projection",
    "cosine",
    "z",
)
_ROWS_PER_GROUP = 500_000


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """What stands along the dense dimensions of a table."""

    readers: tuple[str, ...]
    layers: tuple[int, ...]
    emotions: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Readers, layers and emotions of one segment."""
        return len(self.readers), len(self.layers), len(self.emotions)


@final
class TableWriter:
    """Writes segments in any order, so that no more than a row group is held.

    A file appears under its name once every segment was written, and an earlier one
    stays until then.

    Example:
        with TableWriter(path, segments, axes, meta) as writer:
            writer.write([4, 0], values, norms)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        segments: pa.Table,
        axes: Axes,
        meta: dict[str, Any],
    ) -> None:
        """Make ready to write.

        Args:
            path: The file, whose folder is made.
            segments: One row per segment, checked (`Readings`).
            axes: Labels of the other dimensions.
            meta: JSON-able; `units` give the column `z`.
        """
        self._target = Path(path)
        name = f".{self._target.name}.{os.getpid()}.partial"
        self._partial = self._target.with_name(name)
        self._segments = segments.combine_chunks()
        self._axes, self._meta = axes, meta
        self._held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._written = np.zeros(segments.num_rows, bool)
        self._file: Any = None

    def __enter__(self) -> "TableWriter":
        """Open the file under another name."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        axes = {
            "format": FORMAT,
            "readers": list(self._axes.readers),
            "layers": list(self._axes.layers),
            "emotions": list(self._axes.emotions),
            "n_segments": self._segments.num_rows,
        }
        self._marks = {
            META_KEY: json.dumps(self._meta).encode(),
            AXES_KEY: json.dumps(axes).encode(),
        }
        nothing = np.zeros((0, *self._axes.shape), np.float32)
        empty = self._rows(np.zeros(0, np.int32), nothing, nothing[:, 0, :, 0])
        schema = empty.schema.with_metadata(self._marks)
        self._file = pq.ParquetWriter(self._partial, schema, compression="zstd")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the file in its place, if all of it is there."""
        try:
            if error is None:
                self._flush()
            self._file.close()
            if error is None:
                self._check_whole()
                os.replace(self._partial, self._target)
        finally:
            self._partial.unlink(missing_ok=True)

    def write(
        self,
        numbers: Sequence[int],
        values: Float[np.ndarray, "segment reader layer emotion"],
        norms: Float[np.ndarray, "segment layer"],
    ) -> None:
        """Take the readings of some segments.

        Args:
            numbers: Which rows of `segments`.
            values: Projections, float32; NaN where not measured.
            norms: Of each segment's mean residual stream.

        Raises:
            ValueError: If a segment is written twice, a reading is infinite or the
                shape is another one.
        """
        rows = np.asarray(numbers, np.int32)
        check_array("values", values, (len(rows), *self._axes.shape))
        check_array("resid_norm", norms, (len(rows), self._axes.shape[1]))
        if self._written[rows].any() or len(set(rows.tolist())) < len(rows):
            raise ValueError(
                "each segment must be written once, found one for the second time"
            )
        self._written[rows] = True
        self._held.append((rows, values, norms))
        if sum(held.size for _, held, _ in self._held) >= _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        rows, values, norms = (np.concatenate(p) for p in zip(*self._held, strict=True))
        self._held = []
        step = max(1, _ROWS_PER_GROUP // int(np.prod(self._axes.shape)))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            table = self._rows(rows[part], values[part], norms[part])
            self._file.write_table(table.replace_schema_metadata(self._marks))

    def _check_whole(self) -> None:
        missing = int((~self._written).sum())
        if missing:
            raise ValueError(
                f"all segments must be written, {missing} of {len(self._written)} were "
                "not. Write NaN for what was not measured"
            )

    def _rows(
        self,
        numbers: np.ndarray,
        projection: Float[np.ndarray, "segment reader layer emotion"],
        norms: Float[np.ndarray, "segment layer"],
    ) -> pa.Table:
        """Return the long rows of some segments."""
        shape = projection.shape
        owner = np.repeat(numbers, int(np.prod(shape[1:])))
        columns: dict[str, Any] = {}
        for name in self._segments.column_names:
            column = self._segments[name].combine_chunks().take(pa.array(owner))
            text = pa.types.is_string(column.type)
            columns[name] = column.dictionary_encode() if text else column
        grid = np.indices(shape, dtype=np.int32).reshape(4, -1)
        norm = np.broadcast_to(norms[:, None, :, None], shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = (projection / norm).astype(np.float32)
        columns["segment"] = pa.array(owner)
        columns["reader"] = _coded(grid[1], self._axes.readers)
        columns["layer"] = pa.array(np.asarray(self._axes.layers, np.int32)[grid[2]])
        columns["emotion"] = _coded(grid[3], self._axes.emotions)
        columns["resid_norm"] = pa.array(norm.reshape(-1))
        columns["projection"] = pa.array(projection.reshape(-1))
        columns["cosine"] = pa.array(cosine.reshape(-1))
        columns["z"] = self._z(projection)
        return pa.table(columns)

    def _z(
        self, projection: Float[np.ndarray, "segment reader layer emotion"]
    ) -> pa.Array:
        units = self._meta.get("units") or {}
        if "success_level" not in units or "success_std" not in units:
            return pa.nulls(projection.size, pa.float32())
        level = np.asarray(units["success_level"], np.float64)
        spread = np.asarray(units["success_std"], np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (projection - level) / spread
        return pa.array(z.astype(np.float32).reshape(-1))


def check_array(
    name: str, array: Float[np.ndarray, "..."], shape: tuple[int, ...]
) -> None:
    """Raise a ValueError unless an array has its shape and no infinite number."""
    if array.shape != shape:
        raise ValueError(
            f"`{name}` must have shape {shape} (from segments, readers, layers and "
            f"emotions), found {array.shape}; check the order of the axes."
        )
    infinite = int(np.isinf(array).sum())
    if infinite:
        raise ValueError(
            f"`{name}` must be finite or NaN, found {infinite} infinite numbers; "
            "accumulate readings in float32 and look for an overflow."
        )


def _coded(codes: np.ndarray, labels: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(list(labels)))
