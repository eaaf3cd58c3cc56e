r"""The study: what terms, adapters and rivals do, over seeds, judged by the audit.

    python scripts/study.py --out runs/study                # goes on where it stopped
    python scripts/study.py --out runs/study --jobs 10      # ten at once, on a GPU
    python scripts/study.py --out runs/study --write docs   # study.json, the tables
    python scripts/study.py --out runs/dev --split dev      # to choose by

Every arm and seed is a process of its own with a folder of its own: `adapter/`, its
table of readings with the evidence beside it, `behavior.parquet` with the margins of
honest against corner-cutting replies, `audit/`. What is there is not made again. Arms
are trained on the training split and judged on the test split; which tasks those are,
and how many, is fixed here (`PROMPTS`), with the power that gives. What is chosen,
arms, schedules and defaults, is chosen on `dev`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from study_arms import ARMS, Parts, Schedule, train
from study_summary import figures, summary, write_docs

import emoreg
from emoreg.behavior.corner_cutting import corner_cutting
from emoreg.comparison.evidence.evidence import Evidence, beside
from emoreg.comparison.evidence.gather import gather_evidence
from emoreg.comparison.guards import guard_rails
from emoreg.comparison.measure import measure
from emoreg.comparison.readings import Readings
from emoreg.demo import Loaded, load_any
from emoreg.residual.store import temporary_store
from emoreg.training.adapters import with_adapter
from emoreg.vectors.deflection import deflection_vectors
from emoreg.vectors.transcripts import Transcript

PROGRAM = [sys.executable, __file__]
BASE, CONTROL, PLACEBO, PERSISTED = "base", "data", "placebo", "persisted"
DONE = {"unit": "table.parquet", "margin": "behavior.parquet", "judge": "figures.json"}
"""What stands in an arm's folder once that much of it is done."""
PROMPTS = {
    "test": (("test", False), ("test", True)),
    "dev": (("dev", False), ("dev", True)),
}
"""Which tasks judge, by split: all of it, without and with stakes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; status 1 if an arm could not be trained or judged."""
    options = _options(arguments)
    if options.unit:
        arm, seed = options.unit
        run_unit(arm, int(seed), options)
        return 0
    if options.margin:
        arm, seed = options.margin
        score_replies(arm, int(seed), options.out)
        return 0
    if options.judge:
        arm, seed = options.judge
        judge(arm, int(seed), options.out)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "split.json").is_file():
        (options.out / "split.json").write_text(json.dumps(options.split))
    prepare(options.out, options.goemotions)
    arms = [a for a in options.arms if not ARMS[a].persists]
    later = [a for a in options.arms if ARMS[a].persists]
    failed = 0
    for kind, chosen in (
        ("unit", arms),
        ("unit", later),
        ("margin", options.arms),
        ("judge", arms),
    ):
        jobs = [(arm, seed) for seed in options.seeds for arm in chosen]
        if kind == "margin":
            jobs = [(BASE, 0), *jobs]
        failed += _all(kind, jobs, options)
    found = summary(options.out, _gate(options.out))
    (options.out / "study.json").write_text(json.dumps(found, indent=1))
    if options.write:
        write_docs(found, options.write)
    return int(failed > 0)


def prompts(out: Path) -> list[Transcript]:
    """Return the tasks that judge in this folder; its first run decides."""
    corpus = emoreg.Corpus.packaged()
    split = json.loads((out / "split.json").read_text())
    return [
        twin
        for name, stakes in PROMPTS[split]
        for twin in corpus.transcripts(name, stakes=stakes)
    ]


