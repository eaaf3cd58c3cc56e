"""A file beside the checkpoints that holds every log line of ours, as JSON Lines."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

NAME = "emoreg_log.jsonl"


@final
class LogFile:
    """Appends log lines; a resumed run goes on where its checkpoint was.

    The first line is a head, without readings. A number that is not finite is null,
    since JSON has none. A line is written by one call, so a process that is killed
    leaves at most a part of the last one, which is dropped when training begins again.
    """

    def __init__(self, folder: str | Path) -> None:
        """Choose the folder; nothing is written before the first line."""
        self.path = Path(folder, NAME)

    def begin(self, step: int, head: Mapping[str, Any]) -> None:
        """Make the file end at `step`, where training starts.

        What an interrupted run wrote after its checkpoint is dropped, since it will be
        written again. A run that starts at 0 leaves the file of an earlier one beside
        its own, numbered.
        """
        head = json.loads(_text(head))
        heads: list[dict[str, Any]] = []
        later = False
        if self.path.exists():
            temporary = self.path.with_name(f".{NAME}")
            with self.path.open("rb") as old, temporary.open("wb") as new:
                for raw in old:
                    line = _parsed(raw)
                    if line is None or line["step"] > step:
                        later = True
                        continue
                    new.write(raw)
                    if "bins" in line:
                        heads.append({k: v for k, v in line.items() if k != "step"})
            if step == 0 and (heads or later):
                os.replace(self.path, self._free_name())
                temporary.unlink()
                heads = []
            else:
                os.replace(temporary, self.path)
        if head not in heads:
            self.write({"step": step, **head})

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, which must say its `step`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = _text(line) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(("" if self._whole() else "\n").encode() + text.encode())

    def _whole(self) -> bool:
        """Return whether the file ends with a whole line."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) in (b"", b"\n")

    def _free_name(self) -> Path:
        number = 1
        while (free := self.path.with_suffix(f".{number}.jsonl")).exists():
            number += 1
        return free


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(line), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return the value with None in place of each number that is not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """Return a line's object; None where it was cut off."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "step" in line else None
