"""What happens around a trainer's loss: capture, read, add the terms, log."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from emoreg.losses.presets import Terms
from emoreg.losses.targets import Targets
from emoreg.losses.term import AbstractTerm
from emoreg.losses.twins import TwinPenalty
from emoreg.residual.tokens import tokenizer_of
from emoreg.training.auxiliary import share_head
from emoreg.training.checks import check_trainer
from emoreg.training.layouts import ONE_A_ROW, Layout, shows_images
from emoreg.training.outcomes.columns import (
    OUTCOMES,
    REFERENCE,
    OutcomeCollator,
    check_column,
    check_dataset,
    take_extras,
)
from emoreg.training.outcomes.rollouts import (
    carry_outcomes,
    check_rollouts,
    makes_rollouts,
    tokens_of,
)
from emoreg.training.outcomes.sources import (
    PARSED,
    Feedback,
    Reward,
    Source,
    check_both_found,
    with_parsed_outcomes,
)
from emoreg.training.pairs import with_twins
from emoreg.training.reference import Reference
from emoreg.training.regularizer import Regularizer
from emoreg.training.rows import cached_rows
from emoreg.training.watching.costs import StepEnd
from emoreg.training.watching.dashboard import Dashboard, check_texts
from emoreg.training.watching.monitor import Monitor
from emoreg.training.world import StepTotals, World

_TASK = "task"
"""Logged as `emotion_loss/task`: the trainer's own loss."""

logger = logging.getLogger(__name__)


