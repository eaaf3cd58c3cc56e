"""LoRA adapters placed relative to the layers that are read."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emoreg.losses.presets import LOSS_READERS
from emoreg.residual.layers import LINEAR_NAMES, WRITER_NAMES, LayerPlan, d_model
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors

if TYPE_CHECKING:
    from peft import LoraConfig

_log = logging.getLogger(__name__)

# All but the linear layers of the decoder's blocks: those of what sees or hears bear
# the same names, but never lie in a decoder's parts alone.
_ELSEWHERE = (
    r"(?!(\w+\.|"
    r"((model|decoder|transformer|gpt_neox|language_model|text_model)\.)*)"
    r"(layers|h)\.\d+\.).*"
)


def lora_config(
    vectors: EmotionVectors, *, r: int = 8, alpha: int = 16, dropout: float = 0.0
) -> "LoraConfig":
    """Return a LoRA on all linear layers from 0.27 of depth to the last loss layer.

    Only blocks at or below a layer can change its reading; blocks above the last loss
    layer, the audit's, keep their weights, so that the audit reads them unchanged.
    Of a model that also sees or hears, only the blocks that read text are trained.

    Args:
        vectors: The model's emotion vectors; their provenance says how deep it is.
        r: Rank; more can learn more and forget more.
        alpha: The update is scaled by `alpha / r`.
        dropout: Dropout on the adapter's input.

    Raises:
        ValueError: If the vectors don't say how many layers their model has.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(LINEAR_NAMES),
        exclude_modules=_ELSEWHERE,
        layers_to_transform=_trained_layers(vectors),
        task_type="CAUSAL_LM",
    )


def with_new_lora(model: nn.Module, vectors: EmotionVectors, *, seed: int) -> nn.Module:
    """Return `model` with an untrained LoRA of `lora_config`, in eval mode.

    Args:
        model: The model, without an adapter.
        vectors: Its emotion vectors.
        seed: Of the adapter's start; the caller's random numbers stay as they are.
    """
    from peft import get_peft_model

    base: Any = model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuned: Any = get_peft_model(base, lora_config(vectors))
    return tuned.eval()


def _trained_layers(vectors: EmotionVectors) -> list[int]:
    """Return the blocks from 0.27 of depth to the last loss layer."""
    depth = vectors.provenance.get("num_layers")
    if depth is None:
        raise ValueError(
            "`vectors` must know their model's depth (provenance['num_layers']); these "
            "do not. Make them with `emoreg extract`, or write a peft.LoraConfig with "
            "`layers_to_transform` at or below the last loss layer"
        )
    return list(range(round(0.27 * depth), LayerPlan.for_depth(depth).loss[-1] + 1))


