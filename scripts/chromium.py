"""A headless Chromium that is spoken to over two pipes, for tests and benchmarks.

The protocol is Chromium's own (https://chromedevtools.github.io/devtools-protocol/):
JSON messages that end in a null byte. Nothing else is needed, and no port is opened.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which a container's root user cannot have
    "--disable-gpu",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    # No name is looked up, whatever a page asks for; this machine can be asked.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
PATIENCE = 120.0
"""Seconds after which an answer is given up."""


def found() -> str | None:
    """Return the path of a Chromium, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(eq=False)
class Page:
    """One tab: what it was told, and every event that it reported."""

    browser: "Browser"
    session: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        return self.browser.call(method, parameters, session=self.session)

    def look(
        self,
        *,
        width: int = 1400,
        height: int = 900,
        dark: bool = False,
        paper: bool = False,
    ) -> None:
        """Set the window's size in pixels, the colour scheme and the medium."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        medium = "print" if paper else ""
        self.call("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def open(self, address: str, *, settle: float = 0.3) -> None:
        """Load an address, wait for it and for what it starts by itself."""
        self.events.clear()
        self.call("Page.bringToFront")  # a tab behind another one draws nothing
        self.call("Page.navigate", url=address)
        self.browser.wait(lambda: self.named("Page.loadEventFired") != [])
        self.browser.listen(settle)

    def named(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of all events of a name since the page was opened."""
        return [e["params"] for e in self.events if e["method"] == method]

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited if it is a promise."""
        found = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for, itself among them."""
        sent = self.named("Network.requestWillBeSent")
        return [event["request"]["url"] for event in sent]

    def errors(self) -> list[str]:
        """Return what was thrown, or written to the console as an error."""
        thrown = [
            event["exceptionDetails"].get("exception", {}).get("description", "")
            or event["exceptionDetails"]["text"]
            for event in self.named("Runtime.exceptionThrown")
        ]
        said = [
            str([part.get("value", part.get("description")) for part in event["args"]])
            for event in self.named("Runtime.consoleAPICalled")
            if event["type"] in ("error", "assert")
        ]
        logged = [
            f"{event['entry']['text']} {event['entry'].get('url', '')}"
            for event in self.named("Log.entryAdded")
            if event["entry"]["level"] == "error"
        ]
        return thrown + said + logged


class Browser:
    """A running Chromium with a profile of its own in a temporary folder."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = _high_pipe()
        self._read, to_write = _high_pipe()
        quiet = (os.devnull, os.O_RDWR, 0)
        self._process = os.posix_spawn(
            program,
            [program, *FLAGS, f"--user-data-dir={profile}"],
            os.environ,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, end, *quiet) for end in (0, 1, 2)),
                # Chromium reads commands from descriptor 3 and answers on 4.
                (os.POSIX_SPAWN_DUP2, to_read, 3),
                (os.POSIX_SPAWN_DUP2, to_write, 4),
            ],
            setsid=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._pages: dict[str, Page] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._buffer, self._last = b"", 0

    def page(self, *, scripts: bool = True) -> Page:
        """Open a tab and report its network, console and load events."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        told = {"targetId": target, "flatten": True}
        session = self.call("Target.attachToTarget", told)["sessionId"]
        page = self._pages[session] = Page(browser=self, session=session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        if not scripts:
            page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.look()
        return page

    def call(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        """Send a command and return its result."""
        self._last += 1
        number = self._last
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def wait(self, done: Any) -> None:
        """Listen until something is so."""
        until = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > until:
                raise TimeoutError(f"no answer within {PATIENCE:.0f} s")
            self.listen(0.05)

    def listen(self, seconds: float) -> None:
        """Take what comes within so many seconds; returns at once after some did."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._read], [], [], left)[0]:
                return
            part = os.read(self._read, 2**20)
            if not part:
                raise RuntimeError("the browser has ended")
            *whole, self._buffer = (self._buffer + part).split(b"\0")
            for message in whole:
                self._take(json.loads(message))
            if seconds <= 0.05:
                return

    def close(self) -> None:
        """End the browser and what it started."""
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._read)
        os.close(self._write)

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
        elif message.get("sessionId") in self._pages:
            self._pages[message["sessionId"]].events.append(message)


def _high_pipe() -> tuple[int, int]:
    """Return the ends of a pipe, with numbers that leave 3 and 4 free."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return high[0], high[1]


@contextmanager
def running(program: str) -> Iterator[Browser]:
    """Run a browser for as long as the block does."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, Path(profile))
        try:
            yield browser
        finally:
            browser.close()
