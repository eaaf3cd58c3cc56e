"""What happens around a trainer's loss: capture, read, add the terms, log."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.term import (
    AbstractDecisionTerm,
    AbstractTerm,
    DecisionReadings,
)
from emoreg.residual.capture import Captured, capture
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.auxiliary import (
    Anchor,
    PredictionAnchor,
    StoryAnchor,
    due,
    run_auxiliary,
    texts_to_hold,
)
from emoreg.training.checks import check_fired, check_gradient, check_needs
from emoreg.training.columns import (
    OUTCOMES,
    REFERENCE,
    Extras,
    OutcomeCollator,
    check_dataset,
    take_extras,
)
from emoreg.training.layouts import Layout
from emoreg.training.monitor import Monitor
from emoreg.training.reference import Reference
from emoreg.training.rollouts import (
    carry_outcomes,
    check_rollouts,
    makes_rollouts,
    tokens_of,
)
from emoreg.training.rows import cached_rows
from emoreg.vectors.corpus import Corpus, Roles

_TASK = "task"
"""Logged as `emotion_loss/task`: the trainer's own loss."""

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
        roles: Roles | None = None,
        quiet: bool = False,
    ) -> None:
        """Check what must hold, cache the reference's readings, wrap the collator."""
        self.trainer, self.monitor, self.terms = trainer, monitor, tuple(terms)
        self.outcome = outcome
        self._names = _distinct_names(self.terms)
        self._held: dict[int, slice] = {}
        self._checked_gradient = False
        self._totals: tuple[Tensor, Tensor] | None = None
        self._part = 0
        self.markers = TurnMarkers.of(trainer.processing_class)
        self.decision_terms = [
            t for t in self.terms if isinstance(t, AbstractDecisionTerm)
        ]
        self._values: dict[str, list[Tensor]] = {}
        if monitor is not None and reference is not None:
            monitor.prepare(reference)
        check_needs(
            trainer,
            vectors=None if monitor is None else monitor.vectors,
            terms=self.terms,
            outcome=outcome,
            reference=reference,
            roles=Corpus.packaged().roles() if roles is None else roles,
        )
        self._place_probes()
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
        input_ids, mask = tokens_of(inputs)
        inner = self.trainer.accelerator.unwrap_model(model)
        training = model.training
        only = None if training else input_ids
        with capture(inner, self.layers, gradient=training, tokens=only) as captured:
            result = compute(model, inputs, **kwargs)
            check_fired(captured, self.layers, tuple(input_ids.shape))
            self._check_gradient_once(captured, training=model.training)
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
        scaled = self._task_is_scaled(kwargs.get("num_items_in_batch"))
        self._keep_task(result, scaled)
        added = self._decision_loss(streams, positions, failure, extras)
        self._part += 1
        added = added * self._scale(scaled)
        if isinstance(result, tuple):
            return (result[0] + added, *result[1:])
        return result + added

    def carry(self, prompts: Sequence[Any], rollouts: dict[str, Any]) -> None:
        """Give rollouts the outcomes of their prompts."""
        if self.outcome is not None:
            carry_outcomes(prompts, rollouts, column=self.outcome, markers=self.markers)

    def begin_step(self, batches: Sequence[Any]) -> None:
        """Count the failing and succeeding weight of an optimizer step's batches.

        Terms are means over the step's segments. The mean of its parts' means is
        another number where outcomes are spread unevenly, or a part has none. Prompts
        that are still to be answered are no batches: rollouts are means of means.
        """
        self._part = 0
        found = [
            x[OUTCOMES] for x in batches if isinstance(x, Mapping) and OUTCOMES in x
        ]
        self._totals = None
        if found:
            failing = torch.stack([x.nan_to_num(0.0).sum() for x in found]).sum()
            passing = torch.stack([(1 - x).nan_to_num(0.0).sum() for x in found]).sum()
            device = self.trainer.accelerator.device
            self._totals = (failing.to(device), passing.to(device))

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
                processes=accelerator.num_processes,
                device=accelerator.device,
                backward=accelerator.backward,
            )
            self._values.setdefault(self._names[id(anchor.term)], []).append(value)

    def metrics(self, mode: str) -> dict[str, float]:
        """Return the readings and terms since the last call; every process calls it."""
        result: dict[str, float] = {}
        if self.monitor is not None:
            result = self.monitor.metrics(self._reduce, mode=mode)
        for name in (_TASK, *self._names.values()) if mode == "train" else ():
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

    def _place_probes(self) -> None:
        device = self.trainer.accelerator.device
        for term in self.terms:
            if isinstance(term, AbstractDecisionTerm | MeaningAnchor):
                term.probe = term.probe.to(device)
        if self.monitor is not None:
            placed = [probe.to(device) for probe in self.monitor.probes]
            self.monitor.probes = tuple(placed)

    def _check_gradient_once(self, captured: Captured, *, training: bool) -> None:
        if training and not self._checked_gradient:
            active = [term.probe for term in self.decision_terms if term.weight]
            layers = sorted({layer for probe in active for layer in probe.layers})
            check_gradient(captured, layers, self.trainer.model)
            self._checked_gradient = True

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
                dataset = self.trainer.train_dataset
                layout = Layout.find(dataset, self.trainer.data_collator)
                texts = texts_to_hold(reference.neutral, dataset, layout, self.markers)
                anchors.append(PredictionAnchor(term, texts))
        for anchor in anchors:
            anchor.cache(self.trainer.model)
        return anchors

    def _carry(self, outcome: str, quiet: bool) -> None:
        """Keep the outcome column up to the batch, with cached reference readings."""
        trainer = self.trainer
        if makes_rollouts(trainer):
            check_rollouts(trainer, outcome)
            return
        dataset = trainer.train_dataset
        layout = Layout.of(dataset, trainer.data_collator)
        check_dataset(dataset, outcome, layout, self.markers)
        active = [term for term in self.decision_terms if term.weight > 0]
        start = 0
        for term in active:
            size = len(term.probe.layers) * len(term.probe.emotions)
            self._held[id(term)] = slice(start, start + size)
            start += size
        if active:
            probes = [term.probe for term in active]
            rows = cached_rows(
                trainer.model, dataset, layout, probes, self.markers, quiet=quiet
            )
            trainer.train_dataset = dataset.add_column(REFERENCE, rows)
        trainer._set_signature_columns_if_needed()
        trainer._signature_columns += [outcome, REFERENCE]
        trainer.data_collator = OutcomeCollator(trainer.data_collator, outcome, layout)

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
        totals = self._totals or (None, None)
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
                values=values,
                failure=failure.flatten(),
                reference=held,
                failing_total=totals[0],
                succeeding_total=totals[1],
            )
            value = term(readings, self._reduce)
            kept = self._values.setdefault(self._names[id(term)], [])
            if self._part and self._totals:
                kept[-1] = kept[-1] + value.detach()
            else:
                kept.append(value.detach())
            total = total + term.weight * value
        return total

    def _task_is_scaled(self, num_items_in_batch: Any) -> bool:
        """Return whether the trainer's loss is already that of the whole step.

        If not, the trainer divides what it gets by the accumulation steps.
        """
        trainer = self.trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = num_items_in_batch is not None
            scaled = trainer.model_accepts_loss_kwargs and counted
            scaled = scaled or getattr(trainer, "compute_loss_func", None) is not None
        return bool(scaled)

    def _scale(self, scaled: bool) -> float:
        """Return the factor that makes added terms right under accumulation.

        Where the step's outcomes were counted, terms are already parts of its mean.
        """
        steps = self.trainer.current_gradient_accumulation_steps
        if self._totals is not None:
            return 1.0 if scaled else float(steps)
        return 1 / steps if scaled else 1.0

    def _keep_task(self, result: Any, scaled: bool) -> None:
        """Keep the loss without the terms, so that arms can be compared by it."""
        loss = (result[0] if isinstance(result, tuple) else result).detach()
        steps = self.trainer.current_gradient_accumulation_steps
        self._values.setdefault(_TASK, []).append(loss * steps if scaled else loss)

    def _reduce(self, x: Tensor) -> Tensor:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return x
        return accelerator.reduce(x.clone(), reduction="sum")


def _distinct_names(terms: Sequence[AbstractTerm]) -> dict[int, str]:
    """Return a name for each term (by `id`), numbered where several share one."""
    names: dict[int, str] = {}
    for term in terms:
        count = sum(other.name == term.name for other in terms[: len(names)]) + 1
        names[id(term)] = term.name if count == 1 else f"{term.name}-{count}"
    return names
