"""`emoreg audit`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import named_files, say, vectors_option

SUMMARY = "Try to show that a training only hid what it was to lower."
EXAMPLE = (
    "emoreg audit --before before.parquet --after after.parquet --gate dev.parquet "
    "--arm placebo=placebo.parquet --vectors vectors.safetensors --out audit/"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument(
        "--before",
        type=Path,
        required=True,
        help="Table of `emoreg measure --audit`; its evidence lies beside it.",
    )
    command.add_argument("--after", type=Path, required=True, help="Likewise.")
    command.add_argument(
        "--gate",
        type=Path,
        required=True,
        help="The base model on other prompts (dev); they say where shares hold.",
    )
    command.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="Another table: control, placebo, placebo-2, persisted, or any name.",
    )
    command.add_argument(
        "--conduct",
        type=Path,
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="Tables of `emoreg behave --suite impossible-code` of both models.",
    )
    command.add_argument(
        "--dose",
        type=Path,
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="Dose curves of `emoreg behave dose` of both models.",
    )
    command.add_argument(
        "--cross",
        type=Path,
        nargs=3,
        metavar=("BEFORE", "CROSS", "AFTER"),
        help="Tables of `emoreg measure --generate` of both models, and between them "
        "the base model's reading of what the other one wrote.",
    )
    vectors_option(command)
    command.add_argument("--seed", type=int, default=0, help="Of the bootstraps.")
    command.add_argument("--out", type=Path, required=True)


def run(options: argparse.Namespace) -> int:
    """Run the command; the status is 1 where the verdict is FAIL."""
    from emoreg.behavior.dose import DoseCurve
    from emoreg.behavior.impossible.episode_table import Episodes
    from emoreg.comparison.audit.audit import audit
    from emoreg.comparison.evidence.evidence import Evidence, beside
    from emoreg.comparison.readings import Readings
    from emoreg.vectors.emotion_vectors import EmotionVectors

    arms = named_files(options.arm)
    both = ("before", "after")
    pair = zip(both, options.conduct or (), strict=False)
    played = {name: Episodes.load(path) for name, path in pair}
    pair = zip(both, options.dose or (), strict=False)
    doses = {name: DoseCurve.load(path) for name, path in pair}
    own = zip(("before", "cross", "after"), options.cross or (), strict=False)
    files = {"before": options.before, "after": options.after, **arms}
    found = audit(
        Readings.load(options.before),
        Readings.load(options.after),
        EmotionVectors.load(options.vectors),
        gate=Readings.load(options.gate),
        arms={name: Readings.load(path) for name, path in arms.items()},
        evidence={
            name: Evidence.load(beside(path))
            for name, path in files.items()
            if beside(path).is_file()
        },
        conduct=played,
        doses=doses,
        cross={name: Readings.load(path) for name, path in own},
        seed=options.seed,
    )
    page = found.save(options.out)
    say(found.headline)
    say(f"The page: {page}")
    return int(found.verdict == "FAIL")
