"""Readings and terms reach the trackers through the trainer's own `report_to`."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
from transformers import PreTrainedModel, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 1.0}
STEPS = 4


@pytest.fixture
def run(
    tiny_model: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Callable[..., dict[str, Any]]:
    """Train in a process of its own, with a tracker that writes below `tmp_path`."""

    def go(tracker: str, **environment: str) -> dict[str, Any]:
        cases.write_files(tmp_path, cases.lively(tiny_model("llama")), tokenizer)
        changes = {
            "report_to": tracker,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "run_name": "tried",
            "project": "seam",
        }
        rows = [dict(row) for row in cases.make_rows()]
        job = cases.Job(rows=rows, weights=WEIGHTS, changes=changes)
        return cases.run_job(tmp_path, "job", job, environment=environment)

    return go


def expected(result: dict[str, Any]) -> dict[tuple[int, str], float]:
    """Our figures by step and key, as the trainer's own history has them."""
    found = {
        (entry["step"], f"train/{key}"): value
        for entry in result["log"]
        for key, value in entry.items()
        if key.startswith("emotion")
    }
    keys = {key for _, key in found}
    assert "train/emotion/desperate/L2/lda/slope" in keys
    assert "train/emotion_loss/contrast-lda" in keys
    assert {step for step, _ in found} == set(range(1, STEPS + 1))
    return found


def check(found: dict[tuple[int, str], float], result: dict[str, Any]) -> None:
    """What the tracker holds is what the history holds, and not one step off."""
    wanted = expected(result)
    ours = {key: value for key, value in found.items() if "/emotion" in key[1]}
    assert ours == pytest.approx(wanted, rel=1e-5)
    late = {(step + 1, key): value for (step, key), value in wanted.items()}
    assert ours != pytest.approx(late, rel=1e-5)


@pytest.mark.slow
def test_tensorboard_shows_them(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run("tensorboard", TENSORBOARD_LOGGING_DIR=str(tmp_path / "board"))
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    found = {
        (event.step, tag): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    check(found, result)


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


@pytest.mark.slow
def test_wandb_keeps_them_offline(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore

    result = run("wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found: dict[tuple[int, str], float] = {}
    for raw in records(file):
        record = Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") != "history":
            continue
        row = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        step = int(row["train/global_step"])
        found |= {(step, k): v for k, v in row.items() if isinstance(v, float | int)}
    check(found, result)


@pytest.mark.slow
def test_trackio_keeps_them_locally(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = str(tmp_path / "trackio")
    result = run("trackio", TRACKIO_DIR=folder, TRACKIO_STORAGE_MODE="sqlite")
    # Its folder is settled at import, so it is read where nothing imported it yet.
    program = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; "
        "(name,) = S.get_runs('seam'); print(json.dumps(S.get_logs('seam', name)))"
    )
    read = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRACKIO_DIR": folder},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: dict[tuple[int, str], float] = {
        (int(row["train/global_step"]), key): value
        for row in json.loads(read.stdout.strip().splitlines()[-1])
        for key, value in row.items()
        if isinstance(value, float | int) and "train/global_step" in row
    }
    check(found, result)


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
