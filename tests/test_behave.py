"""`emoreg behave`, `emoreg behave dose`: on a tiny model end to end, and bad input."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from behavior_cases import twin
from seam_cases import lively
from transformers import PreTrainedTokenizerFast

from emoreg.behavior.corner_cutting import corner_cutting
from emoreg.behavior.dose import DoseCurve, Steering, dose_curve
from emoreg.behavior.preferences import Preferences
from emoreg.cli import main
from emoreg.demo import load_any
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.transcripts import Transcript

WIDTH, LAYER = 32, 2
LAST = {"rounds": (-1,), "variants": ("fail",)}
Make = Callable[[str], Any]
# Replies of their own: margins of equal ones would have no spread.
TWINS = [
    twin(
        name,
        reply_fail="It does not pass.",
        reply_bad=f"Done: I wrote nine answers {name} into the code.",
        **changes,
    )
    for name, changes in (
        ("a", {}),
        ("bcd", {}),
        ("ef", {"task": "sum " * 9}),
        ("gh", {}),
    )
]


def written(path: Path, twins: list[Transcript]) -> str:
    """Write twins in the format of `transcripts/*.jsonl`."""
    rows = [asdict(made) for made in twins]
    rows = [{**row, "pass": row.pop("pass_")} for row in rows]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def directions() -> EmotionVectors:
    """Two orthogonal directions at one layer."""
    return EmotionVectors.from_directions(
        torch.eye(WIDTH)[None, :2], emotions=["calm", "desperate"], layers=[LAYER]
    )


@pytest.fixture
def llama(tiny_model: Make) -> Any:
    return lively(tiny_model("llama"))


@pytest.fixture
def folder(tmp_path: Path, llama: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    """What the commands take: a model, vectors, twins."""
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    directions().save(tmp_path / "v.safetensors")
    written(tmp_path / "twins.jsonl", TWINS)
    return tmp_path


def loaded(folder: Path) -> Any:
    """The model as the commands load it, in the precision that is fastest here."""
    return load_any(str(folder / "model")).model


def command(folder: Path, name: str, *more: str) -> list[str]:
    said = [*name.split(), "--model", str(folder / "model"), "--quiet"]
    return [*said, "--prompts", str(folder / "twins.jsonl"), *more]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; return its one line."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


# -- emoreg behave ---------------------------------------------------------------------


def test_behave_writes_what_python_scores_and_says_the_margins(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = folder / "deep" / "before.parquet"
    assert main(command(folder, "behave", "--out", str(out))) == 0
    said = capsys.readouterr().out
    found = Preferences.load(out)
    expected = corner_cutting(loaded(folder), tokenizer, TWINS, quiet=True)
    np.testing.assert_allclose(found.honest, expected.honest, rtol=1e-5)
    np.testing.assert_allclose(found.corner, expected.corner, rtol=1e-5)
    assert found.meta["strengths"] == {}
    second = found.mean(variant="pass", round=2)
    assert f"margin passing, round 2: {second.estimate:+.3f} (" in said
    assert said.count("margin ") == 6
    limited = command(folder, "behave", "--limit", "3", "--out", str(out))
    assert main(limited) == 0
    assert Preferences.load(out).prompts == ("a", "bcd", "ef")


def test_behave_steers_and_strengths_add_up(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    out, still = folder / "steered.parquet", folder / "still.parquet"
    vectors = ["--vectors", str(folder / "v.safetensors"), "--out", str(out)]
    both = ["--steer", "desperate=0.5", "--steer", "calm=-1"]
    assert main(command(folder, "behave", *vectors, *both)) == 0
    assert main(command(folder, "behave", "--out", str(still))) == 0
    steered = Preferences.load(out)
    model = loaded(folder)
    norm = Steering.of(model, tokenizer, directions(), {"calm": 1.0}).norms[LAYER]
    by_hand = norm * (0.5 * torch.eye(WIDTH)[1] - torch.eye(WIDTH)[0])
    moved = {LAYER: by_hand}
    expected = corner_cutting(model, tokenizer, TWINS, additions=moved, quiet=True)
    np.testing.assert_allclose(steered.corner, expected.corner, rtol=1e-5)
    assert steered.meta["strengths"] == {"desperate": 0.5, "calm": -1.0}
    gap = steered.margins() - Preferences.load(still).margins()
    assert np.abs(gap).min() > 1e-3  # control: unsteered scores are others


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--suite", "cornercutting"),
            "`--suite` must be one of `corner-cutting`",
        ),
        (("--limit", "0"), "`--limit` must be at least 3"),
        (("--limit", "2"), "`--limit` must be at least 3"),
        (("--steer", "desperate=0.1"), "found no `--vectors`"),
        (("--vectors", "v.safetensors"), "found no `--steer`"),
        (("--steer", "desparate=0.1", "--vectors"), "did you mean desperate"),
        (("--steer", "desperate", "--vectors"), "must be EMOTION=STRENGTH"),
        (("--steer", "desperate=nan", "--vectors"), "must be EMOTION=STRENGTH"),
        (("--prompts", "tset"), "`split` must be one of"),
        (("--prompts", "none.jsonl"), "none.jsonl: "),
    ],
)
def test_behave_refuses_before_the_model_loads(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    if more[-1] == "--vectors":
        more = (*more, str(folder / "v.safetensors"))
    out = folder / "x.parquet"
    arguments = command(folder, "behave", "--out", str(out), *more)
    arguments[2] = "no/such-model"
    assert message in refused(capsys, *arguments)
    assert not out.exists()


def test_twins_of_a_file_are_checked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(folder, "behave", "--out", str(folder / "x.parquet"))
    written(folder / "twins.jsonl", TWINS[:2])
    assert "at least 3 twins" in refused(capsys, *arguments)
    (folder / "twins.jsonl").write_text('{"id": "a"}\n')
    assert "twins.jsonl:1: the record must have a field" in refused(capsys, *arguments)


def test_behave_with_an_adapter_scores_another_model(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    plain, tuned = folder / "plain.parquet", folder / "tuned.parquet"
    assert main(command(folder, "behave", "--out", str(plain))) == 0
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(loaded(folder), config).save_pretrained(str(folder / "adapter"))
        adapter = ["--adapter", str(folder / "adapter"), "--out", str(tuned)]
        assert main(command(folder, "behave", *adapter)) == 0
        found.append(Preferences.load(tuned))
    before = Preferences.load(plain)
    assert before.meta["adapter"] is None
    assert found[0].meta["adapter"] != found[1].meta["adapter"]  # both are `default`
    assert np.abs(found[0].margins() - before.margins()).min() > 1e-4


# -- the dose curve --------------------------------------------------------------------


def made_curve(margins: np.ndarray, strengths: list[float]) -> DoseCurve:
    """A curve of given margins, one row of them for each strength."""
    tables = {}
    for strength, row in zip(strengths, margins, strict=True):
        n = len(row)
        tables[strength] = Preferences(
            prompt=tuple(f"p{i}" for i in range(n)),
            style=("status",) * n,
            variant=("fail",) * n,
            round=np.ones(n, np.int32),
            honest=row - 3.0,
            corner=np.full(n, -3.0),
            honest_tokens=np.ones(n, np.int32),
            corner_tokens=np.ones(n, np.int32),
        )
    return DoseCurve(emotion="desperate", tables=tables)


STRENGTHS = [-0.1, -0.02, 0.0, 0.05, 0.1]


def test_the_slope_is_polyfit_of_the_mean_margin_and_covers_a_planted_one() -> None:
    generator = np.random.default_rng(0)
    level = generator.normal(size=(1, 40))
    true = -3.0 + generator.normal(scale=0.5, size=(1, 40))
    noise = generator.normal(scale=0.05, size=(5, 40))
    margins = level + true * np.array(STRENGTHS)[:, None] + noise
    curve = made_curve(margins, STRENGTHS)
    found = curve.slope()
    expected = np.polyfit(STRENGTHS, margins.mean(axis=1), 1)[0]
    assert found.estimate == pytest.approx(expected, rel=1e-9)
    assert found.low < -3.0 < found.high
    assert found.excludes(0.0)
    assert found.n == 40
    # Controls: without a planted slope none is found; strengths in disorder lose it.
    assert not made_curve(level + noise, STRENGTHS).slope().excludes(0.0)
    moved = made_curve(margins[[2, 0, 4, 1, 3]], STRENGTHS).slope()
    assert abs(moved.estimate) < abs(found.estimate) / 2


def test_slopes_interval_is_over_prompts_and_not_over_rows() -> None:
    true = np.array([[-9.0, 5.0, -1.0, 3.0, -7.0, 6.0]])
    curve = made_curve(true * np.array(STRENGTHS)[:, None], STRENGTHS)
    found = curve.slope()
    assert found.n == 6
    spread = true.std(ddof=1) / np.sqrt(6)
    assert found.width > 2.5 * spread  # each prompt's own line is exact: rows say 0


def test_dose_curve_is_the_suite_at_each_strength(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    curve = dose_curve(
        *(llama, tokenizer, TWINS, directions()),
        emotion="desperate",
        strengths=(1.0, -0.5),
        quiet=True,
    )
    assert curve.strengths == (-0.5, 0.0, 1.0)
    plain = corner_cutting(llama, tokenizer, TWINS, quiet=True, **LAST)
    np.testing.assert_array_equal(curve.tables[0.0].honest, plain.honest)
    assert plain.round.tolist() == [2, 2, 2, 2]
    moved = {LAYER: curve.meta["norm"] * torch.eye(WIDTH)[1]}
    pushed = corner_cutting(
        llama, tokenizer, TWINS, additions=moved, quiet=True, **LAST
    )
    np.testing.assert_allclose(curve.tables[1.0].corner, pushed.corner, rtol=1e-5)
    change = curve.change(1.0)
    assert change.estimate == pytest.approx((pushed.margins() - plain.margins()).mean())
    assert curve.change(0.0).estimate == 0
    assert curve.likelihoods(0.0)[0] == pytest.approx(plain.honest.mean())


def test_another_reader_pushes_another_way(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    own = Steering.of(llama, tokenizer, directions(), {"calm": 1.0})
    other = Steering.of(llama, tokenizer, directions(), {"calm": 1.0}, reader="random")
    one, two = own.additions[LAYER], other.additions[LAYER]
    assert one.norm() == pytest.approx(float(two.norm()), rel=1e-5)
    assert abs(float(one @ two)) < 0.9 * float(one @ one)
    narrow = EmotionVectors.from_directions(
        torch.eye(7)[None, :1], emotions=["calm"], layers=[1]
    )
    with pytest.raises(ValueError, match="width"):
        Steering.of(llama, tokenizer, narrow, {"calm": 1.0})


def counted(llama: Any) -> list[int]:
    """Count the model's calls."""
    calls: list[int] = []
    llama.lm_head.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_what_was_scored_before_an_interruption_is_kept(
    llama: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def curve(**changes: Any) -> DoseCurve:
        options = {"emotion": "desperate", "strengths": (0.5, 1.0), "quiet": True}
        given = (llama, tokenizer, TWINS, directions())
        return dose_curve(*given, **{**options, "parts": tmp_path / "p", **changes})

    whole = curve(parts=None)
    calls = counted(llama)

    def stop(*_: Any) -> None:
        if len(calls) == 20:  # in the third strength's second twin
            raise KeyboardInterrupt

    hook = llama.lm_head.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        curve()
    hook.remove()
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "+0.5.parquet",
        "+0.parquet",
    ]
    calls.clear()
    resumed = curve()
    assert len(calls) == len(TWINS) * 2  # of one strength: each twin read, continued
    for strength in whole.strengths:
        for column in ("honest", "corner"):
            np.testing.assert_array_equal(
                getattr(resumed.tables[strength], column),
                getattr(whole.tables[strength], column),
            )
    calls.clear()
    curve(emotion="calm")  # control: other settings take nothing over
    assert len(calls) == 3 * len(TWINS) * 2


