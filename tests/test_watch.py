"""A loop without a trainer: the same readings, terms and steps as with one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import seam_cases as cases
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.losses.jumps import JumpPenalty
from emoreg.losses.presets import loss_probe
from emoreg.losses.term import DecisionReadings
from emoreg.residual.capture import capture
from emoreg.residual.layers import decoder_layers
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.attach import attach
from emoreg.training.reference import Reference
from emoreg.training.watch import Watch, watch
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.emotion_vectors import EmotionVectors

RATE, SIZE = 1e-2, 2


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


@pytest.fixture
def batches(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> list[tuple[dict[str, torch.Tensor], list[list[float | None]]]]:
    """The batches of the plain trainer, in the order of its files."""
    trainer: Any = cases.make_plain(model(), tokenizer, tmp_path)
    rows = list(map(dict, trainer.train_dataset))
    return [
        (
            cases.collate(rows[i : i + SIZE]),
            [row["failed"] for row in rows[i : i + SIZE]],
        )
        for i in range(0, len(rows), SIZE)
    ]


@pytest.fixture
def loop(
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    batches: list[Any],
) -> Callable[..., tuple[dict[str, torch.Tensor], dict[str, float]]]:
    def run(
        model: PreTrainedModel,
        weights: dict[str, float] | None,
        *,
        seen: bool = True,
        anchors: bool = True,
        between: Callable[[PreTrainedModel], None] = lambda _: None,
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0)
        terms = cases.make_terms(vectors, reference, **weights) if weights else ()
        watching = watch(
            model,
            tokenizer,
            monitor=Monitor(vectors) if seen else None,
            terms=terms,
            reference=reference,
            quiet=True,
        )
        with watching as w:
            for batch, failed in [*batches, *batches]:
                loss = model(**batch).loss
                between(model)
                loss = loss + w.terms(batch, failed, task=loss)
                loss.backward()
                if anchors:
                    w.after_backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            found = w.metrics()
        found = {k: v for k, v in found.items() if "_cost/" not in k}
        return {n: p.detach().clone() for n, p in model.named_parameters()}, found

    return run


def bare(model: PreTrainedModel, batches: list[Any]) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0)
    for batch, _ in [*batches, *batches]:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {n: p.detach().clone() for n, p in model.named_parameters()}


OFF = {"contrast": 0.0, "band": 0.0, "meaning": 0.0, "kl": 0.0}


@pytest.mark.parametrize("weights", [None, OFF])
def test_watching_alone_changes_nothing(
    loop: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    batches: list[Any],
    weights: dict[str, float] | None,
) -> None:
    plain = bare(model(), batches)
    assert cases.equal(loop(model(), weights)[0], plain)
    moved = loop(model(), {**OFF, "contrast": 1.0})[0]
    assert not cases.equal(moved, plain)  # control: a term does change it


def test_a_loop_does_what_the_trainer_does(
    loop: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """Without the terms that use cached rows, which a loop has not."""
    weights = {**OFF, "meaning": 1.0}
    trainer: Any = cases.make_plain(
        model(),
        tokenizer,
        tmp_path,
        max_steps=8,
        logging_steps=8,
        train_sampling_strategy="sequential",
    )
    attach(
        trainer,
        monitor=Monitor(vectors),
        terms=cases.make_terms(vectors, reference, **weights),
        outcome="failed",
        reference=reference,
    )
    trainer.train()
    (logged,) = cases.logged(trainer)
    logged |= cases.logged(trainer, "emotion_gradient/")[0]
    moved, found = loop(model(), weights)
    apart = [
        float((moved[n] - w).abs().max()) for n, w in cases.weights(trainer).items()
    ]
    assert max(apart) < 1e-6
    assert {k for k in logged if k != "emotion_loss/task"} == set(found)
    assert "emotion_gradient/task" in found
    for key, value in found.items():
        assert value == pytest.approx(logged[key], rel=1e-4, abs=1e-6)
    alone = loop(model(), weights, anchors=False)[0]  # control: the anchors were there
    assert (
        max(
            float((alone[n] - w).abs().max()) for n, w in cases.weights(trainer).items()
        )
        > 1e-4
    )


@pytest.mark.cell(trainer="loop", mode="plain setting, by a plain forward")
def test_the_contrast_has_the_gradient_of_a_plain_forward(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    batches: list[Any],
) -> None:
    batch, failed = batches[0]
    made = lambda: cases.make_terms(vectors, reference, **{**OFF, "contrast": 2.0})  # noqa: E731
    trained, oracle = model(), model()
    with watch(trained, tokenizer, terms=made(), reference=reference, quiet=True) as w:
        trained(**batch)
        w.terms(batch, failed).backward()
    markers, total = TurnMarkers.of(tokenizer), torch.zeros(())
    places = [
        m.nonzero().flatten() for m in markers.decision_tokens(batch["input_ids"])
    ]
    for term in made():
        if term.weight:
            probe = term.probe  # type: ignore[attr-defined]
            with capture(oracle, probe.layers) as captured:
                oracle(**batch)
                values = torch.cat(
                    [
                        torch.stack(
                            [
                                probe.read(captured[i][k, at], layer=i)
                                for i in probe.layers
                            ],
                            dim=1,
                        )
                        for k, at in enumerate(places)
                    ]
                )
            outcomes = [float("nan") if x is None else x for row in failed for x in row]
            readings = DecisionReadings(values=values, failure=torch.tensor(outcomes))
            total = total + term.weight * term(readings)  # type: ignore[operator]
    total.backward()
    wanted = {n: p.grad for n, p in oracle.named_parameters() if p.grad is not None}
    nothing = {n: torch.zeros_like(p) for n, p in trained.named_parameters()}
    added = {
        n: nothing[n] if p.grad is None else p.grad
        for n, p in trained.named_parameters()
    }
    cases.check_added(added, nothing, wanted, tolerance=1e-4)


def test_other_passes_in_between_are_not_read(
    loop: Callable[..., Any], model: Callable[[], PreTrainedModel], batches: list[Any]
) -> None:
    def reference_pass(model: PreTrainedModel) -> None:
        with torch.no_grad():
            model(**batches[-1][0])
            model.generate(  # type: ignore[operator]
                batches[0][0]["input_ids"][:1], max_new_tokens=2, do_sample=False
            )

    weights = {**OFF, "contrast": 1.0}
    alone, between = (
        loop(model(), weights),
        loop(model(), weights, between=reference_pass),
    )
    assert cases.equal(alone[0], between[0])
    assert alone[1] == between[1]


def test_evaluation_is_logged_apart_and_adds_nothing(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    batches: list[Any],
) -> None:
    terms = cases.make_terms(vectors, reference)
    trained = model().eval()
    with watch(
        trained,
        tokenizer,
        monitor=Monitor(vectors),
        terms=terms,
        quiet=True,
    ) as w:
        for batch, failed in batches:
            with torch.no_grad():
                trained(**batch)
                assert float(w.terms(batch, failed)) == 0
        assert w.metrics() == {}
        found = w.metrics("eval")
    assert "emotion/desperate/L2/lda/slope" in found
    assert not any(key.startswith("emotion_loss") for key in found)


def test_terms_are_the_same_inside_of_autocast(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    batches: list[Any],
) -> None:
    """As a trainer calls them, and as many loops do."""
    weights, found = {**OFF, "contrast": 1.0, "band": 1.0}, []
    for inside in (False, True):
        trained = model()
        terms = cases.make_terms(vectors, reference, **weights)
        with watch(trained, tokenizer, terms=terms, quiet=True) as w:
            with torch.autocast("cpu", torch.bfloat16):
                trained(**batches[0][0])
                with torch.autocast("cpu", enabled=inside):
                    found.append(float(w.terms(*batches[0]).detach()))
    assert found[0] == found[1] > 0


def test_packed_rows_are_read_as_padded_ones(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    batches: list[Any],
) -> None:
    """Documents begin where positions do, and a turn that was cut off ends there."""
    ids, mask = batches[0][0]["input_ids"], batches[0][0]["attention_mask"].bool()
    first, second = ids[0][mask[0]][:-3], ids[1][mask[1]]
    place = torch.cat([torch.arange(len(first)), torch.arange(len(second))])
    both = torch.cat([first, second])
    packed = {"input_ids": both[None], "position_ids": place[None]}
    padded = cases.collate([{"input_ids": x.tolist()} for x in (first, second)])

    def go(
        batch: dict[str, torch.Tensor], failed: list[Any], *unsaid: str
    ) -> dict[str, float]:
        trained, jump = model(), JumpPenalty(*loss_probe(vectors, reference))
        monitor = Monitor(vectors, gradients_every=0)
        said = {k: v for k, v in batch.items() if k not in unsaid}
        with watch(
            trained, tokenizer, monitor=monitor, terms=[jump], reference=reference
        ) as w:
            for _ in range(2):
                trained(**batch, use_cache=False)
                w.terms(said, failed)
                w.after_backward()
            found = w.metrics()
        return {k: v for k, v in found.items() if "_cost/" not in k}

    apart, together = [[None, 1.0], [1.0, 0.0]], [[None, 1.0, 1.0, 0.0]]
    wanted = pytest.approx(go(padded, apart), rel=1e-4, abs=1e-4)
    assert go(packed, together) == wanted
    assert go(packed, together, "position_ids") != wanted  # control


def test_a_loss_scaler_scales_the_anchors_too(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    batches: list[Any],
) -> None:
    found = []
    for size in (1.0, 2.0**16):
        scaler, trained = torch.amp.GradScaler("cpu", init_scale=size), model()
        terms = cases.make_terms(vectors, reference, **{**OFF, "meaning": 1.0})
        made = watch(trained, tokenizer, terms=terms, scaler=scaler, quiet=True)
        with torch.no_grad():  # away from the reference, where the anchor is flat
            for p in trained.parameters():
                p.mul_(1.05)
        batch, failed = batches[0]
        with made as w:
            loss = 0.0 * trained(**batch).loss + w.terms(batch, failed)
            scaler.scale(loss).backward()
            w.after_backward()
        named = trained.named_parameters()
        found.append({n: p.grad / size for n, p in named if p.grad is not None})
    entries = max(float(g.abs().max()) for g in found[0].values())
    assert entries > 1e-3
    assert cases.gap(*found)[0] < 1e-5 * entries


@pytest.mark.cell(trainer="loop", mode="accumulation, what terms add")
def test_accumulation_and_checkpoints_of_an_accelerate_loop(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    batches: list[Any],
    tmp_path: Path,
) -> None:
    """Two parts of a step add one auxiliary batch at its whole weight."""
    weights = {**OFF, "meaning": 1.0}
    found = []
    for parts in (1, 2):
        GradientState._reset_state()  # it is one for all accelerators of a process
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
        trained: Any = model()
        with torch.no_grad():  # away from the reference, where the anchor is flat
            before = {n: p.clone() for n, p in trained.named_parameters()}
        terms = cases.make_terms(vectors, reference, **weights)
        trained = accelerator.prepare(trained)
        with watch(
            trained, tokenizer, terms=terms, accelerator=accelerator, quiet=True
        ) as w:
            for name, p in trained.named_parameters():
                p.data = before[name] * 1.05
            batch, failed = batches[0]
            for _ in range(parts):
                with accelerator.accumulate(trained):
                    loss = 0.0 * trained(**batch).loss + w.terms(batch, failed)
                    accelerator.backward(loss)
                    w.after_backward()
            found.append({n: p.grad.clone() for n, p in trained.named_parameters()})
            assert w.step == 1
            accelerator.register_for_checkpointing(w)
            accelerator.save_state(str(tmp_path / str(parts)))
            w.step = 7
            accelerator.load_state(str(tmp_path / str(parts)))
            assert w.step == 1
    size = max(float(g.abs().max()) for g in found[0].values())
    assert size > 0
    assert max(float((found[0][n] - g).abs().max()) for n, g in found[1].items()) < (
        1e-5 * size
    )


# -- what raises ---------------------------------------------------------------------


@pytest.fixture
def watching(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
) -> Iterator[tuple[PreTrainedModel, Watch]]:
    terms = cases.make_terms(vectors, reference, **{**OFF, "contrast": 1.0})
    trained = model()
    yield trained, watch(trained, tokenizer, terms=terms, quiet=True)
    assert all(not block._forward_hooks for block in decoder_layers(trained))


def test_a_loop_outside_the_block_is_told_so(
    watching: tuple[PreTrainedModel, Watch], batches: list[Any]
) -> None:
    trained, w = watching
    batch, failed = batches[0]
    trained(**batch)
    with pytest.raises(RuntimeError, match="inside the `with` block"):
        w.terms(batch, failed)


def test_a_pass_that_was_not_seen_is_told(
    watching: tuple[PreTrainedModel, Watch], batches: list[Any]
) -> None:
    trained, w = watching
    batch, failed = batches[0]
    with w:
        with pytest.raises(RuntimeError, match="must fire"):
            w.terms(batch, failed)
        trained(**batch)
        w.terms(batch, failed)
        with pytest.raises(RuntimeError, match="must fire"):
            w.terms(batch, failed)  # the same pass must not count twice
        with torch.no_grad():
            trained(**batch)
        with pytest.raises(RuntimeError, match="must fire"):
            w.terms(batch, failed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: None, "`failed` must say which turns failed"),
        (lambda failed: failed[:1], "a list for each row"),
        (lambda failed: [row[:-1] for row in failed], "one outcome per Assistant turn"),
        (lambda failed: [[3.0 for _ in row] for row in failed], r"in \[0, 1\]"),
        (lambda _: torch.full((2, 2), 3.0), r"in \[0, 1\]"),
        (lambda _: torch.zeros(3, 2), r"shape \(batch, turn\)"),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(
    watching: tuple[PreTrainedModel, Watch],
    batches: list[Any],
    change: Callable[[Any], Any],
    message: str,
) -> None:
    trained, w = watching
    batch, failed = batches[0]
    with w:
        trained(**batch)
        with pytest.raises(ValueError, match=message):
            w.terms(batch, change(failed))


def test_an_outcome_without_a_turn_is_found_when_logging(
    watching: tuple[PreTrainedModel, Watch], batches: list[Any]
) -> None:
    trained, w = watching
    batch, failed = batches[0]
    with w:
        trained(**batch)
        w.terms(batch, failed)
        w.metrics()  # control: these are in place
        trained(**batch)
        w.terms(batch, torch.ones(2, 5))
        with pytest.raises(ValueError, match="must belong to an Assistant turn"):
            w.metrics()


def test_a_monitor_needs_units(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
) -> None:
    with pytest.raises(ValueError, match="`reference` must be given"):
        watch(model(), tokenizer, monitor=Monitor(vectors))


def test_a_loop_of_several_processes_needs_an_accelerator(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    watch(model(), tokenizer)  # control
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="`accelerator` must be given"):
        watch(model(), tokenizer)


def test_a_scaler_beside_an_accelerator_is_refused(
    model: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    both = {"accelerator": Accelerator(cpu=True), "scaler": torch.amp.GradScaler("cpu")}
    with pytest.raises(ValueError, match="`scaler` must be left out"):
        watch(model(), tokenizer, **both)


def test_deepspeed_is_refused_in_a_loop(
    model: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its `backward` also steps; as accelerate names it, which runs on its launcher."""
    kind = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match="must not run under DeepSpeed"):
        watch(model(), tokenizer, accelerator=kind)
