"""Read JSON Lines files and say exactly where one is wrong.

Every message names the file and line, what must hold, what was found and what to do.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, final

TEXT: Final = "text"
"""A non-empty string."""
TEXTS: Final = "list of texts"
"""A non-empty list of non-empty strings."""
MESSAGES: Final = "list of messages"
"""A non-empty list of {"role", "content"} with roles user, assistant, system, tool."""
ANYTHING: Final = "anything"
"""A value of any kind."""

_ROLES: Final = ("system", "user", "assistant", "tool")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of a JSON Lines file, with the place it came from."""

    where: str
    """File and line, for example `stories/calm.jsonl:3`."""
    fields: Mapping[str, Any]
    """The line's object."""

    def fail(self, must: str, found: str, do: str) -> NoReturn:
        """Raise a `ValueError` about this line.

        Args:
            must: What must hold, as a sentence without its full stop.
            found: What was found instead.
            do: What to do about it.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.where}: {must}, found {found}. {do}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that proposes the known names closest to `name`."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(f"`{match}`" for match in close) + "?"
    shown = ", ".join(f"`{known_name}`" for known_name in names[:12])
    return f"Known are {shown}" + (", ..." if len(names) > 12 else "") + "."


def choose(name: str, legal: Sequence[str], *, parameter: str = "split") -> str:
    """Return `name` if it is legal.

    Raises:
        ValueError: If it is not; the message names the legal ones.
    """
    if name not in legal:
        options = ", ".join(f"`{option}`" for option in legal)
        raise ValueError(
            f"`{parameter}` must be one of {options}, found `{name}`. Choose one."
        )
    return name


def read_json(path: Path, root: Path) -> Any:
    """Return the content of a JSON file below `root`."""
    name = path.relative_to(root).as_posix()
    try:
        return json.loads(_read_text(path, name))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}:{error.lineno}: the file must be valid JSON, found "
            f"`{error.msg}` at column {error.colno}. Mend that place."
        ) from None


def read_records(
    path: Path, root: Path, *, required: Mapping[str, str]
) -> Iterator[Record]:
    """Yield the records of a JSON Lines file below `root`, each with its place.

    Args:
        path: The file.
        root: The folder that names in messages are relative to.
        required: Kind of each field a record must have: `TEXT`, `TEXTS`, `MESSAGES` or
            `ANYTHING`. Further fields are left alone.

    Raises:
        ValueError: If the file is missing or a line is no object with these fields.
    """
    name = path.relative_to(root).as_posix()
    # Not `splitlines`, which also breaks at signs that JSON allows within a text.
    for number, line in enumerate(_read_text(path, name).split("\n"), start=1):
        if line.strip():
            record = _parse(line, f"{name}:{number}")
            for field, kind in required.items():
                check_field(record, field, kind)
            yield record


def check_field(record: Record, field: str, kind: str) -> None:
    """Raise a `ValueError` unless the record has `field` and it is of `kind`."""
    if field not in record.fields:
        present = ", ".join(f"`{name}`" for name in record.fields)
        record.fail(
            f"the record must have a field `{field}`",
            f"only {present}" if present else "no field at all",
            f"Add `{field}` ({kind})",
        )
    value = record.fields[field]
    if not _is_kind(value, kind):
        record.fail(
            f"`{field}` must be a non-empty {kind}",
            f"{type(value).__name__} {_short(value)}",
            f"Write `{field}` as a {kind}",
        )


def _read_text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(
            f"{name}: there must be this file, found none in `{path.parent}`. Correct "
            "its name, or add it; a corpus needs the files of the packaged one."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: the file must be UTF-8, found byte {error.start} that is not. "
            "Save it as UTF-8."
        ) from None


def _parse(line: str, where: str) -> Record:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: each line must be one JSON object, found `{error.msg}` at "
            f"column {error.colno}. Mend the line or delete it."
        ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: each line must be one JSON object, found a "
            f"{type(value).__name__}. Mend the line or delete it."
        )
    return Record(where=where, fields=value)


def _is_kind(value: object, kind: str) -> bool:
    if kind == TEXT:
        return isinstance(value, str) and bool(value.strip())
    if kind == TEXTS:
        return (
            isinstance(value, list)
            and bool(value)
            and all(_is_kind(item, TEXT) for item in value)
        )
    if kind == MESSAGES:
        return (
            isinstance(value, list)
            and bool(value)
            and all(_is_message(item) for item in value)
        )
    return True


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in _ROLES
        and isinstance(value.get("content"), str)
    )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
