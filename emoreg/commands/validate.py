"""`emoreg validate`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import load, model_option, say, vectors_option

SUMMARY = "Test emotion vectors in their model: a page with a verdict per emotion."
EXAMPLE = "emoreg validate --model demo --vectors vectors.safetensors --out validation/"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    vectors_option(command)
    command.add_argument("--corpus", type=Path, help="Folder; the packaged one if not.")
    command.add_argument(
        "--norms", type=Path, help="CSV with word, valence and arousal, or Glasgow's."
    )
    command.add_argument("--goemotions", type=Path, help="The GoEmotions folder.")
    command.add_argument("--emobank", type=Path, help="The EmoBank folder.")
    command.add_argument(
        "--cache", type=Path, help="Folder for activations; a second run is quicker."
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, required=True)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.comparison.export import require_writable
    from emoreg.comparison.validate import validate
    from emoreg.residual.store import ActivationStore
    from emoreg.validation.battery import Sources
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.emotion_vectors import EmotionVectors

    vectors = EmotionVectors.load(options.vectors)
    corpus = Corpus(options.corpus) if options.corpus else Corpus.packaged()
    require_writable(options.out)
    sources = Sources(
        norms=options.norms, goemotions=options.goemotions, emobank=options.emobank
    )
    sources.check()  # before the model loads
    loaded = load(options)
    found = validate(
        loaded.model,
        loaded.tokenizer,
        vectors,
        corpus,
        sources=sources,
        seed=options.seed,
        quiet=options.quiet,
        store=ActivationStore(options.cache) if options.cache else None,
    )
    page = found.save(options.out)
    for check in found.checks:
        say(f"{check.verdict:>12}  {check.name}")
    vectors.with_validation(found.summary()).save(options.vectors)
    say(f"{options.vectors} carries this verdict from now on")
    say(found.headline)
    say(f"The report: {page}")
