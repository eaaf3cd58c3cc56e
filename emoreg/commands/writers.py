"""Who writes, on the command line: a local model or an endpoint."""

import argparse
import json
from collections.abc import Callable
from typing import Any


def writer_options(command: argparse.ArgumentParser) -> None:
    """Add what a writer takes besides `--model`."""
    sampling_options(command)
    command.add_argument(
        "--endpoint",
        metavar="URL",
        help="Ask an OpenAI-compatible endpoint in place of a local model, for "
        "instance http://localhost:8000/v1; --model is its name there.",
    )
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


def sampling_options(command: argparse.ArgumentParser) -> None:
    """Add how texts are sampled, whoever writes them."""
    command.add_argument(
        "--concurrency", type=int, default=8, help="Texts written at a time."
    )
    command.add_argument("--temperature", type=float, default=0.9)
    command.add_argument("--seed", type=int, default=0)


def writer_of(options: argparse.Namespace, load: Callable[[], Any]) -> Any:
    """Return the writer that options name; `load` gives the local model."""
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

    loaded = load()
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
