"""A comparison in a model card and in trackers' real stores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comparison_tables import FAMILIES, synthetic
from test_conduct_report import HOSTILE, TABLES
from test_trackers import records

from emoreg.cli import main
from emoreg.comparison.card import BEGIN, END, into_card, markdown
from emoreg.comparison.compare import compare
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.export import primary_rows, summary

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
GIVEN: dict[str, Any] = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 10}


def guards(shift: float) -> dict[str, Any]:
    values = [3.0 + shift + 0.001 * (k % 3) for k in range(30)]
    return {"loss": {"value": 3.0 + shift, "n": 30, "values": values}}


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(
        synthetic(**GIVEN, guards=guards(0.0)),
        synthetic(**GIVEN, scale=0.4, seed=1, guards=guards(0.001)),
        arms={"control": synthetic(**GIVEN, seed=2)},
        roles=FAMILIES,
        n_resamples=200,
        conduct={arm: TABLES[arm] for arm in ("before", "after")},
    )


def test_the_section_has_the_figures_of_the_report(comparison: Comparison) -> None:
    text = markdown(comparison)
    assert text == comparison.to_markdown()
    assert comparison.judgement.headline in text
    for row in primary_rows(comparison):
        low, high = row["slope_low"], row["slope_high"]
        said = f"{row['slope']:+.2f} ({low:+.2f} to {high:+.2f})"
        assert said.replace("-", "−") in text
    assert "| kept |" in text
    rate = TABLES["after"].rate(("special-casing", "tampering", "false-claim"))
    assert f"{100 * rate.estimate:.0f} % (" in text
    for caveat in comparison.judgement.caveats:
        assert f"- {caveat}" in text
    assert f"Vectors: {'v' * 64}" in text


def test_a_card_keeps_all_that_is_not_ours(
    comparison: Comparison, tmp_path: Path
) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n# My adapter\n\nTrained on tea leaves.\n")
    assert into_card(comparison, tmp_path) == card
    first = card.read_text()
    assert first.startswith("---\nlicense: mit\n---\n# My adapter\n\nTrained on tea")
    assert first.count(BEGIN) == first.count(END) == 1
    card.write_text(first + "\nA last word.\n")
    into_card(comparison, tmp_path)
    again = card.read_text()
    assert again == first + "\nA last word.\n"  # replaced, not repeated


def test_a_card_keeps_its_line_ends(comparison: Comparison, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_bytes(b"---\r\nlicense: mit\r\n---\r\n# Mine\r\n")
    for _ in range(2):
        text = into_card(comparison, tmp_path).read_bytes()
        assert text.startswith(b"---\r\nlicense: mit\r\n---\r\n# Mine")
        assert text.count(b"\n") == text.count(b"\r\n") > 20


def test_a_card_is_begun_where_there_is_none(
    comparison: Comparison, tmp_path: Path
) -> None:
    text = into_card(comparison, tmp_path).read_text()
    assert text.startswith(BEGIN)
    assert text.endswith(f"{END}\n")


@pytest.mark.parametrize("text", [BEGIN, END, f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_broken_marks_are_refused_and_the_card_left(
    comparison: Comparison, tmp_path: Path, text: str
) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match="once each"):
        into_card(comparison, tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    with pytest.raises(ValueError, match="folder of a model"):
        into_card(comparison, tmp_path / "none")


def test_names_can_not_break_out_of_their_cell() -> None:
    found = compare(
        synthetic(**GIVEN),
        synthetic(**GIVEN, scale=0.4, seed=1),
        arms={f"{HOSTILE}|\n# x": synthetic(**GIVEN, seed=2)},
        roles=FAMILIES,
        n_resamples=200,
    )
    text = markdown(found)
    assert HOSTILE not in text
    assert "\n# x" not in text
    widths = {
        line.replace("\\|", "").count("|")
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert len(widths) == 1


def test_the_command_writes_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for seed, name in enumerate(("b", "a")):
        files.append(tmp_path / f"{name}.parquet")
        synthetic(**GIVEN, seed=seed).save(files[-1])
    arguments = ["compare", *map(str, files), "--out", str(tmp_path / "r")]
    assert main([*arguments, "--card", str(tmp_path)]) == 0
    assert BEGIN in (tmp_path / "README.md").read_text()
    assert "The card: " in capsys.readouterr().out
    assert main([*arguments, "--card", str(tmp_path / "none")]) == 2


# ------------------------------------------------------------------ trackers

OFFLINE = """
import sys, pickle
sys.path.insert(0, sys.argv[2])
from test_card import compared_again
import wandb
run = wandb.init(project="seam", mode="offline", dir=sys.argv[1])
compared_again().to_wandb(run)
run.finish()
"""
LOCAL = """
import sys
sys.path.insert(0, sys.argv[2])
from test_card import compared_again
import json, trackio
run = trackio.init(project="seam", name="report")
compared_again().to_trackio(run)
trackio.finish()
from trackio.sqlite_storage import SQLiteStorage as S
print(json.dumps(S.get_logs("seam", "report")))
"""


def compared_again() -> Comparison:
    """The comparison that both processes of a tracker's test make."""
    tables = (synthetic(**GIVEN), synthetic(**GIVEN, scale=0.4, seed=1))
    return compare(*tables, roles=FAMILIES, n_resamples=200)


def in_a_process(program: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(Path(__file__).parent)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_wandb_keeps_figures_table_and_page(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore

    in_a_process(OFFLINE, tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    kept: dict[str, Any] = {}
    for raw in records(file):
        record = Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                kept[item.key] = json.loads(item.value_json)
    expected = summary(compared_again())
    assert len(expected) > 10
    for name, value in expected.items():
        assert kept[name] == pytest.approx(value)
    (folder,) = tmp_path.glob("wandb/offline-run-*/files")
    (table,) = folder.glob("media/table/emoreg/*.json")
    rows = json.loads(table.read_text())
    assert len(rows["data"]) == len(primary_rows(compared_again()))
    (page,) = folder.glob("media/html/emoreg/*.html")
    assert "</html>" in page.read_text()


@pytest.mark.slow
def test_trackio_keeps_figures_and_table(tmp_path: Path) -> None:
    out = in_a_process(LOCAL, tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (row,) = json.loads(out.strip().splitlines()[-1])
    for name, value in summary(compared_again()).items():
        assert row[name] == pytest.approx(value)
    assert len(row["emoreg/figures"]["_value"]) == len(primary_rows(compared_again()))
