"""The decoder blocks are found in every family and wrapping, and layer plans hold."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from conftest import D_MODEL, FAMILIES, NUM_LAYERS
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from emoreg.residual.layers import (
    LINEAR_NAMES,
    LayerPlan,
    backbone,
    checked_layers,
    d_model,
    decoder_layers,
    num_layers,
    unwrapped,
)

Build = Callable[[str], PreTrainedModel]
IDS = torch.arange(1, 13).reshape(2, 6)

# Written out by hand: where each family keeps its blocks and its last norm.
BLOCKS = dict.fromkeys(FAMILIES, "model.layers") | {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
}
NORMS = dict.fromkeys(FAMILIES, "model.norm") | {
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
}


@pytest.fixture
def process_group() -> Iterator[None]:
    """A gloo group of this process alone."""
    store: Any = dist.HashStore()  # type: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def with_lora(model: PreTrainedModel) -> nn.Module:
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    config = LoraConfig(r=2, target_modules=sorted(names & set(LINEAR_NAMES)))
    return get_peft_model(model, config)


def check_parts(wrapped: nn.Module, model: PreTrainedModel, family: str) -> None:
    """Compare what is found in `wrapped` with what is known of `family`."""
    blocks = model.get_submodule(BLOCKS[family])
    assert decoder_layers(wrapped) is blocks
    assert num_layers(wrapped) == NUM_LAYERS == len(list(blocks.children()))
    assert d_model(wrapped) == D_MODEL
    assert unwrapped(wrapped) is model
    assert backbone(wrapped) is model.get_submodule(BLOCKS[family].rpartition(".")[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_found_in_every_family(tiny_model: Build, family: str) -> None:
    model = tiny_model(family)
    check_parts(model, model, family)
    # The last block comes before the norm whose output, through the head, is logits.
    seen: list[torch.Tensor] = []
    norm = model.get_submodule(NORMS[family])
    norm.register_forward_hook(lambda *args: seen.append(args[2]))
    logits = model(input_ids=IDS).logits
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    torch.testing.assert_close(head(seen[0]), logits)
    assert not torch.allclose(head(seen[0] + 1), logits)  # control


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_found_under_peft(tiny_model: Build, family: str) -> None:
    model = tiny_model(family)
    wrapped = with_lora(model)
    assert any("lora_A" in name for name, _ in decoder_layers(wrapped).named_modules())
    check_parts(wrapped, model, family)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_parts_are_found_under_ddp(tiny_model: Build, family: str) -> None:
    model = tiny_model(family)
    parallel = nn.parallel.DistributedDataParallel
    check_parts(parallel(model), model, family)
    check_parts(parallel(with_lora(model)), model, family)


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox"])
def test_parts_are_found_under_compile(tiny_model: Build, family: str) -> None:
    model = tiny_model(family)
    compiled = torch.compile(model)  # nothing is compiled before the first call
    assert isinstance(compiled, nn.Module)
    check_parts(compiled, model, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_found_with_checkpointing(tiny_model: Build, family: str) -> None:
    model = tiny_model(family)
    model.gradient_checkpointing_enable()
    model.train()
    assert all(block.gradient_checkpointing for block in decoder_layers(model))
    check_parts(model, model, family)


def test_an_unknown_architecture_is_refused(tiny_model: Build) -> None:
    message = (
        "the model must hold its decoder blocks in a ModuleList at one of .*`layers`.*"
        "found none in Sequential. Pass the part of the model that holds them"
    )
    with pytest.raises(ValueError, match=message):
        decoder_layers(nn.Sequential(nn.Linear(2, 2)))
    # A list of the wrong kind, and an empty one, are no blocks either.
    model = tiny_model("llama")
    blocks = decoder_layers(model)
    for wrong in (nn.ModuleList(), nn.Sequential(*blocks)):
        model.model.layers = wrong
        with pytest.raises(ValueError, match="found none in LlamaForCausalLM"):
            decoder_layers(model)
    model.model.layers = blocks  # control
    assert decoder_layers(model) is blocks


def test_the_plan_of_thirty_blocks() -> None:
    assert LayerPlan.for_depth(30) == LayerPlan(
        loss=(14, 16, 18, 20),
        audit=(21, 24, 27),
        near=(15, 17, 19),
        monitor=(9, 14, 15, 16, 17, 18, 19, 20, 21, 24, 27),
    )


def plan_faults(plan: LayerPlan, depth: int) -> list[str]:
    """Return what a plan gets wrong."""
    faults = []
    if set(plan.loss) & set(plan.audit):
        faults.append("a layer is trained on and judged by")
    if not plan.loss or not plan.audit:
        faults.append("a part is empty")
    if max(plan.audit, default=0) <= max(plan.loss, default=0):
        faults.append("the audit is not deeper")
    if set(plan.near) & {*plan.loss, *plan.audit}:
        faults.append("a near layer is something else too")
    if not {*plan.loss, *plan.audit, *plan.near} <= set(plan.monitor):
        faults.append("a layer is not monitored")
    for part in (plan.loss, plan.audit, plan.near, plan.monitor):
        if list(part) != sorted(set(part)) or not set(part) <= set(range(depth)):
            faults.append("a part is unsorted, repeated or outside the model")
    return faults


@pytest.mark.parametrize("depth", range(4, 81))
def test_loss_and_audit_never_meet(depth: int) -> None:
    assert plan_faults(LayerPlan.for_depth(depth), depth) == []


def test_a_bad_plan_is_noticed() -> None:
    plan = LayerPlan(loss=(5, 9), audit=(5, 6), near=(6,), monitor=(9, 5))
    assert len(set(plan_faults(plan, 8))) == 5


@pytest.mark.parametrize("depth", range(4))
def test_a_model_too_shallow_for_an_audit_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"at least 4.*got {depth}; pass an explicit"):
        LayerPlan.for_depth(depth)


def test_layers_are_checked_against_the_model() -> None:
    assert checked_layers([-1, 2, 0, 2], 4) == (0, 2, 3)
    for layer in (4, -5):
        sentence = re.escape(f"must lie in [0, 4) for this model, got {layer}.")
        with pytest.raises(ValueError, match=sentence):
            checked_layers([0, layer], 4)
    with pytest.raises(ValueError, match="at least one decoder block, got none"):
        checked_layers([], 4)
