"""What goes beside the log lines: histograms, top tokens, the file, the bar, texts."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerState

from emoreg.residual.layers import backbone
from emoreg.training.attach import attach
from emoreg.training.watch import watch
from emoreg.training.watching.log_file import NAME, LogFile
from emoreg.training.watching.monitor import Monitor
from emoreg.training.watching.tallies import EDGES, histogram, tally
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.top_tokens import direct_logits, top_tokens

SAID, ASKED = "zebrafinch", "quokkatoy"
"""Words of Assistant turns, and of user turns, that nothing else holds."""
KEY = "emotion/desperate/L2/lda"
WATCHED = ("desperate", "calm")


@pytest.fixture
def make(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Any,
    tmp_path: Path,
) -> Callable[..., Any]:
    """A watched SFTTrainer on rows with the marked words in their texts."""

    def go(log_texts: int = 0, *, folder: str = "run", **changes: Any) -> Any:
        rows = cases.marked_rows(SAID, ASKED)
        where = tmp_path / folder
        trainer = cases.make_sft(model(), tokenizer, where, rows=rows, **changes)
        return attach(
            trainer,
            monitor=Monitor(vectors, log_texts=log_texts),
            outcome="failed",
            reference=reference,
        )

    return go


def lines(trainer: Any) -> list[dict[str, Any]]:
    """Of the trainer's file, without its head."""
    text = Path(trainer.args.output_dir, NAME).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()][1:]


def ours(line: dict[str, Any]) -> dict[str, Any]:
    """Readings and terms of a line, without what they cost, which is never the same."""
    return {
        k: v for k, v in line.items() if k.startswith("emotion") and "_cost/" not in k
    }


def words_in(trainer: Any) -> set[str]:
    """Which of the marked words its file holds."""
    text = Path(trainer.args.output_dir, NAME).read_text(encoding="utf-8")
    return {word for word in (SAID, ASKED) if word in text}


def head(trainer: Any) -> dict[str, Any]:
    with Path(trainer.args.output_dir, NAME).open(encoding="utf-8") as file:
        return json.loads(file.readline())


# -- histograms ------------------------------------------------------------------------


def test_a_histogram_is_numpys() -> None:
    torch.manual_seed(3)
    values, weight = 3 * torch.randn(400, 1), torch.rand(1, 400)
    found = histogram(tally(values, weight)[0, 0].numpy())
    assert found is not None
    seen, weights = values.numpy().ravel(), weight.numpy().ravel()
    assert np.abs(seen).max() > EDGES[-1]  # some lie beyond the last bin
    clipped = np.clip(seen, EDGES[0], EDGES[-1])
    wanted, _ = np.histogram(clipped, bins=np.array(EDGES), weights=weights)
    assert found.counts == pytest.approx(wanted, abs=1e-4)
    assert found.total == pytest.approx(float((weights * seen).sum()), rel=1e-5)
    assert found.squares == pytest.approx(float((weights * seen**2).sum()), rel=1e-5)
    moved, _ = np.histogram(clipped + 0.25, bins=np.array(EDGES), weights=weights)
    assert found.counts != pytest.approx(moved, abs=1e-4)  # control


def test_where_nothing_was_read_there_is_no_histogram() -> None:
    sums = tally(torch.randn(5, 1), torch.zeros(1, 5))
    assert histogram(sums[0, 0].numpy()) is None
    nowhere = tally(torch.full((5, 1), float("nan")), torch.ones(1, 5))
    assert histogram(nowhere[0, 0].numpy()) is None


# -- top tokens ------------------------------------------------------------------------


def by_hand(model: Any, direction: torch.Tensor) -> torch.Tensor:
    """Direction through the norm's weight and the head's matrix, written out."""
    inner: Any = backbone(model)
    name = type(model).__name__
    if name.startswith("Gemma"):
        scaled = direction * (1 + inner.norm.weight)
    elif name.startswith("Llama"):
        scaled = direction * inner.norm.weight
    else:  # a LayerNorm also takes off the mean
        norm = inner.ln_f if name.startswith("GPT2") else inner.final_layernorm
        scaled = (direction - direction.mean()) * norm.weight
    return model.get_output_embeddings().weight @ scaled


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "phi"])
def test_top_tokens_are_those_of_norm_and_head(
    tiny_model: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    family: str,
) -> None:
    model: Any = tiny_model(family)
    with torch.no_grad():  # weights and biases of norm and head that say something
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_f" in name or "lm_head.bias" in name:
                parameter.add_(torch.randn_like(parameter))
    direction = vectors.directions[0, 1, 2]
    wanted = by_hand(model, direction).detach()
    found = direct_logits(model, direction[None])[0]
    assert float(torch.corrcoef(torch.stack([wanted, found]))[0, 1]) > 0.9999
    (row,) = top_tokens(model, tokenizer, vectors, emotions=["calm"], layers=[2])
    assert (row.emotion, row.layer, row.reader) == ("calm", 2, vectors.readers[0])
    order = wanted.argsort(descending=True).tolist()
    named = [str(tokenizer.decode([i])) for i in order]
    assert list(row.top) == named[:10]
    assert list(row.bottom) == named[::-1][:10]
    # Control: without the norm it is another order.
    plain = model.get_output_embeddings().weight @ direction
    assert plain.topk(10).indices.tolist() != order[:10]


