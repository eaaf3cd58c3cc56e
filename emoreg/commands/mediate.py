"""`emoreg behave mediate`."""

import argparse
from pathlib import Path

from emoreg.commands.behave import twins_options
from emoreg.commands.shared import load, model_option, say, vectors_option
from emoreg.commands.suites import corner_cutting_twins, interval_text

SUMMARY = "How much of what failure does to corner-cutting goes through the reading."
EXAMPLE = (
    "emoreg behave mediate --model demo --vectors vectors.safetensors "
    "--reference reference.safetensors --prompts dev --out mediation.parquet"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    command.add_argument("--adapter", type=Path, help="Folder of a peft adapter.")
    vectors_option(command)
    command.add_argument(
        "--reference",
        type=Path,
        required=True,
        help="File of `emoreg calibrate`: where readings stand after success.",
    )
    twins_options(command)
    command.add_argument("--out", type=Path, required=True)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.behavior.mediation import mediation
    from emoreg.training.reference import Reference
    from emoreg.vectors.emotion_vectors import EmotionVectors

    vectors = EmotionVectors.load(options.vectors)
    reference = Reference.load(options.reference)
    twins = corner_cutting_twins(options)
    loaded = load(options)
    found = mediation(
        loaded.model,
        loaded.tokenizer,
        twins,
        vectors,
        reference,
        quiet=options.quiet,
    )
    for name, effect in (
        ("passing feedback in place of failing", found.total),
        ("the reading alone set to its level after success", found.indirect),
        ("random directions set so", found.placebo),
        ("the reading beyond random directions", found.beyond_placebo),
    ):
        say(f"{name}: margin {interval_text(effect)} nat per token")
    say(
        f"{len(found.prompts)} twins, after their last round: {found.save(options.out)}"
    )
