"""Runs a second in the sandbox, at each level that works here, beside bare Python.

    python scripts/bench_sandbox.py --seconds 5 --threads 2

In turns, so that a machine whose speed drifts slows all alike: starting Python bare
(`python -I -S -E -c pass`), a run of the same in the sandbox, and a task of three tests
judged outside. Printed: medians over the rounds, and each as a share of bare starts.
"""

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from emoreg.behavior.sandbox.limits import LEVELS
from emoreg.behavior.sandbox.machine import interpreter
from emoreg.behavior.sandbox.runner import run_tests
from emoreg.behavior.sandbox.sandbox import Sandbox, why_not

CODE = "def add(a, b):\n    return a + b\n"
TESTS = ["add(1, 2) == 3", "add([], [1]) == [1]", "add('a', 'b') == 'ab'"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sandboxes = {}
    for level in LEVELS:
        if (reason := why_not(level)) is None:
            sandboxes[level] = Sandbox(level=level, allow_weak=True)
        else:
            print(f"{level}: does not work here ({reason})")
    jobs: dict[str, Callable[[], object]] = {"bare python -c pass": bare}
    for level, sandbox in sandboxes.items():
        jobs[f"{level}, python -c pass"] = started(sandbox)
        jobs[f"{level}, 3 tests"] = tested(sandbox)
    for job in jobs.values():
        job()  # the keepers start, files come into memory
    share = options.seconds / options.rounds
    speeds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            speeds[name].append(speed(job, share, options.threads))
    base = speeds["bare python -c pass"]
    print(
        f"{options.threads} threads, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, {options.rounds} rounds"
    )
    for name, values in speeds.items():
        ratios = [value / bare for value, bare in zip(values, base, strict=True)]
        print(
            f"{name:38} {statistics.median(values):7.1f}/s "
            f"({min(values):.1f} to {max(values):.1f}), "
            f"{statistics.median(ratios):.2f} of bare"
        )
    for sandbox in sandboxes.values():
        sandbox.close()


def bare() -> None:
    program = interpreter("namespaces")
    subprocess.run([program, "-I", "-S", "-E", "-c", "pass"], check=True, env={})


def started(sandbox: Sandbox) -> Callable[[], object]:
    def job() -> None:
        assert sandbox.run({}, ["python", "-c", "pass"]).status == "ok"

    return job


def tested(sandbox: Sandbox) -> Callable[[], object]:
    def job() -> None:
        assert run_tests(CODE, TESTS, sandbox=sandbox).all_passed

    return job


def speed(job: Callable[[], object], seconds: float, threads: int) -> float:
    """Return how often a second a job is done by some threads together."""
    begun = time.monotonic()

    def work() -> int:
        done = 0
        while time.monotonic() - begun < seconds:
            job()
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        counts = [pool.submit(work) for _ in range(threads)]
        done = sum(count.result() for count in counts)
    return done / (time.monotonic() - begun)


if __name__ == "__main__":
    main()
