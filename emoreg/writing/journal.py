"""What a model answered so far, on disk: the truth that a corpus is made from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

NAME = "answers.journal"
"""Not `.jsonl`: it is no part of the corpus, whose hash is over such files."""


@final
class Journal:
    """Answers by request and attempt, each on disk before it counts.

    A line is one JSON object. The first holds the settings. A last line that was cut,
    by a kill or a full disk, is left out and written anew.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open a folder's journal, or begin one with `settings`.

        Raises:
            ValueError: If the folder can't be written, or its journal was begun with
                other settings.
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
            self._append(dict(settings))

    def add(self, key: str, attempt: int, answer: str) -> None:
        """Keep an answer.

        Raises:
            OSError: If it can't be written.
        """
        self._append({"key": key, "attempt": attempt, "answer": answer})
        self.answers[key, attempt] = answer

    def _append(self, line: Mapping[str, Any]) -> None:
        written = json.dumps(line, ensure_ascii=False) + "\n"
        with self.path.open("ab") as file:
            file.write(written.encode())
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines that were written whole, and cut off the rest."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


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
            f"{str(folder)!r} was begun with other settings, and one corpus must be "
            f"written with one set: {said}. Use the same ones, or another folder"
        )