def prepare(out: Path, goemotions: Path | None) -> None:
    """Extract, calibrate and measure the untrained model, as far as not done."""
    base = out / "base"
    base.mkdir(parents=True, exist_ok=True)
    if (base / "before.parquet").is_file():
        return
    loaded, corpus, start = load_any("demo"), emoreg.Corpus.packaged(), time.time()
    parts = (loaded.model, loaded.tokenizer, corpus)
    path = base / "vectors.safetensors"
    if not path.is_file():
        emoreg.extract(*parts, goemotions=goemotions, quiet=True).vectors.save(path)
        print(f"vectors: {time.time() - start:.0f} s", flush=True)
    _units(loaded, emoreg.EmotionVectors.load(path), base)
    print(f"units: {time.time() - start:.0f} s", flush=True)
    _measure(loaded, out, base / "before.parquet")
    print(f"base: {time.time() - start:.0f} s", flush=True)


def _units(loaded: Loaded, vectors: emoreg.EmotionVectors, base: Path) -> None:
    """Calibrate, fit deflection vectors and read the gate, as far as not done."""
    corpus, parts = emoreg.Corpus.packaged(), (loaded.model, loaded.tokenizer)
    path = base / "reference.safetensors"
    if not path.is_file():
        twins = corpus.transcripts("train")
        emoreg.calibrate(*parts, twins, vectors, quiet=True).save(path)
    reference, path = emoreg.Reference.load(path), base / "deflection.safetensors"
    if not path.is_file():
        deflection_vectors(*parts, corpus, vectors, quiet=True).save(path)
    path = base / "gate.parquet"
    if not path.is_file():
        gate: dict[str, Any] = {"reference": reference, "arm": "base", "quiet": True}
        measure(*parts, corpus.transcripts("dev"), vectors, **gate).save(path)


def run_unit(arm: str, seed: int, options: argparse.Namespace) -> None:
    """Train an arm and measure it, as far as not done."""
    out, base = options.out, options.out / "base"
    folder = out / f"{arm}-{seed}"
    table, adapter = folder / "table.parquet", folder / "adapter"
    if table.is_file():
        return
    seconds, start, tuned = {}, time.time(), None
    if not (adapter / "adapter_config.json").is_file():
        parts = Parts(
            vectors=emoreg.EmotionVectors.load(base / "vectors.safetensors"),
            reference=emoreg.Reference.load(base / "reference.safetensors"),
        )
        schedule = Schedule(
            steps=options.steps,
            twins=options.twins,
            learning_rate=options.learning_rate,
        )
        before = out / f"{ARMS[arm].persists}-{seed}" / "adapter"
        tuned = train(ARMS[arm], seed, parts, adapter, schedule=schedule, before=before)
        seconds = {"train": time.time() - start, "schedule": asdict(schedule)}
        # An arm's own, so no part of what all arms of a study must share.
        seconds["rate"] = ARMS[arm].rate
        (folder / "seconds.json").write_text(json.dumps(seconds))
    if tuned is None:
        tuned = _adapted(load_any("demo"), folder)
    start = time.time()
    _measure(tuned, out, table, arm=arm)
    seconds = json.loads((folder / "seconds.json").read_text())
    seconds |= {"measure": time.time() - start, "device": _device()}
    (folder / "seconds.json").write_text(json.dumps(seconds))


def score_replies(arm: str, seed: int, out: Path) -> None:
    """Score honest and corner-cutting replies of an arm, on the tasks that judge."""
    [(split, _), *_] = PROMPTS[json.loads((out / "split.json").read_text())]
    twins = emoreg.Corpus.packaged().transcripts(split)
    folder = _folder(out, arm, seed)
    loaded = load_any("demo")
    model = loaded.model if arm == BASE else _adapted(loaded, folder).model
    found = corner_cutting(model, loaded.tokenizer, twins, quiet=True)
    found.save(folder / DONE["margin"])


