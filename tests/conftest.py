"""Shared fixtures: seeds, a byte-level tokenizer, tiny models built from configs."""

import os

# Before torch and the hub client are imported anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import gc
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.vectors.corpus import Corpus

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "mistral",
    "gpt2",
    "gpt_neox",
    "phi",
)
BPE_TOKENS = 1024
NUM_LAYERS = 4
D_MODEL = 32

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
_CONFIGS = {
    "llama": ("LlamaConfig", _GROUPED),
    "qwen2": ("Qwen2Config", {**_COMMON, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", _GROUPED),
    "gemma": (
        "Gemma3TextConfig",
        {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 512},
    ),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": None}),
    "gpt2": (
        "GPT2Config",
        {"n_embd": D_MODEL, "n_layer": NUM_LAYERS, "n_head": 4, "n_positions": 2048},
    ),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "phi": ("PhiConfig", _COMMON),
}


@pytest.fixture(autouse=True, scope="module")
def _light_collections() -> None:
    """Take what is imported by now out of garbage collection.

    Every `trainer.train()` begins with a full one, which goes through the objects of
    all modules: 0.4 s of a test's second. What is imported later is taken out later.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _determinism() -> None:
    """Give every test the same random numbers and one thread."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _tokenizer_core() -> Tokenizer:
    # A single byte a token would make texts three times as long, and attention, which
    # is most of what the fast suite computes, nine times as dear.
    corpus = Corpus.packaged()
    texts = [story.text for story in corpus.stories(split="fit")]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore[attr-defined]
        add_prefix_space=False
    )
    core.decoder = decoders.ByteLevel()  # type: ignore[attr-defined]
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts[::8], trainer)
    return core


@pytest.fixture
def tokenizer(_tokenizer_core: Tokenizer) -> PreTrainedTokenizerFast:
    """A fresh byte-level BPE of `BPE_TOKENS` and special tokens; a ChatML template."""
    return _chatml(Tokenizer.from_str(_tokenizer_core.to_str()))


@pytest.fixture
def letters() -> PreTrainedTokenizerFast:
    """The same with every byte a token, for tests that count in a text.

    Of 259 tokens; a file takes it as its `tokenizer`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore[attr-defined]
        add_prefix_space=False, use_regex=False
    )
    core.decoder = decoders.ByteLevel()  # type: ignore[attr-defined]
    return _chatml(core)


def _chatml(core: Tokenizer) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        padding_side="right",
    )
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture
def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[[str], PreTrainedModel]:
    """A factory of 4-layer models with 32 dimensions: `tiny_model("llama")`.

    The weights depend on the family alone, so two calls give equal models.
    """

    def build(family: str) -> PreTrainedModel:
        name, sizes = _CONFIGS[family]
        config = getattr(transformers, name)(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sizes,
        )
        with torch.random.fork_rng():
            torch.manual_seed(FAMILIES.index(family))
            return transformers.AutoModelForCausalLM.from_config(config).eval()

    return build


@pytest.fixture
def vectors() -> Any:
    """The vectors of the seam's tests; files with others override it."""
    import seam_cases  # it imports trl, which most tests do without

    return seam_cases.make_vectors()


@pytest.fixture
def model(tiny_model: Callable[[str], PreTrainedModel]) -> Callable[[], Any]:
    """A factory of the model that the seam's tests train: two calls, equal models."""
    import seam_cases

    return lambda: seam_cases.lively(tiny_model("llama"))


@pytest.fixture
def reference(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast, vectors: Any
) -> Any:
    """What was calibrated on that model."""
    import seam_cases

    return seam_cases.make_reference(model(), tokenizer, vectors)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass reads, as they happen."""
    from emoreg.residual import batches

    seen: list[int] = []
    run = batches.run_truncated

    def counted(decoder: Any, **inputs: Any) -> None:
        seen.append(inputs["input_ids"].numel())
        run(decoder, **inputs)

    monkeypatch.setattr(batches, "run_truncated", counted)
    return seen
