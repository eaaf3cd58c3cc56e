"""Measuring speed against the bare truncated forward, and memory by number of prompts.

    python scripts/bench_measure.py --vectors vectors.safetensors --prompts 1000

Both sides run in one process, alternately, on the same length-sorted batches, so that a
machine whose speed drifts slows both. Readings are of eight layers and all emotions of
the file, by its readers (not the audit's), written to a table as they come. Memory is a
fresh process's, for a quarter of the prompts and for all, beyond what it had after the
bare forward: torch keeps something for every new shape of a batch.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch
from bench_extract import forward, seconds

from emoreg.comparison.measure import measure_into
from emoreg.demo import load_any
from emoreg.residual.batches import default_budget
from emoreg.residual.tokens import conversation_ids
from emoreg.training.reference import as_conversations
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.transcripts import Conversation

LAYERS = 8


def main() -> None:
    options = _options()
    if options.peak:
        print(peak(options, options.prompts))
        return
    for count in (options.prompts // 4, options.prompts):
        command = [*_again(options), "--prompts", str(count), "--peak"]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"{count} prompts: {said.stdout.strip()}", flush=True)
    loaded = load_any("demo")
    model, tokenizer = loaded.model, loaded.tokenizer
    vectors, talks = _vectors(options.vectors), prompts(options.prompts)
    sequences = [conversation_ids(tokenizer, talk.messages) for talk in talks]
    tokens = sum(map(len, sequences))
    budget = default_budget(next(model.parameters()).device)

    def bare() -> None:
        forward(model, sequences, vectors.layers[-1], budget=budget)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder, "table.parquet")
            measure_into(table, model, tokenizer, talks, vectors, quiet=True)

    shares = []
    for repeat in range(options.repeats):
        first, second = seconds(bare), seconds(ours)
        shares.append(first / second)
        print(
            f"{repeat}: bare {tokens / first:7.0f} tokens/s, measuring "
            f"{tokens / second:7.0f} tokens/s, share {first / second:.3f}",
            flush=True,
        )
    print(
        f"{len(talks)} prompts, {tokens} tokens, {len(vectors.readers)} readers, "
        f"layers {vectors.layers}, {len(vectors.emotions)} emotions, "
        f"{next(model.parameters()).dtype}, {torch.get_num_threads()} threads: median "
        f"share {statistics.median(shares):.3f} of the bare truncated forward"
    )


def prompts(count: int) -> list[Conversation]:
    """Return so many packaged conversations, over and over under other names."""
    talks = as_conversations(Corpus.packaged().transcripts("all"))
    return [
        replace(talk, id=f"{talk.id}-{number}", pair=f"{talk.pair}-{number}")
        for number, talk in enumerate(islice(cycle(talks), count))
    ]


def peak(options: argparse.Namespace, count: int) -> str:
    """Measure once, and say what memory it took beyond the bare forward's."""
    loaded, vectors = load_any("demo"), _vectors(options.vectors)
    parts, talks = (loaded.model, loaded.tokenizer), prompts(count)
    sequences = [conversation_ids(loaded.tokenizer, talk.messages) for talk in talks]
    budget = default_budget(next(loaded.model.parameters()).device)
    forward(loaded.model, sequences, vectors.layers[-1], budget=budget)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "table.parquet")
        rows = measure_into(table, *parts, talks, vectors, quiet=True)
    size = rows * len(vectors.readers) * LAYERS * len(vectors.emotions) * 4 / 2**20
    more = _resident("VmHWM") - before
    return f"{more:.0f} MiB more at the peak, for {size:.0f} MiB of readings"


def _vectors(path: Path) -> EmotionVectors:
    """Return the file's own readers at eight of its layers."""
    found = EmotionVectors.load(path)
    at = slice(len(found.layers) - LAYERS, None)
    return EmotionVectors(
        directions=found.directions[:, at],
        readers=found.readers,
        layers=found.layers[at],
        emotions=found.emotions,
        centre=found.centre[at],
        raw_norm=found.raw_norm[at],
        scale=found.scale[:, at],
        offset=found.offset[:, at],
        provenance=found.provenance,
    )


def _resident(which: str) -> float:
    """Return this process's memory now (VmRSS) or at its peak (VmHWM), MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith(which)]
    return int(line.split()[1]) / 1024


def _again(options: argparse.Namespace) -> list[str]:
    return [sys.executable, __file__, "--vectors", str(options.vectors)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