@final
class Seam:
    """Everything that emoreg does to one trainer.

    The mixin calls `task_loss` around the trainer's own `compute_loss`,
    `before_backward` and `after_backward` around its backward pass and `metrics` in
    its `log`.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        monitor: Monitor | None,
        terms: Terms | Sequence[AbstractTerm],
        outcome: Source | None,
        reference: Reference | None,
        targets: Targets | None,
    ) -> None:
        """Check what must hold, cache the reference's readings, wrap the collator."""
        self.trainer, self.outcome = trainer, outcome
        self.released = False
        self.rewards: Tensor | None = None
        self._held: dict[int, slice] | None = None
        self._totals: StepTotals | None = None
        self._part = False
        check_trainer(trainer, terms=tuple(terms), outcome=outcome)
        check_texts(monitor, outcome=outcome is not None)
        dataset, quiet = trainer.train_dataset, bool(trainer.args.disable_tqdm)
        self.regularizer = Regularizer(
            trainer.model,
            tokenizer=tokenizer_of(trainer.processing_class),
            monitor=monitor,
            terms=terms,
            reference=reference,
            world=World.of(trainer.accelerator),
            targets=targets,
            dataset=dataset,
            layout=Layout.find(dataset, trainer.data_collator),
            quiet=quiet,
        )
        if outcome is not None:
            self._carry(outcome, quiet)
        trainer.add_callback(StepEnd(self.regularizer.costs))
        self.dashboard = Dashboard(trainer, monitor)

    def task_loss(
        self,
        compute: Callable[..., Any],
        model: torch.nn.Module,
        inputs: MutableMapping[str, Any],
        **kwargs: Any,
    ) -> Any:
        """Return what `compute` returns, with the terms added while training."""
        if not model.training:
            return self._task_loss(compute, model, inputs, **kwargs)
        costs = self.regularizer.costs
        with costs.own():
            return self._task_loss(costs.others(compute), model, inputs, **kwargs)

    def _task_loss(
        self,
        compute: Callable[..., Any],
        model: torch.nn.Module,
        inputs: MutableMapping[str, Any],
        **kwargs: Any,
    ) -> Any:
        extras = take_extras(inputs)
        regularizer, training = self.regularizer, model.training
        inner = self.trainer.accelerator.unwrap_model(model)
        if training and regularizer.prevention.active:
            compute = regularizer.prevention.around(compute, inner, extras.starts)
        if not regularizer.layers:
            return compute(model, inputs, **kwargs)
        input_ids, mask = tokens_of(inputs)
        with regularizer.reading(inner, input_ids, training=training) as captured:
            result = compute(model, inputs, **kwargs)
            streams = regularizer.streams(captured, input_ids, training=training)
        pulls = self._opened(model) if training else None
        added = regularizer.added(
            streams,
            input_ids,
            mask,
            extras,
            training=training,
            held=self._held,
            totals=self._totals,
            part=self._part,
            pulls=pulls,
        )
        scaled = self._task_is_scaled(kwargs.get("num_items_in_batch"))
        self._part |= training
        if pulls is not None:
            self._measure(model, result, pulls, scaled)
        if added is None:
            return result
        self._keep_task(result, scaled)
        added = added * self._scale(scaled)
        if isinstance(result, tuple):
            return (result[0] + added, *result[1:])
        return result + added

    def carry(self, prompts: Sequence[Any], rollouts: dict[str, Any]) -> None:
        """Give rollouts their outcomes."""
        if self.outcome is not None:
            carry_outcomes(
                self.trainer,
                prompts,
                rollouts,
                self.rewards,
                source=self.outcome,
                markers=self.regularizer.markers,
            )

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
        with self.regularizer.costs.own():
            self._totals = StepTotals.of(found, device) if found else None

    def before_backward(self, model: torch.nn.Module) -> None:
        """Run the auxiliary batches that are due, where the backward pass also steps.

        Under DeepSpeed a step's last `accelerator.backward` moves the weights. Batches
        after it would make an optimizer step of their own, clipped by itself.
        """
        trainer = self.trainer
        if trainer.is_deepspeed_enabled and trainer.accelerator.sync_gradients:
            engine = trainer.accelerator.deepspeed_engine_wrapped

            def backward(loss: Tensor) -> None:
                engine.backward(loss, sync_gradients=False, scale_wrt_gas=False)

            model.train()  # after an evaluation; the trainer's step does so too late
            share_head(model)
            self._auxiliary(model, backward)

    def after_backward(self, model: torch.nn.Module) -> None:
        """Run the auxiliary batches that are due, once per optimizer step."""
        trainer = self.trainer
        if trainer.accelerator.sync_gradients and not trainer.is_deepspeed_enabled:
            self._auxiliary(model, trainer.accelerator.backward)

    def release(self) -> None:
        """Let the trainer go on alone; outcomes are still kept from the model."""
        self.released = True
        self.regularizer.release()

    def metrics(self, mode: str) -> dict[str, float]:
        """Return the readings and terms since the last call; every process calls it.

        An alert that asks for it ends training, with a checkpoint, on all of them.
        """
        if self.released:
            return {}
        step, control = self.trainer.state.global_step, self.trainer.control
        found = self.regularizer.metrics(mode, step=step, besides=(_TASK,))
        if self.regularizer.should_stop and not control.should_training_stop:
            control.should_training_stop = control.should_save = True
        return found

    def _auxiliary(
        self, model: torch.nn.Module, backward: Callable[[Tensor], Any]
    ) -> None:
        step, regularizer = self.trainer.state.global_step, self.regularizer
        with regularizer.costs.own():
            regularizer.auxiliary(model, step=step, backward=backward)

    def _opened(self, model: torch.nn.Module) -> dict[str, Tensor] | None:
        """Return a place for the terms, on the first batch of a step to measure."""
        trainer = self.trainer
        if self._part:
            return None
        return self.regularizer.gradients.opened(
            model,
            step=trainer.state.global_step,
            args=trainer.args,
            scaler=trainer.accelerator.scaler,
        )

    def _measure(
        self,
        model: torch.nn.Module,
        result: Any,
        pulls: dict[str, Tensor],
        scaled: bool,
    ) -> None:
        """Measure gradients, of this batch as if it were the whole step."""
        steps = self.trainer.current_gradient_accumulation_steps if scaled else 1
        factor = self._scale(scaled) * steps
        loss = result[0] if isinstance(result, tuple) else result
        terms = {name: factor * value for name, value in pulls.items()}
        self.regularizer.gradients.measure(model, steps * loss, terms)

    def _carry(self, source: Source, quiet: bool) -> None:
        """Keep outcomes up to the batch, with cached reference readings."""
        trainer = self.trainer
        if makes_rollouts(trainer):
            check_rollouts(trainer, source)
            return
        if shows_images(trainer.train_dataset):
            if not isinstance(source, str):
                raise ValueError(
                    "rows with images must have a column of outcomes, since the "
                    f"collator alone makes tokens of them; got {source}. Pass its name"
                )
            check_column(trainer.train_dataset, source)
            self._collate(source, ONE_A_ROW, check=True)
            return
        layout = Layout.of(trainer.train_dataset, trainer.data_collator)
        column = self._parse(source, layout) if isinstance(source, Feedback) else source
        if isinstance(column, Reward):
            raise ValueError(
                "`outcome` must be a column or `Feedback()` where the trainer does not "
                f"generate, since there are no rewards; got {column}"
            )
        dataset, markers = trainer.train_dataset, self.regularizer.markers
        check_dataset(dataset, column, layout, markers)
        self._check_held_out(column, layout)
        terms = self.regularizer.decision_terms
        active = [term for term in terms if term.weight > 0 and term.compares]
        self._held, start = {}, 0
        for term in active:
            size = len(term.probe.layers) * term.probe.width
            self._held[id(term)] = slice(start, start + size)
            start += size
        if active:
            probes = [term.probe for term in active]
            rows = cached_rows(
                trainer.model, dataset, layout, probes, markers, quiet=quiet
            )
            twins = [self._held[id(t)] for t in active if isinstance(t, TwinPenalty)]
            if twins:
                rows = with_twins(rows, dataset, column, layout, twins)
            trainer.train_dataset = dataset.add_column(REFERENCE, rows)
        self._collate(column, layout)

    def _check_held_out(self, column: str, layout: Layout) -> None:
        """Refuse evaluation data with misplaced outcomes; they need not have any."""
        found = getattr(self.trainer, "eval_dataset", None)
        for dataset in found.values() if isinstance(found, dict) else [found]:
            named = column in (getattr(dataset, "column_names", None) or ())
            if not (named and hasattr(dataset, "__len__")):
                continue
            try:
                check_dataset(dataset, column, layout, self.regularizer.markers)
            except ValueError as error:
                raise ValueError(f"in the evaluation data, {error}") from error

    def _collate(self, column: str, layout: Layout, *, check: bool = False) -> None:
        """Take outcomes from the data set's column into the batch."""
        trainer = self.trainer
        trainer._set_signature_columns_if_needed()
        trainer._signature_columns += [column, REFERENCE]
        trainer.data_collator = OutcomeCollator(
            trainer.data_collator,
            column,
            layout,
            check=self.regularizer.markers if check else None,
        )

    def _parse(self, source: Feedback, layout: Layout) -> str:
        """Write parsed outcomes into the data sets' own column, and return its name."""
        trainer, markers = self.trainer, self.regularizer.markers

        def parsed(dataset: Any) -> tuple[Any, Counter[str]]:
            return with_parsed_outcomes(
                dataset, layout, source, self.regularizer.tokenizer, markers
            )

        trainer.train_dataset, found = parsed(trainer.train_dataset)
        said = ", ".join(f"{count} {label}" for label, count in found.items())
        logger.info("Outcomes of Assistant turns, by what said so: %s", said)
        check_both_found(found)
        held_out = getattr(trainer, "eval_dataset", None)
        if isinstance(held_out, dict):
            trainer.eval_dataset = {k: parsed(v)[0] for k, v in held_out.items()}
        elif held_out is not None:
            trainer.eval_dataset = parsed(held_out)[0]
        return PARSED

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
