"""Capping: nothing goes past the ceiling, all else stays, and it can be distilled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import emoreg
from emoreg.losses.anchors import ReferenceKL
from emoreg.losses.targets import Targets
from emoreg.residual.capping import Cap, capped
from emoreg.residual.capture import capture
from emoreg.residual.layers import d_model
from emoreg.training.attach import attach
from emoreg.training.auxiliary import PredictionAnchor, Target
from emoreg.training.reference import Reference
from emoreg.vectors.emotion_vectors import EmotionVectors

Model = Callable[[], PreTrainedModel]
IDS = torch.arange(3, 27).reshape(2, 12)


def streams(model: Any, layers: tuple[int, ...]) -> dict[int, Tensor]:
    with torch.no_grad(), capture(model, layers) as captured:
        model(input_ids=IDS)
        return {layer: captured[layer].clone() for layer in layers}


def unit(model: Any, seed: int = 0) -> Tensor:
    made = torch.randn(d_model(model), generator=torch.Generator().manual_seed(seed))
    return made / made.norm()


def test_what_is_past_the_ceiling_is_set_to_it_and_nothing_else(model: Model) -> None:
    made = model().eval()
    v, before = unit(made), streams(made, (1, 2))
    along = before[1] @ v
    ceiling = float(along.median())
    with capped(made, {1: Cap(direction=v, ceiling=ceiling)}):
        after = streams(made, (1, 2))
    past = along > ceiling
    assert past.any()
    assert (~past).any()
    assert torch.equal(after[1][~past], before[1][~past])
    wanted = before[1] - (along - ceiling).clamp(min=0)[..., None] * v
    torch.testing.assert_close(after[1], wanted)
    assert float((after[1] @ v).max()) <= ceiling + 1e-5
    assert not torch.equal(after[2], before[2])  # what follows reads it
    assert torch.equal(streams(made, (1, 2))[2], before[2])  # and it is off again


def test_a_callers_autocast_costs_no_precision(model: Model) -> None:
    made = model().eval()
    v = unit(made)
    with torch.autocast("cpu", torch.bfloat16):
        before = streams(made, (1,))[1]
        ceiling = float((before @ v).min()) - 1
        with capped(made, {1: Cap(direction=v, ceiling=ceiling)}):
            after = streams(made, (1,))[1]
        rough = before @ v  # control: what a product is there
    assert rough.dtype == torch.bfloat16
    found = after.float() @ v - ceiling
    assert float(found.abs().max()) < 1e-5


def test_a_ceiling_that_nothing_reaches_changes_no_bit(model: Model) -> None:
    made: Any = model().eval()
    with torch.no_grad():
        plain = made(input_ids=IDS).logits
        with capped(made, {1: Cap(direction=unit(made), ceiling=1e6)}):
            assert torch.equal(made(input_ids=IDS).logits, plain)
        with capped(made, {1: Cap(direction=unit(made), ceiling=-1e3)}):  # control
            assert not torch.allclose(made(input_ids=IDS).logits, plain, rtol=1e-2)


def test_it_holds_while_generating_with_a_cache(model: Model) -> None:
    made: Any = model().eval()
    v, ids = unit(made), IDS[:1, :5]
    cap = {1: Cap(direction=v, ceiling=float((streams(made, (1,))[1] @ v).min()))}
    with torch.no_grad(), capped(made, cap):
        how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
        cached = made.generate(ids, use_cache=True, **how)
        assert torch.equal(cached, made.generate(ids, use_cache=False, **how))


def test_gradients_are_those_of_autograd(model: Model) -> None:
    """Along the direction a capped token has no gradient, across it all of it."""
    made: Any = model().eval()
    v = unit(made)
    with capped(made, {1: Cap(direction=v, ceiling=-1e3)}), capture(made, (1,)) as seen:
        made(input_ids=IDS)
        stream = seen[1]
        weight = made.get_input_embeddings().weight
        (along,) = torch.autograd.grad((stream @ v).sum(), weight, retain_graph=True)
        (across,) = torch.autograd.grad(stream.square().sum(), weight)
    assert float(along.abs().max()) < 1e-5 < 1e-2 < float(across.abs().max())


def test_caps_are_the_references_success_level_and_spread(
    vectors: EmotionVectors, reference: Reference
) -> None:
    for spread in (0.0, 1.5):
        found = emoreg.caps(vectors, reference, spread=spread)
        assert tuple(found) == reference.plan.loss
        reader = vectors.readers[0]
        at: dict[str, Any] = {"reader": reader, "emotions": ["desperate"]}
        for layer, cap in found.items():
            level, std = (
                float(reference.unit(name, layers=[layer], **at))
                for name in ("success_level", "success_std")
            )
            point = cap.direction * cap.ceiling
            read = vectors.project(point[None], layer=layer, reader=reader)
            read = read[0, vectors.emotions.index("desperate")]
            assert float(read) == pytest.approx(level + spread * std, abs=1e-4)


def test_what_cannot_be_capped_is_refused(
    model: Model, vectors: EmotionVectors, reference: Reference
) -> None:
    made = model()
    for direction in (torch.ones(3) / 3**0.5, 2 * unit(made)):
        with pytest.raises(ValueError, match="must be a unit vector"):
            with capped(made, {1: Cap(direction=direction, ceiling=0.0)}):
                pass
    with pytest.raises(ValueError, match="audit"):
        emoreg.caps(vectors, reference, emotion="distressed")
    with pytest.raises(ValueError, match="audit"):
        emoreg.caps(vectors, reference, layers=reference.plan.audit)
    assert emoreg.caps(vectors, reference)  # control


def distance(a: Any, b: Any) -> float:
    with torch.no_grad():
        left, right = (m(input_ids=IDS).logits.log_softmax(-1) for m in (a, b))
    return float((left.exp() * (left - right)).sum(-1).mean())


def test_capping_is_distilled_into_the_weights(model: Model) -> None:
    plain, student = model().eval(), model().train()
    v = unit(plain)
    caps = {1: Cap(direction=v, ceiling=float((streams(plain, (1,))[1] @ v).min()) - 3)}
    texts = [Target(ids=row.tolist(), held=[True] * len(row)) for row in IDS]
    term = ReferenceKL(caps=caps, k=plain.config.vocab_size)
    anchor = PredictionAnchor(term, texts)
    anchor.cache(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        anchor.loss(student, [0, 1], torch.device("cpu")).backward()
        optimizer.step()

    def teacher(**inputs: Any) -> Any:
        with capped(plain, caps):
            return plain(**inputs)

    before = distance(teacher, plain)
    assert before > 0.01
    assert distance(teacher, student.eval()) < 0.2 * before
    held = PredictionAnchor(ReferenceKL(k=plain.config.vocab_size), texts)
    held.cache(plain)  # control: an anchor to the plain model asks for no change
    assert float(held.loss(plain, [0, 1], torch.device("cpu"))) < 1e-5


def test_a_trainer_distils_beside_its_task_and_targets_are_refused(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    term = ReferenceKL(caps=emoreg.caps(vectors, reference, spread=-2.0), every=1)

    def made(name: str, terms: Any, **more: Any) -> Any:
        trainer = cases.make_sft(model(), tokenizer, tmp_path / name, max_steps=2)
        how: dict[str, Any] = {"outcome": "failed", "reference": reference, **more}
        return attach(trainer, terms=terms, **how)

    trainer = made("one", [term])
    trainer.train()
    logged = cases.logged(trainer, "emotion_loss/capped_kl")
    assert all(line["emotion_loss/capped_kl"] > 0 for line in logged)
    assert logged
    preset = emoreg.presets.decouple(vectors, reference, keep=0.25)
    with pytest.raises(ValueError, match="Distil the caps in a run without `targets`"):
        made("two", [*preset, term], targets=Targets())
