"""The trainer seam on real trainers: what it may not change, and what it must.

Each check has a control beside it that shows the check can fail.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import SFTTrainer  # pyright: ignore

from emoreg.losses.presets import decouple
from emoreg.losses.term import AbstractDecisionTerm, DecisionReadings
from emoreg.residual.layers import decoder_layers
from emoreg.training.attach import attach
from emoreg.training.layouts import Layout
from emoreg.training.mixin import EmotionTrainerMixin
from emoreg.training.outcomes.columns import REFERENCE, OutcomeCollator
from emoreg.training.reference import Reference
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors

ROOT = Path(__file__).resolve().parent.parent
Build = Callable[..., PreTrainedModel]


@pytest.fixture
def build(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Make an SFTTrainer with monitor and terms of these weights (None: bare)."""

    def make(
        weights: dict[str, float] | None, *, seen: bool = True, **changes: Any
    ) -> Any:
        trainer = cases.make_sft(
            changes.pop("model", None) or model(), tokenizer, tmp_path, **changes
        )
        if weights is None and not seen:
            return trainer
        return cases.attached(trainer, vectors, reference, weights, seen=seen)

    return make


ALL = {"contrast": 1.0, "band": 0.1, "meaning": 1.0, "kl": 1.0}
OFF = dict.fromkeys(ALL, 0.0)
SGD = {"optim": "sgd", "learning_rate": 1e-3, "max_grad_norm": 0.0}


def only(name: str, weight: float = 1.0) -> dict[str, float]:
    return {**OFF, name: weight}


