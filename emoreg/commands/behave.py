"""`emoreg behave`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from emoreg.commands.shared import (
    model_option,
    out_option,
    say,
    weak_sandbox_option,
)
from emoreg.commands.suites import SUITES, Session, clear, parts_of
from emoreg.commands.writers import writer_options

SUMMARY = "What a model would rather do: suites that score or run it, without a judge."
EXAMPLE = (
    "emoreg behave --model demo --suite corner-cutting --prompts dev "
    "--out before-behavior.parquet"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    command.add_argument("--adapter", type=Path, help="Folder of a peft adapter.")
    command.add_argument(
        "--suite", default="corner-cutting", help=f"{', '.join(SUITES)} or all."
    )
    twins_options(command)
    command.add_argument(
        "--scenarios", type=Path, help="Of pressure: a .jsonl file of your own."
    )
    episode_options(command)
    writer_options(command)
    command.add_argument("--vectors", type=Path, help="With --steer: directions.")
    command.add_argument(
        "--steer",
        action="append",
        default=[],
        metavar="EMOTION=STRENGTH",
        help="Score the model steered, in mean residual-stream norms; may be repeated.",
    )
    out_option(
        command,
        "The table; of several suites each writes its own, with its name added.",
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.vectors.emotion_vectors import EmotionVectors
    from emoreg.vectors.records import choose

    chosen = choose(options.suite, (*SUITES, "all"), parameter="--suite")
    names = tuple(SUITES) if chosen == "all" else (chosen,)
    strengths = _strengths(options)
    vectors = EmotionVectors.load(options.vectors) if options.vectors else None
    if vectors is not None:
        vectors.emotion_indices(list(strengths))  # before the model loads
    _check_endpoint(options, strengths)
    texts = {name: SUITES[name].texts(options) for name in names}
    session = Session(options, vectors, strengths)
    outs = {name: _out(options, names, name) for name in names}
    kept = [out for name, out in outs.items() if SUITES[name].keeps]
    for out in kept:  # of all suites, before the first one plays
        parts_of(options, out)
    for name, out in outs.items():
        say(f"{name}: {SUITES[name].run(session, texts[name], out)}")
    clear(kept)  # up to here, so that a run of several goes on


def episode_options(command: argparse.ArgumentParser) -> None:
    """Add how episodes are played."""
    command.add_argument(
        "--tasks", type=Path, help="Of impossible-code: a .jsonl file of your own."
    )
    command.add_argument(
        "--samples", type=int, default=1, help="Of each task, scenario and request."
    )
    command.add_argument(
        "--attempts", type=int, default=3, help="At a task; of an agent, its replies."
    )
    command.add_argument("--tokens", type=int, default=384, help="Longest reply.")
    weak_sandbox_option(command)
    command.add_argument(
        "--resume",
        action="store_true",
        help="Go on where a run with this --out was cut off: no reply is written "
        "twice. Scores and tests are made anew.",
    )


def twins_options(command: argparse.ArgumentParser) -> None:
    """Add `--prompts` and `--limit`."""
    command.add_argument(
        "--prompts",
        default="test",
        help="Split of the packaged texts (train, dev, test; of pressure no train), or "
        "a .jsonl file of twins with the fields of transcripts/*.jsonl.",
    )
    command.add_argument("--limit", type=int, help="The first ones only, this many.")


def _strengths(options: argparse.Namespace) -> dict[str, float]:
    """Return what `--steer` says, by emotion."""
    if options.steer and not options.vectors:
        raise ValueError(
            "`--steer` must come with the directions, found no `--vectors`. Pass the "
            "model's file of vectors (`emoreg extract`)"
        )
    if options.vectors and not options.steer:
        raise ValueError(
            "`--vectors` is for steering alone, found no `--steer`. Leave it out, or "
            "write for example --steer desperate=0.05"
        )
    found: dict[str, float] = {}
    for item in options.steer:
        emotion, _, strength = item.partition("=")
        try:
            value = float(strength)
        except ValueError:
            value = float("nan")
        if emotion in found or not abs(value) < float("inf"):
            raise ValueError(
                "`--steer` must be EMOTION=STRENGTH, once for each emotion, found "
                f"{item!r}. Write for example desperate=0.05"
            )
        found[emotion] = value
    return found


def _check_endpoint(
    options: argparse.Namespace, strengths: Mapping[str, float]
) -> None:
    """Refuse what needs a model in this process."""
    if options.endpoint and (strengths or options.adapter):
        raise ValueError(
            "`--endpoint` serves its own model as it is, found `--steer` or "
            "`--adapter` beside it. Leave them out, or leave the endpoint out"
        )


def _out(options: argparse.Namespace, names: Sequence[str], name: str) -> Path:
    if len(names) == 1:
        return options.out
    return options.out.with_name(f"{options.out.stem}-{name}{options.out.suffix}")
