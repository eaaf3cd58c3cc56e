"""`emoreg behave regrade`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import out_option, say, weak_sandbox_option
from emoreg.commands.suites import save_episodes, say_rates, task_sandbox

SUMMARY = "Episodes graded again by the rules as they are now, nothing written anew."
EXAMPLE = (
    "emoreg behave regrade --episodes before-behavior.parquet --out regraded.parquet"
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
        "--tasks", type=Path, help="The .jsonl file they are of, if it was your own."
    )
    weak_sandbox_option(command)
    out_option(command, "The same table with the new grades.")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.behavior.impossible.episode_table import Episodes
    from emoreg.behavior.impossible.regrade import regrade
    from emoreg.behavior.impossible.tasks import load_tasks

    table, tasks = Episodes.load(options.episodes), load_tasks(options.tasks)
    with task_sandbox(options) as sandbox:
        found = regrade(table, tasks, sandbox, quiet=options.quiet)
    save_episodes(found, options.out)
    pairs = zip(table.episodes, found.episodes, strict=True)
    changed = [(old, new) for old, new in pairs if old.conduct != new.conduct]
    for old, new in changed:
        say(f"{new.name}: {old.conduct}, now {new.conduct} ({new.reason})")
    say_rates(found)
    say(f"{len(changed)} of {len(found)} grades changed: {options.out}")
