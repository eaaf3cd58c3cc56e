"""What emoreg does during one model's training, whoever runs the loop."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
import torch.nn as nn
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emoreg.losses.anchors import MeaningAnchor
from emoreg.losses.presets import Terms
from emoreg.losses.targets import Targets
from emoreg.losses.term import (
    AbstractDecisionTerm,
    AbstractPassageTerm,
    AbstractTerm,
    alone,
)
from emoreg.residual.capture import Captured, capture
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.auxiliary import Anchor, due, run_auxiliary
from emoreg.training.checks import (
    check_fired,
    check_gradient,
    check_held,
    check_needs,
)
from emoreg.training.gradients import GradientMeter
from emoreg.training.held import anchors_of
from emoreg.training.layouts import Layout
from emoreg.training.ledger import Ledger
from emoreg.training.outcomes.columns import Extras
from emoreg.training.prevention import Prevention
from emoreg.training.reference import Reference
from emoreg.training.segments import Segments, seen_by, turns_of
from emoreg.training.target_checks import check_targets, targets_of
from emoreg.training.term_weights import TermWeights
from emoreg.training.watching.alerts import Alarm
from emoreg.training.watching.costs import Costs
from emoreg.training.watching.monitor import Monitor
from emoreg.training.world import StepTotals, World

_MONITOR = "readings"
"""Where the monitor's state is among that of the terms."""

logger = logging.getLogger(__name__)


