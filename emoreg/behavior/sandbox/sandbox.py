"""The sandbox: the strongest walls that work on this machine, and runs behind them."""

import atexit
import logging
import math
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Final, final

from emoreg.behavior.sandbox.limits import (
    LEVELS,
    WEAK,
    Level,
    Limits,
    Outcome,
    SandboxError,
)
from emoreg.behavior.sandbox.machine import INSIDE, interpreter, spare_user, view
from emoreg.behavior.sandbox.process import Process

_LOGGER = logging.getLogger(__name__)
_PACKAGES: Final = str(Path(__file__).resolve().parents[3])
_KEEPER: Final = (
    "import sys; sys.path.append(sys.argv[2]); "
    "from emoreg.behavior.sandbox.keeper import main; main(int(sys.argv[1]))"
)
# No site, so no packages; the folder of the program stays importable.
_FLAGS: Final = ("-s", "-S", "-B")
# Tries what the level promises. The last line says what did not hold.
_TRIAL: Final = """
import os, socket, sys, time
level, broken = sys.argv[1], []
def allowed(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True
if level != "limits":
    if allowed(lambda: os.listdir("/proc/1")):
        broken.append("it sees other processes")
    if allowed(lambda: open("/emoreg-trial", "w")):
        broken.append("it can write outside")
    def connect():
        with socket.socket() as one:
            one.settimeout(0.2)
            one.connect(("127.0.0.1", 9))
    try:
        connect()
        broken.append("it reaches the network")
    except ConnectionRefusedError:
        broken.append("it reaches the network")
    except OSError:
        pass
made = 0
try:
    while made < 8:
        if os.fork() == 0:
            time.sleep(10)
            os._exit(0)
        made += 1
    broken.append("it can start any number of processes")
except OSError:
    pass
print("; ".join(broken) or "walls hold")
"""


@final
class Sandbox:
    """Runs code that nobody has read, as far from everything as the machine allows.

        sandbox = Sandbox(limits=Limits(seconds=2.0))
        outcome = sandbox.run({"main.py": "print(6 * 7)"}, ["python", "main.py"])

    The level is chosen by trying: a level counts if a run at it works, here and now.
    It is logged once and stands in every outcome. What each level stops, and what none
    stops, is in `docs/sandbox.md`.

    Runs of one sandbox may overlap in threads. Linux alone: elsewhere no level works.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        level: Level | None = None,
        allow_weak: bool = False,
    ) -> None:
        """Choose the level and start the keeper.

        Args:
            limits: What a run may use.
            level: A level to use instead of the strongest that works.
            allow_weak: Whether a level will do that leaves files and network open.

        Raises:
            SandboxError: If no level works, the one asked for does not, or it is weak
                and `allow_weak` does not say that this will do.
        """
        self._set_up(_chosen(level, allow_weak), limits or Limits())
        _LOGGER.info(
            "Code runs at level %s (%s), by %s.",
            *(self.level, LEVELS[self.level], self._interpreter),
        )

    def _set_up(self, level: Level, limits: Limits) -> None:
        self.level: Level = level
        self.limits = limits
        self._interpreter = interpreter(level)
        self._keeper: _Keeper | None = None
        self._lock = threading.Lock()

    @classmethod
    def _untried(cls, level: Level) -> "Sandbox":
        """Return a sandbox to try a level with."""
        sandbox = cls.__new__(cls)
        sandbox._set_up(level, Limits(processes=4))
        return sandbox

    def run(
        self, files: Mapping[str, str], command: Sequence[str], *, stdin: str = ""
    ) -> Outcome:
        """Run a command in a folder that holds `files` and nothing else.

        Args:
            files: Texts by relative path.
            command: Program and arguments. `python` is the sandbox's interpreter, with
                the standard library alone; other programs by absolute path.
            stdin: What can be read from standard input.

        Raises:
            SandboxError: If the walls could not be built this time.
            ValueError: If a path leads out of the folder, or there is no command.
        """
        if not command:
            raise ValueError(
                'A run needs a command, found none. Give ["python", "main.py"].'
            )
        program = [*command]
        if program[0] == "python":
            program[:1] = [self._interpreter, *_FLAGS]
        with self.start(files, command=program, stdin=stdin) as process:
            return process.finish()

    @contextmanager
    def start(
        self,
        files: Mapping[str, str],
        *,
        command: Sequence[str] | None = None,
        stdin: str = "",
        main: str = "",
        asks: bool = False,
    ) -> Iterator[Process]:
        """Start a command, or the answering of calls to the file `main`.

        With `asks`, `main` is tests, which run at once and ask for calls themselves.
        Everything that was started has ended when the context is left.
        """
        _check_paths(files)
        folder = self._folder()
        try:
            job = self._job(files, folder)
            job["command"] = None if command is None else [*command]
            if command is None:
                job |= {"source": files[main], "main": main, "asks": asks}
            process = self._ask(job, stdin, talk=command is None)
            try:
                yield process
            finally:
                process.close()
        finally:
            if folder is not None:
                _remove(folder[0])

    def close(self) -> None:
        """End the keeper. The next run starts a new one."""
        with self._lock:
            if self._keeper is not None:
                self._keeper.close()
                self._keeper = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, job: Mapping[str, Any], stdin: str, talk: bool) -> Process:
        for last in (False, True):
            with self._lock:
                if self._keeper is None:
                    self._keeper = _Keeper(self._interpreter)
                keeper = self._keeper
            try:
                return Process(
                    keeper.door, job, limits=self.limits, stdin=stdin, talk=talk
                )
            except OSError as error:
                self.close()
                if last:
                    raise SandboxError(f"The keeper does not run: {error}") from error
        raise AssertionError

    def _folder(self) -> tuple[str, int | None] | None:
        """Return a folder and its user, where the level has none of its own."""
        user = spare_user()
        if "namespaces" in self.level:
            return None
        folder = tempfile.mkdtemp(prefix="emoreg-sandbox-")
        if user is not None:
            os.chown(folder, user, user)
        return folder, user

    def _job(
        self, files: Mapping[str, str], folder: tuple[str, int | None] | None
    ) -> dict[str, Any]:
        limits, inside = self.limits, folder is None
        place, user = ("/work", spare_user()) if folder is None else folder
        seen = view(self._interpreter)
        # In namespaces, their first process counts too, and the guard if it is the
        # same user; elsewhere the keeper adds what the user has beside.
        others = (1 if user is not None else 2) if inside else 0
        return {
            "level": self.level,
            "files": dict(files),
            "folder": place,
            "user": user,
            "inside": INSIDE,
            "folder_bytes": limits.folder_bytes,
            "readable": seen.readable,
            "links": seen.links,
            "hidden": seen.hidden,
            "environment": {
                "PATH": "/usr/bin:/bin",
                "HOME": place,
                "TMPDIR": place,
                "LANG": "C.UTF-8",
                "PYTHONHASHSEED": "0",
            },
            "limits": {
                "RLIMIT_AS": limits.memory,
                # A second more than the clock allows, which ends it first and says so.
                "RLIMIT_CPU": math.ceil(limits.seconds) + 1,
                "RLIMIT_NPROC": limits.processes + others,
                "RLIMIT_FSIZE": limits.file_bytes,
                "RLIMIT_NOFILE": limits.open_files,
                "RLIMIT_CORE": 0,
                "RLIMIT_MSGQUEUE": 0,
            },
        }


class _Keeper:
    """The keeper's process and the socket to it."""

    def __init__(self, interpreter: str) -> None:
        self.door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [interpreter, *_FLAGS, "-c", _KEEPER, str(theirs.fileno()), _PACKAGES],
                pass_fds=[theirs.fileno()],
                env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        atexit.register(self.close)

    def close(self) -> None:
        atexit.unregister(self.close)
        self.door.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@cache