class FixedLinear(nn.Linear):
    """A linear layer whose weight is a buffer, which nothing trains.

    A frozen parameter would not stay so: when peft switches an adapter on again, as
    after each pass of a reference in TRL, it frees all its parameters.
    """

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        """Hold a weight as it is."""
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        del self.weight
        self.register_buffer("weight", weight)

    def forward(self, input: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """Return `W x` in the precision of `x`."""
        # A copy: DDP writes buffers anew before each pass, under a graph still to come.
        return nn.functional.linear(input, self.weight.to(input.dtype, copy=True))


def subspace_lora(
    model: nn.Module,
    vectors: EmotionVectors,
    *,
    r: int = 16,
    roles: Roles | None = None,
) -> nn.Module:
    """Return `model` with a LoRA that writes only inside the loss's directions.

    `W x + Q A x`: in the blocks of `lora_config`, on the layers that write into the
    residual stream alone. `Q` (`d_model r`) is an orthonormal basis of the first `r`
    principal axes of the directions a loss acts on, over its emotions, readers and
    layers; it is no parameter, so that nothing trains it. `A` starts at zero and is
    trained. What a block itself adds can change nowhere else; what later blocks make of
    it can.

    It is a plain LoRA: pass the returned model to the trainer, without `peft_config`;
    saving, merging and `PeftModel.from_pretrained` are peft's own. Loaded anew it is a
    LoRA like any other, of which `Q` would be trained as well: for more training, merge
    it and make another one.

    Args:
        model: The model before training, without an adapter.
        vectors: Its emotion vectors.
        r: Dimensions it may write in; at most the rank of the directions is used.
        roles: Which emotions a loss acts on; the packaged roles when None.

    Raises:
        ValueError: If the vectors are another model's, have none of the loss's
            emotions, or the model none of the layers to train.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    layers = _trained_layers(vectors)
    roles = Corpus.packaged().roles() if roles is None else roles
    basis = _loss_axes(vectors, r, roles)
    if basis.shape[0] != d_model(model):
        raise ValueError(
            "`vectors` must be those of `model`: they have width "
            f"{basis.shape[0]}, the model {d_model(model)}. Extract them from it"
        )
    config = LoraConfig(
        r=basis.shape[1],
        lora_alpha=basis.shape[1],
        target_modules=list(WRITER_NAMES),
        exclude_modules=_ELSEWHERE,
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    base: Any = model
    tuned: Any = get_peft_model(base, config)
    for layer in tuned.modules():
        if isinstance(layer, LoraLayer):
            a: Any = layer.lora_A["default"]
            nn.init.zeros_(a.weight)
            layer.lora_B["default"] = FixedLinear(basis.to(a.weight, copy=True))
    return tuned


def _loss_axes(
    vectors: EmotionVectors, r: int, roles: Roles
) -> Float[Tensor, "d_model axis"]:
    """Return the first principal axes of what a loss acts on, as columns."""
    known = [e for e in (*roles.lower, *roles.raise_) if e in vectors.emotions]
    readers = [reader for reader in LOSS_READERS if reader in vectors.readers]
    if not known or not readers:
        raise ValueError(
            "`vectors` must have loss emotions "
            f"({', '.join((*roles.lower, *roles.raise_))}) and one of the readers "
            f"{', '.join(LOSS_READERS)}; found {len(known)} of the former and "
            f"{len(readers)} of the latter. Extract them with `emoreg extract`"
        )
    plan = LayerPlan.for_depth(int(vectors.provenance.get("num_layers", 0)))
    columns = list(vectors.emotion_indices(known))
    rows = [
        vectors.unit_directions(layer=layer, reader=reader)[columns]
        for layer in plan.loss
        if layer in vectors.layers
        for reader in readers
    ]
    _, sizes, axes = torch.linalg.svd(torch.cat(rows).double(), full_matrices=False)
    rank = int((sizes > 1e-6 * sizes[0]).sum())
    return axes[: min(r, rank)].T.float()


def with_adapter(
    model: nn.Module, folder: str | Path, *, name: str = "default"
) -> nn.Module:
    """Return `model` with the peft adapter in `folder`, in eval mode.

    One that changes nothing, as before its first step, is warned of: what is measured
    with it is the model without. `name` is what peft calls it.

    Raises:
        ValueError: If there is no adapter in it, or one of another model: peft would
            load what fits, and leave the rest as it was made. The model is then as it
            was.
    """
    return _with_adapters(model, {folder: name}).eval()


def _with_adapters(model: nn.Module, names: Mapping[Any, str]) -> Any:
    """Return `model` with the adapters of these folders, named so; all or none."""
    from peft import PeftModel

    for folder in names:
        _check_folder(folder)
    tuned: Any = None
    try:
        for folder, name in names.items():
            if tuned is None:
                base: Any = model
                tuned = PeftModel.from_pretrained(base, folder, adapter_name=name)
            else:
                tuned.load_adapter(str(folder), adapter_name=name)
            _check_loaded(tuned, folder, name)
    except Exception:
        if tuned is not None:
            tuned.unload()  # peft put its layers into the caller's model
        raise
    return tuned


def _check_folder(folder: str | Path) -> None:
    if not Path(folder, "adapter_config.json").is_file():
        raise ValueError(
            f"`adapter` must be a folder with an adapter_config.json; {str(folder)!r} "
            "has none. Pass the output folder of a training run with peft"
        )


def _check_loaded(tuned: Any, folder: str | Path, name: str) -> None:
    """Refuse an adapter that peft loaded in part; warn of one that changes nothing."""
    from peft import get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    written = load_peft_weights(str(folder), device="cpu")
    held = get_peft_model_state_dict(
        tuned, adapter_name=name, save_embedding_layers=False
    )
    _check_whole(folder, set(written), set(held))
    if not _changes_something(written):
        _log.warning(
            "the adapter in %s changes nothing (its weights multiply to zero): the "
            "figures will be those of the model without it. Was it trained?",
            folder,
        )


def _check_whole(folder: str | Path, written: set[str], held: set[str]) -> None:
    """Refuse an adapter of which a part found no place in the model, or is missing."""
    missing = sorted(held - written)
    extra = sorted(name for name in written - held if "lora_" in name)
    if missing or extra:
        raise ValueError(
            "the adapter must be one that was trained on this model; of the weights in "
            f"{str(folder)!r} {len(extra)} have no place in it ({extra[:1]}), and "
            f"{len(missing)} that it needs are not there ({missing[:1]}). Pass the "
            "model that the adapter was trained on"
        )


def _changes_something(weights: Mapping[str, Tensor]) -> bool:
    """Tell whether any pair of LoRA's factors is not zero; True for other adapters."""
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in weights]
    pairs = [(a, b) for a, b in pairs if a != b and b in weights]
    both = (bool(weights[a].any() and weights[b].any()) for a, b in pairs)
    return not pairs or any(both)


def weighted_adapters(
    model: nn.Module, parts: Mapping[str, float] | Mapping[Path, float]
) -> nn.Module:
    """Return `model` with one adapter that is a weighted sum of saved ones.

    `dW = sum_i w_i dW_i`, exactly: peft puts the factors side by side, so that ranks
    add up. A negative weight takes a trained change back, one below 1 weakens it (task
    arithmetic, https://arxiv.org/abs/2212.04089). What comes of it is one LoRA, saved
    and loaded with plain peft; readings have to be measured anew.

    Args:
        model: The model that all of them were trained on, without an adapter.
        parts: Weight by adapter's folder.

    Raises:
        ValueError: If there is none, a weight is not finite, or an adapter is missing
            or of another model. The model is then as it was.
    """
    if not parts or not all(math.isfinite(weight) for weight in parts.values()):
        raise ValueError(
            "`parts` must name at least one adapter's folder with a finite weight, "
            f"found {dict(parts)}. Give each a number"
        )
    names = {folder: f"part-{place}" for place, folder in enumerate(parts)}
    tuned = _with_adapters(model, names)
    tuned.add_weighted_adapter(
        list(names.values()),
        [float(weight) for weight in parts.values()],
        "default",  # peft saves one of this name in the folder itself
        combination_type="cat",
    )
    tuned.set_adapter("default")
    for name in names.values():
        tuned.delete_adapter(name)
    return tuned.eval()
