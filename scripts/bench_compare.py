"""Seconds and peak memory of a comparison of two tables of made-up readings.

    python scripts/bench_compare.py --prompts 1000             # compare() alone
    python scripts/bench_compare.py --prompts 1000 --command   # files to report

Two tables of twins at decision tokens, read by 3 readers at 9 layers as 171 emotions:
what `emoreg measure` writes by default of a model of 30 layers. Prints one line.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa

from emoreg.comparison.compare import compare
from emoreg.comparison.readings import SEGMENT_SCHEMA, Readings
from emoreg.vectors.corpus import Corpus

READERS = ("mean-difference", "lda", "logistic")
LAYERS = (9, 14, 15, 16, 18, 20, 21, 24, 27)
PLAN = {"loss": [14, 16, 18, 20], "audit": [21, 24, 27], "near": [15], "monitor": [9]}
MEBI = 2**20


def table(n: int, *, seed: int, slope: float) -> Readings:
    rows = [
        (
            f"task-{k}",
            "plain",
            version,
            1,
            float(version == "fail"),
            "decision",
            1,
            9,
            9,
        )
        for k in range(n)
        for version in ("fail", "pass")
    ]
    columns = zip(*rows, strict=True)
    segments = {k: list(c) for k, c in zip(SEGMENT_SCHEMA.names, columns, strict=True)}
    emotions = tuple(Corpus.packaged().emotions())
    draw = np.random.default_rng(seed)
    shape = (2 * n, len(READERS), len(LAYERS), len(emotions))
    values = draw.standard_normal(shape, dtype=np.float32)
    values[::2] += slope
    return Readings(
        segments=pa.table(segments),
        values=values,
        resid_norm=np.ones((2 * n, len(LAYERS)), np.float32),
        readers=READERS,
        layers=LAYERS,
        emotions=emotions,
        meta={"layer_plan": PLAN},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument(
        "--command", action="store_true", help="All of `emoreg compare`, twice."
    )
    given = parser.parse_args()
    before = table(given.prompts, seed=0, slope=0.5)
    after = table(given.prompts, seed=1, slope=0.2)
    print(
        f"{given.prompts} prompts, 10000 resamples, {len(before.emotions)} emotions, "
        f"{len(LAYERS)} layers, {len(READERS)} readers: "
        + (commanded(before, after) if given.command else called(before, after))
    )


def called(before: Readings, after: Readings) -> str:
    """Return what the function takes, in words."""
    start = time.perf_counter()
    compare(before, after)
    return said(time.perf_counter() - start, resource.RUSAGE_SELF)


def commanded(before: Readings, after: Readings) -> str:
    """Return what the command takes from two files to the report's folder, in words.

    It is run twice and the second time told: the first compiles what it imports.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{name}.parquet" for name in ("before", "after")]
        for file, readings in zip(files, (before, after), strict=True):
            readings.save(file)
        words = ["compare", *files, "--out", f"{folder}/report"]
        call = [sys.executable, "-c", f"from emoreg.cli import main; main({words})"]
        seconds = 0.0
        for _ in range(2):
            start = time.perf_counter()
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
    return said(seconds, resource.RUSAGE_CHILDREN)


def said(seconds: float, whose: int) -> str:
    peak = resource.getrusage(whose).ru_maxrss * 1024 / MEBI
    return f"{seconds:.1f} s, peak {peak:.0f} MiB"


if __name__ == "__main__":
    main()
