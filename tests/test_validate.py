"""The battery as a whole: verdicts from figures, and the page that shows them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from emoreg.cli import main
from emoreg.comparison.validate import Validation, judged
from emoreg.losses.presets import decouple
from emoreg.validation.check import Check, Curves, Figure, Matrix
from emoreg.validation.judgement import layer_standings, recommended, standings
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors

HOSTILE = "<script>document.title='taken'</script>"


def check(name: str = "held-out stories", value: float = 0.8, **settings: Any) -> Check:
    headline = Figure(
        name="top-1",
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        controls=settings.pop("controls", {"chance": 0.1, "random": 0.12}),
        count=40,
        reader="lda",
        layer=3,
    )
    return Check(
        name=name,
        question=settings.pop("question", "Does a reader name held-out stories?"),
        method="Made up.",
        headline=headline,
        threshold=settings.pop("threshold", 0.5),
        figures=settings.pop("figures", (headline,)),
        **settings,
    )


# -- verdicts -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (check(value=0.8), "passed"),
        (check(value=0.4), "missed"),
        (check(value=float("nan")), "missed"),
        (check(value=0.8, controls={"shuffled": 0.6}), "not evidence"),
        (check(value=0.4, controls={"shuffled": 0.6}), "missed"),
        (check(value=0.8, controls={"shuffled": float("nan")}), "passed"),
        (check(threshold=None), "no threshold"),
        (check(not_run="no texts"), "not run"),
    ],
)
def test_a_verdict_follows_from_figure_control_and_threshold(
    found: Check, wanted: str
) -> None:
    assert found.verdict == wanted


def test_lower_can_be_better() -> None:
    figure = Figure(
        name="rank", value=2.0, controls={"random": 85.0}, lower_is_better=True
    )
    assert figure.reaches(5.0)
    assert not figure.control_reaches(5.0)
    assert not figure.reaches(1.0)  # control


def test_an_emotion_needs_its_stories_and_more_than_half() -> None:
    checks = [
        check(emotions={"calm": True, "sad": False, "odd": True}),
        check("lens", emotions={"calm": True, "sad": True, "odd": False}),
        check("doses", emotions={"calm": False, "sad": True}),
        # What a control passes too counts for nothing.
        check("blind", controls={"random": 0.9}, emotions={"odd": True, "sad": True}),
    ]
    found = standings(
        checks, ("calm", "sad", "odd", "new"), required="held-out stories"
    )
    assert [standing.use for standing in found] == [True, False, False, False]
    assert found[1].holds == ("lens", "doses")
    assert "fails 'held-out stories'" in found[1].reason
    assert "not judged by 'held-out stories'" in found[3].reason


def test_layers_are_ranked_by_all_checks_that_tell_them_apart() -> None:
    checks = [
        check(layers={1: 0.1, 2: 0.5, 3: 0.9, 4: 0.8}),
        check("lens", layers={1: 3.0, 2: 9.0, 3: 8.0, 4: 8.5}),
        check("part", layers={1: 99.0}),
        check(
            "blind", controls={"random": 0.9}, layers={1: 9.0, 2: 0.0, 3: 0.0, 4: 0.0}
        ),
    ]
    found = layer_standings(checks, (1, 2, 3, 4))
    assert [round(s.score, 3) for s in found] == [0.0, 0.75, 0.917, 0.896]
    assert recommended(found) == (2, 3, 4)
    assert recommended(layer_standings([check()], (1, 2))) == ()


# -- the page -----------------------------------------------------------------


@pytest.fixture
def validation(vectors: EmotionVectors) -> Validation:
    names = vectors.emotions
    per_emotion = tuple(
        Figure(name="mean rank", value=float(i), emotion=name, lower_is_better=True)
        for i, name in enumerate(names)
    )
    checks = [
        check(
            emotions={name: i != 1 for i, name in enumerate(names)},
            layers={layer: float(layer) for layer in vectors.layers},
            figures=(check().headline, *per_emotion),  # type: ignore[arg-type]
            pictures=(
                Matrix(
                    title="Confusion",
                    rows=names,
                    columns=names,
                    values=np.eye(len(names)),
                ),
            ),
            notes=(HOSTILE,),
        ),
        check(
            "doses",
            value=0.2,
            pictures=(
                Curves(
                    title="A dose",
                    x_title="mg",
                    y_title="reading",
                    x=(1.0, 2.0, 3.0),
                    series={HOSTILE: (0.1, 0.2, float("nan"))},
                ),
            ),
        ),
        check("lens", controls={"random": 0.7}),
        check("human text", not_run="no folder was given"),
    ]
    return judged(checks, vectors, facts={"Model": HOSTILE, "Vectors": vectors.hash})


def test_the_page_says_what_the_figures_say(
    validation: Validation, tmp_path: Path
) -> None:
    page = validation.save(tmp_path / "out").read_text(encoding="utf-8")
    many = len(validation.emotions)
    assert f"{many - 1} of {many} emotions may be used" in page
    assert "1 of 3 checks that claim something passed. Missed: doses." in page
    assert "No evidence, since controls pass too: lens." in page
    for verdict in ("passed", "missed", "not evidence", "not run"):
        assert f">{verdict}</span>" in page
    assert "do not use" in page
    assert "no folder was given" in page
    assert HOSTILE not in page  # escaped, or it would run
    assert "&lt;script&gt;document.title" in page


def test_the_json_holds_all_of_it(validation: Validation, tmp_path: Path) -> None:
    validation.save(tmp_path)
    found = json.loads((tmp_path / "validation.json").read_text(encoding="utf-8"))
    assert found["schema"] == "emoreg.validation/1"
    assert [c["verdict"] for c in found["checks"]] == [
        *("passed", "missed", "not evidence", "not run")
    ]
    assert found["checks"][1]["pictures"][0]["series"][HOSTILE][2] is None
    assert sum(s["use"] for s in found["emotions"]) == len(validation.usable)
    assert found["recommended_layers"] == list(validation.recommended_layers)


def test_an_unwritable_folder_is_refused(
    validation: Validation, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder that can be written"):
        validation.save(tmp_path / "file" / "out")


# -- end to end ---------------------------------------------------------------


def known(corpus: Corpus) -> tuple[str, ...]:
    roles = corpus.roles()
    return (*roles.lower[:2], *roles.raise_[:2], "afraid", "sad")


@pytest.fixture
def folder(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    """A tiny model with its tokenizer, saved as a user would have it."""
    model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.fixture
def blocks_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each decoder block reads, as it happens.

    A hook would not do: a model that is watched has no hash, and nothing is kept.
    """
    seen: list[int] = []
    run = LlamaDecoderLayer.forward

    def counted(self: Any, hidden_states: torch.Tensor, *args: Any, **how: Any) -> Any:
        seen.append(hidden_states.shape[:2].numel())
        return run(self, hidden_states, *args, **how)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    return seen


