"""What happens around a trainer's loss: capture, read, add the terms, log."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.term import (
    AbstractDecisionTerm,
    AbstractTerm,
    DecisionReadings,
    Probe,
)
from emoreg.residual.capture import Captured, capture
from emoreg.residual.layers import (
    d_model,
    decoder_layers,
    num_layers,
    unwrapped,
)
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.auxiliary import (
    Anchor,
    NeutralAnchor,
    StoryAnchor,
    due,
    run_auxiliary,
)
from emoreg.training.columns import (
    REFERENCE,
    Extras,
    OutcomeCollator,
    check_dataset,
    take_extras,
)
from emoreg.training.monitor import Monitor
from emoreg.training.reference import Reference
from emoreg.training.rows import cached_rows

logger = logging.getLogger(__name__)


@final
class Seam:
    """Everything that emoreg does to one trainer.

    The mixin calls `task_loss` around the trainer's own `compute_loss`,
    `after_backward` after its backward pass and `metrics` in its `log`.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        monitor: Monitor | None,
        terms: Sequence[AbstractTerm],
        outcome: str | None,
        reference: Reference | None,
        quiet: bool = False,
    ) -> None:
        """Check what must hold, cache the reference's readings, wrap the collator."""
        self.trainer, self.monitor, self.terms = trainer, monitor, tuple(terms)
        self._names = _distinct_names(self.terms)
        self._held: dict[int, slice] = {}
        self._checked_gradient = False
        self.markers = TurnMarkers.of(trainer.processing_class)
        self.decision_terms = [
            t for t in self.terms if isinstance(t, AbstractDecisionTerm)
        ]
        self._values: dict[str, list[Tensor]] = {}
        if monitor is not None and reference is not None:
            monitor.prepare(reference)
        self._check_needs(outcome, reference)
        self.anchors = self._make_anchors(reference, quiet)
        self.layers = self._layers()
        if outcome is not None:
            self._carry(outcome, quiet)

    def task_loss(
        self,
        compute: Callable[..., Any],
        model: torch.nn.Module,
        inputs: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        """Return what `compute` returns, with the terms added while training."""
        extras = take_extras(inputs)
        if not self.layers:
            return compute(model, inputs, **kwargs)
        input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        inner = self.trainer.accelerator.unwrap_model(model)
        with capture(inner, self.layers, gradient=model.training) as captured:
            result = compute(model, inputs, **kwargs)
            self._check_fired(captured, input_ids, training=model.training)
            streams = {layer: captured[layer] for layer in self.layers}
        positions, failure = self._segments(input_ids, extras)
        if self.monitor is not None and self.monitor.layers:
            spoken = self.markers.assistant_tokens(input_ids)
            mode = "train" if model.training else "eval"
            if mask is not None and mask.shape == spoken.shape:
                spoken &= mask.bool()  # padding after a turn that was cut
            self.monitor.update(streams, positions, failure, spoken, mode=mode)
        if not (model.training and self.decision_terms):
            return result
        added = self._decision_loss(streams, positions, failure, extras)
        added = added * self._scale(kwargs.get("num_items_in_batch"))
        if isinstance(result, tuple):
            return (result[0] + added, *result[1:])
        return result + added

    def after_backward(self, model: torch.nn.Module) -> None:
        """Run the auxiliary batches that are due, once per optimizer step."""
        accelerator = self.trainer.accelerator
        if not accelerator.sync_gradients:
            return
        step = self.trainer.state.global_step
        for anchor in due(self.anchors, step):
            value = run_auxiliary(
                anchor,
                model,
                step=step,
                process=accelerator.process_index,
                device=accelerator.device,
                backward=accelerator.backward,
            )
            self._keep(anchor.term, value)

    def metrics(self, mode: str) -> dict[str, float]:
        """Return the readings and terms since the last call; every process calls it."""
        result: dict[str, float] = {}
        if self.monitor is not None:
            result = self.monitor.metrics(self._reduce, mode=mode)
        for term in self.terms if mode == "train" else ():
            name = self._names[id(term)]
            values = self._values.pop(name, [])
            if values:
                mean = self._reduce(torch.stack(values).mean())
                count = self.trainer.accelerator.num_processes
                result[f"emotion_loss/{name}"] = float(mean) / count
        return result

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the terms' state, for a checkpoint."""
        return {self._names[id(term)]: term.state_dict() for term in self.terms}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take back what `state_dict` gave."""
        for term in self.terms:
            name = self._names[id(term)]
            if name in state:
                term.load_state_dict(state[name])
            else:
                logger.warning(
                    "The checkpoint has no state of %r; it starts anew", name
                )

    def _check_needs(self, outcome: str | None, reference: Reference | None) -> None:
        trainer, probes = self.trainer, self._probes()
        width, depth = d_model(trainer.model), num_layers(trainer.model)
        if self.monitor is not None:
            self.monitor.vectors.check_model(d_model=width, num_layers=depth)
        for probe in probes:
            if probe.directions.shape[-1] != width or max(probe.layers) >= depth:
                raise ValueError(
                    "the terms must read this model: they have width "
                    f"{probe.directions.shape[-1]} and layers {probe.layers}, it has "
                    f"width {width} and {depth} layers. Extract vectors for it"
                )
        if self.decision_terms and outcome is None:
            names = ", ".join(term.name for term in self.decision_terms)
            raise ValueError(
                f"`outcome` must name the dataset column with failures, since {names} "
                "acts on failing turns; got None. Pass outcome='failed'"
            )
        needs = [t for t in self.terms if isinstance(t, MeaningAnchor | ReferenceKL)]
        if needs and reference is None:
            raise ValueError(
                f"`reference` must be given for {needs[0].name}, whose passages it "
                "holds. Pass what `emoreg.calibrate` returned"
            )
        if getattr(trainer.args, "packing", False):
            raise ValueError(
                "the trainer must not pack its data: packing drops the outcome column "
                "and decision tokens can't be matched to outcomes. Use packing=False"
            )

    def _probes(self) -> list[Probe]:
        own = [
            term.probe
            for term in self.terms
            if isinstance(term, AbstractDecisionTerm | MeaningAnchor)
        ]
        return own + list(self.monitor.probes if self.monitor is not None else ())

    def _layers(self) -> tuple[int, ...]:
        decision = [term.probe for term in self.decision_terms]
        watched = list(self.monitor.probes if self.monitor is not None else ())
        return tuple(sorted({i for p in decision + watched for i in p.layers}))

    def _make_anchors(self, reference: Reference | None, quiet: bool) -> list[Anchor]:
        anchors: list[Anchor] = []
        for term in self.terms:
            if term.weight == 0 or reference is None:
                continue
            if isinstance(term, MeaningAnchor):
                anchors.append(StoryAnchor(term, reference.stories, quiet=quiet))
            elif isinstance(term, ReferenceKL):
                anchors.append(NeutralAnchor(term, reference.neutral))
        for anchor in anchors:
            anchor.cache(self.trainer.model)
        return anchors

    def _carry(self, outcome: str, quiet: bool) -> None:
        """Keep the outcome column up to the batch, with cached reference readings."""
        trainer = self.trainer
        dataset = trainer.train_dataset
        check_dataset(dataset, outcome, self.markers)
        active = [term for term in self.decision_terms if term.weight > 0]
        start = 0
        for term in active:
            size = len(term.probe.layers) * len(term.probe.emotions)
            self._held[id(term)] = slice(start, start + size)
            start += size
        if active:
            probes = [term.probe for term in active]
            rows = cached_rows(trainer.model, dataset, probes, self.markers, quiet)
            trainer.train_dataset = dataset.add_column(REFERENCE, rows)
        trainer._set_signature_columns_if_needed()
        trainer._signature_columns += [outcome, REFERENCE]
        trainer.data_collator = OutcomeCollator(trainer.data_collator, outcome)

    def _segments(
        self, input_ids: Int[Tensor, "batch pos"], extras: Extras
    ) -> tuple[Int[Tensor, "batch turn"], Float[Tensor, "batch turn"]]:
        if extras.outcomes is None:
            empty = input_ids[:, :0]
            return empty, empty.float()
        turns = extras.outcomes.shape[1]
        positions, exists = self.markers.decision_positions(input_ids, turns)
        outcomes = extras.outcomes.to(input_ids.device)
        nan = torch.full_like(outcomes, float("nan"))
        return positions, torch.where(exists, outcomes, nan)

    def _decision_loss(
        self,
        streams: dict[int, Tensor],
        positions: Int[Tensor, "batch turn"],
        failure: Float[Tensor, "batch turn"],
        extras: Extras,
    ) -> Tensor:
        total = torch.zeros((), device=failure.device)
        rows = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1)
        for term in self.decision_terms:
            if term.weight == 0:
                continue
            probe = term.probe
            read = [
                probe.read(streams[i][rows, positions], layer=i) for i in probe.layers
            ]
            values = torch.stack(read, dim=2).flatten(0, 1)
            held = None
            if extras.reference is not None and id(term) in self._held:
                flat = extras.reference[..., self._held[id(term)]].to(values.device)
                held = flat.flatten(0, 1).unflatten(1, values.shape[1:])
            readings = DecisionReadings(
                values=values, failure=failure.flatten(), reference=held
            )
            value = term(readings, self._reduce)
            self._keep(term, value.detach())
            total = total + term.weight * value
        return total

    def _keep(self, term: AbstractTerm, value: Tensor) -> None:
        self._values.setdefault(self._names[id(term)], []).append(value)

    def _scale(self, num_items_in_batch: Any) -> float:
        """Return the factor that makes a per-micro-batch mean right under accumulation.

        The trainer divides the loss by the accumulation steps unless it was already
        normalized over the whole batch; then the added term has to do it itself.
        """
        trainer = self.trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = (
                trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            )
            scaled = counted or getattr(trainer, "compute_loss_func", None) is not None
        return 1 / trainer.current_gradient_accumulation_steps if scaled else 1.0

    def _reduce(self, x: Tensor) -> Tensor:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return x
        return accelerator.reduce(x.clone(), reduction="sum")

    def _check_fired(
        self,
        captured: Captured,
        input_ids: Int[Tensor, "batch pos"],
        *,
        training: bool,
    ) -> None:
        silent = [layer for layer in self.layers if layer not in captured]
        if silent:
            raise RuntimeError(
                f"the hooks of layers {silent} must fire in the trainer's forward pass "
                "and did not. A model compiled before `attach`, or called through "
                "another object, does that: attach first, compile later"
            )
        shape = captured[self.layers[0]].shape[:2]
        if shape != input_ids.shape:
            raise RuntimeError(
                f"the model must read as many tokens as the batch holds, "
                f"{tuple(input_ids.shape)}; its blocks saw {tuple(shape)}. Prompt "
                "tuning adds tokens of its own and can't be read: use LoRA"
            )
        if training and not self._checked_gradient:
            self._check_gradient(captured)
            self._checked_gradient = True

    def _check_gradient(self, captured: Captured) -> None:
        needed = {i for t in self.decision_terms if t.weight for i in t.probe.layers}
        model = self.trainer.model
        flat = [
            layer
            for layer in sorted(needed)
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


def _distinct_names(terms: Sequence[AbstractTerm]) -> dict[int, str]:
    """Return a name for each term (by `id`), numbered where several share one."""
    names: dict[int, str] = {}
    for term in terms:
        count = sum(other.name == term.name for other in terms[: len(names)]) + 1
        names[id(term)] = term.name if count == 1 else f"{term.name}-{count}"
    return names
