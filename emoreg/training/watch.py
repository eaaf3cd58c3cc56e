"""Readings and terms in a loop that you wrote yourself."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, final

import torch
import torch.nn as nn
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emoreg.losses.presets import Terms
from emoreg.losses.targets import Targets
from emoreg.losses.term import AbstractTerm
from emoreg.residual.capture import Captured, capture
from emoreg.residual.layers import unwrapped
from emoreg.training.checks import check_loop
from emoreg.training.layouts import as_failures
from emoreg.training.outcomes.columns import Extras, check_turns, padded
from emoreg.training.outcomes.rollouts import tokens_of
from emoreg.training.reference import Reference
from emoreg.training.regularizer import Regularizer
from emoreg.training.watching.monitor import Monitor
from emoreg.training.world import World

Failures = Float[Tensor, "batch turn"] | Sequence[Sequence[float | None]]


@final
class Watch:
    """Hooks on a model for as long as the `with` block lasts; see `watch`."""

    def __init__(
        self, model: nn.Module, regularizer: Regularizer, accelerator: Any, scaler: Any
    ) -> None:
        """Hold what `watch` made; the hooks are placed on entering."""
        self._model, self._regularizer = model, regularizer
        self._accelerator, self._scaler = accelerator, scaler
        self._stack = ExitStack()
        self._graded: Captured | None = None
        self._latest: Captured | None = None
        self._checked_turns = self._part = False
        self._misplaced = torch.zeros((), device=regularizer.world.device)
        self.step = 0
        """Optimizer steps so far."""

    def __enter__(self) -> "Watch":
        """Place the hooks."""
        inner, layers = unwrapped(self._model), self._regularizer.layers
        self._graded = self._stack.enter_context(capture(inner, layers, gradient=True))
        self._latest = self._stack.enter_context(capture(inner, layers))
        self._regularizer.costs.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the hooks away, also after an error."""
        self._stack.close()
        self._graded = self._latest = None

    def terms(
        self,
        batch: Mapping[str, Tensor],
        failed: Failures | None = None,
        *,
        task: Tensor | None = None,
    ) -> Tensor:
        """Read the forward pass that was just made, and return what to add to its loss.

        Where gradients are enabled it is the latest pass with gradients, so that a
        reference pass or a generation in between does no harm. Under `no_grad` it is
        the latest of all; its readings are logged as evaluation and nothing is added.
        The model's own mode does not matter: a loop that forgets `model.train()` still
        has its terms.

        Args:
            batch: What the model was given: `input_ids`, and, if any,
                `attention_mask` and `position_ids`, which are 0 where documents begin
                in rows that hold several.
            failed: Failure per row and Assistant turn: what the feedback *before* the
                turn reported. A list of numbers in [0, 1] and None for each row, or
                one tensor, NaN where unknown or absent. None if nothing is known.
            task: The loss that the terms will be added to, of which nothing was
                propagated back yet. With it the log has the cosine of each term's
                gradient with the task's; without, its norm alone.

        Returns:
            The weighted terms of this batch, a scalar; 0 where there are none. Under
            gradient accumulation it is scaled like a mean loss.

        Raises:
            RuntimeError: Outside the `with` block, or if there was no such pass since
                the last call.
            ValueError: If terms act on failing turns and `failed` is None, or outcomes
                don't fit the Assistant turns.
        """
        with self._regularizer.costs.own():
            return self._terms(batch, failed, task)

    def _terms(
        self,
        batch: Mapping[str, Tensor],
        failed: Failures | None,
        task: Tensor | None,
    ) -> Tensor:
        training = torch.is_grad_enabled()
        captured = self._graded if training else self._latest
        if captured is None or self._latest is None or self._graded is None:
            raise RuntimeError(
                "`terms` must be called inside the `with` block, where the hooks are; "
                "it was called outside. Put the training loop into it"
            )
        ids, mask = tokens_of(batch)
        nothing = torch.zeros((), device=ids.device)
        if not self._regularizer.layers:
            return nothing
        active = [t for t in self._regularizer.decision_terms if t.weight]
        if training and active and failed is None:
            raise ValueError(
                f"`failed` must say which turns failed, since {active[0].name} acts on "
                "them; got None. Give a list per row, None in it where unknown"
            )
        extras = Extras(
            outcomes=self._outcomes(ids, failed),
            reference=None,
            starts=_starts(batch, ids),
        )
        streams = self._regularizer.streams(captured, ids, training=training)
        self._graded.clear()
        self._latest.clear()
        pulls = self._opened() if training else None
        added = self._regularizer.added(
            streams,
            ids,
            mask,
            extras,
            training=training,
            part=self._part,
            pulls=pulls,
        )
        self._part |= training
        if pulls is not None:
            self._regularizer.gradients.measure(self._model, task, pulls)
        return nothing if added is None else added

    def _opened(self) -> dict[str, Tensor] | None:
        """Return a place for the terms, on the first batch of a step to measure."""
        if self._part:
            return None
        accelerator = self._accelerator
        scaler = self._scaler if accelerator is None else accelerator.scaler
        return self._regularizer.gradients.opened(
            self._model, step=self.step, scaler=scaler
        )

    def after_backward(self) -> None:
        """Run the anchors' own forward-backward pairs; call it before each `step()`.

        It adds to gradients as the backward pass left them, so it comes before they
        are clipped, and before `scaler.unscale_`.

        Under gradient accumulation it does nothing until the last backward pass of a
        step, if the accelerator counts them.
        """
        accelerator, scaler = self._accelerator, self._scaler
        if accelerator is not None and not accelerator.sync_gradients:
            return

        def backward(loss: Tensor) -> None:
            if accelerator is None:
                (loss if scaler is None else scaler.scale(loss)).backward()
            else:  # it divides by the parts of a step, and this is a whole one
                accelerator.backward(loss * accelerator.gradient_accumulation_steps)

        costs = self._regularizer.costs
        with costs.own():
            self._regularizer.auxiliary(self._model, step=self.step, backward=backward)
        self.step += 1
        self._part = False
        costs.begin()

    def metrics(self, mode: str = "train") -> dict[str, float]:
        """Return readings and terms since the last call, for your tracker.

        Every process must call it. `mode` is `train` or `eval`.

        Raises:
            ValueError: If an outcome since then had no Assistant turn to belong to.
        """
        if float(self._misplaced) > 0:
            raise ValueError(
                "each outcome must belong to an Assistant turn of its row; "
                f"{int(self._misplaced)} did not. A turn that was cut off, or a batch "
                "in another order than its outcomes, does that"
            )
        return self._regularizer.metrics(mode, step=self.step)

    @property
    def should_stop(self) -> bool:
        """Whether an alert of the monitor asks for the loop to end."""
        return self._regularizer.should_stop

    def state_dict(self) -> dict[str, Any]:
        """Return the terms' state and the step, for a checkpoint.

        `accelerator.register_for_checkpointing(watch)` calls it.
        """
        return {"step": self.step, "terms": self._regularizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.step = state["step"]
        self._regularizer.load_state_dict(state["terms"])

    def _outcomes(self, ids: Tensor, failed: Failures | None) -> Tensor | None:
        if failed is None:
            return None
        markers = self._regularizer.markers
        if not isinstance(failed, Tensor):
            rows = [as_failures(list(row)) for row in failed]
            if len(rows) != len(ids):
                raise ValueError(
                    "`failed` must hold a list for each row of the batch: it has "
                    f"{len(rows)}, the batch {len(ids)}"
                )
            if not self._checked_turns:  # once: it waits for the device
                for row, turns in enumerate(rows):
                    check_turns(ids[row].tolist(), turns, markers, f"row {row}")
                self._checked_turns = True
            failed = padded(map(torch.tensor, rows), len(rows))
        if failed.ndim != 2 or len(failed) != len(ids):
            raise ValueError(
                f"`failed` must have the shape (batch, turn) with {len(ids)} rows, got "
                f"{tuple(failed.shape)}"
            )
        if failed.device.type == "cpu":
            as_failures(failed.flatten())
        failed = failed.to(ids.device)
        _, exists = markers.decision_positions(ids, failed.shape[1])
        self._misplaced = self._misplaced + (~exists & ~failed.isnan()).sum()
        return failed


def watch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    monitor: Monitor | None = None,
    terms: Terms | Sequence[AbstractTerm] = (),
    reference: Reference | None = None,
    targets: Targets | None = None,
    accelerator: Any = None,
    scaler: torch.amp.GradScaler | None = None,
    quiet: bool = False,
) -> Watch:
    """Put readings and terms into a hand-written training loop.

        with emoreg.watch(model, tokenizer, monitor=monitor, terms=terms) as w:
            loss = model(**batch).loss + w.terms(batch, failed)
            loss.backward()
            w.after_backward()  # before the optimizer's step

    Args:
        model: The model, after `accelerator.prepare` if there is one.
        tokenizer: Its tokenizer, whose chat template marks Assistant turns.
        monitor: What to log; None logs nothing but the terms.
        terms: What to add, for instance `emoreg.presets.decouple(...)`.
        reference: Units and passages. None takes the terms' own.
        targets: From which the weights are set; the first ones only if `w.terms` gets
            `task=`. None takes the terms' own, or leaves the weights as given.
        accelerator: An `accelerate.Accelerator`, if the loop has one. It must, where
            several processes train.
        scaler: The loss scaler of float16 training, where the loop has its own: the
            anchors' losses are scaled as the task's is.
        quiet: No progress bars while passages are read.

    Returns:
        A context manager. Anchors take the reference's readings of their passages
        here, so call it while the model is still the reference.

    Raises:
        ValueError: If vectors, terms, model and launch don't fit, or units are missing.
    """
    if scaler is not None and not scaler.is_enabled():
        scaler = None
    check_loop(accelerator, tuple(terms), scaler)
    _check_monitor(monitor)
    regularizer = Regularizer(
        unwrapped(model),
        tokenizer=tokenizer,
        monitor=monitor,
        terms=terms,
        reference=reference,
        world=World.around(model) if accelerator is None else World.of(accelerator),
        targets=targets,
        quiet=quiet,
    )
    return Watch(model, regularizer, accelerator, scaler)


def _starts(
    batch: Mapping[str, Tensor], ids: Int[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos"] | None:
    """Return where documents begin, where the batch says it; one row may hold for all.

    Positions of several axes, as models that see have them, say it in no row.
    """
    position = batch.get("position_ids")
    if position is None or position.ndim != ids.ndim:
        return None
    return (position == 0).expand_as(ids)


def _check_monitor(monitor: Monitor | None) -> None:
    if monitor is not None and monitor.excerpts is not None:
        raise ValueError(
            "`log_texts` must be 0 in a loop of your own, whose tracker you write to "
            f"yourself; got {monitor.excerpts.count}. Log texts where you have them"
        )
