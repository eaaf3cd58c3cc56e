"""What must hold before and during training, or the terms would lie."""

import logging
from collections.abc import Container, Sequence
from typing import Any

import torch

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.presets import Terms
from emoreg.losses.preventative import PreventativeSteering
from emoreg.losses.push import Push
from emoreg.losses.steered import SteeredRobustness
from emoreg.losses.term import (
    AbstractDecisionTerm,
    AbstractProbe,
    AbstractTerm,
    refuse_audit_items,
    refuse_mixed_placebo,
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
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors

logger = logging.getLogger(__name__)


def check_needs(
    model: torch.nn.Module,
    *,
    vectors: EmotionVectors | None,
    terms: Terms | Sequence[AbstractTerm],
    reference: Reference | None,
) -> None:
    """Refuse a combination in which a term or the monitor would silently do nothing.

    Args:
        model: What is trained.
        vectors: The monitor's, if there is one.
        terms: Those of a preset keep to its roles, others to the packaged ones.
        reference: Whose units and passages are used.

    Raises:
        ValueError: If vectors or terms are another model's, a term acts on what the
            audit judges by, or something is missing.
    """
    roles = terms.roles if isinstance(terms, Terms) else Corpus.packaged().roles()
    terms = tuple(terms)
    width, depth = d_model(model), num_layers(model)
    if vectors is not None:
        vectors.check_model(d_model=width, num_layers=depth)
        if reference is None:
            raise ValueError(
                "`reference` must be given with a monitor, whose units it holds; got "
                "None. Pass what `emoreg.calibrate` returned"
            )
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
    speaking = [t for t in terms if isinstance(t, ReferenceKL | SteeredRobustness)]
    needing = [term.name for term in speaking if term.weight]
    if head is None and needing:
        raise ValueError(
            f"{needing[0]} needs a language-model head, whose predictions it holds; "
            f"{type(unwrapped(model)).__name__} has none. Use weight 0"
        )
    _warn_of_late_blocks(model, terms)


def check_held(terms: Sequence[AbstractTerm], held: Container[int]) -> None:
    """Refuse terms that begin to act on the way, for which nothing was read before.

    Args:
        terms: Those that need something of the reference.
        held: The `id` of those for which it was read.

    Raises:
        ValueError: If one of the others has a weight.
    """
    for term in terms:
        if term.weight and id(term) not in held:
            raise ValueError(
                f"{term.name} must have a weight above 0 when it is attached, since "
                "the reference is read then, for the terms that act; it had 0 and has "
                f"{term.weight:g} now. Attach it with a weight, and set that to 0 for "
                "as long as the term is to wait"
            )


def _warn_of_late_blocks(model: torch.nn.Module, terms: Sequence[AbstractTerm]) -> None:
    """Say where an adapter reaches past all that terms read.

    There the terms see nothing, and the audit's layers are no longer those of the
    model that was: a reading can come back behind what is held. Training all weights
    does so too, but leaves no choice; an adapter's place is one.
    """
    read = [t.probe.layers for t in terms if isinstance(t, AbstractDecisionTerm)]
    if not read or not hasattr(model, "peft_config"):
        return
    last = max(layer for layers in read for layer in layers)
    late = [
        number
        for number, block in enumerate(decoder_layers(model))
        if number > last and any(p.requires_grad for p in block.parameters())
    ]
    if late:
        logger.warning(
            "The adapter trains blocks %d to %d, above the last layer that a term "
            "reads, %d: what is held below can come back there, unseen, and the "
            "audit's layers are changed directly. `emoreg.lora_config(vectors)` ends "
            "at that layer",
            *(late[0], late[-1], last),
        )


def check_trainer(
    trainer: Any, *, terms: Sequence[AbstractTerm], outcome: object | None
) -> None:
    """Refuse a trainer whose batches could not carry what the terms need.

    Raises:
        ValueError: If outcomes are not named, or would not reach the loss; if the
            model would be pushed, and what it is compared with not.
    """
    decision = [term.name for term in terms if isinstance(term, AbstractDecisionTerm)]
    if decision and outcome is None:
        raise ValueError(
            "`outcome` must name the dataset column with failures, since "
            f"{', '.join(decision)} acts on failing turns; got None. Pass "
            "outcome='failed', or `emoreg.Feedback()` to have feedback read"
        )
    if pushing := [term for term in terms if isinstance(term, PreventativeSteering)]:
        _check_compares_nothing(trainer, pushing[0])
    args = trainer.args
    packs = getattr(args, "packing", False)
    if packs and getattr(args, "packing_strategy", "bfd") == "wrapped":
        raise ValueError(
            "packed rows must hold whole documents, or turns are cut apart and see one "
            "another; `packing_strategy='wrapped'` cuts anywhere. Use 'bfd'"
        )
    if packs and isinstance(outcome, str):
        raise ValueError(
            f"the trainer must not pack its data: packing drops the outcome column "
            f"{outcome!r}. Have outcomes read from the text, with "
            "`outcome=emoreg.Feedback()`, or use `packing=False`"
        )


def _check_compares_nothing(trainer: Any, term: PreventativeSteering) -> None:
    """Refuse trainers in which a pushed model would be held against one that is not."""
    against = ""
    if getattr(trainer, "reward_funcs", None) is not None:
        against = "the model that answered the prompts"
    elif hasattr(trainer, "ref_model"):
        against = "a reference model"
    if against and term.weight:
        raise ValueError(
            f"{term.name} pushes the model while its own loss is taken; a "
            f"{type(trainer).__name__} compares it with {against}, which is not "
            "pushed. Train with SFT, or leave the term out"
        )


def check_launch(trainer: Any, *, probed: bool) -> None:
    """Refuse a way of sharding under which the model could not be read.

    Args:
        trainer: A trainer that has not trained.
        probed: Whether a probe set is to be read while it trains.

    Raises:
        ValueError: Where sequences are split over processes, or one process has
            several GPUs; under FSDP of version 1, where only the first process has
            loaded the weights, or where DeepSpeed has sharded them for training
            already; a probe set where weights will be sharded.
    """
    _refuse_split_sequences(trainer.accelerator)
    if trainer.args.n_gpu > 1:  # in `DataParallel`, whose copies share their hooks
        raise ValueError(
            "each GPU must have a process of its own, or the readings of several would "
            f"be taken for one another; this process has {trainer.args.n_gpu}. Start "
            "it with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them"
        )
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    sharded = trainer.is_fsdp_enabled or getattr(plugin, "zero_stage", 0) == 3
    if probed and sharded:
        raise ValueError(
            "a probe set is read with whole weights, which ZeRO-3 and FSDP spread over "
            "processes; leave `probe_set` out, or use ZeRO-2 or data parallel"
        )
    if trainer.is_deepspeed_enabled and trainer.deepspeed is not None:
        raise ValueError(
            "emoreg must be attached before the first `trainer.train()` under "
            "DeepSpeed, since the reference is read with whole weights; here they are "
            "sharded. Build a new trainer and attach before it trains"
        )
    if not trainer.is_fsdp_enabled:
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP must be of version 2, got {plugin.fsdp_version}, which flattens "
            "weights into one and hides which of them are trained. Set fsdp_version: "
            "2, as recipes/accelerate/fsdp2.yaml does"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "every process must load the weights, since each reads the reference with "
            "them; with `fsdp_cpu_ram_efficient_loading` only the first does. Set it "
            "to false"
        )


