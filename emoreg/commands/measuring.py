"""What `emoreg compare` does where it measures by itself: adapters and checkpoints."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emoreg.commands.shared import (
    load,
    model_option,
    prompts_of,
    prompts_option,
    refuse_idle,
    say,
)


def measuring_options(command: argparse.ArgumentParser) -> None:
    """Add what is needed to measure in place of reading tables."""
    model_option(command)
    command.add_argument(
        "--adapter",
        type=Path,
        help="In place of tables: measure the model without this adapter and with it.",
    )
    command.add_argument(
        "--checkpoints",
        type=Path,
        metavar="FOLDER",
        help="In place of tables: measure every checkpoint of a run.",
    )
    command.add_argument("--vectors", type=Path, help="Where it measures: directions.")
    command.add_argument("--reference", type=Path, help="Gives the tables their units.")
    prompts_option(command, default="test")
    command.add_argument("--guards", action="store_true", help="Guard rails too.")
    command.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="With --checkpoints: the share of the slope whose crossing is looked for.",
    )


def check_asked(options: argparse.Namespace) -> None:
    """Raise a ValueError unless one thing is asked for, with what it needs."""
    tables = [file for file in (options.before, options.after) if file is not None]
    measures = [bool(options.adapter), bool(options.checkpoints)]
    if (len(tables) == 2) + sum(measures) != 1 or len(tables) == 1:
        raise ValueError(
            "there must be two tables, or `--adapter`, or `--checkpoints`, one of "
            f"them; found {len(tables)} tables and {sum(measures)} of the others. "
            "See `emoreg compare --help`"
        )
    if any(measures) and options.vectors is None:
        raise ValueError(
            "`--vectors` must be given where models are measured, found none. Pass the "
            "model's file of vectors (`emoreg extract`)"
        )
    if not any(measures):
        measured = ("model", "vectors", "reference", "prompts", "rounds", "guards")
        refuse_idle(options, measured, "`--adapter` or `--checkpoints`")
    if options.checkpoints:
        beside = ("arm", "cross", "behavior", "behavior_arm", "card")
        refuse_idle(options, beside, "tables or `--adapter`")
    else:
        refuse_idle(options, ("threshold",), "`--checkpoints`")


def measured_pair(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the readings of a model without its adapter and with it."""
    found = _measured(options, {"after": options.adapter})
    return found["before"], found["after"]


def say_strip(options: argparse.Namespace, gate: Any) -> None:
    """Measure a run's checkpoints, and write and say how they moved."""
    from emoreg.comparison.arms import checkpoints
    from emoreg.comparison.strip import strip

    steps = checkpoints(options.checkpoints)
    found = _measured(options, {f"step-{step}": path for step, path in steps.items()})
    tables = {0: found["before"], **{s: found[f"step-{s}"] for s in steps}}
    film = strip(tables, gate=gate, threshold=options.threshold)
    page = film.save(options.out)
    for target, frames in film.frames.items():
        crossed, last = film.crossed(target), frames[-1].slope
        when = "not crossed" if crossed is None else f"crossed at step {crossed}"
        say(
            f"{target}: {frames[0].slope.estimate:+.2f} to {last.estimate:+.2f} "
            f"({last.low:+.2f} to {last.high:+.2f}), {film.threshold:.0%} {when}"
        )
    say(f"The strip: {page}")


def _measured(options: argparse.Namespace, adapters: dict[str, Path]) -> dict[str, Any]:
    from emoreg.comparison.arms import Measuring
    from emoreg.training.reference import Reference
    from emoreg.vectors.emotion_vectors import EmotionVectors

    vectors = EmotionVectors.load(options.vectors)
    reference = Reference.load(options.reference) if options.reference else None
    prompts = prompts_of(options)
    bare = argparse.Namespace(**{**vars(options), "adapter": None})
    loaded = load(bare)
    measuring = Measuring(
        tokenizer=loaded.tokenizer,
        vectors=vectors,
        reference=reference,
        prompts=prompts,
        guard=_guard(options, loaded, vectors) if options.guards else None,
        quiet=options.quiet,
    )
    return measuring.arms(loaded.model, adapters, options.out / "tables")


def _guard(
    options: argparse.Namespace, loaded: Any, vectors: Any
) -> Callable[[Any], dict[str, Any]]:
    from emoreg.comparison.guards import guard_rails
    from emoreg.vectors.corpus import Corpus

    def guard(model: Any) -> dict[str, Any]:
        corpus = Corpus.packaged()
        parts = (model, loaded.tokenizer, vectors, corpus)
        return guard_rails(*parts, quiet=options.quiet)

    return guard
