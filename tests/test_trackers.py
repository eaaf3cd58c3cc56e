"""Readings reach the trackers on the trainer's own steps, read back from their stores.

One run writes to all of them at once; another one was asked to log texts as well.
"""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.training.watching.log_file import NAME
from emoreg.training.watching.tallies import EDGES

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 1.0}
STEPS = 4
SAID, ASKED = "zebrafinch", "quokkatoy"
"""Words of Assistant turns, and of user turns, that nothing else holds."""
ALERT = {"key": "emotion/calm/L2/lda/assistant", "above": -1e6, "patience": 3}
MLFLOW = importlib.util.find_spec("mlflow") is not None
TRACKERS = ["tensorboard", "wandb", "trackio", *(["mlflow"] if MLFLOW else [])]
STORES = ("board", "wandb", "trackio", "mlruns")

Scalars = dict[tuple[int, str], float]
Counts = dict[tuple[int, str], list[float]]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A run's folder, what its trainer logged, and what its file says."""

    folder: Path
    result: dict[str, Any]
    lines: list[dict[str, Any]] = field(default_factory=list)


_DONE: dict[int, Ran] = {}


@pytest.fixture
def run(
    tiny_model: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Ran]:
    """Train in a process of its own, once for all tests that ask for the same."""

    def go(log_texts: int = 0) -> Ran:
        if log_texts not in _DONE:
            folder = tmp_path_factory.mktemp("trackers")
            cases.write_files(folder, cases.lively(tiny_model("llama")), tokenizer)
            _DONE[log_texts] = trained(folder, log_texts)
        return _DONE[log_texts]

    return go


def trained(folder: Path, log_texts: int) -> Ran:
    job = cases.Job(
        rows=[dict(row) for row in cases.marked_rows(SAID, ASKED)],
        weights=WEIGHTS,
        changes={
            "report_to": TRACKERS,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "run_name": "tried",
            "project": "seam",
        },
        alerts=[ALERT],
        log_texts=log_texts,
    )
    environment = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "board"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "TRACKIO_DIR": str(folder / "trackio"),
        "TRACKIO_STORAGE_MODE": "sqlite",
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    result = cases.run_job(folder, "job", job, environment=environment, seconds=480)
    text = (folder / "job" / NAME).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return Ran(folder=folder, result=result, lines=lines)


def check(found: Scalars, ran: Ran, prefix: str = "train/") -> None:
    """What the tracker holds is what the history holds, and not one step off."""
    wanted = {
        (entry["step"], f"{prefix}{key}"): value
        for entry in ran.result["log"]
        for key, value in entry.items()
        if key.startswith("emotion")
    }
    keys = {key for _, key in wanted}
    assert f"{prefix}emotion/desperate/L2/lda/slope" in keys
    assert f"{prefix}emotion_loss/contrast-lda" in keys
    assert {step for step, _ in wanted} == set(range(1, STEPS + 1))
    ours = {at: v for at, v in found.items() if at[1].startswith(f"{prefix}emotion")}
    assert ours == pytest.approx(wanted, rel=1e-5)
    late = {(step + 1, key): value for (step, key), value in wanted.items()}
    assert ours != pytest.approx(late, rel=1e-5)


def check_counts(found: Counts, ran: Ran) -> None:
    """Distributions are those of the file, on its steps."""
    wanted = {
        (line["step"], f"train/{key}"): counts
        for line in ran.lines
        for key, counts in line.get("histograms", {}).items()
    }
    assert {step for step, _ in wanted} == set(range(1, STEPS + 1))
    assert (1, "train/emotion_histogram/desperate/L2/lda/assistant") in wanted
    assert found.keys() == wanted.keys()
    for at, counts in wanted.items():
        assert found[at] == pytest.approx(counts, abs=1e-3)
    # Control: one bin further they would be others.
    assert any(found[at] != pytest.approx(c[1:] + c[:1]) for at, c in wanted.items())


def top_tokens(ran: Ran) -> list[tuple[str, int, str, str]]:
    """What each row of the table begins with, as the file has it."""
    return [
        (x["emotion"], x["layer"], x["reader"], x["top"][0].replace(" ", "·"))
        for x in ran.lines[0]["tokens"]
    ]


