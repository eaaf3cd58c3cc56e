"""A table that is written as it is read: the same one, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import seam_cases as cases
from comparison_tables import synthetic

from emoreg.comparison import table_file
from emoreg.comparison.measure import measure, measure_into
from emoreg.comparison.readings import Readings
from emoreg.comparison.samples import Sample
from emoreg.comparison.table_file import Axes, TableWriter


@pytest.fixture
def table() -> Readings:
    return synthetic(n_prompts=4)


def axes(table: Readings) -> Axes:
    return Axes(readers=table.readers, layers=table.layers, emotions=table.emotions)


def writer(table: Readings, path: Path) -> TableWriter:
    return TableWriter(path, table.segments, axes(table), table.meta)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_stream_gives_the_table_that_memory_does(
    *, sampled: bool, model: Any, tokenizer: Any, reference: Any, tmp_path: Path
) -> None:
    twins = cases.twins(3)
    vectors = cases.make_vectors()
    if sampled:  # one says nothing, and stands in the table with NaN
        twins[2].messages[-1]["content"] = ""
    samples = {c.id: Sample(0, 7) for c in twins} if sampled else None
    parts: Any = (model(), tokenizer, twins, vectors)
    how: Any = {"samples": samples, "quiet": True, "arm": "a", "budget": 64}
    how["reference"] = None if sampled else reference
    whole = measure(*parts, **how)
    path = tmp_path / "new" / "t.parquet"
    assert measure_into(path, *parts, **how) == whole.segments.num_rows
    read = Readings.load(path)
    np.testing.assert_array_equal(read.values, whole.values)
    np.testing.assert_array_equal(read.resid_norm, whole.resid_norm)
    rows = [table.segments.to_pandas() for table in (read, whole)]
    pd.testing.assert_frame_equal(*rows)  # NaN, an outcome that is not known, is NaN
    assert read.meta == json.loads(json.dumps(whole.meta))
    assert bool(np.isnan(read.values).any()) == sampled
    # Batches come by length, so that rows do lie in another order.
    owners = pq.read_table(path)["segment"].to_pylist()
    assert owners != sorted(owners)
    again = Readings.load(whole.save(tmp_path / "w.parquet"))
    np.testing.assert_array_equal(again.values, whole.values)


def test_no_more_than_a_row_group_is_held(
    table: Readings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = int(np.prod(axes(table).shape))
    monkeypatch.setattr(table_file, "_ROWS_PER_GROUP", 3 * each)
    held = []
    with writer(table, tmp_path / "t.parquet") as file:
        for number in reversed(range(table.segments.num_rows)):
            part = slice(number, number + 1)
            file.write([number], table.values[part], table.resid_norm[part])
            held.append(sum(len(rows) for rows, _, _ in file._held))
    assert max(held) == 2  # the third goes to the file
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups > 3
    np.testing.assert_array_equal(
        Readings.load(tmp_path / "t.parquet").values, table.values
    )


def test_what_is_not_whole_takes_no_files_place(
    table: Readings, tmp_path: Path
) -> None:
    path = table.save(tmp_path / "t.parquet")
    old = path.read_bytes()
    first = ([0], table.values[:1], table.resid_norm[:1])
    wrong = np.full_like(first[1], np.inf)

    def written(*parts: Any) -> None:
        with writer(table, path) as file:
            for part in parts:
                file.write(*part)

    with pytest.raises(ValueError, match="all segments must be written, "):
        written(first)
    with pytest.raises(ValueError, match="second time"):
        written(first, first)
    with pytest.raises(ValueError, match="finite or NaN"):
        written(([1], wrong, first[2]))
    with pytest.raises(TypeError):
        written(first, [])
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
