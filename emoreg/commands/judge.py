"""`emoreg behave judge`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import load, model_option, out_option, say
from emoreg.commands.suites import interval_text

SUMMARY = "A second opinion on the pressure suite's replies to people, by a model."
EXAMPLE = (
    "emoreg behave judge --reactions before-pressure.parquet --model JUDGE "
    "--out judged.parquet"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument(
        "--reactions",
        type=Path,
        required=True,
        help="Table of `emoreg behave --suite pressure`.",
    )
    model_option(command)
    out_option(command, "The same table with the judge's outcomes.")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.behavior.pressure.judge import judge
    from emoreg.behavior.pressure.reaction_table import Reactions

    reactions = Reactions.load(options.reactions)
    loaded = load(options)
    found = judge(loaded.model, loaded.tokenizer, reactions, quiet=options.quiet)
    found.reactions.save(options.out)
    if found.agreement is None:
        say("Agreement with the rules: a rule holds on fewer than 2 replies")
    else:
        say(
            f"Agreement with the rules: {found.alike} of {found.decided} alike, kappa "
            f"{interval_text(found.agreement)}"
        )
    for name, count in found.undecided.items():
        say(f"{count} on which no rule holds: {name}")
    say(f"The judge's table: {options.out}")
