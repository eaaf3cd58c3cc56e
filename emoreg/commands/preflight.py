"""`emoreg preflight`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import (
    load,
    model_option,
    prompts_of,
    prompts_option,
    say,
    vectors_option,
)

SUMMARY = "Say before training whether there is anything to lower, and how far it goes."
EXAMPLE = (
    "emoreg preflight --model demo --vectors vectors.safetensors "
    "--reference reference.safetensors"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    vectors_option(command)
    command.add_argument("--reference", type=Path, required=True)
    prompts_option(command, default="dev")
    command.add_argument("--out", type=Path, help="JSON file with every figure.")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.comparison.preflight import preflight
    from emoreg.training.reference import Reference
    from emoreg.vectors.emotion_vectors import EmotionVectors

    vectors = EmotionVectors.load(options.vectors)
    reference, prompts = Reference.load(options.reference), prompts_of(options)
    loaded = load(options)
    found = preflight(
        loaded.model,
        loaded.tokenizer,
        vectors,
        reference,
        prompts,
        quiet=options.quiet,
    )
    for line in found.lines():
        say(line)
    if options.out:
        say(f"All figures: {found.save(options.out)}")
