"""`emoreg probes`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import load, model_option, out_option, say, vectors_option

SUMMARY = "Fit deflection vectors or speaker probes, beside a model's emotion vectors."
EXAMPLE = (
    "emoreg probes --kind deflection --model demo --vectors vectors.safetensors "
    "--out deflection.safetensors"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("--kind", required=True, choices=("deflection", "speakers"))
    model_option(command)
    vectors_option(command)
    command.add_argument("--corpus", type=Path, help="Folder; the packaged one if not.")
    command.add_argument(
        "--source",
        default="masked",
        choices=("masked", "masked_dialogues"),
        help="Of deflection vectors: scenes or dialogues.",
    )
    out_option(command)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.deflection import deflection_vectors
    from emoreg.vectors.emotion_vectors import EmotionVectors
    from emoreg.vectors.speakers import speaker_probes

    vectors = EmotionVectors.load(options.vectors)
    corpus = Corpus(options.corpus) if options.corpus else Corpus.packaged()
    loaded = load(options)
    parts = (loaded.model, loaded.tokenizer, corpus)
    if options.kind == "deflection":
        how = {"source": options.source, "quiet": options.quiet}
        found = deflection_vectors(*parts, vectors, **how)
        left = dict(zip(found.layers, found.provenance["norm_left"], strict=True))
        said = ", ".join(f"{share:.0%} at layer {i}" for i, share in left.items())
        say(f"Left of the norm outside the story space: {said}")
    else:
        found = speaker_probes(*parts, layers=vectors.layers, quiet=options.quiet)
    texts = sum(found.provenance["texts"].values())
    say(f"{len(found.emotions)} emotions from {texts} texts, which is thin")
    say(f"{options.kind}: {found.save(options.out)}")