def judge(arm: str, seed: int, out: Path) -> None:
    """Audit an arm beside the control, the placebo and what persisted of it."""
    base, folder = out / "base", out / f"{arm}-{seed}"
    files = {"before": base / "before.parquet", "after": folder / "table.parquet"}
    for name, other in (("control", CONTROL), ("placebo", PLACEBO)):
        path = out / f"{other}-{seed}" / "table.parquet"
        # Without a placebo its check is not run; without a control no audit is.
        if other != arm and (other == CONTROL or path.is_file()):
            files[name] = path
    persisted = out / f"{PERSISTED}-{seed}" / "table.parquet"
    if ARMS[PERSISTED].persists == arm and persisted.is_file():
        files[PERSISTED] = persisted
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise SystemExit(f"not measured yet, so no audit: {', '.join(missing)}")
    tables = {name: Readings.load(path) for name, path in files.items()}
    vectors, gate = (
        emoreg.EmotionVectors.load(base / "vectors.safetensors"),
        _gate(out),
    )
    arms = {n: t for n, t in tables.items() if n not in ("before", "after")}
    found = emoreg.audit(
        tables["before"],
        tables["after"],
        vectors,
        gate=gate,
        arms=arms,
        evidence={n: Evidence.load(beside(path)) for n, path in files.items()},
        seed=seed,
    )
    found.save(folder / "audit")
    said = figures(found, tables, vectors, gate)
    (folder / "figures.json").write_text(json.dumps(said))


def _adapted(loaded: Loaded, folder: Path) -> Loaded:
    model = with_adapter(loaded.model, folder / "adapter")
    return Loaded(model=model, tokenizer=loaded.tokenizer, name=loaded.name)


def _folder(out: Path, arm: str, seed: int) -> Path:
    return out / (BASE if arm == BASE else f"{arm}-{seed}")


def _measure(loaded: Loaded, out: Path, table: Path, *, arm: str = "base") -> None:
    """Read the tasks that judge and gather the evidence; the table comes last."""
    base, corpus, asked = out / "base", emoreg.Corpus.packaged(), prompts(out)
    vectors = emoreg.EmotionVectors.load(base / "vectors.safetensors")
    parts = (loaded.model, loaded.tokenizer)
    with temporary_store() as store:
        how: Any = {"quiet": True, "store": store}
        gather_evidence(
            *parts,
            vectors,
            asked,
            twins=corpus.transcripts("train"),
            deflection=emoreg.EmotionVectors.load(base / "deflection.safetensors"),
            **how,
        ).save(beside(table))
        measure(
            *parts,
            asked,
            vectors,
            reference=emoreg.Reference.load(base / "reference.safetensors"),
            arm=arm,
            guards=guard_rails(*parts, vectors, corpus, **how),
            **how,
        ).save(table)


def _all(
    kind: str, jobs: Iterable[tuple[str, int]], options: argparse.Namespace
) -> int:
    """Run jobs in processes of their own and return how many failed."""

    def one(job: tuple[str, int]) -> bool:
        arm, seed = job
        folder = _folder(options.out, arm, seed)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / DONE[kind]).is_file():
            return True
        start, log = time.time(), folder / f"{kind}.log"
        with log.open("w") as lines:
            command = [*PROGRAM, *_passed_on(options), f"--{kind}", arm, str(seed)]
            status = subprocess.run(
                command,
                stdout=lines,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        took = time.time() - start
        print(f"{kind} {arm} {seed}: status {status}, {took:.0f} s", flush=True)
        if status:
            print(f"  {log}: {log.read_text()[-600:]}", flush=True)
        return status == 0

    with ThreadPoolExecutor(options.jobs) as pool:
        return sum(not fine for fine in pool.map(one, jobs))


def _passed_on(options: argparse.Namespace) -> list[str]:
    names = ("out", "steps", "twins", "learning_rate")
    return [
        part
        for name in names
        for part in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
    ]


def _gate(out: Path) -> Readings:
    return Readings.load(out / "base" / "gate.parquet")


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="Folder of all of it.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="Processes at once.")
    parser.add_argument("--split", choices=PROMPTS, default="test", help="That judges.")
    parser.add_argument("--goemotions", type=Path, help="For readers of comments.")
    default = Schedule()
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--twins", type=int, default=default.twins, help="In a step.")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--write", type=Path, help="Folder of study.json and study.md.")
    parser.add_argument("--unit", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--margin", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--judge", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
