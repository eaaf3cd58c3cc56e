"""`emoreg doctor`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import hide_loading_bars, say

SUMMARY = (
    "Try out a training script's own step, without training, and say what to mend."
)
EXAMPLE = (
    "emoreg doctor --model demo --vectors vectors.safetensors "
    "--trainer-script recipes/sft.py -- --report_to wandb"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("--model", help="Passed on to the script, if given.")
    command.add_argument("--vectors", help="Passed on to the script, if given.")
    command.add_argument("--trainer-script", type=Path, required=True)
    command.add_argument(
        "flags", nargs="*", help="After `--`: the script's other flags, as you train."
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from emoreg.training.doctor.doctor import doctor_script

    hide_loading_bars()
    given = {"--model": options.model, "--vectors": options.vectors}
    named = [part for key, v in given.items() if v for part in (key, v)]
    diagnosis = doctor_script(options.trainer_script, [*named, *options.flags])
    say(str(diagnosis))
    return int(diagnosis.failed)
