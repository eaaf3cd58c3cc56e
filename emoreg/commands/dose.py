"""`emoreg behave dose`."""

import argparse
from pathlib import Path
from typing import Any

from emoreg.commands.behave import twins_options
from emoreg.commands.shared import load, model_option, out_option, say, vectors_option
from emoreg.commands.suites import (
    clear,
    corner_cutting_twins,
    interval_text,
    parts_of,
)

SUMMARY = "Margins of a suite while an emotion is pushed, by strength, and their slope."
EXAMPLE = (
    "emoreg behave dose --model demo --vectors vectors.safetensors --emotion desperate "
    "--prompts dev --out dose.parquet"
)
SUITES = ("corner-cutting",)
"""Suites that score margins: those that a dose curve can be of."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    command.add_argument("--adapter", type=Path, help="Folder of a peft adapter.")
    vectors_option(command)
    command.add_argument("--emotion", required=True)
    command.add_argument(
        "--strengths",
        default="-0.1,-0.05,0,0.05,0.1",
        help="In mean residual-stream norms, with commas, as in "
        "--strengths=-0.1,0.1; 0 is always scored.",
    )
    command.add_argument(
        "--reader", help="Other directions: `random` ones are the control."
    )
    command.add_argument("--suite", default=SUITES[0], help=", ".join(SUITES))
    twins_options(command)
    out_option(command)
    command.add_argument(
        "--resume",
        action="store_true",
        help="Go on where a run with this --out was cut off.",
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.behavior.dose import dose_curve
    from emoreg.vectors.emotion_vectors import EmotionVectors
    from emoreg.vectors.records import choose

    choose(options.suite, SUITES, parameter="--suite")
    strengths = _strengths(options.strengths)
    vectors = EmotionVectors.load(options.vectors)
    vectors.emotion_indices([options.emotion])  # before the model loads
    twins = corner_cutting_twins(options)
    parts = parts_of(options, options.out)  # before the model loads
    loaded = load(options)
    curve = dose_curve(
        loaded.model,
        loaded.tokenizer,
        twins,
        vectors,
        emotion=options.emotion,
        strengths=strengths,
        reader=options.reader,
        parts=parts,
        quiet=options.quiet,
    )
    path = curve.save(options.out)
    clear([options.out])
    _say(curve)
    say(f"{len(twins)} twins, failing, after their last round: {path}")


def _say(curve: Any) -> None:
    for strength in curve.strengths:
        honest, corner = curve.likelihoods(strength)
        say(
            f"{curve.emotion} {strength:+g}: margin "
            f"{interval_text(curve.margin(strength))}, against 0 "
            f"{interval_text(curve.change(strength))}; honest {honest:.3f}, "
            f"cornering {corner:.3f} nat per token"
        )
    say(
        f"slope {interval_text(curve.slope())} nat per token and mean residual-stream "
        "norm, a straight line through all strengths"
    )


def _strengths(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"`--strengths` must be numbers with commas between them, found {text!r}. "
            "Write for example --strengths=-0.1,-0.05,0,0.05,0.1"
        ) from None
