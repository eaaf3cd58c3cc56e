"""Adapters taken from a folder: that they fit, and that they change something."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import emoreg
from emoreg.demo import load_any
from emoreg.training.adapters import (
    subspace_lora,
    weighted_adapters,
    with_adapter,
    with_new_lora,
)
from emoreg.training.reference import Reference
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors


@pytest.mark.parametrize("subspace", [True, False])
def test_an_adapter_that_changes_nothing_is_warned_of(
    model: Callable[[], PreTrainedModel],
    vectors: EmotionVectors,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    subspace: bool,
) -> None:
    made: Any = model()
    if subspace:
        made = subspace_lora(made, vectors)
    else:
        made = get_peft_model(made, cases.adapter())
    made.save_pretrained(tmp_path / "untrained")
    with_adapter(model(), tmp_path / "untrained")
    assert "changes nothing" in caplog.text
    caplog.clear()  # control: one weight is enough
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.fill_(0.1)
    made.save_pretrained(tmp_path / "trained")
    with_adapter(model(), tmp_path / "trained")
    assert not caplog.text


def test_an_adapter_of_another_model_is_refused(
    model: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    made: Any = get_peft_model(model(), cases.adapter())
    made.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    renamed = {k.replace("layers.", "blocks."): v for k, v in load_file(file).items()}
    save_file(renamed, file)
    with pytest.raises(ValueError, match="trained on this model"):
        with_adapter(model(), tmp_path)


def test_a_merged_model_reads_as_its_adapter_does(
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """Merged, saved and loaded anew as any model is."""
    tuned: Any = get_peft_model(model(), cases.adapter())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)

    def values(made: Any) -> np.ndarray:
        twins = Corpus.packaged().transcripts("dev")[:2]
        how: dict[str, Any] = {"reference": reference, "quiet": True}
        return emoreg.measure(made.eval(), tokenizer, twins, vectors, **how).values

    with_it = values(tuned)
    tuned.merge_and_unload().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    merged = load_any(str(tmp_path), dtype=torch.float32).model
    near: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(values(merged), with_it, **near)
    assert not np.allclose(values(model()), with_it, **near)  # control


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_a_merged_model_of_few_bits_is_measured_anew_from_its_folder(
    bits: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "num_hidden_layers": 4}
    sizes |= {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes)
    torch.manual_seed(0)
    base: Any = transformers.LlamaForCausalLM(config).float().eval()
    vectors = cases.make_vectors(width=128)
    twins = Corpus.packaged().transcripts("dev")[:4]

    def values(model: Any) -> np.ndarray:
        found = emoreg.measure(model, tokenizer, twins, vectors, quiet=True)
        return found.values.ravel()

    before = values(base)
    tuned: Any = get_peft_model(base, replace(cases.adapter(), r=4))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    after = values(tuned.eval())
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    how: dict[str, Any] = {f"load_in_{bits}bit": True}
    small = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged",
        quantization_config=transformers.BitsAndBytesConfig(**how),
        device_map="cpu",
    )
    small.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    found = values(load_any(str(tmp_path / "small")).model)
    off, trained = (np.linalg.norm(x - after) for x in (found, before))
    # It is not the same model, and it is nearer to the trained one than that had moved.
    assert 1e-4 * np.linalg.norm(after) < off < 0.5 * trained


@pytest.mark.parametrize("subspace", [True, False])
def test_of_a_model_that_sees_the_blocks_that_read_are_trained_alone(
    *, subspace: bool
) -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 4, "num_attention_heads": 2}
    eyes = {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8}
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 64, **sizes},
        vision_config={**eyes, **sizes},
    )
    base = transformers.LlavaForConditionalGeneration(config)
    vectors = cases.make_vectors()
    make = subspace_lora if subspace else partial(with_new_lora, seed=0)
    tuned = make(base, vectors)
    names = [n for n, _ in tuned.named_parameters() if "lora_A" in n]
    assert names
    assert all("language_model.layers." in name for name in names)
    # Control: what sees has layers of the same names and numbers.
    assert any(
        "vision_tower" in n and ".1.self_attn.q_proj" in n for n in tuned.state_dict()
    )


# ------------------------------------------------------------------ weighted sums

IDS = torch.arange(5, 29).reshape(2, 12)


@pytest.fixture
def trained(model: Callable[[], PreTrainedModel], tmp_path: Path) -> dict[str, Path]:
    """Two adapters of different ranks, each far from nothing."""
    folders = {}
    for seed, (name, rank) in enumerate((("task", 4), ("affect", 2))):
        torch.manual_seed(seed)
        tuned: Any = get_peft_model(model(), replace(cases.adapter(), r=rank))
        with torch.no_grad():
            for key, weight in tuned.named_parameters():
                if "lora_B" in key:
                    weight.normal_(std=0.2)
        tuned.save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
    return folders


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def by_hand(base: PreTrainedModel, parts: dict[Path, float]) -> PreTrainedModel:
    """The base with `w s B A` added to its weights, from the files alone."""
    weights = dict(base.named_parameters())
    for folder, factor in parts.items():
        held = load_file(folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text())
        scale = factor * config["lora_alpha"] / config["r"]
        for key, a in held.items():
            if "lora_A" in key:
                b = held[key.replace("lora_A", "lora_B")]
                name = key.removeprefix("base_model.model.").replace(".lora_A", "")
                with torch.no_grad():
                    weights[name] += scale * (b @ a)
    return base


@pytest.mark.parametrize("factors", [(1.0, 1.0), (1.0, -0.5), (0.3, 2.0)])
def test_a_weighted_sum_is_that_of_the_weights(
    model: Callable[[], PreTrainedModel],
    trained: dict[str, Path],
    factors: tuple[float, float],
) -> None:
    parts = dict(zip(trained.values(), factors, strict=True))
    found = logits(weighted_adapters(model(), parts))
    torch.testing.assert_close(
        found, logits(by_hand(model(), parts)), rtol=1e-3, atol=1e-4
    )
    # Controls: it is neither the base nor one of them.
    for other in (model(), with_adapter(model(), trained["task"])):
        assert not torch.allclose(found, logits(other), atol=1e-2)


def test_one_weight_scales_and_its_negative_takes_back(
    model: Callable[[], PreTrainedModel], trained: dict[str, Path], tmp_path: Path
) -> None:
    alone = weighted_adapters(model(), {trained["task"]: 1.0})
    worn = with_adapter(model(), trained["task"])
    torch.testing.assert_close(logits(alone), logits(worn), rtol=1e-3, atol=1e-4)
    copy = tmp_path / "copy"
    shutil.copytree(trained["task"], copy)
    gone = weighted_adapters(model(), {trained["task"]: 1.0, copy: -1.0})
    torch.testing.assert_close(logits(gone), logits(model()), rtol=1e-3, atol=1e-4)


def test_a_sum_is_saved_and_loaded_with_plain_peft(
    model: Callable[[], PreTrainedModel], trained: dict[str, Path], tmp_path: Path
) -> None:
    made: Any = weighted_adapters(model(), dict.fromkeys(trained.values(), 0.7))
    made.save_pretrained(tmp_path / "sum")
    plain: Any = PeftModel.from_pretrained(model(), tmp_path / "sum")
    for again in (plain.eval(), with_adapter(model(), tmp_path / "sum")):
        torch.testing.assert_close(logits(again), logits(made), rtol=1e-4, atol=1e-5)
    assert list(made.peft_config) == ["default"]


def test_sums_that_can_not_be_are_refused(
    model: Callable[[], PreTrainedModel], trained: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="at least one adapter"):
        weighted_adapters(model(), {})
    with pytest.raises(ValueError, match="finite weight"):
        weighted_adapters(model(), {trained["task"]: float("nan")})
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        weighted_adapters(model(), {trained["task"]: 1.0, tmp_path / "none": 1.0})


@pytest.mark.parametrize("alien", ["affect", "task"])
def test_a_model_is_as_it_was_where_a_sum_is_refused(
    model: Callable[[], PreTrainedModel],
    trained: dict[str, Path],
    tmp_path: Path,
    alien: str,
) -> None:
    """The first adapter is not left switched on in it, whichever is refused."""
    base = model()
    names, before = [n for n, _ in base.named_modules()], logits(base)
    file = trained[alien] / "adapter_model.safetensors"
    renamed = {k.replace("layers.", "blocks."): v for k, v in load_file(file).items()}
    save_file(renamed, file)
    for other in (trained["affect"], tmp_path / "none"):
        with pytest.raises(ValueError, match="adapter"):
            weighted_adapters(base, {trained["task"]: 1.0, other: 1.0})
        assert [n for n, _ in base.named_modules()] == names
        assert torch.equal(logits(base), before)
        assert not hasattr(base, "peft_config")
