"""What of this machine the code may see, as whom it runs, and by which interpreter."""

import itertools
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from emoreg.behavior.sandbox.limits import Level, SandboxError

# Not all of `/usr`: people keep programs and data in some of its folders.
_SYSTEM: Final = (
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32"),
)
# Not `/dev/zero`: mapped and shared, it is memory that no limit counts.
_ALSO: Final = (
    *("/etc/ld.so.cache", "/usr/share/zoneinfo", "/nix/store", "/gnu/store"),
    *("/dev/null", "/dev/full", "/dev/random", "/dev/urandom"),
)
_OF_PACKAGES: Final = ("site-packages", "dist-packages")
_PACKAGES: Final = Path(__file__).resolve().parents[3]
_SPARE: Final = 4096
"""Users that runs take turns at, if this is root."""
_HIGH: Final = 2_000_000_000
_COUNT = itertools.count()
INSIDE: Final = 1000
"""User and group as which code runs in namespaces of its own."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a run can see of the machine where walls are."""

    readable: list[str]
    """Folders and files, with all that is in them."""
    links: dict[str, str]
    """Symbolic links, as of `/bin` to `usr/bin`."""
    hidden: list[str]
    """Folders below readable ones that are not: installed packages, this one's files
    among them, for those may hold what is to be found out."""


@cache
def view(program: str) -> View:
    """Return what a run by an interpreter can see."""
    prefix = Path(program).parent.parent
    places = [*map(Path, _SYSTEM), *(prefix / name for name in ("bin", "lib", "lib64"))]
    readable, links = [], {}
    for place in places:
        if place.is_symlink():
            links[str(place)] = os.readlink(place)
        elif place.is_dir() and str(place) not in readable:
            readable.append(str(place))
    readable += [path for path in _ALSO if os.path.exists(path)]
    libraries = [path for path in readable if path.endswith(("/lib", "/lib64"))]
    packages = [
        str(found)
        for library in libraries
        for name in _OF_PACKAGES
        for found in Path(library).glob(f"python3*/{name}")
    ]
    if any(_PACKAGES.is_relative_to(path) for path in readable):
        packages.append(str(_PACKAGES))
    return View(readable=readable, links=links, hidden=sorted({*packages}))
