"""Targets kept under a push, and a push while training alone."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
import trainer_cases as trainers
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.losses.preventative import PreventativeSteering
from emoreg.losses.push import Push
from emoreg.losses.steered import SteeredRobustness
from emoreg.residual.capture import capture
from emoreg.residual.layers import decoder_layers
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.attach import attach, detach
from emoreg.training.auxiliary import Target, spoken_rows
from emoreg.training.doctor.doctor import doctor
from emoreg.training.layouts import Layout
from emoreg.training.reference import Reference
from emoreg.training.steered_rows import SteeredRows
from emoreg.training.watch import watch
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.steering import mean_norms

Model = Callable[[], PreTrainedModel]
CPU = torch.device("cpu")
LAYER = cases.LOSS_LAYER


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What is measured once for all tests of this file."""
    return {}


@pytest.fixture
def norms(
    model: Model, tokenizer: PreTrainedTokenizerFast, kept: dict[str, Any]
) -> dict[int, float]:
    if not kept:
        corpus = Corpus.packaged()
        kept["norms"] = mean_norms(model(), tokenizer, corpus, cases.LAYERS)
    return kept["norms"]


@pytest.fixture
def targets(tokenizer: PreTrainedTokenizerFast) -> list[Target]:
    """The Assistant's tokens of the rows that the seam's tests train on."""
    rows = [row["prompt"] + row["completion"] for row in map(dict, cases.make_rows())]
    ids = [tokenizer.apply_chat_template(row, return_dict=False) for row in rows]
    data = Dataset.from_list([{"input_ids": one} for one in ids])
    markers = TurnMarkers.of(tokenizer)
    return spoken_rows(data, Layout.of(data, None), markers, count=len(data))


@pytest.fixture
def make(
    vectors: EmotionVectors,
    reference: Reference,
    norms: dict[int, float],
    targets: list[Target],
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[..., SteeredRows]:
    """An anchor whose norms were measured."""

    def build(rows: list[Target] | None = None, **settings: Any) -> SteeredRows:
        term = SteeredRobustness.of(vectors, reference, **settings)
        term.push.measured(norms)
        return SteeredRows(term, targets if rows is None else rows, tokenizer)

    return build


@contextmanager
def hooked(
    model: PreTrainedModel, layer: int, vector: Tensor, where: Tensor
) -> Iterator[None]:
    """Add a vector at some tokens of a block's output, by hand."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        moved = stream.clone()
        moved[where] = moved[where] + vector
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = decoder_layers(model)[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def decisions(tokenizer: PreTrainedTokenizerFast, ids: Tensor) -> Tensor:
    """Where the generation prompt ends, found in the text."""
    (prompt,) = tokenizer(["<|im_start|>assistant\n"], add_special_tokens=False)[
        "input_ids"
    ]
    marks = torch.zeros(len(ids), dtype=torch.bool)
    for at in range(len(prompt), len(ids) + 1):
        if ids[at - len(prompt) : at].tolist() == prompt:
            marks[at - 1] = True
    return marks


def plain_loss(
    model: PreTrainedModel,
    anchor: SteeredRows,
    rows: list[int],
    tokenizer: PreTrainedTokenizerFast,
    *,
    layer: int,
    vector: Tensor | None,
) -> Tensor:
    """The cross-entropy on the Assistant's tokens, each row by itself."""
    losses = []
    for target in (anchor.rows[row] for row in rows):
        ids, held = torch.tensor(list(target.ids)), torch.tensor(list(target.held))
        if vector is None:
            logits = model(input_ids=ids[None]).logits[0]
        else:
            where = held | decisions(tokenizer, ids)
            with hooked(model, layer, vector, where[None]):
                logits = model(input_ids=ids[None]).logits[0]
        each = cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
        losses.append(each[held[1:]])
    return torch.cat(losses).mean()


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, found, strict=True) if g is not None}


# -- value and gradient ----------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 2])
def test_value_and_gradient_are_those_of_a_hand_made_hook(
    model: Model,
    make: Callable[..., SteeredRows],
    tokenizer: PreTrainedTokenizerFast,
    norms: dict[int, float],
    step: int,
) -> None:
    anchor, rows = make(strength=1.0), [0, 3, 2]  # of three lengths, so padded
    dose, own = anchor.term.draw(step), model()
    value = anchor.loss(own, rows, CPU, step)
    added = dose.strength * norms[LAYER] * dose.direction
    other = model()
    wanted = plain_loss(other, anchor, rows, tokenizer, layer=LAYER, vector=added)
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    found, expected = gradients(own, value), gradients(other, wanted)
    size = max(float(g.abs().max()) for g in expected.values())
    apart, _, _ = cases.gap(found, expected)
    assert apart < 1e-4 * size
    # Control: without the push it is another gradient.
    plain = plain_loss(other, anchor, rows, tokenizer, layer=LAYER, vector=None)
    assert cases.gap(found, gradients(other, plain))[0] > 0.01 * size


