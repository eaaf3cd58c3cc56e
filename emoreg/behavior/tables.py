"""Parquet files of behavior: a table, and what was measured as JSON beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emoreg.vectors.whole_files import write_whole

META_KEY = b"emoreg"


def write_table(path: Path, table: pa.Table, form: str, meta: dict[str, Any]) -> Path:
    """Write a table with its format and meta, whole or not at all."""
    content = json.dumps({"format": form, **meta}).encode()
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({META_KEY: content})
    pq.write_table(marked, sink, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, sink.getvalue().to_pybytes())


def read_table(
    path: Path, form: str, schema: pa.Schema
) -> tuple[pa.Table, dict[str, Any]]:
    """Read a table written by `write_table`, and its meta.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, of another format or lacks columns.
    """
    table, meta = _whole(path)
    missing = _missing(table.column_names, schema.names)
    found = meta.pop("format", None)
    if found != form or missing:
        raise ValueError(
            f"{path} must be a table of the format {form!r} with the columns "
            f"{schema.names}, found {found!r} without {missing or 'its marks'}; pass a "
            "file that this version of emoreg wrote."
        )
    return table.select(schema.names).cast(schema), meta


def format_of(path: Path) -> str:
    """Return the format of a table written by `write_table`; empty of another file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no whole parquet file.
    """
    return str(_whole(path)[1].get("format", ""))


def _whole(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be a table of behavior, found nothing at {path}; write one "
            "with `emoreg behave` or `emoreg behave dose`."
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} must be a whole parquet file, found one that cannot be read "
            f"({error}); it may be truncated: score again or copy it anew."
        ) from error
    return table, json.loads((table.schema.metadata or {}).get(META_KEY, b"{}"))


def _missing(there: Sequence[str], wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if name not in there]
