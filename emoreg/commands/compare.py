"""`emoreg compare`."""

import argparse
from pathlib import Path
from typing import Any

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
    command.add_argument(
        "--behavior",
        type=Path,
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="Tables of `emoreg behave` of both models, for a section of the report.",
    )
    command.add_argument(
        "--behavior-arm",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="With --behavior: another arm's.",
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
        behavior=_behavior(options),
        gate=Readings.load(options.gate) if options.gate else None,
    )
    page = comparison.save(options.out)
    say(comparison.verdict)
    say(f"The report: {page}")


def _behavior(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the tables of behavior by arm; None without any."""
    from emoreg.behavior.preferences import Preferences

    for item in options.behavior_arm:
        name, _, file = item.partition("=")
        if not file or name in ("before", "after"):
            raise ValueError(
                "`--behavior-arm` must be NAME=FILE, of an arm besides before and "
                f"after, found {item!r}. Mend it"
            )
    if options.behavior is None:
        if options.behavior_arm:
            raise ValueError(
                "`--behavior-arm` must come with `--behavior BEFORE AFTER`, found "
                "none. Pass both models' tables first"
            )
        return None
    before, after = options.behavior
    files = {"before": before, "after": after, **named_files(options.behavior_arm)}
    return {arm: Preferences.load(file) for arm, file in files.items()}
