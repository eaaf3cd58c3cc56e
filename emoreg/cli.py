"""The command line: `emoreg COMMAND`, from extracting vectors to a report."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BAD_INPUT, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    That is 0, or 1 for a fault that the doctor found, 2 for bad input, 130 when
    interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    _calm_libraries(options)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        _complain("interrupted; files already written are whole, nothing is half-made")
        return _INTERRUPTED
    except (ValueError, TypeError, FloatingPointError, OSError, ImportError) as error:
        if options.debug:
            raise
        _complain(_one_line(error))
        return _BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emoreg",
        description="Emotion readings and regularization for fine-tuning runs.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add, run, summary, example in (
        ("quickstart", _quickstart_options, _quickstart, _QUICKSTART, ""),
        ("extract", _extract_options, _extract, _EXTRACT, _EXTRACT_EXAMPLE),
        ("calibrate", _calibrate_options, _calibrate, _CALIBRATE, _CALIBRATE_EXAMPLE),
        ("measure", _measure_options, _measure, _MEASURE, _MEASURE_EXAMPLE),
        ("compare", _compare_options, _compare, _COMPARE, _COMPARE_EXAMPLE),
        ("doctor", _doctor_options, _doctor, _DOCTOR, _DOCTOR_EXAMPLE),
    ):
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"Example: {example or 'emoreg quickstart --out runs/first'}",
        )
        add(command)
        command.add_argument(
            "--quiet", action="store_true", help="No progress bars, results only."
        )
        command.add_argument(
            "--debug", action="store_true", help="Show the traceback of an error."
        )
        command.set_defaults(run=run)
    return parser


_QUICKSTART = "The whole road on the demo model: extract, watch, decouple, compare."
_EXTRACT = "Fit emotion vectors for a model and test them on held-out stories."
_EXTRACT_EXAMPLE = "emoreg extract --model demo --out vectors.safetensors"
_CALIBRATE = "Measure units and success level on training twins."
_CALIBRATE_EXAMPLE = (
    "emoreg calibrate --model demo --vectors vectors.safetensors "
    "--out reference.safetensors"
)
_MEASURE = "Read conversations, teacher-forced, into a table of readings."
_MEASURE_EXAMPLE = (
    "emoreg measure --model demo --vectors vectors.safetensors "
    "--reference reference.safetensors --prompts dev --out before.parquet"
)
_COMPARE = "Compare two or more tables of readings into a report."
_COMPARE_EXAMPLE = (
    "emoreg compare before.parquet after.parquet --arm control=control.parquet "
    "--out report/"
)
_DOCTOR = (
    "Try out a training script's own step, without training, and say what to mend."
)
_DOCTOR_EXAMPLE = (
    "emoreg doctor --model demo --vectors vectors.safetensors "
    "--trainer-script recipes/sft.py -- --report_to wandb"
)


def _quickstart_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=Path("emoreg-quickstart"))
    command.add_argument("--model", default="demo", help="`demo`, folder or hub id.")
    command.add_argument(
        "--full", action="store_true", help="Whole splits and more steps."
    )
    command.add_argument(
        "--emotions", choices=["core", "all"], default="core", help="all is 171."
    )
    command.add_argument("--seed", type=int, default=0)


def _quickstart(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from emoreg.quickstart.plan import full_plan, quick_plan
    from emoreg.quickstart.run import Quickstart
    from emoreg.vectors.corpus import Corpus

    _hide_loading_bars()
    corpus = Corpus.packaged()
    plan = (full_plan if options.full else quick_plan)(corpus)
    if options.emotions == "all":
        plan = replace(plan, emotions=corpus.emotions())
    Quickstart(
        out=options.out,
        plan=plan,
        model=options.model,
        seed=options.seed,
        quiet=options.quiet,
        say=_say,
    ).run()


def _extract_options(command: argparse.ArgumentParser) -> None:
    _model_option(command)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--corpus", type=Path, help="Folder; the packaged one if not.")
    command.add_argument(
        "--emotions", nargs="+", help="Names, `core`, or `all` (the default)."
    )
    command.add_argument("--layers", type=int, nargs="+", help="Decoder blocks.")
    command.add_argument(
        "--denoise", type=float, default=0.5, help="Neutral variance removed, [0, 1)."
    )


def _extract(options: argparse.Namespace) -> None:
    from emoreg.vectors.accuracy import accuracy_lines
    from emoreg.vectors.corpus import Corpus
    from emoreg.vectors.extract import extract

    corpus = Corpus(options.corpus) if options.corpus else Corpus.packaged()
    emotions = _emotions(corpus, options.emotions)
    loaded = _load(options)
    extraction = extract(
        loaded.model,
        loaded.tokenizer,
        corpus,
        emotions=emotions,
        layers=options.layers,
        denoise=options.denoise,
        quiet=options.quiet,
    )
    path = extraction.vectors.save(options.out)
    for line in accuracy_lines(extraction.vectors):
        _say(line)
    _say(f"{len(emotions)} emotions at layers {extraction.vectors.layers}: {path}")


def _emotions(corpus: Any, names: list[str] | None) -> tuple[str, ...]:
    if names is None or names == ["all"]:
        return corpus.emotions()
    if names == ["core"]:
        return corpus.roles().core
    corpus.stories(names, split="fit")  # refuses unknown names before the model loads
    return tuple(names)


def _calibrate_options(command: argparse.ArgumentParser) -> None:
    _model_option(command)
    _vectors_option(command)
    _prompts_option(command, default="train")
    command.add_argument("--out", type=Path, required=True)


def _calibrate(options: argparse.Namespace) -> None:
    from emoreg.training.reference import calibrate
    from emoreg.vectors.emotion_vectors import EmotionVectors

    vectors = EmotionVectors.load(options.vectors)
    prompts = _prompts(options)
    loaded = _load(options)
    reference = calibrate(
        loaded.model, loaded.tokenizer, prompts, vectors, quiet=options.quiet
    )
    path = reference.save(options.out)
    _say(f"{reference.provenance['twins']} twins: {path}")
    layer = reference.plan.loss[-1]
    for emotion in ("desperate", "calm"):
        if emotion in reference.emotions:
            at = {"reader": "lda", "layers": [layer], "emotions": [emotion]}
            gap = float(reference.unit("gap", **at) / reference.unit("sigma_ref", **at))
            _say(f"{emotion} at layer {layer}: failure slope {gap:+.2f} sigma_ref")


def _measure_options(command: argparse.ArgumentParser) -> None:
    _model_option(command)
    command.add_argument("--adapter", type=Path, help="Folder of a peft adapter.")
    _vectors_option(command)
    command.add_argument("--reference", type=Path, help="Gives the table its units.")
    _prompts_option(command, default="test")
    command.add_argument("--arm", default="", help="Name of this model in reports.")
    command.add_argument(
        "--guards", action="store_true", help="KL to the base and story accuracy too."
    )
    command.add_argument(
        "--base", help="With --guards: what a model trained whole was before."
    )
    command.add_argument("--out", type=Path, required=True)


def _measure(options: argparse.Namespace) -> None:
    from emoreg.comparison.measure import measure
    from emoreg.training.reference import Reference
    from emoreg.vectors.emotion_vectors import EmotionVectors

    vectors = EmotionVectors.load(options.vectors)
    reference = Reference.load(options.reference) if options.reference else None
    prompts = _prompts(options)
    loaded = _load(options)
    guards = _guards(options, loaded, vectors) if options.guards else None
    readings = measure(
        loaded.model,
        loaded.tokenizer,
        prompts,
        vectors,
        reference=reference,
        arm=options.arm,
        guards=guards,
        quiet=options.quiet,
    )
    _say(f"{readings.segments.num_rows} segments: {readings.save(options.out)}")


def _guards(options: argparse.Namespace, loaded: Any, vectors: Any) -> dict[str, Any]:
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
    )
    if "kl" not in found:
        _say("no KL: nothing says what the model was before; pass --base MODEL")
    return found


def _compare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    command.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="Another arm; `control` is the one trained without terms.",
    )
    command.add_argument(
        "--gate", type=Path, help="Base readings on `dev`; they say where ratios hold."
    )
    command.add_argument("--out", type=Path, required=True)


def _compare(options: argparse.Namespace) -> None:
    from emoreg.comparison.compare import compare
    from emoreg.comparison.readings import Readings

    arms = {}
    for item in options.arm:
        name, _, file = item.partition("=")
        if not file:
            raise ValueError(f"--arm must be NAME=FILE, found {item!r}")
        arms[name] = Readings.load(file)
    comparison = compare(
        Readings.load(options.before),
        Readings.load(options.after),
        arms=arms or None,
        gate=Readings.load(options.gate) if options.gate else None,
    )
    page = comparison.save(options.out)
    _say(comparison.verdict)
    _say(f"The report: {page}")


def _doctor_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="Passed on to the script, if given.")
    command.add_argument("--vectors", help="Passed on to the script, if given.")
    command.add_argument("--trainer-script", type=Path, required=True)
    command.add_argument(
        "flags", nargs="*", help="After `--`: the script's other flags, as you train."
    )


def _doctor(options: argparse.Namespace) -> int:
    from emoreg.training.doctor import doctor_script

    _hide_loading_bars()
    given = {"--model": options.model, "--vectors": options.vectors}
    named = [part for key, v in given.items() if v for part in (key, v)]
    diagnosis = doctor_script(options.trainer_script, [*named, *options.flags])
    _say(str(diagnosis))
    return int(diagnosis.failed)


def _model_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="demo", help="`demo`, a folder or a hub id."
    )


def _vectors_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--vectors", type=Path, required=True)


def _prompts_option(command: argparse.ArgumentParser, *, default: str) -> None:
    command.add_argument(
        "--prompts",
        default=default,
        help="Split of the packaged transcripts (train, dev, test), or a .jsonl file "
        "with id, pair, variant, messages and failed in each row.",
    )
    command.add_argument(
        "--rounds", type=int, help="Rounds of the packaged transcripts; all if not."
    )


def _prompts(options: argparse.Namespace) -> list[Any]:
    from emoreg.training.reference import as_conversations
    from emoreg.vectors.conversation_files import read_conversations
    from emoreg.vectors.corpus import Corpus

    if options.prompts.endswith(".jsonl"):
        return read_conversations(Path(options.prompts))
    twins = Corpus.packaged().transcripts(options.prompts)
    return as_conversations(twins, options.rounds)


def _load(options: argparse.Namespace) -> Any:
    from dataclasses import replace

    from emoreg.demo import load_any

    _hide_loading_bars()
    loaded = load_any(options.model)
    if getattr(options, "adapter", None):
        from emoreg.training.adapters import with_adapter

        loaded = replace(loaded, model=with_adapter(loaded.model, options.adapter))
    return loaded


def _calm_libraries(options: argparse.Namespace) -> None:
    """Keep other libraries' chatter out of a command's few plain lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("emoreg").setLevel(level)


def _hide_loading_bars() -> None:
    """Leave the progress bars to emoreg's own long work."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    print(f"emoreg: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
