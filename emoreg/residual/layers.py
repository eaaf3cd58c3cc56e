"""Where the decoder blocks are: the only file that knows model architectures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn as nn

# Attribute paths from a backbone (or a whole model) to its list of decoder blocks.
# Llama, Qwen2/3, Gemma, Mistral and Phi keep it in `layers`; GPT-2 in `h`; GPT-NeoX
# in `layers` of `gpt_neox`. Vision-language wrappers nest a text decoder.
_BLOCK_LISTS = (
    "layers",
    "h",
    "model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
    "language_model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
)
# What the norm before the head is called, where the blocks are: Llama, Qwen, Gemma and
# Mistral; GPT-2; GPT-NeoX; Phi.
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
LINEAR_NAMES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("qkv_proj", "gate_up_proj"),  # Phi-3
    *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),  # GPT-NeoX
    *("c_attn", "c_proj", "c_fc"),  # GPT-2
    *("fc1", "fc2"),  # Phi
)
"""What the linear layers inside a decoder block are called."""
WRITER_NAMES = ("o_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj", "fc2")
"""Those of them whose output is added to the residual stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPlan:
    """Which layers a loss may use, which only the audit reads, which are logged.

    Layer `i` is the output of decoder block `i`. `near` are the layers that lie
    between loss layers: read, reported as near, never trained on.
    """

    loss: tuple[int, ...]
    audit: tuple[int, ...]
    near: tuple[int, ...]
    monitor: tuple[int, ...]

    @classmethod
    def for_depth(cls, num_layers: int) -> "LayerPlan":
        """Return the default plan for a model of `num_layers` decoder blocks.

        Loss layers lie at 0.47, 0.53, 0.60 and 0.67 of depth, audit layers at 0.70,
        0.80 and 0.90, and one more is monitored at 0.30. In a shallow model, where
        two of these fall on one block, the audit layer keeps it: a layer that was
        trained on cannot judge the training.

        Raises:
            ValueError: If the model has fewer than 4 blocks, too few to hold out any.
        """
        if num_layers < 4:
            raise ValueError(
                "`num_layers` must be at least 4 to hold out audit layers, got "
                f"{num_layers}; pass an explicit LayerPlan"
            )

        def at(fraction: float) -> int:
            return min(round(fraction * num_layers), num_layers - 1)

        audit = {at(0.70), at(0.80), at(0.90)}
        loss = {at(0.47), at(0.53), at(0.60), at(0.67)} - audit
        if not loss:
            loss = {min(audit) - 1}
        near = set(range(min(loss), max(loss))) - loss - audit
        monitor = loss | audit | near | {at(0.30)}
        return cls(
            loss=tuple(sorted(loss)),
            audit=tuple(sorted(audit)),
            near=tuple(sorted(near)),
            monitor=tuple(sorted(monitor)),
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the transformers model inside DDP, compile and peft wrappers."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod  # torch.compile
        elif type(inner).__name__ in ("DistributedDataParallel", "DeepSpeedEngine"):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return inner


def model_name(model: nn.Module) -> str:
    """Return the name or folder that the model was loaded from, or an empty text."""
    config: Any = getattr(unwrapped(model), "config", None)
    return str(getattr(config, "_name_or_path", "") or "")


def max_positions(model: nn.Module) -> int | None:
    """Return how many tokens the model reads at most; None where it doesn't say."""
    inner: Any = unwrapped(model)
    return getattr(inner.config.get_text_config(), "max_position_embeddings", None)


def _resolve(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks of `model`, whatever it is wrapped in.

    Raises:
        ValueError: If no list of decoder blocks is found.
    """
    base = unwrapped(model)
    for path in _BLOCK_LISTS:
        found = _resolve(base, path)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    inside = getattr(backbone(base), "layers", None)
    if isinstance(inside, nn.ModuleList) and len(inside):
        return inside
    paths = ", ".join(f"`{path}`" for path in _BLOCK_LISTS)
    raise ValueError(
        "the model must hold its decoder blocks in a ModuleList at one of "
        f"{paths}; found none in {type(base).__name__}. Pass the part of the model "
        "that holds them (for instance its text decoder) as `model`"
    )


def final_norm(model: nn.Module) -> nn.Module | None:
    """Return the norm between the last block and the head; None if none is found."""
    norms = (getattr(backbone(model), name, None) for name in _FINAL_NORMS)
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


def backbone(model: nn.Module) -> nn.Module:
    """Return the decoder without its language-model head."""
    base = unwrapped(model)
    get_decoder = getattr(base, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if isinstance(decoder, nn.Module) and decoder is not base:
        return decoder
    return getattr(base, getattr(base, "base_model_prefix", "") or "_none", base)


def num_layers(model: nn.Module) -> int:
    """Return how many decoder blocks the model has."""
    return len(decoder_layers(model))


def d_model(model: nn.Module) -> int:
    """Return the width of the residual stream."""
    config: Any = unwrapped(model).config
    return int(config.get_text_config().hidden_size)


def checked_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return `layers` as sorted, distinct, non-negative block indices.

    Raises:
        ValueError: If a layer lies outside the model.
    """
    resolved = set()
    for layer in layers:
        if not -depth <= layer < depth:
            raise ValueError(
                f"`layers` must lie in [0, {depth}) for this model, got {layer}. "
                "Layer i is the output of decoder block i; use -1 for the last"
            )
        resolved.add(layer % depth)
    if not resolved:
        raise ValueError("`layers` must name at least one decoder block, got none")
    return tuple(sorted(resolved))