def decision_places(
    tokenizer: PreTrainedTokenizerFast, example: dict[str, Any]
) -> list[int]:
    """Decision tokens of a row, from the template's own generation prompts."""
    messages = example["prompt"] + example["completion"]
    return [
        len(
            tokenizer.apply_chat_template(
                messages[:k], add_generation_prompt=True, return_dict=False
            )
        )
        - 1
        for k, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def streams(model: Any, ids: list[int], layer: int) -> torch.Tensor:
    """The residual stream of one row by `output_hidden_states`, layer not the last."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0]


def row_ids(tokenizer: PreTrainedTokenizerFast, example: dict[str, Any]) -> list[int]:
    messages = example["prompt"] + example["completion"]
    ids: Any = tokenizer.apply_chat_template(messages, return_dict=False)
    return ids


# -- what the seam leaves alone ------------------------------------------------------


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_watching_and_weightless_terms_leave_sft_as_it_was(
    build: Callable[..., Any], peft: bool
) -> None:
    changes = {"peft": cases.adapter() if peft else None, "learning_rate": 3e-3}
    bare = build(None, seen=False, **changes)
    before = cases.weights(bare)
    bare.train()
    watched, weightless = build(None, **changes), build(OFF, **changes)
    terms = build(ALL, **changes)
    for trainer in (watched, weightless, terms):
        trainer.train()
    for trainer in (watched, weightless):
        assert cases.losses(trainer) == cases.losses(bare)
        assert cases.equal(cases.weights(trainer), cases.weights(bare))
        assert len(cases.logged(trainer)) == 8
    assert cases.losses(terms)[0] != cases.losses(bare)[0]
    assert not cases.equal(cases.weights(terms), cases.weights(bare))
    assert not cases.equal(before, cases.weights(bare))


def test_watching_leaves_a_plain_trainer_as_it_was(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    runs = []
    for terms in (None, (), OFF, ALL):
        trainer = cases.make_plain(model(), tokenizer, tmp_path, learning_rate=3e-3)
        if terms is not None:
            trainer = attach(
                trainer,
                monitor=Monitor(vectors),
                terms=cases.make_terms(vectors, reference, **terms) if terms else (),
                outcome="failed",
                reference=reference,
            )
        trainer.train()
        runs.append((cases.losses(trainer), cases.weights(trainer)))
    (loss, final), *same, differs = runs
    for other_loss, other in same:
        assert other_loss == loss
        assert cases.equal(other, final)
    assert differs[0] != loss
    assert not cases.equal(differs[1], final)


def test_attach_equals_the_mixin(
    build: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    class Mixed(EmotionTrainerMixin, SFTTrainer):
        pass

    attached = build(ALL, learning_rate=1e-3)
    mixed: Any = cases.make_sft(
        model(),
        tokenizer,
        tmp_path,
        kind=Mixed,
        learning_rate=1e-3,
        extra={
            "monitor": Monitor(vectors),
            "terms": cases.make_terms(vectors, reference, **ALL),
            "outcome": "failed",
        },
    )
    weaker = build(only("contrast", 0.5), learning_rate=1e-3)
    for trainer in (attached, mixed, weaker):
        trainer.train()
    assert isinstance(attached, SFTTrainer)
    assert cases.logged(attached) == cases.logged(mixed)
    assert cases.equal(cases.weights(attached), cases.weights(mixed))
    assert not cases.equal(cases.weights(weaker), cases.weights(mixed))


def test_the_step_path_never_waits_for_the_device(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the trainer's own loss and its end nothing may reach the host."""
    inside = {"open": False, "calls": 0}

    def guarded(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if inside["open"]:
                raise AssertionError(f"Tensor.{name} in the step path")
            return original(self, *args, **kwargs)

        return call

    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, guarded(name))
    trainer = build(ALL)
    seam = trainer.emotions
    task_loss = seam.task_loss

    def ours(compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def theirs(*a: Any, **k: Any) -> Any:
            inside["open"] = False
            try:
                return compute(*a, **k)
            finally:
                inside["open"] = True

        inside["open"], inside["calls"] = True, inside["calls"] + 1
        try:
            return task_loss(theirs, *args, **kwargs)
        finally:
            inside["open"] = False

    monkeypatch.setattr(type(seam), "task_loss", lambda _, *a, **k: ours(*a, **k))
    trainer.train()
    assert inside["calls"] == 8
    inside["open"] = True
    with pytest.raises(AssertionError, match="step path"):
        torch.ones(1).item()
    inside["open"] = False


# -- accumulation, checkpointing, padding ---------------------------------------------


def first_step(
    build: Callable[..., Any],
    rows: Dataset,
    weights: dict[str, float],
    *,
    size: int,
    counted: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient of a first step over 4 rows, in parts of `size`, and its log."""
    keep = cases.Gradients()
    trainer = build(
        weights,
        rows=rows,
        callbacks=[keep],
        per_device_train_batch_size=size,
        gradient_accumulation_steps=4 // size,
        max_steps=1,
        **SGD,
    )
    trainer.model_accepts_loss_kwargs = counted
    trainer.train()
    return keep.steps[0], cases.logged(trainer)[0]


@pytest.mark.cell(trainer="sft", mode="accumulation, what terms add")
@pytest.mark.parametrize("mixed", [False, True], ids=["one kind", "all kinds"])
@pytest.mark.parametrize("counted", [True, False], ids=["num_items", "mean"])
def test_accumulation_changes_nothing(
    build: Callable[..., Any], counted: bool, mixed: bool
) -> None:
    """What terms add to the gradient, to 1e-5 of its largest and of its mean size."""
    rows = Dataset.from_list([cases.row((None, 1.0, 0.0), k) for k in range(4)])
    rows = cases.make_rows(4) if mixed else rows
    weights = {**OFF, "contrast": 1.0, "band": 1.0}
    added, logs = {}, {}
    for size in (4, 2, 1):
        kind = {"size": size, "counted": counted}
        with_terms, logs[size] = first_step(build, rows, weights, **kind)
        without, _ = first_step(build, rows, OFF, **kind)
        added[size] = {name: with_terms[name] - without[name] for name in without}
    largest_size = max(float(g.abs().max()) for g in added[4].values())
    assert largest_size > 1e-2
    for size in (2, 1):
        largest, mean, mean_size = cases.gap(added[4], added[size])
        assert largest < 1e-5 * largest_size
        assert mean < 1e-5 * mean_size
        for log in (logs[size], logs[4]):
            if not counted:  # then the trainer's own loss is a mean of means
                log.pop("emotion_loss/task", None)
        assert logs[size] == pytest.approx(logs[4], rel=1e-4, abs=1e-4)
    half = {name: g / 2 for name, g in added[1].items()}
    assert cases.gap(added[4], half)[1] > 0.1 * mean_size


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(
    build: Callable[..., Any], reentrant: bool
) -> None:
    found = []
    for weights, on in ((ALL, False), (ALL, True), (OFF, True)):
        keep = cases.Gradients()
        trainer = build(
            weights,
            callbacks=[keep],
            gradient_checkpointing=on,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant} if on else None,
            max_steps=2,
            peft=cases.adapter(),
            **SGD,
        )
        trainer.train()
        found.append((keep.steps, cases.logged(trainer)))
    (plain, log), (checked, log2), (bare, _) = found
    for a, b, c in zip(plain, checked, bare, strict=True):
        largest, mean, size = cases.gap(a, b)
        assert largest < 1e-4
        assert mean < 1e-5 * size
        assert cases.gap(a, c)[1] > 0.1 * size
    for one, two in zip(log, log2, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4)


def test_padding_free_reads_what_padding_reads(build: Callable[..., Any]) -> None:
    kept = {"max_steps": 4, **SGD}
    padded = build(ALL, **kept)
    flat = build(ALL, padding_free=True, **kept)
    other = build(ALL, rows=cases.make_rows(6), **kept)
    batch = next(iter(flat.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 1
    for trainer in (padded, flat, other):
        trainer.train()
    for one, two in zip(cases.logged(padded), cases.logged(flat), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)
    assert cases.logged(other)[0] != pytest.approx(cases.logged(flat)[0], rel=1e-3)


# -- readings ------------------------------------------------------------------------


def expected_readings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Dataset,
    vectors: EmotionVectors,
    reference: Reference,
) -> dict[str, float]:
    """The monitor's figures at layer 2 by one plain forward per row."""
    at = {"reader": "lda", "layers": (cases.LOSS_LAYER,), "emotions": ("desperate",)}
    level = float(reference.unit("success_level", **at))
    spread = float(reference.unit("success_std", **at))
    column = vectors.emotions.index("desperate")
    sums = {"fail": [0.0, 0.0], "pass": [0.0, 0.0]}
    for example in map(dict, rows):
        stream = streams(model, row_ids(tokenizer, example), cases.LOSS_LAYER)
        for place, failed in zip(
            decision_places(tokenizer, example), example["failed"], strict=True
        ):
            if failed is None:
                continue
            value = vectors.project(
                stream[place], layer=cases.LOSS_LAYER, reader="lda"
            )[column]
            for name, weight in (("fail", failed), ("pass", 1 - failed)):
                sums[name][0] += weight * (float(value) - level) / spread
                sums[name][1] += weight
    means = {name: total / count for name, (total, count) in sums.items()}
    means["slope"] = means["fail"] - means["pass"]
    return {f"emotion/desperate/L2/lda/{k}": v for k, v in means.items()}


@pytest.mark.cell(trainer="sft", mode="eval during training")
def test_train_and_eval_readings_are_kept_apart_and_true(
    build: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
) -> None:
    rows, held_out = cases.make_rows(8), cases.make_rows(12).select(range(9, 12))
    trainer = build(
        None,
        rows=rows,
        eval_rows=held_out,
        learning_rate=0.0,
        max_steps=4,
        logging_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=2,
    )
    trainer.train()
    train = cases.logged(trainer, "emotion/")
    evaluated = cases.logged(trainer, "eval_emotion/")
    assert len(train) == 1
    assert len(evaluated) == 2
    oracle = (model(), tokenizer)
    expected = expected_readings(*oracle, rows, vectors, reference)
    expected_held_out = expected_readings(*oracle, held_out, vectors, reference)
    for key, value in expected.items():
        assert train[0][key] == pytest.approx(value, rel=1e-4, abs=1e-4)
    for key, value in expected_held_out.items():
        for entry in evaluated:
            assert entry[f"eval_{key}"] == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert value != pytest.approx(expected[key], abs=1e-2)


def test_two_eval_sets_are_logged_under_their_own_names(
    build: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    del tokenizer
    rows = cases.make_rows(8)
    trainer = build(
        None,
        rows=rows,
        eval_rows={"near": rows.select(range(4)), "far": rows.select(range(4, 8))},
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    keys = {key for entry in trainer.state.log_history for key in entry}
    assert "eval_near_emotion/desperate/L2/lda/slope" in keys
    assert "eval_far_emotion/desperate/L2/lda/slope" in keys
    assert "eval_emotion/desperate/L2/lda/slope" not in keys


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's, of what it returns
def test_a_prediction_is_no_part_of_the_next_evaluation(
    build: Callable[..., Any],
) -> None:
    rows = cases.make_rows(4)
    trainer = build(None, rows=rows, eval_rows=rows)
    first = trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    again = trainer.evaluate()
    found = {k: v for k, v in first.items() if k.startswith("eval_emotion")}
    assert found["eval_emotion_turns/fail"] > 0
    assert {k: again[k] for k in found} == found


def test_cached_reference_readings_equal_a_plain_forward(
    build: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = cases.make_rows(6)
    trainer = build(only("contrast"), rows=rows, max_steps=1)
    probes = [t.probe for t in trainer.emotions.regularizer.decision_terms if t.weight]
    untrained, moved = model(), model()
    with torch.no_grad():
        next(moved.parameters()).mul_(1.1)
    for example, (cached,) in zip(
        map(dict, rows), trainer.train_dataset[REFERENCE], strict=True
    ):
        places = decision_places(tokenizer, example)
        assert len(cached) == len(places)
        ids = row_ids(tokenizer, example)
        for source, same in ((untrained, True), (moved, False)):
            stream = streams(source, ids, cases.LOSS_LAYER)
            read = torch.cat(
                [p.read(stream[places], layer=cases.LOSS_LAYER) for p in probes], dim=1
            )
            apart = (torch.tensor(cached) - read).abs().max()
            assert (float(apart) < 1e-3) == same


def test_padding_is_never_counted_as_speech(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """A turn cut before its close is followed by padding, which no one spoke."""
    rows = Dataset.from_list([cases.row((None,), 0), cases.row((None, 1.0, 0.0), 1)])
    key = "emotion/desperate/L2/lda/assistant"
    found = []
    for size in (1, 2):
        trainer: Any = cases.make_sft(
            model(),
            tokenizer,
            tmp_path,
            rows=rows,
            per_device_train_batch_size=size,
            max_steps=2 // size,
            logging_steps=2 // size,
            learning_rate=0.0,
            completion_only_loss=False,
        )
        trainer.train_dataset = trainer.train_dataset.map(
            lambda row: {name: row[name][:-3] for name in ("input_ids", "labels")}
        )
        trainer = attach(trainer, monitor=Monitor(vectors), reference=reference)
        trainer.train()
        found.append(cases.logged(trainer)[0][key])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# -- outcomes ------------------------------------------------------------------------


def test_a_missing_column_is_refused(build: Callable[..., Any]) -> None:
    rows = cases.make_rows()
    with pytest.raises(ValueError, match="must name a column") as refused:
        build(ALL, rows=rows.rename_column("failed", "broken"))
    assert "'failed'" in str(refused.value)
    assert "broken" in str(refused.value)


@pytest.mark.parametrize("turns", [[None], [None, 1.0, 0.0], []])
def test_too_few_or_many_outcomes_are_refused(
    build: Callable[..., Any], turns: list[float | None]
) -> None:
    good = [cases.row((None, 1.0), k) for k in range(3)]
    build(ALL, rows=Dataset.from_list(good))
    bad = {**cases.row((None, 1.0), 3), "failed": turns}
    with pytest.raises(ValueError, match="one outcome per Assistant turn") as refused:
        build(ALL, rows=Dataset.from_list([*good, bad]))
    assert "row 3" in str(refused.value)


@pytest.mark.parametrize("several", [False, True])
def test_misplaced_outcomes_to_evaluate_on_are_refused(
    build: Callable[..., Any], several: bool
) -> None:
    rows = cases.make_rows(4)
    shifted = rows.map(lambda row: {"failed": [1.0, *row["failed"]]})
    held_out = {"near": rows, "far": shifted} if several else shifted
    with pytest.raises(ValueError, match="in the evaluation data, each row must have"):
        build(None, rows=rows, eval_rows=held_out)


@pytest.mark.cell(trainer="sft", mode="an outcome outside [0, 1]", refused=True)
@pytest.mark.parametrize("value", [1.5, -0.1, math.inf])
def test_outcomes_outside_their_range_are_refused(
    build: Callable[..., Any], value: float
) -> None:
    bad = {**cases.row((None, 1.0)), "failed": [None, value]}
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        build(ALL, rows=Dataset.from_list([bad, cases.row((None, 1.0))]))


def test_a_cut_transcript_is_refused(build: Callable[..., Any]) -> None:
    rows = cases.make_rows()
    build(ALL, rows=rows, max_length=1024)
    with pytest.raises(ValueError, match="cut by `max_length`"):
        build(ALL, rows=rows, max_length=80, completion_only_loss=False)


@pytest.mark.cell(trainer="sft", mode="packing, wrapped", refused=True)
def test_packing_that_loses_outcomes_is_refused(
    build: Callable[..., Any], recwarn: pytest.WarningsRecorder
) -> None:
    del recwarn
    packed = {"packing": True, "max_length": 512}
    with pytest.raises(ValueError, match=r"must not pack.*Feedback"):
        build(ALL, **packed)
    wrapped = {**packed, "packing_strategy": "wrapped"}
    with pytest.raises(ValueError, match="must hold whole documents"):
        build(ALL, **wrapped)
    build(None, seen=False, **wrapped)  # without emoreg it is no error


def test_terms_without_an_outcome_column_are_refused(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    terms = cases.make_terms(vectors, reference)
    with pytest.raises(ValueError, match="`outcome` must name"):
        attach(cases.make_sft(model(), tokenizer, tmp_path), terms=terms)


@pytest.mark.parametrize(
    "kinds",
    [
        [(None, 1.0), (None, 1.0, 1.0)],
        [(None, 0.0), (None, 0.0, 0.0)],
        [(None,), (None, None)],
        [(None, 1.0), (None, 0.0, None, 1.0)],
    ],
    ids=["only failing", "only passing", "unknown", "mixed lengths"],
)
@pytest.mark.parametrize("flat", [False, True], ids=["padded", "padding-free"])
def test_any_mixture_of_outcomes_stays_finite(
    build: Callable[..., Any], kinds: list[tuple], flat: bool
) -> None:
    rows = Dataset.from_list([cases.row(turns, k) for k, turns in enumerate(kinds)])
    keep = cases.Gradients()
    trainer = build(
        ALL, rows=rows, padding_free=flat, callbacks=[keep], max_steps=3, **SGD
    )
    trainer.train()
    assert all(math.isfinite(loss) for loss in cases.losses(trainer))
    assert all(bool(g.isfinite().all()) for step in keep.steps for g in step.values())
    for entry in cases.logged(trainer):
        assert all(math.isfinite(value) for value in entry.values())
    names = {key.rsplit("/", 1)[1] for key in cases.logged(trainer, "emotion/")[0]}
    known = {failed for turns in kinds for failed in turns}
    assert ("fail" in names) == (1.0 in known)
    assert ("pass" in names) == (0.0 in known)


def test_rows_without_assistant_turns_mix_with_others(
    build: Callable[..., Any],
) -> None:
    """Each row's cached readings stay with that row, whatever stands beside it."""
    silent = {
        "prompt": [{"role": "user", "content": "tell me"}],
        "completion": [{"role": "user", "content": "please do"}],
        "failed": [],
    }
    spoken = cases.row((None, 1.0, 0.0), 1)
    for flat in (False, True):
        trainer = build(
            only("contrast"),
            rows=Dataset.from_list([silent, spoken, silent, silent]),
            padding_free=flat,
            max_steps=2,
            learning_rate=0.0,
        )
        trainer.train()
        values = [e["emotion_loss/contrast-lda"] for e in cases.logged(trainer)]
        # Unmoved weights: the loss is that of the calibrated gap, one unit, or 0.
        assert sorted(values) == pytest.approx([0.0, 1.0], abs=1e-4)


def test_the_collator_pads_beside_the_batch() -> None:
    layout = Layout.of(Dataset.from_list([{"input_ids": [1]}]), None)
    collator = OutcomeCollator(cases.collate, "failed", layout)
    batch = collator(
        [
            {"input_ids": [1, 2, 3], "failed": [None, 1.0]},
            {"input_ids": [1, 2], "failed": [0.25]},
        ]
    )
    outcomes = batch["emoreg_outcomes"]
    assert outcomes.shape == (2, 2)
    assert outcomes.isnan().tolist() == [[True, False], [False, True]]
    assert outcomes[1, 0] == 0.25


def test_terms_of_one_kind_keep_their_own_figures_and_state(
    vectors: EmotionVectors,
    reference: Reference,
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """Two readers' contrasts in one run; one of them is switched off on the way."""
    by_lda, by_mean = list(decouple(vectors, reference, keep=0.0, contrast=2.0))[:2]
    by_lda.name = by_mean.name = "contrast"
    trainer: Any = attach(
        cases.make_sft(model(), tokenizer, tmp_path, max_steps=1, learning_rate=0.0),
        terms=[by_lda, by_mean],
        outcome="failed",
    )
    trainer.train()
    both = cases.logged(trainer, "emotion_loss/")[0]
    task = {"emotion_loss/task"}
    assert set(both) == {"emotion_loss/contrast", "emotion_loss/contrast-2"} | task
    assert set(trainer.emotions.regularizer.state_dict()) == {"contrast", "contrast-2"}
    # Weights did not move, so with the right reference each is its gap, one unit.
    by_lda.weight = 0.0
    trainer.train()
    alone = cases.logged(trainer, "emotion_loss/")[-1]
    assert set(alone) == {"emotion_loss/contrast-2"} | task
    assert alone["emotion_loss/contrast-2"] == pytest.approx(1.0, abs=1e-4)


# -- refusals ------------------------------------------------------------------------


@pytest.mark.cell(trainer="sft", mode="attached twice", refused=True)
def test_attach_is_refused_twice_and_on_other_objects(
    build: Callable[..., Any], vectors: EmotionVectors
) -> None:
    trainer = build(None)
    with pytest.raises(ValueError, match="must not be attached twice"):
        attach(trainer, monitor=Monitor(vectors))
    with pytest.raises(TypeError, match=r"must be a transformers\.Trainer"):
        attach(object(), monitor=Monitor(vectors))


def test_several_gpus_in_one_process_are_refused(
    build: Callable[..., Any], vectors: EmotionVectors
) -> None:
    """As the trainer counts them; it would train in `DataParallel`."""
    trainer = build(None, seen=False)
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match="each GPU must have a process of its own"):
        attach(trainer, monitor=Monitor(vectors))


@pytest.mark.parametrize("name", ["contrast", "meaning", "kl"])
def test_a_term_for_which_nothing_was_read_may_not_begin_to_act(
    build: Callable[..., Any], name: str
) -> None:
    trainer = build({**OFF, "band": 1.0}, seen=False, max_steps=1)
    for term in trainer.emotions.regularizer.terms:
        term.weight = float(term.name.startswith(name))
    with pytest.raises(ValueError, match=f"{name}.* must have a weight above 0 when"):
        trainer.train()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_terms_that_train_nothing_are_refused(
    build: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    checkpointing: bool,
) -> None:
    """Checkpointing marks the embeddings as needing gradient: no excuse."""
    for layers, works in (([cases.LOSS_LAYER + 1], False), ([cases.LOSS_LAYER], True)):
        lora = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=layers)
        trainer = build(
            ALL,
            model=model(),
            peft=lora,
            gradient_checkpointing=checkpointing,
            max_steps=1,
        )
        if works:
            trainer.train()
            continue
        with pytest.raises(RuntimeError, match="must carry gradient"):
            trainer.train()


def test_an_adapter_above_the_read_layers_is_warned_of(
    build: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    caplog: pytest.LogCaptureFixture,
) -> None:
    last = cases.LOSS_LAYER
    for layers, terms, said in (
        ([last, last + 1], ALL, True),
        ([last], ALL, False),  # controls: where it belongs, and with nothing held
        ([last, last + 1], None, False),
    ):
        lora = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=layers)
        caplog.clear()
        build(terms, model=model(), peft=lora, max_steps=1)
        warned = f"trains blocks {last + 1} to {last + 1}, above the last layer"
        assert (warned in caplog.text) == said


def test_a_forward_that_bypasses_the_blocks_is_refused(
    build: Callable[..., Any], model: Callable[[], PreTrainedModel]
) -> None:
    silent = model()
    # Engines do this: they call `forward`, and with it none of the hooks.
    direct = {"__call__": lambda self, *args, **kwargs: self.forward(*args, **kwargs)}
    for block in decoder_layers(silent):
        block.__class__ = type("Direct", (type(block),), direct)
    trainer = build(None, model=silent, max_steps=1)
    with pytest.raises(RuntimeError, match="must fire"):
        trainer.train()


@pytest.mark.cell(trainer="sft", mode="prompt tuning", refused=True)
def test_adapters_that_add_tokens_are_refused(
    build: Callable[..., Any], model: Callable[[], PreTrainedModel]
) -> None:
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = build(None, model=model(), peft=prompt, max_steps=1)
    with pytest.raises(RuntimeError, match="as many tokens as the batch"):
        trainer.train()


@pytest.mark.cell(trainer="sft", mode="compiled before `attach`", refused=True)
@pytest.mark.slow
def test_a_model_compiled_before_is_refused(build: Callable[..., Any]) -> None:
    trainer = build(None, max_steps=1)
    trainer.model.compile(backend="eager")
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    for name in ("emoreg_outcomes", "emoreg_reference"):
        batch.pop(name, None)
    trainer.model(**batch, use_cache=False, fused_lm_head=True)
    with pytest.raises(RuntimeError, match="must fire"):
        trainer.train()


def test_a_crash_in_a_term_leaves_no_hook(build: Callable[..., Any]) -> None:
    class Crash(AbstractDecisionTerm):
        name, weight, compares = "crash", 1.0, False

        def __call__(self, readings: DecisionReadings, reduce: Any = None) -> Any:
            del readings, reduce
            raise ZeroDivisionError("in a term")

    trainer = build(only("contrast"))
    term = Crash()
    term.probe = trainer.emotions.regularizer.decision_terms[0].probe
    trainer.emotions.regularizer.decision_terms[0] = term
    trainer.emotions.regularizer.terms = (term,)
    blocks = decoder_layers(trainer.model)
    before = [len(block._forward_hooks) for block in blocks]
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert [len(block._forward_hooks) for block in blocks] == before == [0] * 4
    handle = blocks[0].register_forward_hook(lambda *_: None)
    assert len(blocks[0]._forward_hooks) == 1
    handle.remove()


def test_vectors_of_another_model_are_refused(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    reference: Reference,
    tmp_path: Path,
) -> None:
    for other, what in (
        (cases.make_vectors(width=16), "width"),
        (cases.make_vectors(depth=6), "number of layers"),
    ):
        trainer = cases.make_sft(model(), tokenizer, tmp_path)
        with pytest.raises(ValueError, match=what):
            attach(trainer, monitor=Monitor(other), reference=reference)


def test_without_a_reference_it_calibrates_and_says_so(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    corpus = cases.small_corpus(tmp_path / "corpus")
    monkeypatch.setattr(Corpus, "packaged", classmethod(lambda _: corpus))
    for given, said in ((reference, False), (None, True)):
        caplog.clear()
        trainer = cases.make_sft(model(), tokenizer, tmp_path, max_steps=1)
        with caplog.at_level(logging.WARNING, logger="emoreg"):
            trainer = attach(trainer, monitor=Monitor(vectors), reference=given)
        assert ("No `reference` was given" in caplog.text) == said
        trainer.train()
        assert cases.logged(trainer)


# -- checkpoints ---------------------------------------------------------------------


@pytest.mark.cell(trainer="sft", mode="resumed")
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_a_resumed_run_equals_the_uncut_one(
    build: Callable[..., Any], tmp_path: Path, peft: bool
) -> None:
    """Bit for bit, the running mean of the contrast included."""
    changes = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "learning_rate": 1e-3,
        "peft": cases.adapter() if peft else None,
    }
    uncut = build(ALL, **changes)
    uncut.train()
    state = tmp_path / "checkpoint-3" / "emoreg_terms.pt"
    assert state.is_file()
    resumed, forgetful = build(ALL, **changes), build(ALL, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert cases.losses(resumed) == cases.losses(uncut)
    assert cases.logged(resumed)[3:] == cases.logged(uncut)[3:]
    assert cases.equal(cases.weights(resumed), cases.weights(uncut))
    ours, theirs = (
        uncut.emotions.regularizer.state_dict(),
        resumed.emotions.regularizer.state_dict(),
    )
    assert cases.equal(ours["contrast-lda"], theirs["contrast-lda"])
    state.unlink()
    forgetful.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not cases.equal(cases.weights(forgetful), cases.weights(uncut))