def why_not(level: Level) -> str | None:
    """Return why a level does not work on this machine; None if it does.

    It is tried once per process, by code that attempts what the level should stop.
    """
    try:
        with Sandbox._untried(level) as sandbox:
            command = ["python", "trial.py", level]
            outcome = sandbox.run({"trial.py": _TRIAL}, command)
    except (SandboxError, OSError) as error:
        return str(error)
    said = outcome.stdout.strip()
    if said == "walls hold":
        return None
    last = outcome.stderr.strip().splitlines()[-1:]
    return said or f"a trial ended by {outcome.status} {' '.join(last)}".strip()


def working_levels() -> list[Level]:
    """Return the levels that work on this machine, strongest first."""
    return [level for level in LEVELS if why_not(level) is None]


def _chosen(level: Level | None, allow_weak: bool) -> Level:
    if level is not None and level not in LEVELS:
        raise SandboxError(
            f"`level` must be one of {', '.join(LEVELS)}, found {level!r}."
        )
    tried: list[Level] = [*LEVELS] if level is None else [level]
    reasons = []
    for candidate in tried:
        if candidate in WEAK and not allow_weak:
            reasons.append(f"{candidate}: leaves files and network open")
        elif (reason := why_not(candidate)) is None:
            return candidate
        else:
            reasons.append(f"{candidate}: {reason}")
    raise SandboxError(
        "Code of a model must be run behind walls, and none of these will do here: "
        f"{'; '.join(reasons)}. Use a machine or container that allows user "
        "namespaces or has Linux 6.12 with Landlock and libseccomp. Where nothing can "
        "be lost, as in a container without network or secrets, `allow_weak=True` "
        "makes do with limits on time, memory and processes."
    )


def _check_paths(files: Mapping[str, str]) -> None:
    for name in files:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(
                "Files must have relative paths inside the working folder, found "
                f"{name!r}. Name it as in `main.py` or `data/rows.csv`."
            )


def _remove(folder: str) -> None:
    """Remove a folder, however deep and whatever the code has done to it."""
    remove = ["rm", "-rf", "--", folder]
    if subprocess.run(remove, stderr=subprocess.DEVNULL).returncode == 0:
        return
    opened = ["chmod", "-R", "u+rwX", "--", folder]
    subprocess.run(opened, stderr=subprocess.DEVNULL)
    if subprocess.run(remove, stderr=subprocess.DEVNULL).returncode:
        _LOGGER.warning("The sandbox's folder %s could not be removed.", folder)
