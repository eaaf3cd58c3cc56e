"""The default monitor's share of a training step, by count of operations.

    python scripts/count_operations.py --rows 2 --tokens 1024

No model is computed: a Llama of 8 billion parameters is run on the `meta` device, where
tensors have a shape and no values, once with all weights trained and once with an
adapter's part of the backward pass alone. The monitor reads zeros. Counted are the
operations of matrix products, by PyTorch's own counter, and beside them the numbers
that all other operations write, since those of the monitor are mostly of that kind.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from emoreg.losses.term import Probe
from emoreg.residual.layers import LayerPlan, d_model, decoder_layers, num_layers
from emoreg.training.watching.lens import Lens
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA, LOGISTIC, RANDOM

LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
EMOTIONS = ("desperate", "calm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """What an action does."""

    products: int
    """Multiplications and additions of matrix products and attention."""
    written: int
    """Numbers written by all operations that are no views."""


class _Written(TorchDispatchMode):
    """Adds up the sizes of what operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(
                x.numel() for x in tree_leaves(found) if isinstance(x, Tensor)
            )
        return found


def count(action: Callable[[], object]) -> Count:
    """Run an action and return what it does, its backward passes included."""
    with _Written() as written, FlopCounterMode(display=False) as products:
        action()
    return Count(products=products.get_total_flops(), written=written.total)


def build(**shape: int) -> Any:
    """Return a bf16 Llama of that shape on the meta device, in training mode."""
    settings: dict[str, Any] = {"attn_implementation": "eager", "use_cache": False}
    config = LlamaConfig(**shape, **settings)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()


def train_step(model: Any, ids: Tensor) -> Count:
    """Return what a forward and a backward pass do; the optimizer is left out."""
    model.zero_grad()
    # A mask of its own: the model would look at values to make one.
    size = ids.shape[1]
    mask = torch.empty(1, 1, size, size, device=ids.device, dtype=model.dtype)
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": mask}
    return count(lambda: model(**inputs).loss.backward())


def keep_as_adapter(model: Any) -> None:
    """Train what makes the backward pass go as deep as an adapter's does, no more.

    The adapter's own products are left out, so the monitor's share comes out too large
    rather than too small.
    """
    model.requires_grad_(False)
    first = round(0.27 * num_layers(model))
    decoder_layers(model)[first].input_layernorm.requires_grad_(True)  # type: ignore[operator]


def default_monitor(model: Any) -> Monitor:
    """Return the default monitor of a model of this shape, with any directions."""
    plan, width = LayerPlan.for_depth(num_layers(model)), d_model(model)
    layers = tuple(sorted({plan.loss[-1], plan.audit[0], plan.audit[-1]}))
    shape = (len(layers), len(EMOTIONS))
    vectors = EmotionVectors.from_directions(
        torch.randn(*shape, width), emotions=EMOTIONS, layers=layers
    )
    monitor = Monitor(vectors, emotions=EMOTIONS)
    readers = (LDA, LOGISTIC, RANDOM)
    monitor.probes = tuple(
        Probe(
            directions=torch.ones(*shape, width),
            zero=torch.ones(shape),
            sigma=torch.ones(shape),
            layers=layers,
            emotions=EMOTIONS,
            reader=reader,
        )
        for reader in readers
    )
    columns = len(readers) * len(EMOTIONS)
    lens = Lens(
        centre=torch.ones(width),
        directions=torch.ones(columns, width),
        level=torch.ones(columns),
        spread=torch.ones(columns),
    )
    monitor._lenses = dict.fromkeys(layers, lens)  # a reference would give them values
    return monitor


def monitor_step(model: Any, rows: int, tokens: int, *, turns: int = 4) -> Count:
    """Return what the default monitor does with a batch."""
    monitor, width = default_monitor(model), d_model(model)

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    streams = {
        layer: zeros(rows, tokens, width, dtype=torch.bfloat16)
        for layer in monitor.layers
    }
    return count(
        lambda: monitor.update(
            streams,
            zeros(rows, turns, dtype=torch.long),
            zeros(rows, turns),
            zeros(rows, tokens, dtype=torch.bool),
            input_ids=zeros(rows, tokens, dtype=torch.long),
            turns=zeros(rows, turns, dtype=torch.bool),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    model = build(**LLAMA_8B)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e9:.2f} billion parameters, {options.rows} x {options.tokens}")
    ids = torch.empty(options.rows, options.tokens, dtype=torch.long, device="meta")
    watched = monitor_step(model, options.rows, options.tokens)
    for name in ("all weights", "an adapter"):
        if name == "an adapter":
            keep_as_adapter(model)
        step = train_step(model, ids)
        print(
            f"{name:12s} products {step.products:.3e}, of which the monitor "
            f"{watched.products:.3e}: {100 * watched.products / step.products:.5f} %; "
            f"numbers written {step.written:.3e} and {watched.written:.3e}: "
            f"{100 * watched.written / step.written:.3f} %"
        )


if __name__ == "__main__":
    main()
