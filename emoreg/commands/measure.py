"""`emoreg measure`."""

import argparse
from pathlib import Path
from typing import Any

from emoreg.commands.shared import (
    load,
    model_option,
    prompts_of,
    prompts_option,
    say,
    vectors_option,
)

SUMMARY = "Read conversations, teacher-forced, into a table of readings."
EXAMPLE = (
    "emoreg measure --model demo --vectors vectors.safetensors "
    "--reference reference.safetensors --prompts dev --out before.parquet"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    command.add_argument("--adapter", type=Path, help="Folder of a peft adapter.")
    vectors_option(command)
    command.add_argument("--reference", type=Path, help="Gives the table its units.")
    prompts_option(command, default="test")
    command.add_argument("--arm", default="", help="Name of this model in reports.")
    command.add_argument(
        "--guards",
        action="store_true",
        help="KL to the base, loss on text, simple skills and story accuracy too.",
    )
    command.add_argument(
        "--base", help="With --guards: what a model trained whole was before."
    )
    command.add_argument(
        "--audit",
        action="store_true",
        help="Gather what `emoreg audit` needs too, in a file beside the table.",
    )
    command.add_argument(
        "--deflection",
        type=Path,
        help="With --audit: the base model's deflection vectors (`emoreg probes`).",
    )
    command.add_argument("--out", type=Path, required=True)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.comparison.measure import measure
    from emoreg.training.reference import Reference
    from emoreg.vectors.emotion_vectors import EmotionVectors

    vectors = EmotionVectors.load(options.vectors)
    reference = Reference.load(options.reference) if options.reference else None
    prompts = prompts_of(options)
    loaded = load(options)
    guards = _guards(options, loaded, vectors) if options.guards else None
    readings = measure(
        loaded.model,
        loaded.tokenizer,
        prompts,
        vectors,
        reference=reference,
        arm=options.arm,
        guards=guards,
        quiet=options.quiet,
    )
    say(f"{readings.segments.num_rows} segments: {readings.save(options.out)}")
    if options.audit:
        say(f"Evidence: {_evidence(options, loaded, vectors, prompts)}")


def _evidence(
    options: argparse.Namespace, loaded: Any, vectors: Any, prompts: list[Any]
) -> Path:
    from emoreg.comparison.evidence.evidence import beside
    from emoreg.comparison.evidence.gather import gather_evidence
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.emotion_vectors import EmotionVectors

    deflection = options.deflection and EmotionVectors.load(options.deflection)
    found = gather_evidence(
        loaded.model,
        loaded.tokenizer,
        vectors,
        prompts,
        twins=Corpus.packaged().transcripts("train"),
        deflection=deflection,
        quiet=options.quiet,
    )
    return found.save(beside(options.out))


def _guards(options: argparse.Namespace, loaded: Any, vectors: Any) -> dict[str, Any]:
    from emoreg.comparison.guards import guard_rails
    from emoreg.demo import load_any
    from emoreg.vectors.corpus import Corpus

    found = guard_rails(
        loaded.model,
        loaded.tokenizer,
        vectors,
        Corpus.packaged(),
        base=load_any(options.base).model if options.base else None,
        quiet=options.quiet,
    )
    if "kl" not in found:
        say("no KL: nothing says what the model was before; pass --base MODEL")
    return found