def flat(content: Any, place: str = "") -> dict[str, Any]:
    """Return what JSON holds as one level, each value under its place."""
    if not isinstance(content, dict | list):
        return {place: content}
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    found = [flat(value, f"{place}/{name}") for name, value in pairs]
    return {place: value for part in found for place, value in part.items()}


@pytest.mark.slow
def test_the_command_writes_a_page_and_marks_the_vectors(
    folder: Path, capsys: pytest.CaptureFixture[str], blocks_run: list[int]
) -> None:
    corpus, path = Corpus.packaged(), str(folder / "v.safetensors")
    model = ["--model", str(folder / "model"), "--quiet"]
    emotions = ["--emotions", *known(corpus)]
    assert (
        main(["extract", *model, *emotions, "--layers", "1", "2", "--out", path]) == 0
    )
    before = EmotionVectors.load(path)
    assert before.validation is None
    out = folder / "out"
    cache = ["--cache", str(folder / "cache")]
    command = ["validate", *model, "--vectors", path, *cache, "--out"]
    assert main([*command, str(out)]) == 0
    said = capsys.readouterr().out
    assert "held-out stories" in said
    found = json.loads((out / "validation.json").read_text(encoding="utf-8"))
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    assert verdicts["valence"] == verdicts["human comments"] == "not run"
    assert verdicts["held-out stories"] in (
        "missed",
        "not evidence",
    )  # it knows nothing
    after = EmotionVectors.load(path)
    assert after.hash == before.hash
    assert after.validation is not None
    assert set(after.validation["emotions"]) == set(before.emotions)
    assert main([*command, "/dev/null/x"]) == 2
    assert blocks_run  # control
    blocks_run.clear()
    assert main([*command, str(folder / "again")]) == 0
    assert blocks_run == []  # all of it was kept: answers and steered runs as well
    again = json.loads((folder / "again/validation.json").read_text(encoding="utf-8"))
    # But for the last bits of products of matrices that lie elsewhere in memory.
    assert flat(again["checks"]) == pytest.approx(flat(found["checks"]), nan_ok=True)


def test_another_models_vectors_are_refused(folder: Path, tmp_path: Path) -> None:
    directions = torch.randn(1, 2, 16)
    wrong = EmotionVectors.from_directions(directions, emotions=("a", "b"), layers=(1,))
    path = str(wrong.save(tmp_path / "wrong.safetensors"))
    command = ["validate", "--model", str(folder / "model"), "--vectors", path]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize("state", ["unknown", "doubtful", "fine"])
def test_a_loss_says_what_its_vectors_are_worth(
    vectors: EmotionVectors,
    reference: Any,
    caplog: pytest.LogCaptureFixture,
    state: str,
) -> None:
    summary = {"emotions": {e: state == "fine" for e in vectors.emotions}}
    if state != "unknown":
        vectors = vectors.with_validation(summary)
    decouple(vectors, reference)
    said = " ".join(record.message for record in caplog.records)
    assert ("were not validated in this model" in said) == (state == "unknown")
    assert ("says not to use" in said) == (state == "doubtful")
