"""Seconds and peak memory of `compare` on two tables of made-up readings.

    python scripts/bench_compare.py --prompts 1000

Two tables of twins at decision tokens, read by 3 readers at 9 layers as 171 emotions:
what `emoreg measure` writes by default of a model of 30 layers. Prints one line.
"""

import argparse
import resource
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
    parser.add_argument("--resamples", type=int, default=10_000)
    given = parser.parse_args()
    before = table(given.prompts, seed=0, slope=0.5)
    after = table(given.prompts, seed=1, slope=0.2)
    start = time.perf_counter()
    found = compare(before, after, n_resamples=given.resamples)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEBI
    print(
        f"{given.prompts} prompts, {given.resamples} resamples, "
        f"{len(found.emotions)} emotions, {len(LAYERS)} layers, {len(READERS)} "
        f"readers: {seconds:.1f} s, peak {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
