"""`emoreg compare`."""

import argparse
from pathlib import Path
from typing import Any

from emoreg.commands.measuring import (
    check_asked,
    measured_pair,
    measuring_options,
    say_strip,
)
from emoreg.commands.shared import named_files, refuse_idle, say
from emoreg.commands.suites import interval_text

SUMMARY = "Compare tables, a model with its adapter, its checkpoints, or many runs."
EXAMPLE = (
    "emoreg compare before.parquet after.parquet --arm control=control.parquet "
    "--out report/"
)
PARTS = ("total", "text", "state")


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("before", type=Path, nargs="?", help="A table.")
    command.add_argument("after", type=Path, nargs="?", help="A table.")
    command.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="In place of tables: one page of all reports and audits below a folder.",
    )
    measuring_options(command)
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
        "--cross",
        type=Path,
        help="With tables of `measure --generate`: the first model's reading of what "
        "the second one wrote; tells words from state.",
    )
    command.add_argument(
        "--behavior",
        type=Path,
        nargs=2,
        action="append",
        default=[],
        metavar=("BEFORE", "AFTER"),
        help="Tables of `emoreg behave` of both models, for a section of the report; "
        "once for each suite.",
    )
    command.add_argument(
        "--behavior-arm",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="With --behavior: another arm's.",
    )
    command.add_argument(
        "--card",
        type=Path,
        metavar="FOLDER",
        help="Put a section into the model card of this model or adapter.",
    )
    command.add_argument("--out", type=Path, required=True)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.comparison.compare import compare
    from emoreg.comparison.readings import Readings
    from emoreg.statistics.threads import in_threads

    if options.runs:
        _say_runs(options)
        return
    check_asked(options)
    gate = Readings.load(options.gate) if options.gate else None
    if options.checkpoints:
        say_strip(options, gate)
        return
    behavior: Any = _behavior(options)  # refused before anything is measured
    arms = {n: Readings.load(file) for n, file in named_files(options.arm).items()}
    if options.adapter:
        before, after = measured_pair(options)
    else:
        before, after = in_threads(Readings.load, (options.before, options.after))
    cross = Readings.load(options.cross) if options.cross else None
    more: Any = {"gate": gate, "cross": cross}
    pressure = behavior.pop("pressure", {})
    comparison = compare(before, after, arms=arms or None, **behavior, **more)
    comparison = comparison.with_pressure(pressure)
    page = comparison.save(options.out)
    say(comparison.verdict)
    _say_cross(comparison.cross)
    say(f"The report: {page}")
    if options.card:
        from emoreg.comparison.card import into_card

        say(f"The card: {into_card(comparison, options.card)}")


def _say_cross(found: Any) -> None:
    """Say how the change of each target's slope divides, if that was asked for."""
    for row in found.of("slope") if found else ():
        parts = (f"{n} {interval_text(getattr(row.split, n))}" for n in PARTS)
        say(f"{row.target}, own text: {', '.join(parts)}")


def _say_runs(options: argparse.Namespace) -> None:
    from emoreg.comparison.runs import read_runs

    given = (options.before, options.adapter, options.checkpoints)
    if any(part is not None for part in given):
        raise ValueError(
            "`--runs` must stand without tables, `--adapter` and `--checkpoints`: it "
            "reads reports that are there. Leave one of them out"
        )
    named = ("arm", "gate", "cross", "behavior", "behavior_arm", "card", "vectors")
    measured = ("reference", "model", "prompts", "rounds", "guards", "threshold")
    refuse_idle(options, (*named, *measured), "tables or models, in place of `--runs`")
    found = read_runs(options.runs)
    page = found.save(options.out)
    for path, why in found.skipped.items():
        say(f"Not read: {path}, {why}")
    say(f"{len(found.runs)} reports: {page}")


def _behavior(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the tables of behavior, by suite and arm."""
    for item in options.behavior_arm:
        name, _, file = item.partition("=")
        if not file or name in ("before", "after"):
            raise ValueError(
                "`--behavior-arm` must be NAME=FILE, of an arm besides before and "
                f"after, found {item!r}. Mend it"
            )
    if options.behavior_arm and not options.behavior:
        raise ValueError(
            "`--behavior-arm` must come with `--behavior BEFORE AFTER`, found none. "
            "Pass both models' tables first"
        )
    found: dict[str, dict[str, Any]] = {}
    named = [named_files([item]) for item in options.behavior_arm]
    pairs = [{"before": b, "after": a} for b, a in options.behavior]
    for arm, file in (item for files in (*pairs, *named) for item in files.items()):
        suite, table = _table(file)
        if arm in found.setdefault(suite, {}):
            raise ValueError(
                "each arm must have one table of a suite, found two of "
                f"`{arm}`. Leave one out"
            )
        found[suite][arm] = table
    return found


def _table(file: Path) -> tuple[str, Any]:
    """Return which section of the report a table of `emoreg behave` is for, and it."""
    from emoreg.behavior.impossible.episode_table import FORMAT, Episodes
    from emoreg.behavior.preferences import Preferences
    from emoreg.behavior.pressure import reaction_table
    from emoreg.behavior.tables import format_of

    form = format_of(file)
    if form == FORMAT:
        return "conduct", Episodes.load(file)
    if form == reaction_table.FORMAT:
        return "pressure", reaction_table.Reactions.load(file)
    return "behavior", Preferences.load(file)
