"""The command line: `emoreg COMMAND`, from extracting vectors to a report."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from emoreg.commands import (
    audit,
    behave,
    calibrate,
    compare,
    doctor,
    dose,
    extract,
    foretell,
    judge,
    measure,
    mediate,
    preflight,
    probes,
    quickstart,
    regrade,
    report,
    steer,
    stories,
    validate,
)

_COMMANDS = {
    "quickstart": quickstart,
    "extract": extract,
    "validate": validate,
    "stories": stories,
    "probes": probes,
    "steer": steer,
    "calibrate": calibrate,
    "preflight": preflight,
    "measure": measure,
    "compare": compare,
    "report serve": report,
    "behave": behave,
    "behave dose": dose,
    "behave foretell": foretell,
    "behave mediate": mediate,
    "behave judge": judge,
    "behave regrade": regrade,
    "audit": audit,
    "doctor": doctor,
}
_BAD_INPUT, _INTERRUPTED = 2, 130
_EXTRAS = {
    "report": (
        "pyarrow",
        "plotly",
        "matplotlib",
        "jinja2",
        "scipy",
        "pandas",
        "threadpoolctl",
    ),
    "train": ("trl", "peft", "accelerate", "datasets"),
    "demo": ("gguf",),
    "stories": ("openai",),
    "lm-eval": ("lm_eval",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    That is 0, or 1 for a fault that the doctor found or an audit that failed, 2 for
    bad input, 130 when interrupted.
    """
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    _calm_libraries(options)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        _complain("interrupted; files already written are whole, nothing is half-made")
        return _INTERRUPTED
    except (ValueError, TypeError, FloatingPointError, OSError, ImportError) as error:
        if options.debug:
            raise
        _complain(_one_line(error) + _missing(error))
        return _BAD_INPUT


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return a command's options; exits, as argparse does, where they are wrong."""
    words = list(arguments)
    if " ".join(words[:2]) in _COMMANDS:  # a command of two words is one to argparse
        words[:2] = [" ".join(words[:2])]
    return _parser().parse_args(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emoreg",
        description="Emotion readings and regularization for fine-tuning runs.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            epilog=f"Example: {module.EXAMPLE}",
        )
        module.add_options(command)
        command.add_argument(
            "--quiet", action="store_true", help="No progress bars, results only."
        )
        command.add_argument(
            "--debug", action="store_true", help="Show the traceback of an error."
        )
        command.set_defaults(run=module.run, default_of=command.get_default)
    return parser


def _calm_libraries(options: argparse.Namespace) -> None:
    """Keep other libraries' chatter out of a command's few plain lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("emoreg").setLevel(level)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _missing(error: BaseException) -> str:
    """Return what installs a package that is not there; empty for other errors."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    extras = [extra for extra, brings in _EXTRAS.items() if name in brings]
    return f'. Install it: pip install "emoreg[{extras[0]}]"' if extras else ""


def _complain(line: str) -> None:
    print(f"emoreg: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