def test_a_model_without_a_head_has_no_top_tokens(
    tiny_model: Callable[[str], PreTrainedModel], vectors: EmotionVectors
) -> None:
    with pytest.raises(ValueError, match="must have a language-model head"):
        direct_logits(backbone(tiny_model("llama")), vectors.directions[0, 0])


# -- the file --------------------------------------------------------------------------


def test_the_file_holds_what_the_log_holds(make: Callable[..., Any]) -> None:
    trainer = make(max_steps=4)
    trainer.train()
    written = lines(trainer)
    assert words_in(trainer) == set()  # no text, since none was asked for
    assert [line["step"] for line in written] == [1, 2, 3, 4]
    for line, logged in zip(written, cases.logged(trainer), strict=True):
        assert ours(line) == logged
        counted = sum(line["histograms"][f"{KEY.replace('/', '_histogram/', 1)}/fail"])
        assert counted == pytest.approx(logged["emotion_turns/fail"])
    first = head(trainer)
    assert first["bins"] == {"first": EDGES[0], "width": 0.25}
    assert {row["emotion"] for row in first["tokens"]} == {"desperate", "calm"}
    assert all(len(row["top"]) == len(row["bottom"]) == 10 for row in first["tokens"])


def test_an_interrupted_run_doubles_no_line(make: Callable[..., Any]) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    cut = make(**settings)
    cut.train()
    file = Path(cut.args.output_dir, NAME)
    with file.open("a", encoding="utf-8") as opened:
        opened.write('{"step": 7, "emotion')  # killed while it wrote
    assert [line["step"] for line in map(json.loads, file.open().readlines()[:-1])] == [
        *(0, 1, 2, 3, 4, 5, 6)  # control: steps 5 and 6 will come again
    ]
    checkpoint = Path(cut.args.output_dir, "checkpoint-4")
    resumed = make(**settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert [line["step"] for line in lines(resumed)] == [1, 2, 3, 4, 5, 6]
    kept = [{**entry, "step": None} for entry in cases.logged(resumed)]
    assert [{**ours(line), "step": None} for line in lines(resumed)] == kept
    assert sum("bins" in line for line in file.read_text().splitlines()) == 1


def test_a_new_run_keeps_the_file_of_an_earlier_one(tmp_path: Path) -> None:
    for run in (1, 2, 3):
        file = LogFile(tmp_path)
        file.begin(0, {"bins": {}, "run": run})
        file.write({"step": 1, "run": run})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["emoreg_log.1.jsonl", "emoreg_log.2.jsonl", "emoreg_log.jsonl"]
    for run, name in enumerate(names, start=1):
        text = (tmp_path / name).read_text().splitlines()
        assert [json.loads(line)["run"] for line in text] == [run, run]


def test_a_line_after_a_cut_one_is_whole(tmp_path: Path) -> None:
    file = LogFile(tmp_path)
    file.begin(0, {"bins": {}})
    file.path.write_text(file.path.read_text() + '{"step": 1, "x')
    file.write({"step": 2})
    assert [json.loads(x) for x in file.path.read_text().splitlines()[::2]] == [
        {"step": 0, "bins": {}},
        {"step": 2},
    ]
    file.begin(2, {"bins": {}})
    assert len(file.path.read_text().splitlines()) == 2  # the cut one is gone


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    file, nan, inf = LogFile(tmp_path), float("nan"), float("inf")
    file.write({"step": 1, "x": nan, "y": 0.5, "rows": [{"z": -inf}, (inf, 2)]})

    def refused(word: str) -> None:
        raise AssertionError(word)  # what a strict reader says to NaN

    line = json.loads(file.path.read_text(), parse_constant=refused)
    assert line == {"step": 1, "x": None, "y": 0.5, "rows": [{"z": None}, [None, 2]]}


def test_evaluation_lines_are_beside_those_of_training(
    make: Callable[..., Any],
) -> None:
    rows = cases.marked_rows(SAID, ASKED)
    trainer = make(max_steps=2, eval_rows=rows, eval_strategy="steps", eval_steps=2)
    trainer.train()
    *_, last = lines(trainer)
    assert f"eval_{KEY}/assistant" in last
    assert "eval_emotion_histogram/desperate/L2/lda/assistant" in last["histograms"]
    assert not any(key.startswith("emotion/") for key in last)


# -- the progress bar ------------------------------------------------------------------


def test_the_bar_says_the_readings_in_a_line(
    make: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make(max_steps=2, disable_tqdm=False)
    trainer.train()
    shown = capsys.readouterr().err
    (*_, last) = cases.logged(trainer)
    parts = [f"{x} {last[f'emotion/{x}/L2/lda/assistant']:+.2f}" for x in WATCHED]
    slope = f"slope {last[f'{KEY}/slope_running']:+.2f}"
    assert " | ".join([*parts, slope]) in shown
    silent = make(max_steps=2, folder="silent")
    silent.train()
    assert "desperate" not in capsys.readouterr().err  # control: there is no bar


# -- texts -----------------------------------------------------------------------------


def test_texts_are_the_turns_and_what_was_read_there(
    make: Callable[..., Any],
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.0}
    trainer = make(3, max_steps=2, **settings)
    trainer.train()
    assert words_in(trainer) == {SAID}  # what users wrote is never logged
    # The trainer's own log stays numbers.
    state = Path(trainer.args.output_dir, "checkpoint-2", "trainer_state.json")
    for entry in TrainerState.load_from_json(str(state)).log_history:
        assert all(isinstance(value, int | float) for value in entry.values()), entry
    by_text = {}
    for row in trainer.train_dataset:
        texts = [x["content"] for x in [*row["prompt"], *row["completion"]]]
        by_text |= dict(zip(texts[1::2], row["failed"], strict=True))
    for line in lines(trainer):
        assert len(line["texts"]) == 3
        known = [x["outcome"] is not None for x in line["texts"]]
        assert known == sorted(known, reverse=True)  # those with an outcome first
        for shown in line["texts"]:
            assert SAID in shown["text"]
            assert shown["outcome"] == by_text[shown["text"]]
            assert set(shown["readings"]) == set(WATCHED)
    # All turns of one row: their mean is what the log says of its failing ones.
    every = make(99, max_steps=1, learning_rate=0.0, folder="every")
    every.train()
    (line,) = lines(every)
    failing = [(x["outcome"], x["readings"]["desperate"]) for x in line["texts"]]
    weights = np.array([outcome or 0.0 for outcome, _ in failing])
    values = np.array([value for _, value in failing])
    mean = float((weights * values).sum() / weights.sum())
    assert mean == pytest.approx(line[f"{KEY}/fail"], abs=1e-3)


def test_texts_that_would_never_come_are_refused(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Any,
    tmp_path: Path,
) -> None:
    monitor = Monitor(vectors, log_texts=2)
    trainer = cases.make_sft(model(), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="`log_texts` must come with `outcome`"):
        attach(trainer, monitor=monitor, reference=reference)
    with pytest.raises(ValueError, match="must be 0 in a loop of your own"):
        watch(model(), tokenizer, monitor=monitor, reference=reference)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Monitor(vectors, log_texts=-1)


def test_showing_changes_nothing_in_training(make: Callable[..., Any]) -> None:
    shown = make(2, max_steps=3)
    plain = make(max_steps=3, logging_strategy="no", folder="plain")
    start = cases.weights(plain)
    for trainer in (shown, plain):
        trainer.train()
    assert cases.equal(cases.weights(shown), cases.weights(plain))
    assert not cases.equal(cases.weights(shown), start)  # control
    assert len(lines(shown)) == 3
    assert len(lines(plain)) == 1  # the summary at the end


def test_a_tracker_without_pictures_is_named(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(max_steps=1)
    trainer.args.report_to = ["mlflow", "tensorboard"]
    with caplog.at_level(logging.WARNING):
        trainer.train()
    told = [r.getMessage() for r in caplog.records if "numbers alone" in r.getMessage()]
    assert told == [
        "mlflow gets numbers alone: distributions and tables are in "
        f"{Path(trainer.args.output_dir, NAME)}"
    ]