@pytest.mark.slow
def test_tensorboard_shows_them(run: Callable[..., Ran]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    ran = run()
    every = {"scalars": 0, "histograms": 0, "tensors": 0}
    events = EventAccumulator(str(ran.folder / "board"), every)
    events.Reload()
    tags: dict[str, Any] = events.Tags()
    scalars = {
        (e.step, tag): e.value for tag in tags["scalars"] for e in events.Scalars(tag)
    }
    check(scalars, ran)
    counts = {}
    for tag in tags["histograms"]:
        for event in events.Histograms(tag):
            held = event.histogram_value
            assert held.bucket_limit == pytest.approx(EDGES[1:])
            assert held.num == pytest.approx(sum(held.bucket))
            mean = scalars[event.step, tag.replace("emotion_histogram", "emotion", 1)]
            assert held.sum / held.num == pytest.approx(mean, abs=1e-3)
            counts[event.step, tag] = list(held.bucket)
    check_counts(counts, ran)
    (shown,) = events.Tensors("train/emotion_tokens/text_summary")
    assert shown.step == 1
    stored: Any = make_ndarray(shown.tensor_proto)
    text = stored.item().decode()
    for emotion, layer, reader, _ in top_tokens(ran):
        assert f"| {emotion} | {layer} | {reader} |" in text


def records(file: Path) -> Iterator[bytes]:
    """The records of a W&B file: a log of blocks of 32 KiB, after 7 bytes of head."""
    data, block, part = file.read_bytes(), 32768, b""
    assert data[:4] == b":W&B"
    at = 7
    while at + 7 <= len(data):
        left = block - at % block
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:  # the rest of the block is empty
            at += left
            continue
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield part
            part = b""


def wandb_records(ran: Ran) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore

    (file,) = ran.folder.glob("wandb/offline-run-*/*.wandb")
    found = []
    for raw in records(file):
        record = Record()
        record.ParseFromString(raw)
        found.append(record)
    return found


def wandb_rows(ran: Ran) -> list[dict[str, Any]]:
    """The history, a dictionary for each step of W&B's own."""
    rows = []
    for record in wandb_records(ran):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                key, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if inner:  # a histogram's or a table's part
                    row.setdefault(key, {})["/".join(inner)] = value
                else:
                    row[key] = value
            rows.append(row)
    return rows


def wandb_table(ran: Ran, cell: dict[str, Any]) -> dict[str, Any]:
    assert cell["_type"] == "table-file"
    (folder,) = ran.folder.glob("wandb/offline-run-*/files")
    return json.loads((folder / cell["path"]).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_wandb_keeps_them_offline(run: Callable[..., Ran]) -> None:
    ran = run()
    rows = wandb_rows(ran)
    scalars: Scalars = {}
    counts: Counts = {}
    for row in rows:
        step = int(row["train/global_step"])
        for key, value in row.items():
            if isinstance(value, float | int):
                scalars[step, key] = value
            elif isinstance(value, dict) and value.get("_type") == "histogram":
                assert value["bins"] == pytest.approx(EDGES)
                counts[step, key] = value["values"]
    check(scalars, ran)
    check_counts(counts, ran)
    # One row for each of the trainer's lines: ours is no row of its own.
    assert len(rows) == len(ran.result["log"])
    (first,) = [row for row in rows if "train/emotion_tokens" in row]
    assert first["train/global_step"] == 1
    table = wandb_table(ran, first["train/emotion_tokens"])
    assert table["columns"][:3] == ["emotion", "layer", "reader"]
    held = [(*row[:3], row[3].split(", ")[0]) for row in table["data"]]
    assert held == top_tokens(ran)


@pytest.mark.slow
def test_wandb_keeps_alerts_offline(run: Callable[..., Ran]) -> None:
    found = [
        record.alert
        for record in wandb_records(run())
        if record.WhichOneof("record_type") == "alert"
    ]
    (alert,) = found  # raised once, when its patience was at an end
    assert alert.title == "emoreg: emotion/calm/L2/lda/assistant"
    assert "must be within -inf to -1e+06" in alert.text
    assert "at step 3, for 3 log line(s) in a row" in alert.text


TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage as S
(name,) = S.get_runs("seam")
print(json.dumps({"logs": S.get_logs("seam", name), "alerts": S.get_alerts("seam")}))
"""


def trackio_store(ran: Ran) -> dict[str, Any]:
    # Its folder is settled at import, so it is read where nothing imported it yet.
    read = subprocess.run(
        [sys.executable, "-c", TRACKIO],
        env={**os.environ, "TRACKIO_DIR": str(ran.folder / "trackio")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(read.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_trackio_keeps_them_locally(run: Callable[..., Ran]) -> None:
    ran = run()
    store = trackio_store(ran)
    scalars: Scalars = {}
    counts: Counts = {}
    tables: list[tuple[int, Any]] = []
    # Its own axis counts the trainer's rows; ours stand on theirs, and are no more.
    at_row = {
        row["step"]: int(row["train/global_step"])
        for row in store["logs"]
        if "train/global_step" in row
    }
    assert [at_row[row] for row in range(STEPS)] == [1, 2, 3, 4]
    for row in store["logs"]:
        step = at_row[row["step"]]
        for key, value in row.items():
            if isinstance(value, float | int):
                scalars[step, key] = value
            elif isinstance(value, dict) and value["_type"] == "trackio.histogram":
                assert value["bins"] == pytest.approx(EDGES)
                counts[step, key] = value["values"]
            elif key == "train/emotion_tokens":
                tables.append((step, value["_value"]))
    check(scalars, ran)
    check_counts(counts, ran)
    ((at, rows),) = tables
    assert at == 1
    held = [
        (x["emotion"], x["layer"], x["reader"], x["top tokens"].split(", ")[0])
        for x in rows
    ]
    assert held == top_tokens(ran)
    (alert,) = store["alerts"]
    assert alert["title"] == "emoreg: emotion/calm/L2/lda/assistant"
    assert alert["step"] == 2  # where the trainer's step 3 stands


@pytest.mark.slow
@pytest.mark.skipif(
    not MLFLOW, reason="mlflow is not installed: pip install -e .[mlflow]"
)
def test_mlflow_keeps_the_numbers(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient  # pyright: ignore

    ran = run()
    client = MlflowClient((ran.folder / "mlruns").as_uri())
    (kept,) = client.search_runs(["0"])
    scalars = {
        (metric.step, key): metric.value
        for key in kept.data.metrics
        for metric in client.get_metric_history(kept.info.run_id, key)
    }
    check(scalars, ran, prefix="")
    assert not any("histogram" in key for key in kept.data.metrics)


def holding(ran: Ran, word: str) -> set[str]:
    """Which trackers' files, or the run's own, hold a word."""
    files = [
        (store, file)
        for store in (*STORES, f"job/{NAME}")
        for file in sorted([ran.folder / store, *(ran.folder / store).rglob("*")])
        if file.is_file()
    ]
    return {store for store, file in files if word.encode() in file.read_bytes()}


@pytest.mark.slow
def test_no_text_reaches_a_tracker_unless_asked(run: Callable[..., Ran]) -> None:
    silent, open_ = run(), run(log_texts=2)
    assert holding(silent, SAID) == set()
    assert holding(silent, ASKED) == set()
    # Control: the same search finds the words where they were asked for.
    assert holding(open_, SAID) == {"board", "wandb", "trackio", f"job/{NAME}"}
    assert holding(open_, ASKED) == set()  # what users wrote is never logged
    assert holding(silent, "desperate") >= {"board", "wandb", "trackio"}
    (*_, last) = [row for row in wandb_rows(open_) if "train/emotion_texts" in row]
    table = wandb_table(open_, last["train/emotion_texts"])
    assert table["columns"] == ["step", "outcome", "desperate", "calm", "text"]
    assert [row[0] for row in table["data"]] == [STEPS, STEPS]
    texts = next(x["texts"] for x in open_.lines if x["step"] == STEPS)
    assert [row[-1] for row in table["data"]] == [x["text"] for x in texts]


@pytest.mark.slow
def test_the_sft_recipe_prints_its_flags() -> None:
    shown = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "sft.py"), "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    for flag in ("--vectors", "--reference", "--terms", "--outcome", "--report_to"):
        assert flag in shown.stdout
    assert "--no_such_flag" not in shown.stdout
