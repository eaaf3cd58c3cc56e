"""emoreg's extraction beside other libraries' on the same texts and the same layer.

    python scripts/bench_peers.py --texts log-uniform stories constant --repeats 3

Each library has an environment of its own, made once in the user's cache. Workers run
one at a time on one thread, in turn, so that a machine whose speed drifts slows all.
What a library reads of a text (the last token, or the mean over all) is first held
against what emoreg reads there: where they differ, no ratio is given. emoreg reads the
mean. The figures are CPU-seconds of reading alone: no import, no loading.

`defaults` is the library's own call for the one layer, with its default batches; `best`
is the fastest found for it, with the batch size that was fastest on these texts.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from emoreg.demo import fastest_dtype, load_any
from emoreg.residual.layers import num_layers
from emoreg.vectors.corpus import Corpus

HERE = Path(__file__).resolve().parent
PEERS = {
    "repeng": ("repeng==0.4.0",),
    # It allows no transformers 5.
    "steering-vectors": ("steering-vectors==0.12.2", "transformers==4.57.6"),
    # It cannot be imported with nnsight 0.8.
    "nnterp": ("nnterp==1.3.0", "nnsight==0.7.0"),
    "transformer-lens": ("transformer-lens==4.3.0",),
    "pyvene": ("pyvene==0.1.8",),
}
"""Beside torch and, where none is named, transformers as in `constraints.txt`."""
LAST = ("repeng", "steering-vectors", "nnterp")
"""Those whose own call reads the last token; of the others one has all tokens."""
SIZES = (1, 2, 4, 8, 16, 32)
"""Texts a batch that are tried for `best`; tokens a batch for emoreg are these."""
BUDGETS = (128, 256, 512, 1024, 2048, 4096)
SAME = 1e-3
"""Largest relative difference to emoreg that counts as the same."""
SETTINGS = ("defaults", "best")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one worker did with all texts of a kind."""

    words: str
    """The setting, as the worker calls it."""
    cpu: float
    wall: float
    peak: int
    """Bytes of the whole process, the library and the model in it."""
    added: int
    """Bytes at most that reading took beyond what was in use before it."""
    difference: float
    """Largest over the texts of |theirs - emoreg's| / |emoreg's|."""


def main() -> None:
    options = _options()
    report: dict[str, Any] = {"machine": _machine(), "dtype": options.dtype}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        layer, depth = _write_model(options, work / "model")
        bench = Bench(
            work=work, dtype=options.dtype, layer=layer, peers=tuple(options.peers)
        )
        tokens = {}
        for kind in options.texts:
            texts, tokens[kind] = texts_of(kind, options.count, work / "model")
            bench.write(kind, texts)
        print(
            f"{options.count} texts of a kind, the output of block {layer} of {depth}"
        )
        print(f"(the first is 0), {options.dtype}, one thread.", end=" ")
        found = _measured(bench, options.texts, options.repeats)
        print(f"Load of the machine {os.getloadavg()[0]:.1f}.")
    for kind, runs in found.items():
        print(f"\n## {kind}, {tokens[kind]} tokens\n")
        print(table(runs, tokens[kind]) + "\n\n" + summary(runs))
        kept = {name: [asdict(run) for run in some] for name, some in runs.items()}
        report[kind] = {"tokens": tokens[kind], "layer": layer, "runs": kept}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where the model and the texts lie, and how a worker is started on them."""

    work: Path
    dtype: str
    layer: int
    peers: tuple[str, ...]

    def write(self, kind: str, texts: Sequence[str]) -> None:
        """Write texts for the workers."""
        self._file(kind).write_text(json.dumps(texts), encoding="utf-8")

    def run(
        self,
        library: str,
        setting: str,
        readings: Sequence[tuple[str, int]],
        **other: Any,
    ) -> dict[str, Any]:
        """Run a worker over kinds of texts with batch sizes; return what it wrote."""
        out = self.work / "out.pt"
        job = {
            "setting": setting,
            "model": str(self.work / "model"),
            "dtype": self.dtype,
            "layer": self.layer,
            "readings": [{"texts": str(self._file(k)), "size": n} for k, n in readings],
            "out": str(out),
        }
        path = self.work / "job.json"
        path.write_text(json.dumps(job | other), encoding="utf-8")
        python = sys.executable if library == "emoreg" else environment(library)
        worker = HERE / "peers" / f"{library.replace('-', '_')}_worker.py"
        done = subprocess.run(
            [python, str(worker), str(path)],
            env=_variables(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{library}, {setting} failed:\n{done.stderr[-3000:]}")
        return torch.load(out, weights_only=True)

    def _file(self, kind: str) -> Path:
        return self.work / f"{kind}.json"


def _variables() -> dict[str, str]:
    single = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Memory as a plain `python` has it, whoever calls this; modules compiled once.
    dropped = ("MALLOC_", "PYTHONDONTWRITEBYTECODE")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return plain | single | quiet


def texts_of(kind: str, count: int, tokenizer_folder: Path) -> tuple[list[str], int]:
    """Return packaged stories, whole or cut to a number of tokens, and all tokens.

    `log-uniform`: 8 to 160 tokens, evenly on a logarithmic scale; `constant`: 64.

    Raises:
        ValueError: If there are fewer stories than that.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    draw = random.Random(0)
    stories = [story.text for story in Corpus.packaged().stories(split="all")]
    draw.shuffle(stories)
    texts, tokens = [], 0
    for story in stories:
        ids = tokenizer(story)["input_ids"]
        size = {"log-uniform": round(8 * 20 ** draw.random()), "constant": 64}
        cut = ids[: size.get(kind, len(ids))]
        text = tokenizer.decode(cut)
        # A cut within a character, or a story that is too short.
        if len(cut) < size.get(kind, 1) or tokenizer(text)["input_ids"] != cut:
            continue
        texts.append(text)
        tokens += len(cut)
        if len(texts) == count:
            return texts, tokens
    raise ValueError(f"--count must be at most {len(texts)}, the stories, got {count}")


