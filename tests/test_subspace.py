"""Subspace LoRA: what it may write, what it leaves, and that it is a plain LoRA."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
import trainer_cases
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer  # pyright: ignore

import emoreg
from emoreg.losses.presets import LOSS_READERS, decouple
from emoreg.residual.layers import LayerPlan
from emoreg.training.adapters import FixedLinear, subspace_lora
from emoreg.training.attach import attach
from emoreg.training.reference import Reference
from emoreg.vectors.emotion_vectors import EmotionVectors

RANK = 3
IDS = torch.arange(3, 19).reshape(2, 8)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def span(vectors: EmotionVectors, r: int) -> torch.Tensor:
    """The first axes of all loss directions, by a plain eigendecomposition."""
    roles = emoreg.Corpus.packaged().roles()
    known = [e for e in (*roles.lower, *roles.raise_) if e in vectors.emotions]
    readers = [x for x in LOSS_READERS if x in vectors.readers]
    layers = LayerPlan.for_depth(4).loss
    rows = torch.stack(
        [
            vectors.direction(emotion, layer=layer, reader=reader)
            for emotion in known
            for reader in readers
            for layer in layers
        ]
    ).double()
    values, axes = torch.linalg.eigh(rows.T @ rows)
    return axes[:, values.argsort(descending=True)[:r]]


def bases(model: Any) -> dict[str, torch.Tensor]:
    """The basis of each layer, by its name in a checkpoint."""
    held = model.state_dict()
    return {k: v.clone() for k, v in held.items() if "lora_B.default" in k}


def outside(change: torch.Tensor, basis: torch.Tensor) -> float:
    """Share of a change of weights that writes outside the basis."""
    rest = change.double() - basis @ (basis.T @ change.double())
    return float(rest.norm() / change.norm())


@pytest.fixture
def trained(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Train with terms for some steps, on a subspace LoRA or the plain one."""

    def go(adapter: str, *, steps: int = 4, resume: str | None = None) -> Any:
        base: Any = model()
        peft = None
        if adapter == "subspace":
            base = subspace_lora(base, vectors, r=RANK)
        else:
            peft = cases.adapter()
        made = cases.make_sft(
            base,
            tokenizer,
            tmp_path / adapter,
            peft=peft,
            max_steps=steps,
            learning_rate=3e-2,
            weight_decay=0.1,
            save_strategy="steps",
            save_steps=2,
        )
        attach(made, terms=decouple(vectors, reference), outcome="failed")
        made.train(resume_from_checkpoint=resume)
        return made

    return go


def changes(
    trained: Any, base: PreTrainedModel, names: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """What merging changes in each weight of these layers."""
    merged = trained.model.merge_and_unload()
    own = dict(base.named_parameters())
    return {
        name: weight.detach() - own[name].detach()
        for name, weight in merged.named_parameters()
        if any(part in name for part in names) and not torch.equal(weight, own[name])
    }


def test_it_writes_inside_the_span_alone(
    trained: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    vectors: EmotionVectors,
) -> None:
    basis = span(vectors, RANK)
    writers = ("o_proj", "down_proj")
    found = changes(trained("subspace"), model(), ("proj",))
    assert found
    assert all(any(w in name for w in writers) for name in found)
    assert max(outside(change, basis) for change in found.values()) < 1e-5
    plain = changes(trained("plain"), model(), writers)  # control
    assert min(outside(change, basis) for change in plain.values()) > 0.3


def test_the_model_is_its_own_at_the_start_and_without_the_adapter(
    trained: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    vectors: EmotionVectors,
) -> None:
    before = logits(model())
    assert torch.equal(logits(subspace_lora(model(), vectors)), before)
    tuned = trained("subspace").model
    assert not torch.equal(logits(tuned), before)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), before)


def test_the_basis_stays_and_plain_peft_loads_and_merges_it(
    trained: Callable[..., Any],
    model: Callable[[], PreTrainedModel],
    vectors: EmotionVectors,
    tmp_path: Path,
) -> None:
    start = bases(subspace_lora(model(), vectors, r=RANK))
    tuned = trained("subspace").model
    assert cases.equal(bases(tuned), start)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            assert "lora_A" in name
            assert bool(weight.any())
    found = logits(tuned)
    tuned.save_pretrained(tmp_path / "saved")
    loaded: Any = PeftModel.from_pretrained(model(), tmp_path / "saved")
    assert torch.equal(logits(loaded), found)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_basis_stays_where_peft_switches_the_adapter_off_and_on(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    tmp_path: Path,
    kind: str,
) -> None:
    """As a reference's passes do: peft then frees all parameters of the adapter."""
    tuned: Any = subspace_lora(model(), vectors, r=RANK)
    start, how = bases(tuned), cases.quiet(tmp_path, max_steps=2, learning_rate=3e-2)
    if kind == "sft":
        with tuned.disable_adapter():
            pass
        made = cases.make_sft(tuned, tokenizer, tmp_path, **how)
    else:
        how |= {"max_length": None, "precompute_ref_log_probs": True}
        made = DPOTrainer(
            model=tuned,
            args=DPOConfig(**how),
            train_dataset=trainer_cases.preference_rows("dpo"),
            processing_class=tokenizer,
        )
    made.train()
    names = [n for n, p in tuned.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_A.default" in name for name in names)
    optimizer: Any = made.optimizer
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(names)
    assert cases.equal(bases(tuned), start)


def test_a_basis_that_is_written_anew_before_another_pass_is_no_change() -> None:
    """As DDP does with buffers; and what comes in may be of lower precision."""
    layer = FixedLinear(torch.eye(4, 2))
    x = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    out = layer(x)
    layer.weight.copy_(layer.weight.clone())
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def test_an_interrupted_run_goes_on(trained: Callable[..., Any]) -> None:
    whole = cases.weights(trained("subspace"))
    trained("subspace", steps=2)
    folder = Path(str(trained("subspace", steps=2).args.output_dir))
    resumed = trained("subspace", resume=str(folder / "checkpoint-2"))
    assert cases.equal(cases.weights(resumed), whole)


def test_vectors_that_do_not_fit_are_refused(
    model: Callable[[], PreTrainedModel], vectors: EmotionVectors
) -> None:
    with pytest.raises(ValueError, match="must be those of `model`"):
        subspace_lora(model(), cases.make_vectors(width=16))
    with pytest.raises(ValueError, match="must know their model's depth"):
        subspace_lora(model(), replace(vectors, provenance={}))
    roles = replace(emoreg.Corpus.packaged().roles(), lower=("nothing",), raise_=())
    with pytest.raises(ValueError, match="must have loss emotions"):
        subspace_lora(model(), vectors, roles=roles)