@final
class Regularizer:
    """Captures, reads, adds the terms and keeps what there is to log.

    A trainer's seam and a hand-written loop's watch are two ways to call it: `reading`
    around the forward pass, `added` after it, `auxiliary` after the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: PreTrainedTokenizerBase,
        monitor: Monitor | None,
        terms: Terms | Sequence[AbstractTerm],
        reference: Reference | None,
        world: World,
        targets: Targets | None = None,
        dataset: Any = None,
        layout: Layout | None = None,
        quiet: bool = False,
    ) -> None:
        """Begin a run with the model as it is now, which is the reference.

        Terms forget earlier runs, everything is put on the device, and what the
        anchors hold is cached: some of it from the run's own `dataset`, whose `layout`
        says how rows become sequences. Reference and targets that are not given are
        those that a preset's terms came with.

        Raises:
            ValueError: If vectors, terms, targets and model don't fit, units are
                missing, or a term finds nothing to work on.
        """
        reference = reference_of(terms) if reference is None else reference
        targets = targets_of(terms, targets)
        check_targets(targets, tuple(terms), reference)
        vectors = None if monitor is None else monitor.vectors
        check_needs(model, vectors=vectors, terms=terms, reference=reference)
        self.model, self.tokenizer, self.monitor = model, tokenizer, monitor
        self.reference, self.markers = reference, TurnMarkers.of(tokenizer)
        self.terms, self.world = tuple(terms), world
        self.names = _distinct_names(self.terms)
        self.decision_terms = [t for t in terms if isinstance(t, AbstractDecisionTerm)]
        for term in self.terms:
            term.reset()
        self.prevention = Prevention(self.terms, self.markers)
        self.ledger, self.costs = Ledger(), Costs(world.device)
        every = 0 if monitor is None else monitor.gradients_every
        self.gradients = GradientMeter(world, self.names, self.terms, every=every)
        self.term_weights = TermWeights(world, self.names, self.terms, self.gradients)
        self.alarm = Alarm(() if monitor is None else monitor.alerts)
        self.should_stop = False
        """Whether an alert asked for the run to end."""
        self._probed: int | None = None
        self._checked: set[int] = set()
        self._place_probes()
        self.anchors: list[Anchor] = anchors_of(
            self.terms,
            model,
            reference=reference,
            dataset=dataset,
            layout=layout,
            tokenizer=tokenizer,
            markers=self.markers,
            quiet=quiet,
        )
        self.prevention.measure(model, tokenizer)
        self.term_weights.aim(targets)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that must be captured in the task's forward pass."""
        decision = [term.probe for term in self.decision_terms]
        watched = list(self.monitor.probes if self.monitor is not None else ())
        return tuple(sorted({i for p in decision + watched for i in p.layers}))

    def release(self) -> None:
        """Do nothing from now on: no hook, no term, no anchor, no reading."""
        self.monitor, self.terms, self.decision_terms = None, (), []
        self.anchors, self.gradients.every = [], 0
        self.term_weights.release()
        self.prevention.release()

    def reading(
        self, model: nn.Module, input_ids: Int[Tensor, "batch pos"], *, training: bool
    ) -> AbstractContextManager[Captured]:
        """Capture the forward pass over these tokens.

        While training it is the one with gradients, otherwise the first one.
        """
        only = None if training else input_ids
        return capture(model, self.layers, gradient=training, tokens=only)

    def streams(
        self,
        captured: Captured,
        input_ids: Int[Tensor, "batch pos"],
        *,
        training: bool,
    ) -> dict[int, Tensor]:
        """Return the residual streams, having checked that they are what they seem."""
        check_fired(captured, self.layers, tuple(input_ids.shape))
        if training:  # also a term whose weight is raised on the way
            active = [term.probe for term in self.decision_terms if term.weight]
            layers = {layer for probe in active for layer in probe.layers}
            new = sorted(layers - self._checked)
            check_gradient(captured, new, self.model)
            self._checked |= layers
        return self.prevention.without({i: captured[i] for i in self.layers})

    def added(
        self,
        streams: dict[int, Tensor],
        input_ids: Int[Tensor, "batch pos"],
        mask: Tensor | None,
        extras: Extras,
        *,
        training: bool,
        held: dict[int, slice] | None = None,
        totals: StepTotals | None = None,
        part: bool = False,
        pulls: dict[str, Tensor] | None = None,
    ) -> Tensor | None:
        """Log the batch's readings and return what the terms on it add.

        Both are made outside of autocast, wherever the caller is.

        Args:
            streams: What `streams` returned.
            input_ids: The tokens that the model read.
            mask: Real tokens, where that is known.
            extras: Outcomes, and cached readings of the reference.
            training: Terms are added, and readings logged, for training.
            held: Where each term's figures are in the cached readings, by `id`; None
                where none can be cached.
            totals: Counts of the whole step, under accumulation.
            part: Whether an earlier batch of the step was read already.
            pulls: What `gradients.opened` returned; the weighted terms go into it.

        Returns:
            The weighted sum of the terms; None where there is nothing to add.
        """
        active = [t for t in self.decision_terms if t.weight] if training else []
        if held is not None:
            check_held([term for term in active if term.compares], held)
        weighted: dict[str, Tensor] = {}
        with torch.autocast(input_ids.device.type, enabled=False):
            segments = Segments.of(self.markers, input_ids, extras)
            turn = turns_of(self.markers, input_ids, mask, extras.starts)
            self._watch(streams, input_ids, segments, turn > 0, training=training)
            for term in active:
                place = (held or {}).get(id(term))
                readings = seen_by(
                    term,
                    streams,
                    segments,
                    turn,
                    extras,
                    place=place,
                    totals=totals,
                    part=part,
                )
                value, name = term(readings, self.world.reduce), self.names[id(term)]
                self.ledger.add(name, value, part=part and totals is not None)
                weighted[name] = term.weight * value
        if not (training and self.decision_terms):
            return None
        if pulls is not None:
            pulls |= weighted
        return sum(weighted.values(), torch.zeros((), device=input_ids.device))

    def auxiliary(
        self, model: nn.Module, *, step: int, backward: Callable[[Tensor], Any]
    ) -> None:
        """Run the anchors that are due at optimizer `step`; then set the weights."""
        passages = [t for t in self.terms if isinstance(t, AbstractPassageTerm)]
        check_held(passages, {id(anchor.term) for anchor in self.anchors})
        for anchor in due(self.anchors, step):
            name = self.names[id(anchor.term)]
            value = run_auxiliary(
                anchor,
                model,
                step=step,
                process=self.world.process,
                processes=self.world.processes,
                device=self.world.device,
                backward=self.gradients.around(name, backward),
            )
            self.ledger.add(name, value)
            self.term_weights.heard(anchor.term, value)
        self.term_weights.after(step)

    def metrics(
        self, mode: str, *, step: int, besides: Sequence[str] = ()
    ) -> dict[str, float]:
        """Return readings and terms since the last call; every process calls it.

        Args:
            mode: `train` or `eval`.
            step: Optimizer steps so far.
            besides: Names in the ledger that are no term's.
        """
        reduce = self.world.reduce
        if mode != "train":
            monitor = self.monitor
            return {} if monitor is None else monitor.metrics(reduce, mode=mode)
        with self.costs.own():
            result = self._trained(besides) | self._probe(step)
        result |= self.costs.metrics(reduce, self.world.processes)
        first = self.world.process == 0
        self.should_stop |= self.alarm.check(result, step=step, speak=first)
        return result

    def forget(self, mode: str) -> None:
        """Drop the readings since the last call of `metrics`."""
        if self.monitor is not None:
            self.monitor.metrics(alone, mode=mode)

    def _trained(self, besides: Sequence[str]) -> dict[str, float]:
        """Return readings, terms and their gradients since the last log line."""
        reduce, result = self.world.reduce, {}
        if self.monitor is not None:
            result = self.monitor.metrics(reduce, mode="train")
        weights = {self.names[id(term)]: term.weight for term in self.terms}
        for name in (*besides, *self.names.values()):
            value = self.ledger.take(name, reduce, self.world.processes)
            if value is None:
                continue
            result[f"emotion_loss/{name}"] = value
            if name in weights:
                result[f"emotion_weight/{name}"] = weights[name]
        for term, strength in self.prevention.strengths():
            result[f"emotion_weight/{self.names[id(term)]}"] = strength
        return result | self.gradients.metrics() | self.term_weights.metrics()

    def _probe(self, step: int) -> dict[str, float]:
        """Read the probe set, where it is due."""
        if self.monitor is None or self.monitor.probe_set is None:
            return {}
        fixed, last = self.monitor.probe_set, self._probed
        if last is not None and step - last < fixed.every:
            return {}
        self._probed = step
        return fixed.read(
            self.model, self.tokenizer, self.markers, self.monitor.probes, self.world
        )

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of terms and monitor, for a checkpoint."""
        state: dict[str, dict[str, Any]] = {
            self.names[id(term)]: term.state_dict() for term in self.terms
        }
        if self.monitor is not None:
            state[_MONITOR] = {
                **self.monitor.state_dict(),
                "streaks": dict(self.alarm.streaks),
                "probed": self._probed,
            }
        return state | self.term_weights.state_dict()

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Take back what `state_dict` gave."""
        if self.monitor is not None:
            kept = state.get(_MONITOR, {})
            self.monitor.load_state_dict(kept)
            self.alarm.streaks = dict(kept.get("streaks", {}))
            self._probed = kept.get("probed")
        for term in self.terms:
            name = self.names[id(term)]
            if name in state:
                term.load_state_dict(state[name])
            else:
                logger.warning(
                    "The checkpoint has no state of %r; it starts anew", name
                )
        self.term_weights.load_state_dict(state)

    def _place_probes(self) -> None:
        device = self.world.device
        for term in self.decision_terms:
            term.probe = term.probe.to(device)
        for term in self.terms:
            if isinstance(term, MeaningAnchor):
                term.probe = term.probe.to(device)
        if self.monitor is not None:
            if self.reference is not None:
                self.monitor.prepare(self.reference)
            self.monitor.place(device)

    def _watch(
        self,
        streams: dict[int, Tensor],
        input_ids: Int[Tensor, "batch pos"],
        segments: Segments,
        spoken: Bool[Tensor, "batch pos"],
        *,
        training: bool,
    ) -> None:
        """Let the monitor read, where there is one."""
        if self.monitor is not None and self.monitor.layers:
            self.monitor.update(
                streams,
                segments.positions,
                segments.failure,
                spoken,
                input_ids=input_ids,
                turns=segments.exists,
                thoughts=self.markers.thoughts(input_ids, spoken),
                mode="train" if training else "eval",
            )


def reference_of(terms: Terms | Sequence[AbstractTerm]) -> Reference | None:
    """Return the reference that a preset's terms came with, None if there is none."""
    found = terms.reference if isinstance(terms, Terms) else None
    return found if isinstance(found, Reference) else None


def _distinct_names(terms: Sequence[AbstractTerm]) -> dict[int, str]:
    """Return a name for each term (by `id`), numbered where several share one."""
    names: dict[int, str] = {}
    for term in terms:
        count = sum(other.name == term.name for other in terms[: len(names)]) + 1
        names[id(term)] = term.name if count == 1 else f"{term.name}-{count}"
    return names
