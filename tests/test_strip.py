"""A run's checkpoints: measured once each, in one unit, and shown over steps."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
from comparison_tables import synthetic
from peft import get_peft_model
from transformers import PreTrainedTokenizerFast

from emoreg.cli import main
from emoreg.comparison.compare import compare
from emoreg.comparison.phrases import percent
from emoreg.comparison.readings import Readings
from emoreg.comparison.strip import Strip, strip
from emoreg.comparison.strip_page import render_strip

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
GIVEN: dict[str, Any] = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 24}


def at(scale: float, seed: int) -> Readings:
    return synthetic(**GIVEN, scale=scale, seed=seed)


def film(*scales: float, **how: Any) -> Strip:
    tables = {100 * k: at(scale, k) for k, scale in enumerate(scales)}
    return strip(tables, n_resamples=300, **how)


def test_frames_are_the_slopes_of_a_comparison() -> None:
    tables = {0: at(1.0, 0), 10: at(0.6, 1), 20: at(0.3, 2)}
    found = strip(tables, n_resamples=300)
    plain = compare(
        tables[0], tables[20], arms={"10": tables[10]}, n_resamples=300
    ).summary
    assert found.steps == (0, 10, 20)
    for target, frames in found.frames.items():
        index = plain.index(found.reader, "audit", target)
        for frame, arm in zip(frames, ("before", "10", "after"), strict=True):
            own = plain.arms[arm]
            assert frame.slope == own.slope.at(*index)
            assert np.mean(frame.slopes) == pytest.approx(frame.slope.estimate)
            if frame.left is not None:
                assert own.ratio is not None
                assert frame.left == own.ratio.at(*index)


def test_a_crossing_must_last_and_be_shown() -> None:
    falls = film(1.0, 0.8, 0.2, 0.15)
    assert falls.crossed("desperate") == 200
    dips = film(1.0, 0.2, 0.8, 0.2)
    assert dips.crossed("desperate") == 300
    stays = film(1.0, 0.9, 0.85)
    assert stays.crossed("desperate") is None
    assert film(1.0, 0.8, 0.2, threshold=0.95).crossed("desperate") == 100


def test_a_slope_that_turned_over_has_not_crossed() -> None:
    assert film(1.0, 0.2, -0.2).crossed("desperate") == 100
    over = film(1.0, 0.2, -1.5)
    assert over.crossed("desperate") is None
    assert "desperate: not shown to stay at 50 % of its slope" in render_strip(over)


@pytest.mark.parametrize("steps", [(), (0,), (5, 10)])
def test_step_zero_and_a_later_one_are_needed(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="step 0"):
        strip({step: at(1.0, step) for step in steps})


def test_tables_without_a_headline_target_are_refused() -> None:
    tables = {k: synthetic(emotions=("proud",), n_prompts=8, seed=k) for k in (0, 1)}
    with pytest.raises(ValueError, match=r"readings of some of .*; found proud\."):
        strip(tables, n_resamples=100)


def test_tables_of_other_vectors_are_refused() -> None:
    other = at(0.5, 1)
    other = replace(other, meta={**other.meta, "vectors_hash": "x"})
    with pytest.raises(ValueError, match="vectors_hash"):
        strip({0: at(1.0, 0), 10: other})


def test_the_page_and_the_document_have_every_frame(tmp_path: Path) -> None:
    found = film(1.0, 0.8, 0.2)
    page = found.save(tmp_path).read_text()
    document = json.loads((tmp_path / "strip.json").read_text())
    assert document["steps"] == [0, 100, 200]
    assert document["crossed"]["desperate"] == 200
    charts = json.loads(
        re.search(r'id="charts">(.*?)</script>', page, re.S).group(1)  # type: ignore
    )
    assert len(charts) == 2 * len(found.frames)
    by_step = charts["steps-0"]
    assert by_step["data"][0]["x"] == [0, 100, 200]
    assert "tickvals" not in by_step["layout"]["xaxis"]
    shapes = [t["y"] for t in charts["strip-0"]["data"] if "fill" in t]
    tall = [max(own) + place for place, own in enumerate(shapes)]
    assert tall == pytest.approx([0.9] * 3, abs=1e-3)
    for target, frames in found.frames.items():
        for frame in frames:
            assert f'<th scope="row">{frame.step}</th>' in page
            assert frame.left is None or percent(frame.left) in page
        assert f'<h2 id="h-{[*found.frames].index(target)}">{target}</h2>' in page
    assert "from step 200 on" in page
    assert "http://" not in page.split("<script")[0]
    assert render_strip(found) == page


# ------------------------------------------------------------------ the command


@pytest.fixture
def folder(
    tmp_path: Path,
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A model, its vectors, twins, and a run with two checkpoints."""
    base = cases.lively(tiny_model("llama"))
    base.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vectors = cases.make_vectors()
    vectors.save(tmp_path / "v.safetensors")
    cases.make_reference(base, tokenizer, vectors).save(tmp_path / "r.safetensors")
    tuned: Any = get_peft_model(base, cases.adapter())
    for step in (5, 10):
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        tuned.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    rows = [
        {
            "id": f"{name}/{variant}",
            "pair": name,
            "variant": variant,
            "messages": [
                {"role": "user", "content": f"sort {name}"},
                {"role": "assistant", "content": "one loop"},
                {"role": "user", "content": said},
                {"role": "assistant", "content": "two loops"},
            ],
            "failed": [None, float(variant == "fail")],
        }
        for name in ("a", "bc", "def", "ghij", "klmno", "pq", "rst", "uvwx")
        for variant, said in (("fail", "1 of 9 pass"), ("pass", "9 of 9 pass"))
    ]
    lines = (json.dumps(row) + "\n" for row in rows)
    (tmp_path / "talks.jsonl").write_text("".join(lines))
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    return [
        *("compare", "--quiet", "--model", str(folder / "model")),
        *("--vectors", str(folder / "v.safetensors")),
        *("--reference", str(folder / "r.safetensors")),
        *("--prompts", str(folder / "talks.jsonl"), *more),
    ]


