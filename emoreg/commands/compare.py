"""`emoreg compare`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import named_files, say

SUMMARY = "Compare two or more tables of readings into a report."
EXAMPLE = (
    "emoreg compare before.parquet after.parquet --arm control=control.parquet "
    "--out report/"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    command.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="Another arm; `control` is the one trained without terms.",
    )
    command.add_argument(
        "--gate", type=Path, help="Base readings on `dev`; they say where ratios hold."
    )
    command.add_argument("--out", type=Path, required=True)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.comparison.compare import compare
    from emoreg.comparison.readings import Readings

    arms = {n: Readings.load(file) for n, file in named_files(options.arm).items()}
    comparison = compare(
        Readings.load(options.before),
        Readings.load(options.after),
        arms=arms or None,
        gate=Readings.load(options.gate) if options.gate else None,
    )
    page = comparison.save(options.out)
    say(comparison.verdict)
    say(f"The report: {page}")
