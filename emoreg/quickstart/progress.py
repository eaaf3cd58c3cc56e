"""Which stages of an interrupted run are finished, so that the next one goes on."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final


@final
class Progress:
    """Finished stages with their seconds, kept in a file as long as the run lasts.

    A run with other settings begins anew: what it finds belongs to another run.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Read `path`, if it was written under the same `settings`."""
        text = json.dumps(settings, sort_keys=True, default=str)
        self._path = path
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._seconds: dict[str, float] = {}
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            return
        if isinstance(found, dict) and found.get("key") == self._key:
            self._seconds = dict(found["seconds"])

    def seconds(self, stage: str) -> float | None:
        """Return what a finished stage took, None if it is not finished."""
        return self._seconds.get(stage)

    def finish(self, stage: str, seconds: float) -> None:
        """Note a finished stage, whose files are on disk by now."""
        self._seconds[stage] = seconds
        kept = {"key": self._key, "seconds": self._seconds}
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(kept, indent=1))
        os.replace(temporary, self._path)

    def clear(self) -> None:
        """Forget everything: the run is over, and the next one measures anew."""
        self._path.unlink(missing_ok=True)
