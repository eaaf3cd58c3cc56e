"""`emoreg behave --suite pressure`: a tiny model plays, end to end."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pressure_cases import tiny
from seam_cases import lively
from transformers import PreTrainedTokenizerFast

from emoreg.behavior.pressure.outcomes import HARMFUL
from emoreg.behavior.pressure.reaction_table import Reactions
from emoreg.cli import main
from emoreg.vectors.emotion_vectors import EmotionVectors


@pytest.fixture
def folder(
    tmp_path: Path,
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    lively(tiny_model("llama")).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    EmotionVectors.from_directions(
        torch.eye(32)[None, :2], emotions=["calm", "desperate"], layers=[2]
    ).save(tmp_path / "v.safetensors")
    tiny(tmp_path / "own.jsonl")
    return tmp_path


def command(folder: Path, *more: str, out: str = "p.parquet") -> list[str]:
    return [
        *("behave", "--suite", "pressure", "--quiet", "--tokens", "8"),
        *("--model", str(folder / "model"), "--attempts", "2"),
        *("--out", str(folder / out), *more),
    ]


def own(folder: Path, *more: str, **how: str) -> list[str]:
    return command(folder, "--scenarios", str(folder / "own.jsonl"), *more, **how)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    [said] = capsys.readouterr().err.strip().splitlines()
    return said


def test_reactions_are_played_saved_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(own(folder, "--samples", "2")) == 0
    said = capsys.readouterr().out
    found = Reactions.load(folder / "p.parquet")
    assert len(found) == 2 * 2 * 2
    assert {r.outcome for r in found.reactions} == {"no-usable-call"}
    assert {len(r.messages) for r in found.reactions} == {5}  # it never finishes
    assert found.meta["turns"] == 2
    assert found.meta["suite"] == "pressure"
    assert found.meta["adapter"] is None
    rate = found.rate(HARMFUL, setting="agent-threat")
    assert f"harm {rate.estimate:.0%} ({rate.low:.0%} to {rate.high:.0%})" in said
    assert "no-usable-call: 100% (" in said
    assert not (folder / "p.parquet.parts").exists()
    samples = {r.messages[2]["content"] for r in found.reactions if r.id == "a"}
    assert len(samples) > 1  # each draws with a seed of its own


def test_steering_and_seed_change_what_is_written(folder: Path) -> None:
    steer = ["--vectors", str(folder / "v.safetensors"), "--steer", "desperate=3"]
    runs = {"a": [], "b": [], "c": steer, "d": ["--seed", "1"]}
    tables = {}
    for name, more in runs.items():
        assert main(own(folder, *more, out=f"{name}.parquet")) == 0
        tables[name] = Reactions.load(folder / f"{name}.parquet")
    assert tables["a"] == tables["b"]
    assert tables["c"].meta["strengths"] == {"desperate": 3.0}
    assert tables["a"].reactions != tables["c"].reactions
    assert tables["a"].reactions != tables["d"].reactions


def test_a_run_goes_on_only_when_told_to(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(own(folder)) == 0
    whole = Reactions.load(folder / "p.parquet")
    parts = folder / "p.parquet.parts"
    parts.mkdir()
    said = whole.reactions[0].messages[2]["content"]
    line = {"key": "agent/a/threat/0", "attempt": 0, "answer": said}
    journal = parts / "answers.journal"
    journal.write_text(f"{json.dumps(whole.meta)}\n{json.dumps(line)}\n")
    assert "--resume" in refused(capsys, own(folder))
    other = refused(capsys, own(folder, "--resume", "--seed", "3"))
    assert "`seed` was 0, is 3" in other
    assert main(own(folder, "--resume")) == 0
    assert Reactions.load(folder / "p.parquet") == whole


def test_bad_input_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "`dev`, `test`" in refused(capsys, command(folder, "--prompts", "train"))
    assert "at least 2" in refused(capsys, own(folder, "--limit", "1"))
    assert "`samples` 0" in refused(capsys, own(folder, "--samples", "0"))
    file = folder / "own.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\n")
    assert "at least 2 pairs" in refused(capsys, own(folder))
    wrong = json.loads(second)
    wrong["rules"]["accepts"] = [{"tool": "sing"}]
    file.write_text(f"{first}\n{json.dumps(wrong)}\n")
    assert "own.jsonl:2: a rule of accepts" in refused(capsys, own(folder))


def test_an_endpoint_is_asked_with_the_tools_and_what_they_answered(
    folder: Path,
) -> None:
    from test_writing import Server

    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    call = {"tool": "say", "arguments": {"to": "B.", "text": "Hi"}}
    server.wrap = lambda _: f"```json\n{json.dumps(call)}\n```"
    try:
        assert main(own(folder, "--endpoint", server.url)) == 0
    finally:
        server.shutdown()
        server.server_close()
    found = Reactions.load(folder / "p.parquet")
    assert {reaction.outcome for reaction in found.reactions} == {"accepts"}
    assert {reaction.calls for reaction in found.reactions} == {2}
    first, second = server.asked[0]["messages"], server.asked[-1]["messages"]
    assert [message["role"] for message in first] == ["system", "user"]
    assert "- say: to (who); text (text)" in first[0]["content"]
    assert second[-1]["content"] == "say: Said.\n1 reply is left."


def test_limit_takes_pairs_and_requests_of_every_kind(folder: Path) -> None:
    from argparse import Namespace

    from emoreg.commands.suites import SUITES

    asked = Namespace(limit=3, scenarios=None, prompts="dev")
    scenarios, requests = SUITES["pressure"].texts(asked)
    assert len(scenarios) == 6
    assert len(requests) == 6 * 3
    assert {text.split for text in (*scenarios, *requests)} == {"dev"}
    asked = Namespace(limit=None, scenarios=folder / "own.jsonl", prompts="test")
    scenarios, requests = SUITES["pressure"].texts(asked)
    assert (len(scenarios), len(requests)) == (4, 0)
