"""`emoreg quickstart`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import hide_loading_bars, say

SUMMARY = "The whole road on the demo model: extract, watch, decouple, compare."
EXAMPLE = "emoreg quickstart --out runs/first"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("--out", type=Path, default=Path("emoreg-quickstart"))
    command.add_argument("--model", default="demo", help="`demo`, folder or hub id.")
    command.add_argument(
        "--full", action="store_true", help="Whole splits and more steps."
    )
    command.add_argument(
        "--emotions", choices=["core", "all"], default="core", help="all is 171."
    )
    command.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from dataclasses import replace

    from emoreg.quickstart.plan import full_plan, quick_plan
    from emoreg.quickstart.run import Quickstart
    from emoreg.vectors.corpus import Corpus

    hide_loading_bars()
    corpus = Corpus.packaged()
    plan = (full_plan if options.full else quick_plan)(corpus)
    if options.emotions == "all":
        plan = replace(plan, emotions=corpus.emotions())
    Quickstart(
        out=options.out,
        plan=plan,
        model=options.model,
        seed=options.seed,
        quiet=options.quiet,
        say=say,
    ).run()
