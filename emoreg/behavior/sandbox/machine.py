"""What of this machine the code may see, as whom it runs, and by which interpreter."""

import itertools
import os
import sys
from pathlib import Path
from typing import Final

from emoreg.behavior.sandbox.limits import Level, SandboxError

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ALSO: Final = ("/etc/ld.so.cache", "/nix/store", "/gnu/store")
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_SPARE: Final = 4096
"""Users that runs take turns at, if this is root."""
_HIGH: Final = 2_000_000_000
_COUNT = itertools.count()


def interpreter(level: Level) -> str:
    """Return the Python that a level runs: this one, or the system's.

    Raises:
        SandboxError: If this is no Linux, or there is no Python for another user.
    """
    if sys.platform != "linux":
        raise SandboxError(f"The sandbox needs Linux, found {sys.platform}.")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = Path(sys.base_prefix).resolve() / "bin" / version
    if not own.exists():
        own = Path(sys.executable).resolve()
    if "namespaces" in level or os.geteuid() != 0:
        return str(own)
    for path in (own, Path("/usr/bin/python3").resolve()):
        if path.exists() and _open_to_others(path):
            return str(path)
    raise SandboxError(
        f"As root, code runs as another user, who must be able to run Python; {own} "
        "lies in a folder closed to others, and there is no /usr/bin/python3."
    )


def _open_to_others(path: Path) -> bool:
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def spare_user() -> int | None:
    """Return a user that owns nothing, another one each time; None if not root.

    Root is exempt from the limit on processes, and owns most files.
    """
    if os.geteuid() != 0:
        return None
    extents = [
        tuple(map(int, line.split()))
        for line in Path("/proc/self/uid_map").read_text().splitlines()
    ]
    first, _, length = max(extents, key=lambda extent: extent[2])
    if length < 4 * _SPARE:
        return None  # root of a small namespace alone: a plain user outside
    turn = (os.getpid() * 61 + next(_COUNT)) % _SPARE
    return min(_HIGH, first + length - 2 * _SPARE) + turn


def visible(program: str) -> tuple[list[str], dict[str, str]]:
    """Return the paths that a run may read, and symbolic links among them."""
    prefix = str(Path(program).parent.parent)
    readable, links = [], {}
    for path in _SYSTEM:
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.isdir(path):
            readable.append(path)
    if prefix != "/" and not any(prefix.startswith(f"{path}/") for path in readable):
        readable += [prefix] if prefix not in readable else []
    readable += [path for path in (*_ALSO, *_DEVICES) if os.path.exists(path)]
    return readable, links
