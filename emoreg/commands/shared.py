"""What several commands share: options, loading, and saying a line."""

import argparse
import os
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


def out_option(
    command: argparse.ArgumentParser, says: str = "The file that is written."
) -> None:
    """Add `--out` for a file, which must be one that can be written."""
    command.add_argument("--out", type=_file_to_write, required=True, help=says)


def weak_sandbox_option(command: argparse.ArgumentParser, code: str = "code") -> None:
    """Add `--allow-weak-sandbox`."""
    command.add_argument(
        "--allow-weak-sandbox",
        action="store_true",
        help=f"Run {code} where nothing but limits shuts it in.",
    )


def _file_to_write(given: str) -> Path:
    """Return a path, refused now where the work's end would be too late to see it."""
    path = Path(given)
    if path.is_dir():
        raise argparse.ArgumentTypeError(
            f"must be a file, found the folder {given!r}. Add a file's name"
        )
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(
            f"must be in a folder that can be written, {str(there)!r} is none. Choose "
            "another one"
        )
    return path


def prompts_option(command: argparse.ArgumentParser, *, default: str) -> None:
    """Add `--prompts` and `--rounds`."""
    command.add_argument(
        "--prompts",
        default=default,
        help="Split of the packaged transcripts (train, dev, test, all), or a .jsonl "
        "file with id, pair, variant, messages and failed in each row.",
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
    splits = ("train", "dev", "test", "all")
    if options.prompts not in splits:
        raise ValueError(
            f"`--prompts` must be a packaged split ({', '.join(splits)}) or a file "
            f"whose name ends in .jsonl, found {options.prompts!r}. Rename your file, "
            "or choose a split"
        )
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
        ValueError: If one has another form, or two have one name.
    """
    files = {}
    for item in items:
        name, _, file = item.partition("=")
        if not file:
            raise ValueError(f"--arm must be NAME=FILE, found {item!r}")
        if name in files:
            raise ValueError(f"--arm must name each arm once, found {name!r} twice")
        files[name] = Path(file)
    return files


def refuse_idle(options: argparse.Namespace, names: Sequence[str], needs: str) -> None:
    """Refuse options that would say nothing here: what was meant may be another run.

    Args:
        options: Of the command.
        names: Options, as Python names, that have no effect without what is needed.
        needs: What they are for, in words.

    Raises:
        ValueError: If one of them differs from its default.
    """
    found = [n for n in names if getattr(options, n) != options.default_of(n)]
    if found:
        said = ", ".join(f"`--{name.replace('_', '-')}`" for name in found)
        raise ValueError(
            f"{said} must come with {needs}, found without, where it has no effect. "
            "Leave it out, or add what it is for"
        )


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
