"""`emoreg stories`."""

import argparse
from pathlib import Path

from emoreg.commands.shared import load, model_option, say
from emoreg.commands.writers import writer_of, writer_options

SUMMARY = "Write a corpus with a model of your own: stories, neutral text, dialogues."
EXAMPLE = "emoreg stories --model Qwen/Qwen3-8B --emotions core --out corpus/"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    writer_options(command)
    command.add_argument("--out", type=Path, required=True, help="Folder; it goes on.")
    command.add_argument(
        "--emotions",
        nargs="+",
        help="Any words; or `core`, or `all` (the default).",
    )
    command.add_argument(
        "--kinds",
        nargs="+",
        default=["stories", "neutral"],
        help="Of stories, neutral, dialogues, masked, masked_dialogues.",
    )
    command.add_argument(
        "--per-topic", type=int, default=1, help="Stories per emotion and topic."
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.vectors.corpus import Corpus
    from emoreg.writing.write import stories

    emotions = options.emotions or ["all"]
    if emotions in (["all"], ["core"]):
        packaged = Corpus.packaged()
        core = packaged.roles().core
        emotions = packaged.emotions() if emotions == ["all"] else core
    written = stories(
        writer_of(options, lambda: load(options)),
        options.out,
        emotions=emotions,
        kinds=options.kinds,
        per_topic=options.per_topic,
        seed=options.seed,
        quiet=options.quiet,
    )
    for line in written.lines():
        say(line)
    if not any(written.taken.values()):
        raise ValueError(
            f"{options.model} wrote no text that could be taken; the reasons are above "
            f"and in {written.folder}. Try a larger model or another --temperature, "
            "in a new folder"
        )
    say(f"The corpus: {written.folder}")
