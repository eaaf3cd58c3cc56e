"""LoRA adapters placed relative to the layers that are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from emoreg.residual.layers import LINEAR_NAMES, LayerPlan
from emoreg.vectors.emotion_vectors import EmotionVectors

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(
    vectors: EmotionVectors, *, r: int = 8, alpha: int = 16, dropout: float = 0.0
) -> "LoraConfig":
    """Return a LoRA on all linear layers from 0.27 of depth to the last loss layer.

    Only blocks at or below a layer can change its reading; blocks above the last loss
    layer, the audit's, keep their weights, so that the audit reads them unchanged.

    Args:
        vectors: The model's emotion vectors; their provenance says how deep it is.
        r: Rank; more can learn more and forget more.
        alpha: The update is scaled by `alpha / r`.
        dropout: Dropout on the adapter's input.

    Raises:
        ValueError: If the vectors don't say how many layers their model has.
    """
    from peft import LoraConfig

    depth = vectors.provenance.get("num_layers")
    if depth is None:
        raise ValueError(
            "`vectors` must know their model's depth (provenance['num_layers']); these "
            "do not. Make them with `emoreg extract`, or write a peft.LoraConfig with "
            "`layers_to_transform` at or below the last loss layer"
        )
    plan = LayerPlan.for_depth(depth)
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(LINEAR_NAMES),
        layers_to_transform=list(range(round(0.27 * depth), plan.loss[-1] + 1)),
        task_type="CAUSAL_LM",
    )


def with_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Return `model` with the peft adapter in `folder`, in eval mode.

    Raises:
        ValueError: If there is no adapter in it.
    """
    from peft import PeftModel

    if not Path(folder, "adapter_config.json").is_file():
        raise ValueError(
            f"`adapter` must be a folder with an adapter_config.json; {str(folder)!r} "
            "has none. Pass the output folder of a training run with peft"
        )
    base: Any = model
    tuned: Any = PeftModel.from_pretrained(base, folder)
    return tuned.eval()