def _refuse_split_sequences(accelerator: Any) -> None:
    config = getattr(accelerator, "parallelism_config", None)
    for kind, name in (("cp", "context"), ("sp", "sequence")):
        if getattr(config, f"{kind}_enabled", False):
            raise ValueError(
                "each process must see whole sequences, since decision tokens and "
                f"feedback are looked up in them; {name} parallelism gives it a part "
                f"({kind}_size={getattr(config, f'{kind}_size')}). Set that to 1, or "
                "train without emoreg and compare with `emoreg measure`"
            )


def check_loop(
    accelerator: Any, terms: Sequence[AbstractTerm] = (), scaler: Any = None
) -> None:
    """Refuse a loop whose terms or anchors would not do what they say.

    Raises:
        ValueError: Under DeepSpeed, whose `backward` makes the step too; where
            sequences are split over processes; over processes without an accelerator,
            and with a scaler beside one; where a term would have to know which forward
            pass is the task's.
    """
    if accelerator is not None and scaler is not None:
        raise ValueError(
            "`scaler` must be left out with an accelerator, which scales the loss by "
            "itself; got both. Set the accelerator's `mixed_precision` instead"
        )
    if accelerator is None and _many_processes():
        raise ValueError(
            "`accelerator` must be given where several processes train, since readings "
            "and terms are means over all of them; got None. Pass "
            "`accelerate.Accelerator()`, and call its `backward`"
        )
    if any(isinstance(t, PreventativeSteering) and t.weight for t in terms):
        raise ValueError(
            "preventative acts in the task's forward pass alone, and in a loop of your "
            "own only you know which that is. Call it inside "
            "`emoreg.residual.steer.steered(model, ...)`, or use a trainer with "
            "`emoreg.attach`"
        )
    _refuse_split_sequences(accelerator)
    kind = str(getattr(accelerator, "distributed_type", "")).rsplit(".", 1)[-1]
    if kind == "DEEPSPEED":
        raise ValueError(
            "a loop of your own must not run under DeepSpeed, where each `backward` "
            "may step the optimizer, so anchors would step it a second time. Use a "
            "trainer with `emoreg.attach`, or data parallel"
        )


def _many_processes() -> bool:
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return started and distributed.get_world_size() > 1


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
            "another object, does that: attach first, compile later. So does reentrant "
            "gradient checkpointing before transformers 5.23: set "
            "gradient_checkpointing_kwargs={'use_reentrant': False}"
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


def _acting(
    terms: Sequence[AbstractTerm],
) -> list[tuple[AbstractTerm, AbstractProbe | Push]]:
    """Return the terms that act on directions, and which."""
    found: list[tuple[AbstractTerm, AbstractProbe | Push]] = []
    for term in terms:
        if isinstance(term, AbstractDecisionTerm | MeaningAnchor):
            found.append((term, term.probe))
        elif isinstance(term, SteeredRobustness | PreventativeSteering):
            found.append((term, term.push))
    return found


def _check_probes(terms: Sequence[AbstractTerm], width: int, depth: int) -> None:
    for term, probe in _acting(terms):
        if probe.directions.shape[-1] != width or max(probe.layers) >= depth:
            raise ValueError(
                f"the terms must read this model: {term.name} has width "
                f"{probe.directions.shape[-1]} and layers {probe.layers}, the model "
                f"has width {width} and {depth} layers. Extract vectors for it"
            )


def _refuse_audit(terms: Sequence[AbstractTerm], roles: Roles, plan: LayerPlan) -> None:
    acting = [probe for _, probe in _acting(terms)]
    refuse_mixed_placebo([probe.reader for probe in acting])
    for probe in acting:
        refuse_audit_items(
            roles,
            emotions=probe.emotions,
            layers=probe.layers,
            audit_layers=plan.audit,
            reader=probe.reader,
        )
