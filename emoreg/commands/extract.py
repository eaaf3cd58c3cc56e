"""`emoreg extract`."""

import argparse
from pathlib import Path
from typing import Any

from emoreg.commands.shared import emotions_of, load, model_option, out_option, say
from emoreg.commands.suites import parts_of

SUMMARY = "Fit emotion vectors for a model and test them on held-out stories."
EXAMPLE = "emoreg extract --model demo --out vectors.safetensors"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    out_option(command)
    command.add_argument("--corpus", type=Path, help="Folder; the packaged one if not.")
    command.add_argument(
        "--emotions", nargs="+", help="Names, `core`, or `all` (the default)."
    )
    command.add_argument("--layers", type=int, nargs="+", help="Decoder blocks.")
    command.add_argument(
        "--denoise", type=float, default=0.5, help="Neutral variance removed, [0, 1)."
    )
    command.add_argument(
        "--goemotions",
        type=Path,
        help="The GoEmotions folder, for audit readers of what people wrote.",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="Go on where a run with this --out was cut off.",
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.residual.processes import launched

    with launched() as share:
        _extract(options, share)


def _extract(options: argparse.Namespace, share: Any) -> None:
    from emoreg.residual.layers import LayerPlan, num_layers
    from emoreg.residual.store import ActivationStore
    from emoreg.vectors.accuracy import accuracy_lines
    from emoreg.vectors.audit_readers import audit_lines
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.extract import extract
    from emoreg.vectors.pooled import share_stories

    corpus = Corpus(options.corpus) if options.corpus else Corpus.packaged()
    emotions = emotions_of(corpus, options.emotions)
    parts = ActivationStore(parts_of(options, options.out))
    share.wait()  # all have looked whether it is there, before one writes
    if not options.resume and share.first:
        parts.clear()  # empty: it was made to see whether it can be
    share.wait()
    loaded = load(options)
    if share.processes > 1:
        depth = num_layers(loaded.model)
        share_stories(
            loaded.model,
            loaded.tokenizer,
            corpus.stories(emotions, split="all"),
            options.layers or LayerPlan.for_depth(depth).monitor,
            store=parts,
            share=share,
            quiet=options.quiet or not share.first,
        )
        if not share.first:
            return
    extraction = extract(
        loaded.model,
        loaded.tokenizer,
        corpus,
        emotions=emotions,
        layers=options.layers,
        denoise=options.denoise,
        quiet=options.quiet,
        store=parts,
        goemotions=options.goemotions,
    )
    path = extraction.vectors.save(options.out)
    parts.clear()
    for line in accuracy_lines(extraction.vectors):
        say(line)
    if extraction.vectors.audit is not None:
        for line in audit_lines(extraction.vectors.audit):
            say(line)
    say(f"{len(emotions)} emotions at layers {extraction.vectors.layers}: {path}")