def test_a_dose_of_nothing_is_the_plain_cross_entropy_bit_for_bit(
    model: Model, make: Callable[..., SteeredRows], tokenizer: PreTrainedTokenizerFast
) -> None:
    anchor, own = make(strength=0.0), model()
    value = anchor.loss(own, [1], CPU, 4)
    plain = plain_loss(own, anchor, [1], tokenizer, layer=LAYER, vector=None)
    assert torch.equal(value, plain)
    assert not torch.equal(make(strength=0.1).loss(own, [1], CPU, 4), plain)  # control


def test_checkpointing_changes_nothing(
    model: Model, make: Callable[..., SteeredRows]
) -> None:
    anchor, found = make(strength=1.0), []
    for reentrant in (None, False, True):
        own = model().train()
        if reentrant is not None:
            settings = {"use_reentrant": reentrant}
            own.gradient_checkpointing_enable(settings)
            own.enable_input_require_grads()
        anchor.loss(own, [0, 1], CPU, 0).backward()
        named = own.named_parameters()
        found.append({n: p.grad for n, p in named if p.grad is not None})
    for other in found[1:]:
        assert cases.gap(found[0], other)[0] < 1e-5


def test_the_head_sees_predicting_tokens_alone(
    model: Model, make: Callable[..., SteeredRows]
) -> None:
    anchor, own, seen = make(), model(), []
    head: Any = own.get_output_embeddings()
    handle = head.register_forward_hook(lambda *a: seen.append(tuple(a[2].shape[:-1])))
    anchor.loss(own, [0, 2], CPU, 0)
    held = sum(sum(anchor.rows[row].held) for row in (0, 2))
    own(input_ids=torch.tensor([list(anchor.rows[0].ids)]))
    handle.remove()
    # Control: afterwards the head sees everything again.
    assert seen == [(1, held), (1, len(anchor.rows[0].ids))]


# -- doses -----------------------------------------------------------------------------


def test_doses_are_spread_as_the_formula_says(
    vectors: EmotionVectors, reference: Reference
) -> None:
    layers = (1, LAYER)
    term = SteeredRobustness.of(vectors, reference, layers=layers)
    doses = [term.draw(step) for step in range(1000)]
    placebos = [dose for dose in doses if dose.placebo]
    assert 0.2 == pytest.approx(len(placebos) / 1000, abs=4 * math.sqrt(0.16 / 1000))
    strengths = torch.tensor([dose.strength for dose in doses])
    assert 0 <= float(strengths.min()) < 0.004 < 0.076 < float(strengths.max()) < 0.08
    assert float(strengths.mean()) == pytest.approx(0.04, abs=0.004)
    at = sum(dose.layer == layers[0] for dose in doses) / 1000
    assert at == pytest.approx(0.5, abs=0.07)
    lengths = torch.stack([dose.direction.norm() for dose in doses])
    torch.testing.assert_close(lengths, torch.ones(1000))
    for dose in doses:
        own = vectors.direction("desperate", layer=dose.layer, reader="mean-difference")
        assert torch.equal(dose.direction, own) != dose.placebo
    drawn = torch.stack([dose.direction for dose in placebos])
    cosines = (drawn @ drawn.T).triu(1)
    assert float(cosines.abs().max()) < 0.9  # each a direction of its own
    assert float(drawn.mean(0).norm()) < 0.2  # and of no common one


def test_doses_follow_from_seed_and_step_alone(
    vectors: EmotionVectors, reference: Reference
) -> None:
    first, second, other = (
        SteeredRobustness.of(vectors, reference, seed=seed) for seed in (5, 5, 6)
    )
    second.draw(17)
    torch.rand(3)
    for step in (3, 1, 40):
        mine, same = first.draw(step), second.draw(step)
        assert (mine.strength, mine.placebo) == (same.strength, same.placebo)
        assert torch.equal(mine.direction, same.direction)
        assert mine.strength != other.draw(step).strength  # control
    assert first.draw(1).strength != first.draw(2).strength


