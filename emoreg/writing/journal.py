"""What a model answered so far, on disk: what a corpus or episodes are made from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from emoreg.writing.plan import KINDS, STORIES

NAME = "answers.journal"
"""Not `.jsonl`: it is no part of the corpus, whose hash is over such files."""
_CORPUS = (
    *("emotions.json", STORIES),
    *(f"{kind}.jsonl" for kind in KINDS if kind != STORIES),
)


@final
class Journal:
    """Answers by request and attempt, each on disk before it counts.

    A line is one JSON object. The first holds the settings. A last line that was cut,
    by a kill or a full disk, is left out and written anew.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open a folder's journal, or begin one with `settings`.

        Raises:
            ValueError: If the folder can't be written, holds a corpus without a
                journal, or its journal has a broken line or was begun with other
                settings.
        """
        self.path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = _whole_lines(self.path)
        except OSError as error:
            raise ValueError(
                f"{str(folder)!r} must be a folder that can be written: "
                f"{error.strerror}. Choose another one"
            ) from error
        self.answers: dict[tuple[str, int], str] = {}
        if lines:
            _check_settings(lines[0], settings, folder)
            self.answers = {(x["key"], x["attempt"]): x["answer"] for x in lines[1:]}
        else:
            _check_free(folder)
            self._append(dict(settings))

    def add(self, key: str, attempt: int, answer: str) -> None:
        """Keep an answer.

        Raises:
            OSError: If it can't be written; those before it are kept.
        """
        self._append({"key": key, "attempt": attempt, "answer": answer})
        self.answers[key, attempt] = answer

    def _append(self, line: Mapping[str, Any]) -> None:
        written = json.dumps(line, ensure_ascii=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(written.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                f"{str(self.path)!r} must take another line, the system said: "
                f"{error.strerror}. What was written is kept: make room and give the "
                "same command again"
            ) from error


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines that were written whole, and cut off the rest."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [_read(line, n) for n, line in enumerate(whole.splitlines(), start=1)]


def _read(line: bytes, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    needed = {"key", "attempt", "answer"} if number > 1 else set()
    if not isinstance(found, dict) or not needed <= found.keys():
        mend = "Delete the line, and its request is put again"
        raise ValueError(
            f"{NAME}:{number}: every line must be as it was written, found "
            f"{line[:40]!r}. {mend if number > 1 else 'Begin in another folder'}"
        )
    return found


def _check_free(folder: Path) -> None:
    """Refuse to begin where texts are that someone else wrote."""
    there = [name for name in _CORPUS if (folder / name).exists()]
    if there:
        raise ValueError(
            f"{str(folder)!r} must be new or hold a journal of `emoreg stories`, found "
            f"`{there[0]}` and no {NAME}: its texts would be overwritten. Choose "
            "another folder"
        )


def _check_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], folder: Path
) -> None:
    other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if other:
        said = "; ".join(
            f"`{name}` was {before.get(name)!r}, is {now.get(name)!r}"
            for name in other[:3]
        )
        raise ValueError(
            f"{str(folder)!r} was begun with other settings, and all of it must be "
            f"written with one set: {said}. Use the same ones, or another folder"
        )
