"""A small real run on the demo model: weights, trainer, tables and page are real."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emoreg import demo
from emoreg.cli import main
from emoreg.comparison.readings import Readings
from emoreg.quickstart.plan import Plan, full_plan, quick_plan
from emoreg.quickstart.progress import Progress
from emoreg.quickstart.run import Quickstart
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors

EMOTIONS = ("desperate", "calm", "panicked", "content", "upset", "serene", "proud")
SMALL = Plan(
    emotions=EMOTIONS,
    rounds=1,
    train_rounds=1,
    train_twins=4,
    calibrate_every=16,
    test_every=16,
    stakes=False,
    steps=2,
    passages=2,
    guard_limit=2,
    dev_gate=False,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out, said = tmp_path_factory.mktemp("quickstart"), []
    Quickstart(out=out, plan=SMALL, quiet=True, say=said.append).run()
    return out, said


@pytest.mark.slow
def test_the_page_and_its_figures_are_written(
    finished: tuple[Path, list[str]],
) -> None:
    out, said = finished
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["schema"].startswith("emoreg.report/")
    assert (out / "report" / "index.html").stat().st_size > 100_000
    assert str((out / "report" / "index.html").resolve()) in said[-1]


@pytest.mark.slow
def test_readers_name_the_emotions_of_held_out_stories(
    finished: tuple[Path, list[str]],
) -> None:
    vectors = EmotionVectors.load(finished[0] / "vectors.safetensors")
    found = {entry["reader"]: entry for entry in vectors.provenance["accuracy"]}
    assert found["lda"]["texts"] == 4 * len(EMOTIONS)
    assert found["lda"]["top1"] > 4 / len(EMOTIONS)  # chance is 1 / 7
    assert vectors.provenance["model"] == demo.HUB_ID


@pytest.mark.slow
def test_training_changed_both_arms_and_nothing_else(
    finished: tuple[Path, list[str]],
) -> None:
    tables = {
        arm: Readings.load(finished[0] / f"{arm}.parquet")
        for arm in ("before", "after", "control")
    }
    assert len({table.meta["prompts_hash"] for table in tables.values()}) == 1
    for arm in ("after", "control"):
        moved = abs(tables[arm].values - tables["before"].values).max()
        assert 0 < moved < 10
        assert tables[arm].meta["guards"]["kl"]["value"] > 0
    assert abs(tables["after"].values - tables["control"].values).max() > 0
    # Layers below the adapter are the same model: negative control of the above.
    below = [i for i, layer in enumerate(tables["after"].layers) if layer < 8]
    assert (
        tables["after"].values[:, :, below] == tables["before"].values[:, :, below]
    ).all()


@pytest.mark.slow
def test_a_second_run_reuses_the_vectors_and_the_command_line_reads_them(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    runner = Quickstart(out=out, plan=SMALL, quiet=True, say=lambda _: None)
    loaded = demo.load_any("demo")
    assert runner._cached_vectors(loaded) is not None
    changed = Quickstart(out=out, plan=quick_plan(Corpus.packaged()), quiet=True)
    assert changed._cached_vectors(loaded) is None
    vectors = str(out / "vectors.safetensors")
    prompts = out / "one.jsonl"
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Y"}]
    row = {"id": "a", "pair": "a", "messages": turns, "failed": [None]}
    prompts.write_text(json.dumps(row))
    table = str(out / "one.parquet")
    adapter = str(out / "adapter-after")
    arguments = ["--vectors", vectors, "--prompts", str(prompts), "--quiet"]
    assert main(["measure", *arguments, "--adapter", adapter, "--out", table]) == 0
    assert "2 segments" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stood(
    finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """What is on disk after the control arm was trained: its table is still missing."""
    done = ["calibrate", "measure before", "train after", "measure after"]
    done += ["train control"]
    out = tmp_path / "cut"
    shutil.copytree(finished[0], out, ignore=shutil.ignore_patterns("report", "con*.*"))
    again: list[str] = []
    runner = Quickstart(out=out, plan=SMALL, quiet=True, say=again.append)
    kept = Progress(out / "progress.json", runner._settings())
    for stage in done:
        kept.finish(stage, 1.0)
    assert not (out / "control.parquet").exists()
    runner.run()
    reused = [each.split(":")[0].strip() for each in again if "was interrupted" in each]
    assert reused == done
    for arm in ("before", "after", "control"):
        uncut = Readings.load(finished[0] / f"{arm}.parquet")
        assert (Readings.load(out / f"{arm}.parquet").values == uncut.values).all()
    assert (out / "report" / "index.html").is_file()
    assert not (out / "progress.json").exists()  # the next run measures anew


def test_progress_of_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    Progress(path, {"seed": 0}).finish("train after", 3.0)
    assert Progress(path, {"seed": 0}).seconds("train after") == 3.0
    assert Progress(path, {"seed": 1}).seconds("train after") is None
    path.write_text("{")
    assert Progress(path, {"seed": 0}).seconds("train after") is None


def test_every_plan_says_what_it_costs() -> None:
    corpus = Corpus.packaged()
    quick, full = quick_plan(corpus), full_plan(corpus)
    everything = replace(quick, emotions=corpus.emotions())
    costs = [
        plan.forward_tokens(cached=cached)
        for plan in (quick, everything, full)
        for cached in (True, False)
    ]
    assert costs[0] == costs[2] < costs[1] < costs[3]  # stories alone differ
    assert costs[0] < costs[4] < costs[5]
    fewer = replace(full, arms=("after", "control"))
    assert fewer.forward_tokens(cached=True) < costs[4]


def test_plans_speak_of_held_out_prompts_only() -> None:
    corpus = Corpus.packaged()
    for plan in (quick_plan(corpus), full_plan(corpus)):
        trained = {prompt.pair for prompt in plan.calibration_prompts(corpus)}
        tested = {prompt.pair for prompt in plan.test_prompts(corpus)}
        assert tested
        assert not trained & tested
    quick = quick_plan(corpus).test_prompts(corpus)
    assert len({prompt.pair for prompt in quick}) == 32
    styles = Counter(prompt.style for prompt in quick)
    assert set(styles.values()) == {2 * 8}  # four styles, eight twins of each


def test_two_first_uses_at_once_end_in_one_folder(tmp_path: Path) -> None:
    one, other, folder = (tmp_path / name for name in ("one", "other", "model"))
    for made in (one, other):
        made.mkdir()
        (made / "config.json").write_text(made.name)
        demo._put(made, folder)
    assert (folder / "config.json").read_text() == "one"
    (folder / "config.json").rename(folder / "something else")
    with pytest.raises(OSError, match="not empty"):  # control: that is no model
        demo._put(other, folder)


def test_the_dtype_is_chosen_by_what_the_machine_does_faster() -> None:
    assert demo.fastest_dtype() in (torch.float32, torch.bfloat16)
