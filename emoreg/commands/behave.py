"""`emoreg behave`."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emoreg.commands.shared import load, model_option, say

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
    command.add_argument("--vectors", type=Path, help="With --steer: directions.")
    command.add_argument(
        "--steer",
        action="append",
        default=[],
        metavar="EMOTION=STRENGTH",
        help="Score the model steered, in mean residual-stream norms; may be repeated.",
    )
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        help="The table; of several suites each writes its own, with its name added.",
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
    twins = twins_of(options)
    loaded = load(options)
    steering = _steering(loaded, vectors, strengths)
    for name in names:
        out = _out(options, names, name)
        say(f"{name}: {SUITES[name](options, loaded, twins, steering, out)}")


def twins_options(command: argparse.ArgumentParser) -> None:
    """Add `--prompts` and `--limit`."""
    command.add_argument(
        "--prompts",
        default="test",
        help="Split of the packaged transcripts (train, dev, test), or a .jsonl file "
        "of twins with the fields of transcripts/*.jsonl.",
    )
    command.add_argument("--limit", type=int, help="The first twins only, this many.")


def twins_of(options: argparse.Namespace) -> list[Any]:
    """Return the twins that `--prompts` names, cut to `--limit`.

    Raises:
        ValueError: If there are fewer than three, which have no interval.
    """
    from emoreg.behavior.preferences import FEWEST
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.records import read_records
    from emoreg.vectors.texts import TWIN_FIELDS, transcript_from

    if options.limit is not None and options.limit < FEWEST:
        raise ValueError(
            f"`--limit` must be at least {FEWEST}, as intervals are over prompts, "
            f"found {options.limit}. Leave it out for all"
        )
    if options.prompts.endswith(".jsonl"):
        file = Path(options.prompts)
        records = read_records(file, file.parent, required=TWIN_FIELDS)
        twins = [transcript_from(record) for record in records]
    else:
        twins = list(Corpus.packaged().transcripts(options.prompts))
    if len(twins) < FEWEST:
        raise ValueError(
            f"`--prompts` must name at least {FEWEST} twins, as intervals are over "
            f"prompts, found {len(twins)}. Add some, or use a packaged split"
        )
    return twins[: options.limit]


def interval_text(interval: Any) -> str:
    """Return an estimate with its bounds, for a line of results."""
    return f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


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


def _steering(loaded: Any, vectors: Any, strengths: Mapping[str, float]) -> Any:
    if not strengths:
        return None
    from emoreg.behavior.dose import Steering

    return Steering.of(loaded.model, loaded.tokenizer, vectors, strengths)


def _out(options: argparse.Namespace, names: Sequence[str], name: str) -> Path:
    if len(names) == 1:
        return options.out
    return options.out.with_name(f"{options.out.stem}-{name}{options.out.suffix}")


def _corner_cutting(
    options: argparse.Namespace, loaded: Any, twins: Any, steering: Any, out: Path
) -> Path:
    """Score replies, say the margins by version and round, and save the table."""
    from dataclasses import replace

    from emoreg.behavior.corner_cutting import corner_cutting

    found = corner_cutting(
        loaded.model,
        loaded.tokenizer,
        twins,
        additions=steering and steering.additions,
        quiet=options.quiet,
    )
    strengths = dict(steering.strengths) if steering else {}
    found = replace(found, meta={**found.meta, "strengths": strengths})
    path = found.save(out)
    for variant in found.variants:
        name = {"fail": "failing", "pass": "passing"}[variant]
        for number in (*found.rounds, None):
            when = "all rounds" if number is None else f"round {number}"
            margin = found.mean(variant=variant, round=number)
            say(f"margin {name}, {when}: {interval_text(margin)} nat per token")
    say(f"{len(found.prompts)} twins; above zero the honest reply is the likelier")
    return path


Suite = Callable[[argparse.Namespace, Any, Any, Any, Path], Path]
SUITES: dict[str, Suite] = {"corner-cutting": _corner_cutting}
"""What `--suite` may name: each says its figures and returns the file it wrote."""
