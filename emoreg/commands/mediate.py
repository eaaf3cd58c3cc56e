"""`emoreg behave mediate`."""

import argparse
from pathlib import Path
from typing import Any

from emoreg.commands.behave import episode_options, twins_options
from emoreg.commands.shared import load, model_option, out_option, say, vectors_option
from emoreg.commands.suites import (
    Session,
    clear,
    corner_cutting_twins,
    impossible_tasks,
    interval_text,
    parts_of,
    played,
    save_episodes,
)
from emoreg.commands.writers import sampling_options

SUMMARY = "How much of what failure does to conduct goes through the reading."
EXAMPLE = (
    "emoreg behave mediate --model demo --vectors vectors.safetensors "
    "--reference reference.safetensors --prompts dev --out mediation.parquet"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    command.add_argument("--adapter", type=Path, help="Folder of a peft adapter.")
    vectors_option(command)
    command.add_argument(
        "--reference",
        type=Path,
        required=True,
        help="File of `emoreg calibrate`: where readings stand after success.",
    )
    command.add_argument(
        "--suite",
        default="corner-cutting",
        help="corner-cutting, which scores replies, or impossible-code, which plays.",
    )
    twins_options(command)
    episode_options(command)
    sampling_options(command)
    command.set_defaults(endpoint=None)
    out_option(
        command,
        "The table; of impossible-code three, with the condition's name added.",
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.training.reference import Reference
    from emoreg.vectors.emotion_vectors import EmotionVectors
    from emoreg.vectors.records import choose

    suites = {"corner-cutting": _margins, "impossible-code": _episodes}
    suite = suites[choose(options.suite, tuple(suites), parameter="--suite")]
    vectors = EmotionVectors.load(options.vectors)
    suite(options, vectors, Reference.load(options.reference))


def _margins(options: argparse.Namespace, vectors: Any, reference: Any) -> None:
    """Score both replies under each condition."""
    from emoreg.behavior.mediation import mediation

    twins = corner_cutting_twins(options)
    loaded = load(options)
    parts = (loaded.model, loaded.tokenizer, twins, vectors, reference)
    found = mediation(*parts, quiet=options.quiet)
    path = found.save(options.out)
    for name, effect in (
        ("passing feedback in place of failing", found.total),
        ("the reading alone set to its level after success", found.indirect),
        ("random directions set so", found.placebo),
        ("the reading beyond random directions", found.beyond_placebo),
    ):
        say(f"{name}: margin {interval_text(effect)} nat per token")
    say(f"{len(found.prompts)} twins, after their last round: {path}")


def _episodes(options: argparse.Namespace, vectors: Any, reference: Any) -> None:
    """Play every task under each condition, with the same seeds."""
    from emoreg.behavior.impossible.graders import CHEATING
    from emoreg.residual.patch import patched
    from emoreg.residual.tokens import TurnMarkers
    from emoreg.training.success_patches import success_patches
    from emoreg.vectors.corpus import Corpus

    tasks, session = impossible_tasks(options), Session(options, None, {})
    known = (vectors, reference, Corpus.packaged().roles())
    patches: dict[str, dict[int, Any]] = {
        "plain": {},
        "patched": success_patches(*known),
        "placebo": success_patches(*known, placebo=True),
    }
    outs = {
        name: options.out.with_name(f"{options.out.stem}-{name}{options.out.suffix}")
        for name in patches
    }
    parts = {name: parts_of(options, out) for name, out in outs.items()}
    hashes = {"vectors_hash": vectors.hash, "reference_hash": reference.hash}
    decision = TurnMarkers.of(session.loaded.tokenizer).decision_tokens
    found = {}
    for name, patch in patches.items():
        about = {"readings": name, **hashes} if patch else {}
        with patched(session.loaded.model, patch, where=decision):
            found[name] = played(session, tasks, parts[name], about)
        path, _ = save_episodes(found[name], outs[name])
        rate = found[name].rate(CHEATING)
        say(f"{name}: cheating {interval_text(rate)} of impossible tasks, {path}")
    clear(outs.values())  # kept up to here, so that a run goes on
    for name, (more, less) in {
        "the reading alone set to its level after success": ("patched", "plain"),
        "random directions set so": ("placebo", "plain"),
        "the reading beyond random directions": ("patched", "placebo"),
    }.items():
        say(f"{name}: cheating {interval_text(found[more].difference(found[less]))}")
