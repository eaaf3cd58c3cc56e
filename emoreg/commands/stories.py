"""`emoreg stories`."""

import argparse
import json
from pathlib import Path
from typing import Any

from emoreg.commands.shared import load, model_option, say

SUMMARY = "Write a corpus with a model of your own: stories, neutral text, dialogues."
EXAMPLE = "emoreg stories --model Qwen/Qwen3-8B --emotions core --out corpus/"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    command.add_argument(
        "--endpoint",
        metavar="URL",
        help="Ask an OpenAI-compatible endpoint in place of a local model, for "
        "instance http://localhost:8000/v1; --model is its name there.",
    )
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
    command.add_argument(
        "--concurrency", type=int, default=8, help="Texts written at a time."
    )
    command.add_argument("--temperature", type=float, default=0.9)
    command.add_argument(
        "--timeout", type=float, default=120.0, help="Seconds, for an endpoint."
    )
    command.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        help="Environment variable that holds the endpoint's key.",
    )
    command.add_argument(
        "--extra",
        metavar="JSON",
        help="More fields of every request to an endpoint, for instance "
        '\'{"chat_template_kwargs": {"enable_thinking": false}}\'.',
    )
    command.add_argument("--seed", type=int, default=0)


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
        _writer(options),
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


def _writer(options: argparse.Namespace) -> Any:
    if options.endpoint:
        from emoreg.writing.endpoint import EndpointWriter

        return EndpointWriter(
            options.endpoint,
            options.model,
            concurrency=options.concurrency,
            temperature=options.temperature,
            timeout=options.timeout,
            key_variable=options.key_variable,
            extra=_extra(options.extra),
        )
    from emoreg.writing.local import LocalWriter

    loaded = load(options)
    return LocalWriter(
        loaded.model,
        loaded.tokenizer,
        batch=options.concurrency,
        temperature=options.temperature,
    )


def _extra(given: str | None) -> dict[str, Any]:
    try:
        extra = json.loads(given or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise ValueError(
            f"`--extra` must be one JSON object, found {given!r}. Quote it as a whole"
        )
    return extra
