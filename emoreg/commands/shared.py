"""What several commands share: options, loading, and saying a line."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def model_option(command: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    command.add_argument(
        "--model", default="demo", help="`demo`, a folder or a hub id."
    )


def vectors_option(command: argparse.ArgumentParser) -> None:
    """Add `--vectors`."""
    command.add_argument("--vectors", type=Path, required=True)


def prompts_option(command: argparse.ArgumentParser, *, default: str) -> None:
    """Add `--prompts` and `--rounds`."""
    command.add_argument(
        "--prompts",
        default=default,
        help="Split of the packaged transcripts (train, dev, test), or a .jsonl file "
        "with id, pair, variant, messages and failed in each row.",
    )
    command.add_argument(
        "--rounds", type=int, help="Rounds of the packaged transcripts; all if not."
    )


def prompts_of(options: argparse.Namespace) -> list[Any]:
    """Return the conversations that `--prompts` names."""
    from emoreg.training.reference import as_conversations
    from emoreg.vectors.conversation_files import read_conversations
    from emoreg.vectors.corpus import Corpus

    if options.prompts.endswith(".jsonl"):
        return read_conversations(Path(options.prompts))
    twins = Corpus.packaged().transcripts(options.prompts)
    return as_conversations(twins, options.rounds)


def load(options: argparse.Namespace) -> Any:
    """Return the model that `--model` names, with its adapter if one is given."""
    from dataclasses import replace

    from emoreg.demo import load_any

    hide_loading_bars()
    loaded = load_any(options.model)
    if getattr(options, "adapter", None):
        from emoreg.training.adapters import with_adapter

        loaded = replace(loaded, model=with_adapter(loaded.model, options.adapter))
    return loaded


def hide_loading_bars() -> None:
    """Leave the progress bars to emoreg's own long work."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def named_files(items: Sequence[str]) -> dict[str, Path]:
    """Return the files of options such as `--arm NAME=FILE`.

    Raises:
        ValueError: If one has another form.
    """
    files = {}
    for item in items:
        name, _, file = item.partition("=")
        if not file:
            raise ValueError(f"--arm must be NAME=FILE, found {item!r}")
        files[name] = Path(file)
    return files


def say(line: str) -> None:
    """Print a line of results."""
    print(line, flush=True)


def emotions_of(corpus: Any, names: list[str] | None) -> tuple[str, ...]:
    """Return the emotions that `--emotions` names, refusing unknown ones at once."""
    if names is None or names == ["all"]:
        return corpus.emotions()
    if names == ["core"]:
        return corpus.roles().core
    corpus.stories(names, split="fit")  # refuses unknown names before the model loads
    return tuple(names)
