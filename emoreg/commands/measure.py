"""`emoreg measure`."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emoreg.commands.benchmarks import (
    benchmark_options,
    forget_replies,
    read_benchmarks,
    run_benchmarks,
)
from emoreg.commands.shared import (
    load,
    model_option,
    out_option,
    prompts_of,
    prompts_option,
    refuse_idle,
    say,
    vectors_option,
)

if TYPE_CHECKING:
    from emoreg.residual.store import ActivationStore

SUMMARY = "Read conversations, or what a model itself writes, into a table of readings."
EXAMPLE = (
    "emoreg measure --model demo --vectors vectors.safetensors "
    "--reference reference.safetensors --prompts dev --out before.parquet"
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    model_option(command)
    command.add_argument("--adapter", type=Path, help="Folder of a peft adapter.")
    vectors_option(command)
    command.add_argument("--reference", type=Path, help="Gives the table its units.")
    prompts_option(command, default="test")
    command.add_argument("--arm", default="", help="Name of this model in reports.")
    command.add_argument(
        "--texts",
        type=int,
        default=4,
        help="Failing transcripts kept with their text, token by token; 0 keeps none.",
    )
    command.add_argument(
        "--generate",
        action="store_true",
        help="The model writes the last Assistant turn of each prompt itself; that "
        "turn is read, and the conversations are kept beside the table.",
    )
    command.add_argument(
        "--samples", type=int, default=4, help="With --generate: replies to a prompt."
    )
    command.add_argument(
        "--tokens", type=int, default=128, help="With --generate: longest reply."
    )
    command.add_argument(
        "--seed", type=int, default=0, help="With --generate: of all replies' seeds."
    )
    command.add_argument(
        "--concurrency",
        type=int,
        default=8,
        help="With --generate: replies written at a time.",
    )
    command.add_argument(
        "--guards",
        action="store_true",
        help="KL to the base, loss on text, simple skills and story accuracy too.",
    )
    command.add_argument(
        "--base", help="With --guards: what a model trained whole was before."
    )
    command.add_argument(
        "--audit",
        action="store_true",
        help="Gather what `emoreg audit` needs too, in a file beside the table.",
    )
    command.add_argument(
        "--deflection",
        type=Path,
        help="With --audit: the base model's deflection vectors (`emoreg probes`).",
    )
    benchmark_options(command)
    out_option(command)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from emoreg.losses.presets import check_same_vectors
    from emoreg.training.reference import Reference
    from emoreg.vectors.emotion_vectors import EmotionVectors

    _refuse_idle(options)  # before anything is loaded
    samples = _samples(options)
    vectors = EmotionVectors.load(options.vectors)
    reference = Reference.load(options.reference) if options.reference else None
    if reference is not None:  # before guards and evidence, which take long
        check_same_vectors(reference, vectors)
    prompts = prompts_of(options)
    asked = read_benchmarks(options)
    loaded = load(options)
    parts = (loaded.model, loaded.tokenizer, prompts, vectors)
    with _store(options) as store:
        if options.audit:
            say(f"Evidence: {_evidence(options, parts, store)}")
        guards = _guards(options, loaded, vectors, store) if options.guards else {}
        guards |= run_benchmarks(options, asked, loaded)
        how = {"reference": reference, "arm": options.arm, "guards": guards}
        if options.generate:
            _on_policy(options, parts, how)
        else:
            _fixed(options, parts, {**how, "samples": samples, "store": store})
    forget_replies(options)


def _refuse_idle(options: argparse.Namespace) -> None:
    if not options.generate:
        wanted = ("samples", "tokens", "seed", "concurrency")
        refuse_idle(options, wanted, "`--generate`")
    if options.generate:
        refuse_idle(options, ("texts",), "given texts, without `--generate`")
    if not options.guards:
        refuse_idle(options, ("base",), "`--guards`")
    if not options.audit:
        refuse_idle(options, ("deflection",), "`--audit`")
    if options.prompts.endswith(".jsonl"):
        refuse_idle(options, ("rounds",), "packaged transcripts")


def _store(
    options: argparse.Namespace,
) -> AbstractContextManager["ActivationStore | None"]:
    """Give a place for activations that an audit and a table both need, for a while."""
    if not options.audit:
        return nullcontext()
    from emoreg.residual.store import temporary_store

    return temporary_store()


def _fixed(
    options: argparse.Namespace, parts: tuple[Any, ...], how: dict[str, Any]
) -> None:
    from emoreg.comparison.measure import measure_into

    more: Any = {**how, "texts": options.texts, "quiet": options.quiet}
    count = measure_into(options.out, *parts, **more)
    say(f"{count} segments: {options.out}")


def _samples(options: argparse.Namespace) -> dict[str, Any]:
    """Return which samples the prompts are, where a model's replies are read again."""
    from emoreg.comparison.on_policy import read_samples

    given = options.prompts.endswith(".jsonl")
    samples = read_samples(Path(options.prompts)) if given else {}
    if options.generate and (samples or options.audit):
        found = "replies of an earlier run" if samples else "`--audit`"
        raise ValueError(
            "`--generate` must have prompts whose last turn was not sampled, and no "
            f"`--audit`, whose evidence is of given text; found {found}. Pass the "
            "prompts themselves, and gather evidence in a run without `--generate`"
        )
    return samples


def _on_policy(
    options: argparse.Namespace, parts: tuple[Any, ...], how: dict[str, Any]
) -> None:
    from emoreg.comparison.on_policy import measure_on_policy

    readings = measure_on_policy(
        *parts,
        out=options.out,
        samples=options.samples,
        tokens=options.tokens,
        seed=options.seed,
        at_a_time=options.concurrency,
        **how,
        quiet=options.quiet,
    )
    say(f"{readings.segments.num_rows} segments, on-policy: {options.out}")
    talks = options.out.with_name(f"{options.out.stem}.conversations.jsonl")
    say(f"What was written, to be read by other models: {talks}")


def _evidence(
    options: argparse.Namespace,
    parts: tuple[Any, ...],
    store: "ActivationStore | None",
) -> Path:
    from emoreg.comparison.evidence.evidence import beside
    from emoreg.comparison.evidence.gather import gather_evidence
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.emotion_vectors import EmotionVectors

    deflection = options.deflection and EmotionVectors.load(options.deflection)
    model, tokenizer, prompts, vectors = parts
    found = gather_evidence(
        model,
        tokenizer,
        vectors,
        prompts,
        twins=Corpus.packaged().transcripts("train"),
        deflection=deflection,
        quiet=options.quiet,
        store=store,
    )
    return found.save(beside(options.out))


def _guards(
    options: argparse.Namespace,
    loaded: Any,
    vectors: Any,
    store: "ActivationStore | None",
) -> dict[str, Any]:
    from emoreg.comparison.guards import guard_rails
    from emoreg.demo import load_any
    from emoreg.vectors.corpus import Corpus

    found = guard_rails(
        loaded.model,
        loaded.tokenizer,
        vectors,
        Corpus.packaged(),
        base=load_any(options.base).model if options.base else None,
        quiet=options.quiet,
        store=store,
    )
    if "kl" not in found:
        say("no KL: nothing says what the model was before; pass --base MODEL")
    return found