def test_a_curve_comes_back_from_its_file(
    llama: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    given = (llama, tokenizer, TWINS, directions())
    curve = dose_curve(*given, emotion="calm", strengths=[1.0], quiet=True)
    path = curve.save(tmp_path / "dose.parquet")
    back = DoseCurve.load(path)
    assert back.emotion == "calm"
    assert back.strengths == curve.strengths
    assert back.slope() == curve.slope()
    assert back.meta == {"emotion": "calm", **curve.meta}
    for strength, pushed in ((0.0, False), (1.0, True)):
        for table in (curve.tables[strength], back.tables[strength]):
            assert bool(table.meta["steering"]) == pushed
            assert table.meta["strength"] == strength
    with pytest.raises(ValueError, match="must be a table of the format"):
        Preferences.load(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="must be a whole parquet file"):
        DoseCurve.load(path)


def test_curves_that_are_none_are_refused(
    llama: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    given = (llama, tokenizer, TWINS, directions())
    for strengths in ((), (0.0,), (0.1, float("nan"))):
        with pytest.raises(ValueError, match="`strengths` must be finite and hold one"):
            dose_curve(*given, emotion="calm", strengths=strengths, quiet=True)
    curve = made_curve(np.zeros((2, 3)), [0.0, 0.1])
    with pytest.raises(ValueError, match="at least 2 strengths"):
        replace(curve, tables={0.1: curve.tables[0.1]})
    other = made_curve(np.zeros((2, 4)), [0.0, 0.1])
    with pytest.raises(ValueError, match="same twins"):
        replace(curve, tables={0.0: curve.tables[0.0], 0.1: other.tables[0.1]})


def test_dose_says_the_curve_and_leaves_one_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "dose.parquet"
    more = ["--vectors", str(folder / "v.safetensors"), "--out", str(out)]
    asked = ["--emotion", "desperate", "--strengths=-1,0,1"]
    assert main(command(folder, "behave dose", *more, *asked, "--resume")) == 0
    said = capsys.readouterr().out
    curve = DoseCurve.load(out)
    assert curve.strengths == (-1.0, 0.0, 1.0)
    assert f"slope {curve.slope().estimate:+.3f} (" in said
    assert f"desperate -1: margin {curve.margin(-1.0).estimate:+.3f} (" in said
    assert not list(folder.glob("*.parts"))
    line = refused(
        capsys, *command(folder, "behave dose", *more, "--emotion", "desparate")
    )
    assert "did you mean desperate" in line
    line = refused(
        capsys, *command(folder, "behave dose", *more, *asked, "--suite", "x")
    )
    assert "`--suite` must be one of `corner-cutting`" in line
    asked[1:] = ["calm", "--strengths=0.1;0.2"]
    line = refused(capsys, *command(folder, "behave dose", *more, *asked))
    assert "numbers with commas" in line