def table(folder: Path, name: str, *adapter: str) -> Readings:
    """What `emoreg measure` makes of the same model."""
    out = folder / f"{name}.parquet"
    arguments = ["measure", *command(folder)[1:], *adapter, "--out", str(out)]
    assert main(arguments) == 0
    return Readings.load(out)


def test_checkpoints_are_measured_as_if_each_were_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "strip"
    arguments = command(folder, "--checkpoints", str(folder / "run"))
    assert main([*arguments, "--out", str(out)]) == 0
    assert "The strip: " in capsys.readouterr().out
    for name, adapter in (("before", ()), ("step-5", (5,)), ("step-10", (10,))):
        own = Readings.load(out / "tables" / f"{name}.parquet")
        worn = [
            part
            for step in adapter
            for part in ("--adapter", str(folder / "run" / f"checkpoint-{step}"))
        ]
        alone = table(folder, name, *worn)
        np.testing.assert_allclose(own.values, alone.values, rtol=1e-4, atol=1e-4)
    steps = json.loads((out / "strip.json").read_text())["steps"]
    assert steps == [0, 5, 10]


def test_what_was_measured_is_not_measured_again(folder: Path) -> None:
    out = folder / "strip"
    arguments = command(folder, "--checkpoints", str(folder / "run"))
    assert main([*arguments, "--out", str(out)]) == 0
    tables = out / "tables"
    times = {p.name: p.stat().st_mtime_ns for p in tables.glob("*.parquet")}
    (tables / "step-10.parquet").unlink()  # as if it had been cut off here
    assert main([*arguments, "--out", str(out)]) == 0
    again = {p.name: p.stat().st_mtime_ns for p in tables.glob("*.parquet")}
    assert {n for n in times if again[n] != times[n]} == {"step-10.parquet"}


def test_tables_of_another_run_are_not_taken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(folder / "strip")]
    arguments = command(folder, "--checkpoints", str(folder / "run"))
    assert main([*arguments, *out]) == 0
    weights = folder / "run" / "checkpoint-5" / "adapter_model.safetensors"
    other = folder / "run" / "checkpoint-10" / "adapter_model.safetensors"
    weights.write_bytes(other.read_bytes())  # the run was started anew
    capsys.readouterr()
    assert main([*arguments, *out]) == 2
    assert "another `adapter_weights`" in capsys.readouterr().err


def test_tables_of_another_base_are_not_taken(
    folder: Path, capsys: pytest.CaptureFixture[str], tiny_model: Callable[[str], Any]
) -> None:
    arguments = command(folder, "--checkpoints", str(folder / "run"))
    arguments += ["--out", str(folder / "strip")]
    assert main(arguments) == 0
    model = cases.lively(tiny_model("llama"))
    with torch.no_grad():
        weight: Any = model.get_input_embeddings().weight
        weight.mul_(1.01)
    model.save_pretrained(folder / "model")  # other weights under the same name
    capsys.readouterr()
    assert main(arguments) == 2
    assert "another `base_weights`" in capsys.readouterr().err


@pytest.mark.slow  # the whole capability suite, twice
def test_guards_that_are_asked_for_later_are_measured(folder: Path) -> None:
    adapter = ["--adapter", str(folder / "run" / "checkpoint-5")]
    arguments = [*command(folder, *adapter), "--out", str(folder / "report")]
    tables = folder / "report" / "tables"

    def guards() -> list[dict[str, Any]]:
        return [Readings.load(t).meta["guards"] for t in sorted(tables.glob("*"))]

    assert main(arguments) == 0
    assert guards() == [{}, {}]
    assert main([*arguments, "--guards"]) == 0
    assert all(guards())


def test_a_model_is_compared_with_itself_and_its_adapter(folder: Path) -> None:
    out = folder / "report"
    adapter = ["--adapter", str(folder / "run" / "checkpoint-5")]
    assert main([*command(folder, *adapter), "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    plain = compare(table(folder, "b"), table(folder, "a", *adapter))
    found = plain.to_dict()
    for row, own in zip(report["primary"], found["primary"], strict=True):
        assert row["slope"] == pytest.approx(own["slope"], rel=1e-3, abs=1e-4)


def test_one_thing_must_be_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(folder / "x")]
    run, adapter = str(folder / "run"), str(folder / "run" / "checkpoint-5")
    for arguments, said in (
        (["compare", *out], "found 0 tables and 0"),
        (["compare", "b.parquet", *out], "found 1 tables and 0"),
        (["compare", "b.parquet", "a.parquet", "--adapter", adapter, *out], "found 2"),
        (["compare", "--adapter", adapter, "--checkpoints", run, *out], "and 2 of the"),
        (["compare", "--checkpoints", run, *out], "`--vectors` must be given"),
        (command(folder, "--checkpoints", str(folder), *out), "checkpoint-STEP"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2, arguments
        assert said in capsys.readouterr().err
