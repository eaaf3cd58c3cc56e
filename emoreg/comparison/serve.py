"""A local server of many runs: their page, made anew at each call, and the reports."""

import io
import logging
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

from emoreg.comparison.runs import read_runs
from emoreg.comparison.runs_page import render_runs

_LOG = logging.getLogger(__name__)
SUFFIXES = (".html", ".json", ".png", ".svg")
"""What is served; adapters, tables and logs that lie beside reports are not."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data: blob:"
)
"""A page may run its own script and load its own pictures, and ask for nothing else."""
HOST = "127.0.0.1"


def report_server(folder: str | Path, *, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of a folder's reports that listens on this machine alone.

    Its `/` is the page of all runs; what else it serves are the pages, pictures and
    JSON files below the folder, and nothing that lies elsewhere, by links either.

    Args:
        folder: What `read_runs` takes; it is read anew at each call of `/`.
        port: 0 takes any free one; `server_address` has it.

    Raises:
        ValueError: If `folder` has no report below it, or the port cannot be had.
    """
    root = Path(folder).resolve()
    read_runs(root)

    class Handler(_Reports):
        def __init__(self, *given: Any) -> None:
            self.root = root
            super().__init__(*given, directory=str(root))

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"`port` must be one that is free on {HOST}, found {port} ({error}). Pass "
            "another one, or none"
        ) from error


class _Reports(SimpleHTTPRequestHandler):
    """Answers GET and HEAD; what it does not serve is simply not found."""

    root: Path

    def send_head(self) -> Any:
        """Send the headers; return what is to follow them, None for nothing."""
        # A page of another site could have its own name resolve to this machine.
        host = self.headers.get("Host", "").partition(":")[0]  # port 80 is not named
        if host not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        if self.path.partition("?")[0] == "/":
            return self._overview()
        if not self._served(self.translate_path(self.path)):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Send what keeps a page to itself, then the end of the headers."""
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log a call, for those who debug."""
        _LOG.debug(format, *args)

    def _served(self, name: str) -> bool:
        """Whether a file is one that is served, wherever links lead."""
        if "\0" in name:  # no file has such a name, and asking for one raises
            return False
        path = Path(name)
        real = (path / "index.html" if path.is_dir() else path).resolve()
        inside = real.is_relative_to(self.root) and real.suffix in SUFFIXES
        return inside and real.is_file()

    def _overview(self) -> io.BytesIO | None:
        try:
            page = render_runs(read_runs(self.root), start=PurePosixPath())
        except ValueError:  # the last report was deleted meanwhile
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        content = page.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)
