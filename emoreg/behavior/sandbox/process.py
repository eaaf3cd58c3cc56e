"""One run of the sandbox, seen from outside: its pipes, its time, its memory."""

import json
import os
import re
import selectors
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from emoreg.behavior.sandbox.limits import (
    FLOOD,
    Limits,
    Outcome,
    SandboxError,
    Status,
)

TICK = 0.05
"""Seconds between two looks at memory."""
GRACE = 10.0
"""Seconds that building walls, or taking them down, may take."""
ANSWER = 2**17
"""Bytes that one answer may have."""
_HELD = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


class _Stream:
    """What has been read of one pipe, and how much was dropped."""

    def __init__(self, keep: int) -> None:
        self.keep, self.kept, self.dropped = keep, bytearray(), 0

    def add(self, data: bytes) -> None:
        room = max(0, self.keep - len(self.kept))
        self.kept += data[:room]
        self.dropped += len(data) - min(room, len(data))

    def text(self) -> str:
        return self.kept.decode(errors="replace")

    def line(self) -> bytes | None:
        """Take the first whole line off."""
        end = self.kept.find(b"\n")
        if end < 0:
            return None
        line = bytes(self.kept[:end])
        del self.kept[: end + 1]
        return line


@final
class Process:
    """A run that has been asked of a keeper. Always `close` it."""

    def __init__(
        self,
        door: socket.socket,
        job: Mapping[str, Any],
        *,
        limits: Limits,
        stdin: str = "",
        talk: bool = False,
    ) -> None:
        """Ask for a run and wait until the code has started.

        Args:
            door: The keeper's socket.
            job: What the guard is told.
            limits: What the run may use.
            stdin: What the code can read from its standard input.
            talk: Whether calls go in and answers come out by pipes of their own.

        Raises:
            ConnectionError: If there is no keeper any more.
            SandboxError: If the walls could not be built.
        """
        self._job, self._limits = job, limits
        self._selector = selectors.DefaultSelector()
        self._streams: dict[str, _Stream] = {}
        self._ends: dict[str, int] = {}
        self._waiting = {"stdin": stdin.encode(errors="replace")}
        self.beside: Process | None = None
        """Another run, whose limits hold too while an answer of this is waited for."""
        self._guard, self._started, self._over = 0, False, False
        self._status: int | None = None
        self._killed: Status | None = None
        self._begun = self._looked = time.monotonic()
        self._until = self._begun + GRACE
        theirs = [self._writes("stdin")]
        theirs += [self._reads(name) for name in ("stdout", "stderr", "report")]
        theirs.append(self._writes("control"))
        if talk:
            theirs += [self._writes("ask"), self._reads("answer")]
        try:
            socket.send_fds(door, [b"run"], theirs)
            for end in theirs:
                os.close(end)
            theirs = []
            self._write("control", json.dumps(job).encode() + b"\n")
            self._send_later("stdin")
            while not self._started:
                self._step()
        except BaseException:
            for end in theirs:
                os.close(end)
            self.close()
            raise

    @property
    def killed(self) -> Status | None:
        """For what it was killed, if it was."""
        return self._killed

    def finish(self) -> Outcome:
        """Wait for the end, or bring it about."""
        while not self._over:
            self._step()
        seconds = time.monotonic() - self._begun
        if self._status is None and self._killed is None:
            self._force()
        until = time.monotonic() + 0.5  # a survivor could hold them open for ever
        while {"stdout", "stderr"} & set(self._ends) and time.monotonic() < until:
            self._move(TICK)
        out, err = self._streams["stdout"], self._streams["stderr"]
        code = None
        if self._status is not None:
            code = os.waitstatus_to_exitcode(self._status)
        return Outcome(
            status=self._killed or _judged(code, err.text()),
            returncode=code,
            stdout=out.text(),
            stderr=err.text(),
            stdout_cut=out.dropped,
            stderr_cut=err.dropped,
            seconds=seconds,
            level=self._job["level"],
        )

    def send(self, line: bytes) -> None:
        """Send one line to code that talks; it goes while an answer is waited for."""
        if "ask" in self._ends:
            self._waiting["ask"] = self._waiting.get("ask", b"") + line + b"\n"
            self._send_later("ask")

    def receive(self, until: float) -> bytes | None:
        """Return the next line of code that talks; None if it ended.

        Args:
            until: When it is killed for its time, by the monotonic clock.
        """
        self._until = until
        answers = self._streams["answer"]
        while (line := answers.line()) is None:
            if self._killed or "answer" not in self._ends:
                return None
            self._step()
            if self.beside is not None:
                self.beside._step(wait=0.0)
        return line

    def close(self) -> None:
        """Kill whatever is left, and wait until it is gone."""
        try:
            if not self._over:
                self._order("kill")
                until = time.monotonic() + GRACE
                while not self._over and time.monotonic() < until:
                    self._move(TICK)
                    self._listen(after_all=True)
                if not self._over:
                    self._force()
        finally:
            for name in list(self._ends):
                self._shut(name)
            self._selector.close()

    # -- pipes -------------------------------------------------------------------------

    def _reads(self, name: str) -> int:
        ours, theirs = os.pipe()
        keep = self._limits.output if name in ("stdout", "stderr") else ANSWER
        self._streams[name], self._ends[name] = _Stream(keep), ours
        os.set_blocking(ours, False)
        self._selector.register(ours, selectors.EVENT_READ, name)
        return theirs

    def _writes(self, name: str) -> int:
        theirs, self._ends[name] = os.pipe()
        return theirs

    def _shut(self, name: str) -> None:
        end = self._ends.pop(name)
        if end in self._selector.get_map():
            self._selector.unregister(end)
        os.close(end)

    def _write(self, name: str, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._ends[name], data) :]
        except BrokenPipeError:
            pass  # it ended, which the report tells

    def _send_later(self, name: str) -> None:
        # Never wait for code to read: it may not.
        os.set_blocking(self._ends[name], False)
        if self._ends[name] not in self._selector.get_map():
            self._selector.register(self._ends[name], selectors.EVENT_WRITE, name)

    def _order(self, word: str) -> None:
        # A word, and not the pipe's end alone: a process that another thread forked
        # meanwhile may hold the pipe open.
        self._write("control", word.encode() + b"\n")

    def _move(self, wait: float) -> None:
        """Move what can be moved through the pipes."""
        for key, _ in self._selector.select(wait):
            if key.data in self._waiting:
                self._send_waiting(key.data, key.fd)
            elif data := os.read(key.fd, 2**16):
                self._streams[key.data].add(data)
            else:
                self._shut(key.data)

    def _send_waiting(self, name: str, end: int) -> None:
        try:
            data = self._waiting[name]
            self._waiting[name] = data[os.write(end, data) :] if data else data
        except BrokenPipeError:
            self._shut(name)
            return
        if not self._waiting[name]:
            if name == "stdin":
                self._shut(name)
            else:
                self._selector.unregister(end)

    # -- limits ------------------------------------------------------------------------

    def _step(self, wait: float = TICK) -> None:
        """Move what can be moved; kill what passes its limits."""
        self._move(wait)
        self._listen()
        now = time.monotonic()
        if self._killed is not None:
            if now > self._until + GRACE and not self._over:
                self._force()
                self._over = True
        elif not self._started:
            if self._over or now > self._until:
                raise SandboxError("The guard ended, or hung, before the code began.")
        elif any(self._flooded(name) for name in self._streams):
            self._kill("output")
        elif now > self._until:
            self._kill("timeout")
        elif now - self._looked > TICK:
            self._looked = now
            if _memory_below(self._guard) > self._limits.memory:
                self._kill("memory")

    def _flooded(self, name: str) -> bool:
        stream = self._streams[name]
        if name in ("stdout", "stderr"):
            return stream.dropped > (FLOOD - 1) * stream.keep
        return stream.dropped > 0

    def _listen(self, *, after_all: bool = False) -> None:
        """Take in what the guard reports; `after_all` it only matters that it ends."""
        while (line := self._streams["report"].line()) is not None:
            said = json.loads(line)
            self._over |= "status" in said or "failed" in said
            if not after_all:
                self._hear(said)
        self._over |= "report" not in self._ends

    def _hear(self, said: dict[str, Any]) -> None:
        if "failed" in said:
            raise SandboxError(f"Walls could not be built: {said['failed']}")
        if "status" in said:
            self._status = said["status"]
        elif "started" in said:
            self._started = True
            self._begun = self._looked = time.monotonic()
            self._until = self._begun + self._limits.seconds
        elif not self._started:
            self._guard = int(said["guard"])
            if "namespaces" in self._job["level"]:
                self._say_users()

    def _say_users(self) -> None:
        """Say, from outside, which user the one inside new namespaces is."""
        user = os.geteuid() if self._job["user"] is None else self._job["user"]
        group = os.getegid() if self._job["user"] is None else self._job["user"]
        texts = {
            "setgroups": "deny",
            "uid_map": f"{self._job['inside']} {user} 1",
            "gid_map": f"{self._job['inside']} {group} 1",
        }
        for name, text in texts.items():
            try:
                Path(f"/proc/{self._guard}/{name}").write_text(text)
            except OSError as error:
                raise SandboxError(f"No users could be mapped: {error}") from error
        self._order("go")

    def _kill(self, why: Status) -> None:
        self._killed, self._until = why, time.monotonic()
        self._order("kill")

    def _force(self) -> None:
        """Kill without the guard, which did not do it."""
        if self._guard > 1:
            for pid in [*_below(self._guard), self._guard]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue


def _judged(code: int | None, stderr: str) -> Status:
    if code == 0:
        return "ok"
    if code == -signal.SIGXCPU:
        return "timeout"
    lines = stderr.split()
    if code == -signal.SIGKILL or (lines and lines[-1].startswith("MemoryError")):
        return "memory"
    return "error"


def _below(pid: int) -> list[int]:
    """Return the descendants of a process."""
    found, waiting = [], [pid]
    while waiting and len(found) < 4096:
        folder = f"/proc/{waiting.pop()}/task"
        try:
            for task in os.listdir(folder):
                text = Path(folder, task, "children").read_text()
                waiting += map(int, text.split())
                found += map(int, text.split())
        except OSError:
            continue  # it ended meanwhile
    return found


def _memory_below(pid: int) -> int:
    """Return how many bytes the descendants of a process hold together.

    Files aside. What several of them share counts for each, so it is no less than that.
    """
    total = 0
    for child in _below(pid):
        try:
            text = Path(f"/proc/{child}/status").read_text(errors="replace")
        except OSError:
            continue
        total += sum(map(int, _HELD.findall(text)))
    return total * 1024
