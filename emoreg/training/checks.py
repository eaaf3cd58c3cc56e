"""What must hold before and during training, or the terms would lie."""

from collections.abc import Sequence
from typing import Any

import torch

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.term import (
    AbstractDecisionTerm,
    AbstractTerm,
    refuse_audit_items,
)
from emoreg.residual.capture import Captured
from emoreg.residual.layers import (
    LayerPlan,
    d_model,
    decoder_layers,
    num_layers,
    unwrapped,
)
from emoreg.training.reference import Reference
from emoreg.vectors.corpus import Roles
from emoreg.vectors.emotion_vectors import EmotionVectors


def check_needs(
    model: torch.nn.Module,
    *,
    vectors: EmotionVectors | None,
    terms: Sequence[AbstractTerm],
    reference: Reference | None,
    roles: Roles,
) -> None:
    """Refuse a combination in which a term or the monitor would silently do nothing.

    Raises:
        ValueError: If vectors or terms are another model's, a term acts on what the
            audit judges by, or something is missing.
    """
    width, depth = d_model(model), num_layers(model)
    if vectors is not None:
        vectors.check_model(d_model=width, num_layers=depth)
    plan = LayerPlan.for_depth(depth) if reference is None else reference.plan
    _check_probes(terms, width, depth)
    _refuse_audit(terms, roles, plan)
    held = [t.name for t in terms if isinstance(t, MeaningAnchor | ReferenceKL)]
    if held and reference is None:
        raise ValueError(
            f"`reference` must be given for {held[0]}, whose passages it holds. Pass "
            "what `emoreg.calibrate` returned"
        )
    head = getattr(unwrapped(model), "get_output_embeddings", lambda: None)()
    if head is None and any(isinstance(t, ReferenceKL) and t.weight for t in terms):
        raise ValueError(
            "kl needs a language-model head, whose predictions it holds; "
            f"{type(unwrapped(model)).__name__} has none. Use weight 0"
        )


def check_trainer(
    trainer: Any, *, terms: Sequence[AbstractTerm], outcome: str | None
) -> None:
    """Refuse a trainer whose batches could not carry what the terms need.

    Raises:
        ValueError: If outcomes are not named, or would not reach the loss.
    """
    decision = [term.name for term in terms if isinstance(term, AbstractDecisionTerm)]
    if decision and outcome is None:
        raise ValueError(
            "`outcome` must name the dataset column with failures, since "
            f"{', '.join(decision)} acts on failing turns; got None. Pass "
            "outcome='failed'"
        )
    if getattr(trainer.args, "packing", False):
        raise ValueError(
            "the trainer must not pack its data: packing drops the outcome column "
            "and decision tokens can't be matched to outcomes. Use packing=False"
        )


def check_fired(
    captured: Captured, layers: Sequence[int], tokens: tuple[int, ...]
) -> None:
    """Refuse a forward pass that the hooks did not see, or saw with other tokens.

    Raises:
        RuntimeError: If a hook did not fire, or the stream is longer than the batch.
    """
    silent = [layer for layer in layers if layer not in captured]
    if silent:
        raise RuntimeError(
            f"the hooks of layers {silent} must fire in the trainer's forward pass "
            "and did not. A model compiled before `attach`, or called through "
            "another object, does that: attach first, compile later"
        )
    shape = tuple(captured[layers[0]].shape[:2])
    if shape != tokens:
        raise RuntimeError(
            f"the model must read as many tokens as the batch holds, {tokens}; its "
            f"blocks saw {shape}. Prompt tuning adds tokens of its own and can't be "
            "read: use LoRA"
        )


def check_gradient(
    captured: Captured, layers: Sequence[int], model: torch.nn.Module
) -> None:
    """Refuse layers whose readings nothing trained can change.

    Raises:
        RuntimeError: If a term on one of `layers` would have no effect.
    """
    flat = [
        layer
        for layer in layers
        # Gradient checkpointing makes activations carry gradient by itself.
        if not captured[layer].requires_grad or not trains_below(model, layer)
    ]
    if flat:
        raise RuntimeError(
            f"the activations of layers {flat} must carry gradient and do not, so "
            "the terms would do nothing. Train parameters at or below these "
            "layers (emoreg.lora_config places an adapter there)"
        )


def trains_below(model: torch.nn.Module, layer: int) -> bool:
    """Return whether anything trained can change the output of block `layer`."""
    above: list[torch.nn.Module] = list(decoder_layers(model)[layer + 1 :])
    inner: Any = unwrapped(model)
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        above.append(head)
    late = {id(p) for module in above for p in module.parameters()}
    return any(p.requires_grad and id(p) not in late for p in model.parameters())


def _check_probes(terms: Sequence[AbstractTerm], width: int, depth: int) -> None:
    for term in terms:
        if not isinstance(term, AbstractDecisionTerm | MeaningAnchor):
            continue
        probe = term.probe
        if probe.directions.shape[-1] != width or max(probe.layers) >= depth:
            raise ValueError(
                f"the terms must read this model: {term.name} has width "
                f"{probe.directions.shape[-1]} and layers {probe.layers}, the model "
                f"has width {width} and {depth} layers. Extract vectors for it"
            )


def _refuse_audit(terms: Sequence[AbstractTerm], roles: Roles, plan: LayerPlan) -> None:
    for term in terms:
        if isinstance(term, AbstractDecisionTerm | MeaningAnchor):
            refuse_audit_items(
                roles,
                emotions=term.probe.emotions,
                layers=term.probe.layers,
                audit_layers=plan.audit,
                reader=term.probe.reader,
            )
