"""`emoreg report serve`."""

import argparse
from contextlib import suppress
from pathlib import Path

from emoreg.commands.shared import say

SUMMARY = "Show the reports below a folder on this machine, at an address of its own."
EXAMPLE = "emoreg report serve runs/"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument(
        "folder", type=Path, help="What has a report or an audit below it."
    )
    command.add_argument(
        "--port", type=int, default=0, help="Of the address; any free one if not."
    )


def run(options: argparse.Namespace) -> None:
    """Run the command until it is interrupted."""
    from emoreg.comparison.serve import report_server

    with report_server(options.folder, port=options.port) as server:
        host, port = server.server_address[:2]
        say(f"http://{host}:{port}/ until Ctrl+C")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
