"""emoreg's extraction beside other libraries' on the same texts and the same layer.

    python scripts/bench_peers.py --texts log-uniform stories constant --repeats 3

Each library has an environment of its own, made once in a cache folder. Workers run one
at a time on one thread, in turn, so that a machine whose speed drifts slows all. What a
library reads (the last token, or all of them) is held against what emoreg reads there:
where they differ, no ratio is given. Figures are process CPU-seconds of reading alone.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from emoreg.demo import load_any
from emoreg.vectors.corpus import Corpus

HERE = Path(__file__).resolve().parent / "peers"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emoreg/peers"
TORCH = "torch==2.13.0"
PEERS = {
    "repeng": ("repeng==0.4.0", "transformers==5.24.0"),
    "steering-vectors": ("steering-vectors==0.12.2", "transformers==4.57.6"),
    "nnterp": ("nnterp==1.3.0", "nnsight==0.7.0", "transformers==5.24.0"),
    "transformer-lens": ("transformer-lens==4.3.0", "transformers==5.24.0"),
    "pyvene": ("pyvene==0.1.8", "transformers==5.24.0"),
}
READS = {
    "repeng": "last",
    "steering-vectors": "last",
    "nnterp": "last",
    "transformer-lens": "mean",
    "pyvene": "mean",
}
"""What its own call reads of a text."""
SETTINGS = ("defaults", "best")
SAME, CHECKED = 0.9999, 16
"""Least cosine to emoreg's activation of the same text; how many texts are checked."""


@dataclass(frozen=True)
class Run:
    """What one worker did."""

    cpu: float
    peak: float
    cosine: float
    """Least cosine over the texts to what emoreg read; 1 for emoreg."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        layer = _write_model(options.model, work / "model")
        results = {}
        for kind in options.texts:
            texts = texts_of(kind, options.count, work / "model")
            (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
            print(f"\n## {kind}, {len(texts)} texts, block {layer}, {options.dtype}\n")
            runs = _measured(options, work, layer)
            print(table(runs))
            results[kind] = {n: [asdict(r) for r in found] for n, found in runs.items()}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


def texts_of(kind: str, count: int, tokenizer_folder: Path) -> list[str]:
    """Return packaged stories, whole or cut to a number of tokens.

    `log-uniform`: 8 to 160 tokens, evenly on a logarithmic scale; `constant`: 64.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    draw = random.Random(0)
    stories = [story.text for story in Corpus.packaged().stories(split="all")]
    chosen = draw.sample(stories, count)
    if kind == "stories":
        return chosen
    sizes = [round(8 * 20 ** draw.random()) for _ in chosen]
    if kind == "constant":
        sizes = [64] * count
    cut = [tokenizer(t)["input_ids"][:n] for t, n in zip(chosen, sizes, strict=True)]
    return [tokenizer.decode(ids) for ids in cut]


def table(runs: dict[str, list[Run]]) -> str:
    """Return the runs as a Markdown table, emoreg first and ratios against it.

    A ratio is the median, over repeats, of CPU-seconds against emoreg's in the same
    repeat, with the smallest and the largest.
    """
    own = runs["emoreg"]
    lines = [
        "| library, setting | CPU-seconds | against emoreg | peak GiB |",
        "|---|---|---|---|",
    ]
    for name, found in runs.items():
        ratios = [run.cpu / base.cpu for run, base in zip(found, own, strict=True)]
        worst = min(run.cosine for run in found)
        said = (
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            if worst >= SAME
            else f"withheld: reads something else (cosine {worst:.3f})"
        )
        cpu = statistics.median(run.cpu for run in found)
        peak = max(run.peak for run in found) / 2**30
        lines.append(f"| {name} | {cpu:.1f} | {said} | {peak:.2f} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    kinds = ("log-uniform", "stories", "constant")
    parser.add_argument("--texts", nargs="+", default=list(kinds), choices=kinds)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _write_model(name: str, folder: Path) -> int:
    """Write the model as a plain folder; return the layer two thirds deep."""
    loaded = load_any(name)
    loaded.model.to(torch.bfloat16).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    # Before transformers 5 the base of rotary positions had another place.
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(config), encoding="utf-8")
    return round(loaded.model.config.num_hidden_layers * 2 / 3)


def _measured(
    options: argparse.Namespace, work: Path, layer: int
) -> dict[str, list[Run]]:
    places = [(peer, setting) for peer in options.peers for setting in SETTINGS]
    cosines = _checked(places, work, layer)
    runs: dict[str, list[Run]] = defaultdict(list)
    for repeat in range(options.repeats):
        own = _run("emoreg", "mean", options.dtype, work, layer)
        runs["emoreg"].append(Run(cpu=own["cpu"], peak=own["peak"], cosine=1.0))
        for place in places:
            found = _run(*place, options.dtype, work, layer)
            run = Run(cpu=found["cpu"], peak=found["peak"], cosine=cosines[place])
            runs[", ".join(place)].append(run)
            ratio = run.cpu / own["cpu"]
            print(f"  {repeat + 1}: {', '.join(place)}: {ratio:.2f}", file=sys.stderr)
    return runs


def _checked(
    places: list[tuple[str, str]], work: Path, layer: int
) -> dict[tuple[str, str], float]:
    """Return each setting's least cosine to emoreg, in float32 on the first texts.

    In bfloat16 two versions of one model differ by more than two layers may.
    """
    texts = work / "texts.json"
    whole = texts.read_text(encoding="utf-8")
    texts.write_text(json.dumps(json.loads(whole)[:CHECKED]), encoding="utf-8")
    truth = {
        read: _run("emoreg", read, "float32", work, layer)["activations"]
        for read in ("mean", "last")
    }
    found = {}
    for place in places:
        rows = _run(*place, "float32", work, layer)["activations"]
        cosine = torch.nn.functional.cosine_similarity(rows, truth[READS[place[0]]])
        found[place] = float(cosine.min())
    texts.write_text(whole, encoding="utf-8")
    return found


def _run(peer: str, setting: str, dtype: str, work: Path, layer: int) -> dict:
    """Run a worker and return what it wrote."""
    out = work / "out.pt"
    python = sys.executable if peer == "emoreg" else environment(peer)
    command = [
        *(python, str(HERE / f"{peer.replace('-', '_')}_worker.py")),
        *("--setting", setting, "--model", str(work / "model"), "--layer", str(layer)),
        *("--dtype", dtype, "--texts", str(work / "texts.json")),
        *("--out", str(out)),
    ]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        command, env={**os.environ, **quiet}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{peer}, {setting} failed:\n{done.stderr[-3000:]}")
    return torch.load(out, weights_only=True)


def environment(peer: str) -> str:
    """Return the interpreter of a library's environment, made if need be."""
    folder = CACHE / peer
    python, mark = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join((TORCH, *PEERS[peer]))
    if not mark.exists() or mark.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        index = os.environ.get("EMOREG_TORCH_INDEX")
        subprocess.run([*pip, *(["--index-url", index] if index else []), TORCH])
        subprocess.run([*pip, TORCH, *PEERS[peer]], check=True)
        mark.write_text(wanted)
    return str(python)


if __name__ == "__main__":
    main()