def test_a_resumed_run_is_the_uncut_one(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    def run(name: str, *, seed: int = 0, resume: bool = False) -> Any:
        saves = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        folder = tmp_path / name
        trainer: Any = cases.make_sft(model(), tokenizer, folder, **saves)
        term = SteeredRobustness.of(vectors, reference, every=1, seed=seed)
        attach(trainer, terms=[term])
        cut = str(tmp_path / "whole" / "checkpoint-2") if resume else None
        trainer.train(resume_from_checkpoint=cut)
        return trainer

    whole, other = run("whole"), run("other", seed=1)
    resumed = run("resumed", resume=True)
    assert cases.equal(cases.weights(whole), cases.weights(resumed))
    assert cases.logged(whole)[-2:] == cases.logged(resumed)[-2:]
    assert not cases.equal(cases.weights(whole), cases.weights(other))  # control


# -- what it does ----------------------------------------------------------------------


def test_the_targets_are_kept_under_the_push_by_training_alone(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    make: Callable[..., SteeredRows],
    norms: dict[int, float],
    tmp_path: Path,
) -> None:
    """A model that has learnt its targets loses them when pushed, and need not."""
    strength = 12.0  # weights grow at this rate, and with them the stream
    vector = strength * norms[LAYER] * vectors.direction("desperate", layer=LAYER)

    def costs(trained: PreTrainedModel) -> tuple[float, float]:
        """The loss of all rows unpushed, and at full dose."""
        anchor, rows = make(), list(range(8))
        with torch.no_grad():
            plain, pushed = (
                plain_loss(trained, anchor, rows, tokenizer, layer=LAYER, vector=v)
                for v in (None, vector)
            )
        return float(plain), float(pushed)

    def run(start: dict[str, Tensor], weight: float | None) -> Any:
        own = model()
        own.load_state_dict(start)
        made: Any = cases.make_sft(own, tokenizer, tmp_path, max_steps=16)
        if weight is not None:
            dose: dict[str, Any] = {"strength": strength, "every": 1, "passages": 4}
            term = SteeredRobustness.of(vectors, reference, weight=weight, **dose)
            attach(made, terms=[term])
        made.train()
        made.model.eval()
        return made

    learnt = run(model().state_dict(), None).model
    before, start = costs(learnt), learnt.state_dict()
    assert before[1] > before[0] + 0.5
    without = costs(run(start, 0.0).model)
    trained = run(start, 1.0)
    after = costs(trained.model)
    assert after[1] < 0.5 * before[1]
    assert after[1] < 0.5 * without[1]
    assert after[1] - after[0] < 0.5 * (without[1] - without[0])
    line = cases.logged(trained)[0]
    assert line["emotion_weight/steered"] == 1.0
    assert line["emotion_loss/steered"] > 0


# -- data and refusals -----------------------------------------------------------------


def test_rows_that_were_undesirable_are_no_targets(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """Of KTO's rows those labelled good, of a pair's halves the chosen one."""
    term = SteeredRobustness.of(vectors, reference)
    said = {}
    for kind in ("kto", "dpo"):
        trainer = trainers.make_trainer(kind, model, tokenizer, tmp_path)
        attach(trainer, terms=[term])
        (anchor,) = trainer.emotions.regularizer.anchors
        texts = [str(tokenizer.decode(list(row.ids))) for row in anchor.rows]
        said[kind] = ["whatever" in text for text in texts]
    assert said == {"kto": [False] * 4, "dpo": [False] * 8}
    kto = trainers.preference_rows("kto")
    assert sum(kto["label"]) == 4 < len(kto)  # control: there were others


def test_data_without_rows_is_refused_by_name(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    def tried(trainer: Any, weight: float = 0.5) -> None:
        attach(trainer, terms=[SteeredRobustness.of(vectors, reference, weight=weight)])

    asking = trainers.make_trainer("grpo", model, tokenizer, tmp_path)
    stream: Any = cases.make_rows().to_iterable_dataset()
    streaming: Any = cases.make_sft(model(), tokenizer, tmp_path, rows=stream)
    for trainer, named in ((asking, "Dataset with the"), (streaming, "IterableData")):
        with pytest.raises(ValueError, match=f"steered trains on rows.*{named}.*GRPO"):
            tried(trainer)
    silent = trainers.make_trainer("reward", model, tokenizer, tmp_path)
    with pytest.raises(ValueError, match="steered needs a language-model head"):
        tried(silent)
    tried(asking, 0.0)  # control: switched off it needs nothing
    terms = [SteeredRobustness.of(vectors, reference)]
    with pytest.raises(ValueError, match=r"steered trains on rows.*loop of your own"):
        watch(model(), tokenizer, terms=terms, reference=reference)


@pytest.mark.parametrize("kind", [SteeredRobustness, PreventativeSteering])
def test_what_the_audit_judges_by_is_refused_by_name(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    kind: Any,
) -> None:
    audited: dict[str, Any] = {"emotions": ("calm", "upset")}
    if kind is SteeredRobustness:
        audited = {"emotion": "upset"}
    refused: list[tuple[dict[str, Any], str]] = [
        (audited, "'upset' belongs to the audit"),
        ({"layers": (LAYER, 3)}, "layer 3 belongs to the audit"),
        ({"reader": "logistic"}, "'logistic' belongs to the audit"),
        ({"layers": ()}, "`layers` and `emotions` must each name"),
        ({"layers": (0,)}, "`layer` must be one of"),
    ]
    for settings, named in refused:
        with pytest.raises(ValueError, match=named):
            kind.of(vectors, reference, **settings)
    with pytest.raises(ValueError, match="calibrated with these vectors"):
        kind.of(vectors, replace(reference, vectors_hash="another"))
    # Made by hand it is refused when it is attached, a mixed placebo too.
    made = Push.of(vectors, reference, emotions=["desperate"])
    for push, named in (
        (replace(made, emotions=("upset",)), "'upset' belongs to the audit"),
        (replace(made, layers=(3,)), "layer 3 belongs to the audit"),
        (replace(made, reader="random"), "placebo must act on random directions alone"),
        (replace(made, layers=(7,)), "must read this model"),
    ):
        trainer: Any = cases.make_sft(model(), tokenizer, tmp_path)
        preset = cases.make_terms(vectors, reference)
        with pytest.raises(ValueError, match=named):
            attach(
                trainer,
                terms=[*preset, kind(push)],
                outcome="failed",
                reference=reference,
            )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"strength": -0.1}, "`strength` must be a finite number >= 0"),
        ({"strength": math.nan}, "`strength` must be a finite number >= 0"),
        ({"placebo": 1.5}, r"`placebo` must be a share in \[0, 1\]"),
        ({"every": 0}, "`every` must be at least 1"),
        ({"passages": 0}, "`passages` must be at least 1"),
        ({"weight": -1.0}, "`weight` must be a finite number"),
    ],
)
def test_numbers_out_of_range_are_refused(
    vectors: EmotionVectors, reference: Reference, settings: Any, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        SteeredRobustness.of(vectors, reference, **settings)


def test_two_emotions_need_two_terms(
    vectors: EmotionVectors, reference: Reference
) -> None:
    push = Push.of(vectors, reference, emotions=["desperate", "panicked"])
    with pytest.raises(ValueError, match="of one emotion, got desperate, panicked"):
        SteeredRobustness(push)
    both = replace(push, directions=torch.stack([push.directions[:, 0]] * 2, dim=1))
    both.directions[:, 1] *= -1
    with pytest.raises(ValueError, match="must not cancel"):
        PreventativeSteering(both)
    PreventativeSteering(push)  # control


def test_layers_that_nothing_trained_reads_are_told(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The recommended adapter ends at the deepest loss layer."""
    for layer, told in ((1, False), (LAYER, True)):
        caplog.clear()
        peft = cases.adapter()
        trainer: Any = cases.make_sft(model(), tokenizer, tmp_path, peft=peft)
        term = SteeredRobustness.of(vectors, reference, layers=(layer,))
        attach(trainer, terms=[term])
        assert (f"above layers [{layer}] is trained" in caplog.text) == told


def test_a_forward_pass_past_the_hooks_is_an_error(
    model: Model, make: Callable[..., SteeredRows]
) -> None:
    anchor, own, other = make(), model(), model()
    own.forward = other.forward  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"hooks of layer 2 and of the head must"):
        anchor.loss(own, [0, 1], CPU, 0)


# -- a push in the task's forward pass -------------------------------------------------


def preventing(
    vectors: EmotionVectors, reference: Reference, **settings: Any
) -> PreventativeSteering:
    given = {"emotions": ("desperate", "panicked"), "strength": 1.0, **settings}
    return PreventativeSteering.of(vectors, reference, **given)


def by_hand(
    vectors: EmotionVectors, norms: dict[int, float], layers: tuple[int, ...]
) -> dict[int, Tensor]:
    """What the formula adds at strength 1."""
    found = {}
    for layer in layers:
        two = [
            vectors.direction(emotion, layer=layer, reader="mean-difference")
            for emotion in ("desperate", "panicked")
        ]
        along = (two[0] + two[1]) / (two[0] + two[1]).norm()
        found[layer] = along * norms[layer] / len(layers)
    return found


def spoken(tokenizer: PreTrainedTokenizerFast, batch: Any) -> Tensor:
    """The Assistant's tokens of a batch, from the text alone."""
    marks = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    (end,) = tokenizer(["<|im_end|>"], add_special_tokens=False)["input_ids"]
    for row, ids in enumerate(batch["input_ids"]):
        for start in decisions(tokenizer, ids).nonzero().flatten().tolist():
            at = start + 1
            while (
                at < len(ids) and ids[at] != end[0] and batch["attention_mask"][row, at]
            ):
                marks[row, at] = True
                at += 1
    return marks


@contextmanager
def all_hooked(
    model: PreTrainedModel, added: dict[int, Tensor], where: Tensor
) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, vector in added.items():
            stack.enter_context(hooked(model, layer, vector, where))
        yield


@pytest.mark.parametrize("layers", [(LAYER,), (1, LAYER)])
def test_two_steps_of_a_trainer_are_those_of_a_hooked_loop(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    norms: dict[int, float],
    tmp_path: Path,
    layers: tuple[int, ...],
) -> None:
    def run(*, pushed: bool) -> tuple[Any, cases.Gradients]:
        seen = cases.Gradients()
        settings = {"max_steps": 2, "train_sampling_strategy": "sequential"}
        trainer: Any = cases.make_plain(
            model(), tokenizer, tmp_path, callbacks=[seen], **settings
        )
        terms = [preventing(vectors, reference, layers=layers)] if pushed else ()
        attach(trainer, terms=terms)
        trainer.train()
        return trainer, seen

    (trainer, seen), (_, unpushed) = run(pushed=True), run(pushed=False)
    rows = list(map(dict, trainer.train_dataset))
    own, added = model().train(), by_hand(vectors, norms, layers)
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-2, weight_decay=0)
    for step in range(2):
        batch = cases.collate(rows[2 * step : 2 * step + 2])
        with all_hooked(own, added, spoken(tokenizer, batch)):
            own(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        named = own.named_parameters()
        wanted = {n: p.grad.clone() for n, p in named if p.grad is not None}
        size = max(float(g.abs().max()) for g in wanted.values())
        assert cases.gap(seen.steps[step], wanted)[0] < 1e-4 * size
        # Control: it is not the gradient without a push.
        assert cases.gap(unpushed.steps[step], wanted)[0] > 1e-2 * size
        optimizer.step()
        optimizer.zero_grad()
    weights = {n: p.detach() for n, p in own.named_parameters()}
    assert cases.gap(cases.weights(trainer), weights)[0] < 1e-4
    assert cases.logged(trainer)[0]["emotion_weight/preventative"] == 1.0
    assert "emotion_loss/preventative" not in cases.logged(trainer)[0]


def test_it_is_off_in_evaluation_and_at_strength_zero(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    def run(strength: float | None) -> Any:
        made: Any = cases.make_plain(model(), tokenizer, tmp_path, max_steps=2)
        made.eval_dataset, terms = made.train_dataset, []
        if strength is not None:
            terms = [preventing(vectors, reference, strength=strength)]
        monitor = Monitor(vectors)
        return attach(made, monitor=monitor, terms=terms, reference=reference)

    plain, pushed = run(None), run(1.0)
    batch = next(iter(plain.get_eval_dataloader()))
    for made in (plain, pushed):
        made.model.eval()
    with torch.no_grad():
        first, second = (
            made.compute_loss(made.model, dict(batch), return_outputs=True)
            for made in (plain, pushed)
        )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1].logits, second[1].logits)
    found = [made.evaluate() for made in (plain, pushed)]
    times = ("_runtime", "_second", "_time", "_cost/")
    kept = [
        {k: v for k, v in one.items() if not any(t in k for t in times)}
        for one in found
    ]
    assert kept[0] == kept[1]
    assert any("emotion/" in key for key in kept[0])
    off = run(0.0)
    for made in (plain, off, pushed):
        made.train()
    assert cases.equal(cases.weights(plain), cases.weights(off))
    assert not cases.equal(cases.weights(plain), cases.weights(pushed))  # control


def test_readings_are_those_of_the_stream_without_what_was_added(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    norms: dict[int, float],
    tmp_path: Path,
) -> None:
    trainer: Any = cases.make_plain(model(), tokenizer, tmp_path)
    term = preventing(vectors, reference, layers=(1, LAYER))
    attach(trainer, terms=[term], monitor=Monitor(vectors), reference=reference)
    regularizer = trainer.emotions.regularizer
    batch = cases.collate(list(map(dict, trainer.train_dataset))[:3])
    kept: dict[int, Tensor] = {}
    own = regularizer.added

    def added(streams: dict[int, Tensor], *args: Any, **settings: Any) -> Any:
        kept.update(streams)
        return own(streams, *args, **settings)

    regularizer.added = added
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, dict(batch))
    where, vector = spoken(tokenizer, batch), by_hand(vectors, norms, (1, LAYER))
    plain, pushed = model(), model()
    layers = sorted(kept)
    assert layers == [LAYER, 3]
    with capture(plain, [1, *layers]) as without:
        plain(**batch)
        still = {i: without[i] for i in (1, *layers)}
    with all_hooked(pushed, vector, where), capture(pushed, [1, *layers]) as with_it:
        pushed(**batch)
        moved = {i: with_it[i] for i in (1, *layers)}
    real = batch["attention_mask"].bool()
    for layer in layers:
        total = sum(v for i, v in vector.items() if i <= layer)
        wanted = moved[layer] - where.unsqueeze(-1) * total
        torch.testing.assert_close(
            kept[layer][real], wanted[real], rtol=1e-4, atol=1e-4
        )
        # Control: what blocks make of the push is in the readings, the push is not.
        rest = (kept[layer] - still[layer])[where].norm(dim=-1).mean()
        whole = (moved[layer] - still[layer])[where].norm(dim=-1).mean()
        assert 0 < rest < whole
    first = moved[1] - where.unsqueeze(-1) * vector[1]
    torch.testing.assert_close(first[real], still[1][real])


