"""The readings table: exact storage, honest refusals, and twins paired correctly."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from comparison_tables import synthetic

from emoreg.comparison.readings import SEGMENT_SCHEMA, Readings


def small(rows, values=None, **changes):
    """Return readings of one reader, layer and emotion from (prompt, ...) rows."""
    columns = {
        "prompt": [row[0] for row in rows],
        "style": ["plain"] * len(rows),
        "variant": [row[1] for row in rows],
        "turn": [row[2] for row in rows],
        "failure": [row[3] for row in rows],
        "position": ["decision"] * len(rows),
        "n_tokens": [1] * len(rows),
        "token_start": [0] * len(rows),
        "token_end": [1] * len(rows),
    }
    values = np.arange(len(rows)) if values is None else np.asarray(values)
    given = {
        "segments": pa.table(columns),
        "values": values.reshape(-1, 1, 1, 1).astype(np.float32),
        "resid_norm": np.ones((len(rows), 1), np.float32),
        "readers": ("lda",),
        "layers": (3,),
        "emotions": ("calm",),
    }
    return Readings(**{**given, **changes})


TWINS = [
    ("b", "fail", 1, 1.0),
    ("b", "pass", 1, 0.0),
    ("b", "fail", 2, 1.0),
    ("b", "pass", 2, 0.0),
    ("a", "pass", 1, 0.0),
    ("a", "fail", 1, 1.0),
]


@pytest.fixture
def table():
    return synthetic(n_prompts=5)


def test_saved_tables_come_back_exactly(table, tmp_path):
    table.values[0, 0, 0, 0] = np.nan
    back = Readings.load(table.save(tmp_path / "deep" / "before.parquet"))
    np.testing.assert_array_equal(back.values, table.values)
    np.testing.assert_array_equal(back.resid_norm, table.resid_norm)
    assert back.segments.equals(table.segments)
    assert back.meta == table.meta
    axes = ("readers", "layers", "emotions")
    assert all(getattr(back, name) == getattr(table, name) for name in axes)
    assert back.n_missing == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["before.parquet"]


def test_the_long_table_says_what_it_means(table, tmp_path):
    long = pq.read_table(table.save(tmp_path / "x.parquet"))
    assert long.num_rows == table.values.size
    row = {name: long[name][777].as_py() for name in long.column_names}
    index = (
        row["segment"],
        table.readers.index(row["reader"]),
        table.layers.index(row["layer"]),
        table.emotions.index(row["emotion"]),
    )
    assert row["projection"] == table.values[index]
    assert row["cosine"] == pytest.approx(row["projection"] / 12.5)
    assert row["z"] == pytest.approx(row["projection"])
    assert row["prompt"] == table.segments["prompt"][index[0]].as_py()
    assert pa.types.is_dictionary(long.schema.field("emotion").type)
    assert json.loads(long.schema.metadata[b"emoreg"])["arm"] == "before"


def test_z_is_null_without_units(tmp_path):
    long = pq.read_table(synthetic(n_prompts=2, units=False).save(tmp_path / "x"))
    assert long["z"].null_count == long.num_rows


def test_several_row_groups_and_shuffled_rows_still_load(table, tmp_path, monkeypatch):
    monkeypatch.setattr("emoreg.comparison.table_file._ROWS_PER_GROUP", 700)
    path = table.save(tmp_path / "x.parquet")
    assert pq.ParquetFile(path).num_row_groups > 5
    long = pq.read_table(path)
    order = np.random.default_rng(0).permutation(long.num_rows)
    pq.write_table(long.take(order), path)
    back = Readings.load(path)
    np.testing.assert_array_equal(back.values, table.values)
    assert back.segments.equals(table.segments)


def test_damaged_and_foreign_files_are_named(table, tmp_path):
    path = table.save(tmp_path / "x.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"cut.parquet must be a whole parquet file"):
        Readings.load(cut)
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), foreign)
    with pytest.raises(ValueError, match="without columns segment"):
        Readings.load(foreign)
    fewer = tmp_path / "fewer.parquet"
    pq.write_table(pq.read_table(path).slice(1), fewer)
    with pytest.raises(ValueError, match="do not fill the grid"):
        Readings.load(fewer)
    with pytest.raises(FileNotFoundError, match="emoreg measure"):
        Readings.load(tmp_path / "none.parquet")


def test_a_failed_save_leaves_the_old_file(table, tmp_path, monkeypatch):
    path = table.save(tmp_path / "x.parquet")
    old = path.read_bytes()

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        table.save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (3, 4)}, "`values` must have shape"),
        ({"readers": ()}, "`readers` must be distinct and not empty"),
        ({"emotions": ("a", "a")}, "`emotions` must be distinct"),
        ({"segments": pa.table({"prompt": ["a"]})}, "must have the columns"),
        ({"segments": SEGMENT_SCHEMA.empty_table()}, "at least one row"),
        (
            {"values": np.full((6, 1, 1, 1), np.inf, np.float32)},
            "finite or NaN, found 6",
        ),
    ],
)
def test_construction_checks_its_parts(changes, message):
    with pytest.raises(ValueError, match=message):
        small(TWINS, **changes)


def test_meta_must_be_json():
    with pytest.raises(TypeError, match="`meta` must hold JSON values"):
        small(TWINS, meta={"path": np.ones(2)})


def test_twins_average_rounds_so_that_each_prompt_counts_once():
    found = small(TWINS, values=[5, 1, 3, 2, 10, 17]).twin_differences()
    assert found.prompts == ("b", "a")
    np.testing.assert_allclose(found.values.ravel(), [(4 + 1) / 2, 7])
    np.testing.assert_allclose(found.failing.ravel(), [4, 17])
    assert found.rounds.tolist() == [2, 1]


def test_rounds_are_laid_out_with_gaps():
    found = small(TWINS, values=[5, 1, 3, 2, 10, 17]).by_round()
    np.testing.assert_allclose(found.values[:, :, 0, 0, 0], [[4, 1], [7, np.nan]])
    assert found.turns.tolist() == [[1, 2], [1, -1]]


def test_turns_without_known_failure_do_not_count():
    rows = [*TWINS, ("a", "pass", 0, np.nan), ("a", "fail", 0, np.nan)]
    found = small(rows, values=[5, 1, 3, 2, 10, 17, 100, 900]).twin_differences()
    np.testing.assert_allclose(found.values.ravel(), [2.5, 7])


def test_pairs_that_failed_alike_are_left_out():
    rows = [*TWINS[:5], TWINS[5], ("b", "fail", 3, 1.0), ("b", "pass", 3, 1.0)]
    found = small(rows, values=[5, 1, 3, 2, 10, 17, 100, 900]).twin_differences()
    np.testing.assert_allclose(found.values.ravel(), [2.5, 7])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (TWINS[:5], "found only one for `a`"),
        ([TWINS[0], TWINS[2]], "needs both outcome classes, found only 'fail'"),
        ([*TWINS[:3], *TWINS[4:]], "turns in one version only: `b turn 2`"),
        ([*TWINS, TWINS[0]], "found `b`, turn 1, 'fail' twice"),
        ([("a", "", 1, 1.0)], "must hold twins"),
        (
            [("a", "fail", 1, 0.0), ("a", "pass", 1, 0.0)],
            "larger `failure` .* found none for `a`",
        ),
    ],
)
def test_tables_without_whole_twins_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        small(rows).twin_differences()


def test_an_unknown_position_is_named():
    with pytest.raises(ValueError, match=r"one of \['decision'\].* got 'assistant'"):
        small(TWINS).twin_differences("assistant")
