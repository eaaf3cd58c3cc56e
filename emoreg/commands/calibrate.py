"""`emoreg calibrate`."""

import argparse

from emoreg.commands.shared import (
    load,
    model_option,
    out_option,
    prompts_of,
    prompts_option,
    say,
    vectors_option,
)

SUMMARY = "Measure units and success level on training twins."
EXAMPLE = (
    "emoreg calibrate --model demo --vectors vectors.safetensors "
    "--out reference.safetensors"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    vectors_option(command)
    prompts_option(command, default="train")
    out_option(command)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.training.reference import calibrate
    from emoreg.vectors.emotion_vectors import EmotionVectors

    vectors = EmotionVectors.load(options.vectors)
    prompts = prompts_of(options)
    loaded = load(options)
    reference = calibrate(
        loaded.model, loaded.tokenizer, prompts, vectors, quiet=options.quiet
    )
    path = reference.save(options.out)
    say(f"{reference.provenance['twins']} twins: {path}")
    layer = reference.plan.loss[-1]
    for emotion in ("desperate", "calm"):
        if emotion in reference.emotions:
            at = {"reader": "lda", "layers": [layer], "emotions": [emotion]}
            gap = float(reference.unit("gap", **at) / reference.unit("sigma_ref", **at))
            say(f"{emotion} at layer {layer}: failure slope {gap:+.2f} sigma_ref")
