"""What happens around a trainer's loss: capture, read, add the terms, log."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch

from emoreg.losses.term import AbstractTerm
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.auxiliary import spoken_rows
from emoreg.training.checks import check_needs, check_trainer
from emoreg.training.columns import (
    OUTCOMES,
    REFERENCE,
    OutcomeCollator,
    check_dataset,
    take_extras,
)
from emoreg.training.layouts import Layout
from emoreg.training.monitor import Monitor
from emoreg.training.reference import Reference
from emoreg.training.regularizer import Regularizer, StepTotals, World
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
        self.trainer, self.outcome = trainer, outcome
        self._held: dict[int, slice] = {}
        self._totals: StepTotals | None = None
        self._part = False
        markers = TurnMarkers.of(trainer.processing_class)
        check_needs(
            trainer.model,
            vectors=None if monitor is None else monitor.vectors,
            terms=terms,
            reference=reference,
            roles=Corpus.packaged().roles() if roles is None else roles,
        )
        check_trainer(trainer, terms=terms, outcome=outcome)
        self.regularizer = Regularizer(
            trainer.model,
            markers=markers,
            monitor=monitor,
            terms=terms,
            reference=reference,
            world=World.of(trainer.accelerator),
            quiet=quiet,
        )
        dataset = trainer.train_dataset
        layout = Layout.find(dataset, trainer.data_collator)
        count = 0 if reference is None else len(reference.neutral)
        self.regularizer.hold(spoken_rows(dataset, layout, markers, count=count))
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
        regularizer, training = self.regularizer, model.training
        if not regularizer.layers:
            return compute(model, inputs, **kwargs)
        input_ids, mask = tokens_of(inputs)
        inner = self.trainer.accelerator.unwrap_model(model)
        with regularizer.reading(inner, input_ids, training=training) as captured:
            result = compute(model, inputs, **kwargs)
            streams = regularizer.streams(captured, input_ids, training=training)
        added = regularizer.added(
            streams,
            input_ids,
            mask,
            extras,
            training=training,
            held=self._held,
            totals=self._totals,
            part=self._part,
        )
        if added is None:
            return result
        self._part = True
        scaled = self._task_is_scaled(kwargs.get("num_items_in_batch"))
        self._keep_task(result, scaled)
        added = added * self._scale(scaled)
        if isinstance(result, tuple):
            return (result[0] + added, *result[1:])
        return result + added

    def carry(self, prompts: Sequence[Any], rollouts: dict[str, Any]) -> None:
        """Give rollouts the outcomes of their prompts."""
        if self.outcome is not None:
            markers = self.regularizer.markers
            carry_outcomes(prompts, rollouts, column=self.outcome, markers=markers)

    def begin_step(self, batches: Sequence[Any]) -> None:
        """Count the outcomes of an optimizer step's batches.

        Prompts that are still to be answered are no batches: rollouts are means of
        means.
        """
        self._part = False
        found = [
            x[OUTCOMES] for x in batches if isinstance(x, Mapping) and OUTCOMES in x
        ]
        device = self.trainer.accelerator.device
        self._totals = StepTotals.of(found, device) if found else None

    def after_backward(self, model: torch.nn.Module) -> None:
        """Run the auxiliary batches that are due, once per optimizer step."""
        accelerator = self.trainer.accelerator
        if accelerator.sync_gradients:
            step = self.trainer.state.global_step
            self.regularizer.auxiliary(model, step=step, backward=accelerator.backward)

    def metrics(self, mode: str) -> dict[str, float]:
        """Return the readings and terms since the last call; every process calls it."""
        return self.regularizer.metrics(mode, besides=(_TASK,))

    def _carry(self, outcome: str, quiet: bool) -> None:
        """Keep the outcome column up to the batch, with cached reference readings."""
        trainer = self.trainer
        if makes_rollouts(trainer):
            check_rollouts(trainer, outcome)
            return
        dataset, markers = trainer.train_dataset, self.regularizer.markers
        layout = Layout.of(dataset, trainer.data_collator)
        check_dataset(dataset, outcome, layout, markers)
        active = [term for term in self.regularizer.decision_terms if term.weight > 0]
        start = 0
        for term in active:
            size = len(term.probe.layers) * len(term.probe.emotions)
            self._held[id(term)] = slice(start, start + size)
            start += size
        if active:
            probes = [term.probe for term in active]
            rows = cached_rows(
                trainer.model, dataset, layout, probes, markers, quiet=quiet
            )
            trainer.train_dataset = dataset.add_column(REFERENCE, rows)
        trainer._set_signature_columns_if_needed()
        trainer._signature_columns += [outcome, REFERENCE]
        trainer.data_collator = OutcomeCollator(trainer.data_collator, outcome, layout)

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
        self.regularizer.ledger.add(_TASK, loss * steps if scaled else loss)