def test_a_model_that_is_compared_is_not_pushed(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    term = preventing(vectors, reference)
    for kind, named in (
        ("grpo", "GRPOTrainer compares it with the model that answered"),
        ("dpo", "DPOTrainer compares it with a reference model"),
        ("kto", "KTOTrainer compares it with a reference model"),
    ):
        trainer = trainers.make_trainer(kind, model, tokenizer, tmp_path)
        with pytest.raises(ValueError, match=f"preventative pushes.*{named}"):
            attach(trainer, terms=[term])
    with pytest.raises(ValueError, match="preventative acts in the task's forward"):
        watch(model(), tokenizer, terms=[term], reference=reference)
    trainer = trainers.make_trainer("dpo", model, tokenizer, tmp_path)
    attach(trainer, terms=[preventing(vectors, reference, strength=0.0)])  # control


def test_a_push_that_does_not_reach_the_blocks_is_an_error(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    trainer: Any = cases.make_plain(model(), tokenizer, tmp_path)
    attach(trainer, terms=[preventing(vectors, reference)])
    other = model().train()
    trainer.model.forward = other.forward
    with pytest.raises(RuntimeError, match=r"hooks of layers \[2\] must fire"):
        trainer.train()


def test_both_go_with_everything_else(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """With the preset, a monitor, gradients in the log, and the doctor."""
    trainer: Any = cases.make_sft(
        model(), tokenizer, tmp_path, max_steps=4, logging_steps=4
    )
    terms = [
        *cases.make_terms(vectors, reference),
        SteeredRobustness.of(vectors, reference),
        preventing(vectors, reference, strength=0.05),
    ]
    monitor = Monitor(vectors, gradients_every=1)
    attach(trainer, monitor=monitor, terms=terms, outcome="failed", reference=reference)
    diagnosis = doctor(trainer)
    assert "gradient of steered" in str(diagnosis)
    assert not diagnosis.failed, str(diagnosis)
    trainer.train()
    line = cases.logged(trainer, "emotion_")[0]
    assert line["emotion_gradient/steered"] > 0
    assert line["emotion_weight/preventative"] == 0.05
    detach(trainer)
    assert not trainer.emotions.regularizer.prevention.active
