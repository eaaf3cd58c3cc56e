"""What a run may use, what came of it, and the levels of isolation there are."""

from dataclasses import dataclass, fields
from typing import Final, Literal, final

Level = Literal["namespaces+seccomp", "namespaces", "landlock+seccomp", "limits"]
"""How code is shut in, strongest first in `LEVELS`."""

LEVELS: Final[dict[Level, str]] = {
    "namespaces+seccomp": "own user, process, network, mount and IPC namespaces, a "
    "read-only root, no system calls that computing does without",
    "namespaces": "own user, process, network, mount and IPC namespaces, a read-only "
    "root",
    "landlock+seccomp": "no file outside the interpreter's and the working folder, no "
    "sockets, no signals to others; other processes' names can be told apart by number",
    "limits": "time, memory, processes and file sizes alone; files and network open",
}
WEAK: Final[frozenset[Level]] = frozenset({"limits"})
"""Levels that are used only where `allow_weak` says so."""

Status = Literal["ok", "error", "timeout", "memory", "output"]
"""How a run ended: by exit code 0; by another or a signal; or killed for its time, its
memory, or how much it wrote."""


class SandboxError(RuntimeError):
    """The sandbox itself is not there or did not work. Never the code's doing alone."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one run may use."""

    seconds: float = 5.0
    """Time by the clock; also processor time of each process, rounded up."""
    memory: int = 512 * 2**20
    """Bytes: of addresses in each process, and of memory in all of them together. The
    sum is looked at every 50 ms, so it may be passed for that long."""
    processes: int = 16
    """Processes and threads at a time."""
    file_bytes: int = 16 * 2**20
    """Bytes in one file."""
    folder_bytes: int = 64 * 2**20
    """Bytes in the working folder; held in namespaces alone."""
    output: int = 64 * 2**10
    """Bytes of each stream that are kept. A run that writes `FLOOD` times as much is
    killed."""
    open_files: int = 64
    """Open files of each process."""

    def __post_init__(self) -> None:
        """Refuse limits that are not above zero."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(
                    f"`{field.name}` must be above 0, found {value!r}. Leave it out "
                    "for the default."
                )


FLOOD: Final = 16


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one run."""

    status: Status
    returncode: int | None
    """Exit code; minus the signal's number if one ended it; None if it was killed."""
    stdout: str
    stderr: str
    stdout_cut: int
    """Bytes that were written beyond those kept, until the end or the kill."""
    stderr_cut: int
    seconds: float
    """From the code's start to its end."""
    level: Level
