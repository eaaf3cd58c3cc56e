"""`emoreg behave foretell`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import say

SUMMARY = "Whether cheating in the next attempt can be read beforehand."
EXAMPLE = (
    "emoreg behave foretell --episodes before-behavior.parquet --readings e.parquet"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument(
        "--episodes",
        type=Path,
        required=True,
        help="Table of `emoreg behave --suite impossible-code`.",
    )
    command.add_argument(
        "--readings",
        type=Path,
        required=True,
        help="Table of `emoreg measure` of the conversations beside it.",
    )
    command.add_argument("--seed", type=int, default=0, help="Of the bootstrap.")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.behavior.impossible.episode_table import Episodes
    from emoreg.comparison.foretell import foretell
    from emoreg.comparison.readings import Readings
    from emoreg.vectors.corpus import Corpus

    found = foretell(
        Readings.load(options.readings),
        Episodes.load(options.episodes),
        Corpus.packaged().roles().families,
        seed=options.seed,
    )
    for name, area in found.areas.items():
        say(f"{name}: area {area.estimate:.2f} ({area.low:.2f} to {area.high:.2f})")
    say(
        f"{found.cheating} of {found.attempts} attempts cheat; {found.reader} reader, "
        f"layers {', '.join(map(str, found.layers))}; 0.5 is chance"
    )
