"""Families of models: found, read as transformers says, steered, with a gradient.

`docs/models.md` lists the same families; a test holds that.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from emoreg.residual.capture import capture
from emoreg.residual.layers import decoder_layers, num_layers
from emoreg.residual.pooling import Passage, span_means
from emoreg.residual.steer import steered

DOCS = Path(__file__).resolve().parent.parent / "docs" / "models.md"
WIDTH, DEPTH, VOCAB = 32, 4, 64
READ = (1, 2)
"""Layers that are read; what transformers gives for the last one is behind a norm."""

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
HYBRID = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", {**COMMON, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", GROUPED),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**GROUPED, **EXPERTS, "num_experts": 4, "decoder_sparse_step": 1},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **GROUPED,
            **EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 24,
            "layer_types": LINEAR,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 6}),
    "mixtral": (
        "MixtralConfig",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gemma": ("GemmaConfig", GROUPED),
    "gemma2": (
        "Gemma2Config",
        {**GROUPED, "sliding_window": 6, "query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **GROUPED,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "layer_types": HYBRID,
        },
    ),
    "phi": ("PhiConfig", COMMON),
    "phi3": ("Phi3Config", {**COMMON, "num_key_value_heads": 2}),
    "gpt2": (
        "GPT2Config",
        {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "vocab_size": VOCAB},
    ),
    "gpt_neox": ("GPTNeoXConfig", COMMON),
    "gptj": (
        "GPTJConfig",
        {
            "n_embd": WIDTH,
            "n_layer": DEPTH,
            "n_head": 4,
            "vocab_size": VOCAB,
            "rotary_dim": 4,
        },
    ),
    "opt": (
        "OPTConfig",
        {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": WIDTH},
    ),
    "bloom": (
        "BloomConfig",
        {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": 4, "vocab_size": VOCAB},
    ),
    "falcon": ("FalconConfig", COMMON),
    "olmo2": ("Olmo2Config", GROUPED),
    "granite": ("GraniteConfig", GROUPED),
    "smollm3": ("SmolLM3Config", GROUPED),
    "stablelm": ("StableLmConfig", {**COMMON, "num_key_value_heads": 2}),
    "cohere": ("CohereConfig", {**COMMON, "num_key_value_heads": 2}),
    "glm4": ("Glm4Config", GROUPED),
    "gpt_oss": (
        "GptOssConfig",
        {
            **GROUPED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 6,
            "layer_types": HYBRID,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **COMMON,
            **EXPERTS,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "bamba": (
        "BambaConfig",
        {
            **COMMON,
            "num_key_value_heads": 2,
            "attn_layer_indices": [1, 3],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            **GROUPED,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 16,
        },
    ),
}

QUICK = {"llama", "qwen3", "qwen3_moe", "gemma3", "mistral", "gpt2", "gpt_oss"}
EACH = [
    pytest.param(family, marks=() if family in QUICK else pytest.mark.slow)
    for family in FAMILIES
]

TEXTS = [
    [1, 9, 17, 33, 40, 8, 21, 5, 50, 12, 33],
    [1, 44, 3],
    [1, 7, 21, 60, 11, 30, 30],
]


def built(family: str) -> Any:
    name, sizes = FAMILIES[family]
    config = getattr(transformers, name)(**sizes)
    torch.manual_seed(list(FAMILIES).index(family))
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def passages() -> list[Passage]:
    return [
        Passage(ids=tuple(ids), spans=((0, len(ids)), (len(ids) - 1, len(ids))))
        for ids in TEXTS
    ]


def by_transformers(model: Any) -> Tensor:
    """Return the same means from what transformers hands out, text by text."""
    rows = []
    for ids in TEXTS:
        with torch.no_grad():
            states = model(
                torch.tensor([ids]), output_hidden_states=True, use_cache=False
            ).hidden_states
        stream = torch.stack([states[layer + 1][0] for layer in READ], dim=1)
        rows += [stream.mean(0), stream[-1]]
    return torch.stack(rows)


def by_hooks(model: Any) -> Tensor:
    """Return the stream of the first text at each layer, after any other hook."""
    found: dict[int, Tensor] = {}

    def keeping(layer: int) -> Any:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    blocks = decoder_layers(model)
    hooks = [blocks[layer].register_forward_hook(keeping(layer)) for layer in READ]
    with torch.no_grad():
        model(torch.tensor([TEXTS[0]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack([found[layer][0] for layer in READ])


@pytest.mark.parametrize("family", EACH)
def test_a_family_is_read_as_transformers_says(family: str) -> None:
    model = built(family)
    assert num_layers(model) == DEPTH
    truth = by_transformers(model)
    # One batch of all three, padded to the longest, and the stack cut at layer 2.
    found = span_means(model, passages(), READ, budget=4096, quiet=True)
    torch.testing.assert_close(found, truth, atol=2e-4, rtol=2e-3)
    wrong = (found - truth.roll(1, dims=1)).abs().max()  # control: the other layer
    assert float(wrong) > 100 * float((found - truth).abs().max())


@pytest.mark.parametrize("family", EACH)
def test_a_family_is_steered_by_just_what_is_added(family: str) -> None:
    model, vector = built(family), torch.randn(WIDTH)
    plain = by_hooks(model)
    with steered(model, {READ[0]: vector}):
        moved = by_hooks(model)
    shift = moved - plain
    torch.testing.assert_close(shift[0], vector.expand_as(shift[0]), atol=1e-5, rtol=0)
    assert float(shift[1].abs().max()) > 1e-3  # it goes on
    assert not torch.allclose(shift[1], shift[0], atol=1e-6)  # control: and is changed


@pytest.mark.parametrize("family", EACH)
def test_a_family_has_a_gradient_where_it_is_captured(family: str) -> None:
    model = built(family).train()
    ids = torch.tensor([TEXTS[0], TEXTS[0][::-1]])
    with capture(model, READ) as captured:
        out = model(ids, use_cache=False)
        stream = captured[READ[0]]
    assert stream.shape == (2, len(TEXTS[0]), WIDTH)
    assert stream.requires_grad
    stream.square().mean().backward()
    early = [p.grad for p in decoder_layers(model)[0].parameters()]
    assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in early)
    late = decoder_layers(model)[READ[1]].parameters()
    assert all(p.grad is None for p in late)  # control: nothing from above it
    assert out.logits.shape[:2] == ids.shape


def test_the_table_lists_just_these_families() -> None:
    text = DOCS.read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(table) == sorted(FAMILIES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_nearly_the_same(dtype: torch.dtype) -> None:
    model = built("llama")
    whole = span_means(model, passages(), READ, quiet=True)
    half = span_means(model.to(dtype), passages(), READ, quiet=True)
    assert half.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(half, whole, dim=-1)
    assert float(cosine.min()) > 0.999
    assert not torch.equal(half, whole)  # control: it was rounded
    wrong = torch.nn.functional.cosine_similarity(half, whole.roll(1, dims=1), dim=-1)
    assert float(wrong.min()) < 0.99


def test_tied_embeddings_are_left_alone() -> None:
    name, sizes = FAMILIES["llama"]
    config = getattr(transformers, name)(**sizes, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = model.get_input_embeddings().weight.clone()
    found = span_means(model, passages(), READ, quiet=True)
    torch.testing.assert_close(found, by_transformers(model), atol=2e-4, rtol=2e-3)
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("offload", [False, True])
def test_a_model_with_a_device_map_is_read(tmp_path: Path, offload: bool) -> None:
    plain = built("llama")
    plain.save_pretrained(tmp_path / "model")
    where: Any = "auto"
    last = f"model.layers.{DEPTH - 1}"
    if offload:
        rest = [f"model.layers.{i}" for i in range(DEPTH - 1)]
        names = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
        where = dict.fromkeys([*names, *rest], "cpu") | {last: "disk"}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=where, offload_folder=str(tmp_path / "off")
    )
    if offload:
        assert model.hf_device_map[last] == "disk"
    found = span_means(model, passages(), READ, quiet=True)
    torch.testing.assert_close(found, by_transformers(plain), atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_is_read(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    name, sizes = FAMILIES["llama"]
    wide = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    config = getattr(transformers, name)(**{**sizes, **wide})
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    plain.save_pretrained(tmp_path)
    how: dict[str, Any] = {f"load_in_{bits}bit": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=transformers.BitsAndBytesConfig(**how),
        device_map="cpu",
        dtype=torch.float32,
    )
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    found = span_means(model, passages(), READ, quiet=True)
    torch.testing.assert_close(found, by_transformers(model), atol=2e-3, rtol=2e-2)
    whole = span_means(plain, passages(), READ, quiet=True)
    cosine = torch.nn.functional.cosine_similarity(found, whole, dim=-1)
    assert 0.9 < float(cosine.min()) < 0.999999  # near, and not the same


def test_an_adapter_is_read_with_it_and_without_it() -> None:
    from peft import LoraConfig, get_peft_model

    plain = built("llama")
    truth = by_transformers(plain)
    model: Any = get_peft_model(built("llama"), LoraConfig(init_lora_weights=False))
    found = span_means(model, passages(), READ, quiet=True)
    torch.testing.assert_close(found, by_transformers(model), atol=2e-4, rtol=2e-3)
    assert not torch.allclose(found, truth, atol=1e-3)  # control: the adapter acts
    with model.disable_adapter():
        without = span_means(model, passages(), READ, quiet=True)
    torch.testing.assert_close(without, truth, atol=2e-4, rtol=2e-3)
    merged = span_means(model.merge_and_unload(), passages(), READ, quiet=True)
    torch.testing.assert_close(merged, found, atol=2e-4, rtol=2e-3)