def table(runs: Mapping[str, Sequence[Run]], tokens: int) -> str:
    """Return the runs as a Markdown table, with ratios against `emoreg, defaults`.

    A ratio is the median, over repeats, of CPU-seconds against emoreg's in the same
    repeat, with the smallest and the largest.
    """
    lines = [
        "| library | setting | tokens per CPU-second | CPU-seconds, times emoreg's |"
        " peak, MiB | of that reading, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        library, setting = name.split(", ")
        speed = tokens / statistics.median(run.cpu for run in found)
        peak = max(run.peak for run in found) / 2**20
        added = max(run.added for run in found) / 2**20
        lines.append(
            f"| {library} | {setting}: {found[0].words} | {speed:,.0f} | "
            f"{_said(found, runs['emoreg, defaults'])} | {peak:,.0f} | {added:,.0f} |"
        )
    return "\n".join(lines)


def summary(runs: Mapping[str, Sequence[Run]]) -> str:
    """Return which other library is the fastest at its defaults, and at its best."""
    own = runs["emoreg, defaults"]
    lines = []
    for setting in SETTINGS:
        medians = {
            name: statistics.median(_ratios(found, own))
            for name, found in runs.items()
            if name.endswith(setting) and not name.startswith("emoreg") and _same(found)
        }
        if medians:
            name = min(medians, key=lambda key: medians[key])
            lines.append(f"Fastest, {setting}: {name.split(',')[0]} takes ")
            lines[-1] += f"{medians[name]:.2f} times the CPU-seconds of emoreg."
    return "\n".join(lines)


def _said(found: Sequence[Run], own: Sequence[Run]) -> str:
    if not _same(found):
        worst = max(run.difference for run in found)
        return f"withheld: reads something else (differs by {worst:.1%})"
    ratios = _ratios(found, own)
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _ratios(found: Sequence[Run], own: Sequence[Run]) -> list[float]:
    return [run.cpu / base.cpu for run, base in zip(found, own, strict=True)]


def _same(found: Sequence[Run]) -> bool:
    return all(run.difference <= SAME for run in found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    fast = str(fastest_dtype()).removeprefix("torch.")
    parser.add_argument("--dtype", default=fast, choices=("bfloat16", "float32"))
    kinds = ("log-uniform", "constant", "stories")
    parser.add_argument("--texts", nargs="+", default=list(kinds), choices=kinds)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _machine() -> dict[str, Any]:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {"system": system, "torch": torch.__version__, "peers": PEERS}


def _write_model(options: argparse.Namespace, folder: Path) -> tuple[int, int]:
    """Write the model as a plain folder; return the layer two thirds deep, and all."""
    loaded = load_any(options.model)
    model: Any = loaded.model
    model.to(getattr(torch, options.dtype)).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    # Before transformers 5 the base of rotary positions had another place.
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rotary = config.get("rope_parameters") or {}
    if "rope_theta" in rotary:
        path.write_text(json.dumps({**config, "rope_theta": rotary["rope_theta"]}))
    depth = num_layers(model)
    return round(depth * 2 / 3), depth


def _measured(
    bench: Bench, kinds: Sequence[str], repeats: int
) -> dict[str, dict[str, list[Run]]]:
    differences = _checked(bench)
    sizes = {name: _sizes(bench, name, kinds) for name in ("emoreg", *bench.peers)}
    found: dict[str, dict[str, list[Run]]] = {kind: defaultdict(list) for kind in kinds}
    for repeat in range(repeats):
        for place in ((name, setting) for name in sizes for setting in SETTINGS):
            readings = [(kind, sizes[place[0]][kind]) for kind in kinds]
            done = bench.run(*place, readings)
            for (kind, size), one in zip(readings, done["readings"], strict=True):
                one.pop("activations")
                run = Run(
                    words=done["words"] + (f" of {size}" if place[1] == "best" else ""),
                    difference=differences.get(place, 0.0),
                    **one,
                )
                found[kind][", ".join(place)].append(run)
            seconds = [f"{one['cpu']:.2f}" for one in done["readings"]]
            print(f"  {repeat + 1}: {', '.join(place)}: {seconds}", file=sys.stderr)
    return found


def _sizes(bench: Bench, library: str, kinds: Sequence[str]) -> dict[str, int]:
    """Return the batch size that was the fastest on each kind of texts, tried once."""
    tried = BUDGETS if library == "emoreg" else SIZES
    readings = [(kind, size) for kind in kinds for size in tried]
    took: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
    done = bench.run(library, "best", readings)["readings"]
    for (kind, size), one in zip(readings, done, strict=True):
        took[kind][size] = round(one["cpu"], 2)
    print(f"  {library}, CPU-seconds by batch: {took}", file=sys.stderr)
    return {kind: min(took[kind], key=lambda n: took[kind][n]) for kind in kinds}


def _checked(bench: Bench) -> dict[tuple[str, str], float]:
    """Return each setting's largest relative difference to emoreg, in float32.

    In bfloat16 two versions of one model may differ by more than two layers do. A line
    says by how much emoreg's own reading of the layer below differs at least.
    """
    mixed = []
    for kind, count in (("log-uniform", 20), ("stories", 4)):
        mixed += texts_of(kind, count, bench.work / "model")[0]
    bench.write("checked", mixed)

    def rows(library: str, setting: str, size: int = 8, **other: Any) -> torch.Tensor:
        other["dtype"] = "float32"
        done = bench.run(library, setting, [("checked", size)], **other)
        return done["readings"][0]["activations"]

    def differ(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (found - truth).norm(dim=1) / truth.norm(dim=1)

    truth = {read: rows("emoreg", read) for read in ("defaults", "last")}
    below = [
        float(differ(rows("emoreg", read, layer=bench.layer - 1), right).min())
        for read, right in truth.items()
    ]
    print(f"Block {bench.layer - 1} would differ by {min(below):.1%} or more.", end=" ")
    found = {("emoreg", "best"): rows("emoreg", "best", 256)}
    found |= {
        (peer, name): rows(peer, name) for peer in bench.peers for name in SETTINGS
    }
    most = {}
    for place, one in found.items():
        right = truth["last" if place[0] in LAST else "defaults"]
        most[place] = float(differ(one, right).max())
    print(f"  largest differences: {most}", file=sys.stderr)
    return most


def environment(library: str) -> str:
    """Return the interpreter of a library's environment, made if need be."""
    constraints = (HERE.parent / "constraints.txt").read_text(encoding="utf-8")
    locked = {line.split("==")[0]: line for line in constraints.split()}
    wanted = [locked["torch"], *PEERS[library]]
    if not any(name.startswith("transformers==") for name in wanted):
        wanted.append(locked["transformers"])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:8]
    folder = cache / "emoreg" / "peers" / f"{library}-{digest}"
    python, mark = folder / "bin" / "python", folder / "installed"
    if not mark.exists():
        print(f"  installing {' '.join(wanted)} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        index = os.environ.get("EMOREG_TORCH_INDEX")
        source = ["--index-url", index] if index else []
        subprocess.run([*pip, *source, locked["torch"]], check=True)
        subprocess.run([*pip, *wanted], check=True)
        mark.write_text(" ".join(wanted), encoding="utf-8")
    return str(python)


if __name__ == "__main__":
    main()
