"""The terms' weights while training: measured at the start, then set from targets."""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.band import BandPenalty
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.targets import RANGE, Steered, Targets, first_weight, updated
from emoreg.losses.term import AbstractTerm
from emoreg.training.auxiliary import Anchor, due
from emoreg.training.gradients import AT_REST, GradientMeter
from emoreg.training.world import World

EVERY = 10
"""Optimizer steps from one update of the weights to the next."""
RATIOS = {ContrastPenalty: 0.20, MeaningAnchor: 0.10, BandPenalty: 0.05}
"""How hard a kind of term pulls at the start, as a share of the task; several of one
kind share it."""
_MEASURED, _TRIED = 4, 8
"""Batches that a first weight is made from, and that are looked at for them."""
_DECAY = 0.8
"""Memory of the KL, in its batches: shorter than the contrast's, since it is held."""
_PATIENCE = 10
"""Updates that may do nothing for a target before the user is told."""
_STATE = "targets"

logger = logging.getLogger(__name__)


@final
class TermWeights:
    """Sets the weights of a run's terms, if there are targets.

    The first weights of contrast, band and meaning anchor follow from the gradients
    of the first batches (`RATIOS`), as `GradientMeter` measures them; that of the KL
    is the given one, since at the reference it has no gradient. From then on contrast,
    band and KL are set by their targets (`emoreg.losses.targets.updated`); the meaning
    anchor has none and keeps its weight, and so do other kinds of term and any whose
    weight is 0.

    Every process comes to the same weights: what they are set from is summed over
    processes. It waits for the device at each update, and at each measured batch.
    """

    def __init__(
        self,
        world: World,
        names: Mapping[int, str],
        terms: Sequence[AbstractTerm],
        meter: GradientMeter,
    ) -> None:
        """Leave the weights as they are, until `aim`."""
        self._world, self._meter, self._names = world, meter, names
        self._terms = {names[id(term)]: term for term in terms}
        self._targets: Targets | None = None
        self._usual = meter.every
        self._asked = self._told = False
        self._set: set[str] = set()
        self._weights: dict[str, Steered] = {}
        self._kl: dict[str, Tensor] = {}
        # Norms of gradients by name, of the task beside each, until there is a weight.
        self._norms: dict[str, list[tuple[float, float]]] = {}
        self._tried: dict[str, int] = {}
        self._errors: dict[str, float] = {}
        self._gradients: list[dict[str, float]] = []
        self._step = -1

    def aim(self, targets: Targets | None) -> None:
        """Set the weights from `targets` from now on; None leaves them as they are."""
        if targets is None:
            return
        self._targets = targets
        for name, term in self._terms.items():
            if not term.weight:
                continue
            if type(term) in RATIOS:
                self._norms[name], self._tried[name] = [], 0
            elif isinstance(term, ReferenceKL):
                self._weights[name] = Steered(start=term.weight)
                self._kl[name] = torch.zeros(3, device=self._world.device)
        self._set = {*self._norms, *self._weights}
        self._ask(bool(self._norms))

    def release(self) -> None:
        """Leave the weights as they are."""
        self._targets = None

    def heard(self, term: AbstractTerm, value: Tensor) -> None:
        """Take the value that an anchor had in this process; all processes call it."""
        name = self._names[id(term)]
        if self._targets is None or name not in self._kl:
            return
        fine = value.isfinite()
        found = torch.stack([torch.where(fine, value, 0.0), fine.float()]).float()
        total, count = self._world.reduce(found)
        past = self._kl[name]
        kept = torch.where(count > 0, _DECAY, 1.0)
        lost = self._world.processes - count
        self._kl[name] = torch.stack(
            [kept * past[0] + total, kept * past[1] + count, lost]
        )

    def after(self, step: int, anchors: Sequence[Anchor]) -> None:
        """Do what is due after the batches of optimizer step `step`."""
        if self._targets is None:
            return
        self._step = step
        for name in [k for k in self._norms if not self._terms[k].weight]:
            del self._norms[name], self._tried[name]  # switched off meanwhile
        if self._norms:
            self._measure()
        if (step + 1) % EVERY == 0 and self._weights:
            self._update(self._targets)
        self._ask(self._wants(step + 1, anchors))

    def metrics(self) -> dict[str, float]:
        """Return the targets' errors, and gradients measured since the last call."""
        found = {
            f"emotion_error/{name}": error
            for name, error in self._errors.items()
            if math.isfinite(error)
        }
        lines, self._gradients = self._gradients, []
        for key in dict.fromkeys(key for line in lines for key in line):
            values = [line[key] for line in lines if key in line]
            found[key] = math.fsum(values) / len(values)
        return found

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return what a checkpoint must hold, under a name; nothing without targets."""
        if self._targets is None:
            return {}
        steered = {
            name: [w.start, w.offset, w.error, w.stuck]
            for name, w in self._weights.items()
        }
        return {
            _STATE: {
                "steered": steered,
                "weights": {name: self._terms[name].weight for name in self._set},
                "kl": {name: kept.cpu() for name, kept in self._kl.items()},
                "norms": {name: list(pairs) for name, pairs in self._norms.items()},
                "tried": dict(self._tried),
                "errors": dict(self._errors),
                "step": self._step,
            }
        }

    def load_state_dict(
        self, states: Mapping[str, dict[str, Any]], anchors: Sequence[Anchor]
    ) -> None:
        """Take back what `state_dict` gave."""
        if self._targets is None:
            return
        if _STATE not in states:
            logger.warning(
                "The checkpoint has no weights that targets have set; they are "
                "measured and set anew"
            )
            return
        # A term that is new, or was off, starts as in a new run; one off now stays so.
        state, device = states[_STATE], self._world.device
        for name in self._set & state["weights"].keys():
            self._terms[name].weight = state["weights"][name]
            for own, kept in ((self._norms, "norms"), (self._tried, "tried")):
                own.pop(name, None)
                if name in state[kept]:
                    own[name] = copy.copy(state[kept][name])
            if name in state["steered"]:
                start, offset, error, stuck = state["steered"][name]
                self._weights[name] = Steered(
                    start=start, offset=offset, error=error, stuck=stuck
                )
            if name in state["kl"]:
                self._kl[name] = state["kl"][name].to(device)
            if name in state["errors"]:
                self._errors[name] = state["errors"][name]
        self._step = state["step"]
        self._ask(self._wants(self._step + 1, anchors))

    def _ask(self, wanted: bool) -> None:
        """Have the next step's gradients measured, or when they usually are."""
        if wanted != self._asked:  # untouched otherwise: the meter may have given up
            self._meter.every = 1 if wanted else self._usual
        self._asked = wanted

    def _wants(self, step: int, anchors: Sequence[Anchor]) -> bool:
        """Return whether a term that has no first weight acts in `step`."""
        if not self._norms:
            return False
        held = [anchor.term for anchor in anchors]
        now = [anchor.term for anchor in due(anchors, step)]
        waiting = [self._terms[name] for name in self._norms]
        return any(
            not any(term is x for x in held) or any(term is x for x in now)
            for term in waiting
        )

    def _measure(self) -> None:
        """Note the norms that this step has measured; a first weight if it is due."""
        if self._asked and not self._meter.every:
            self._usual = 0
            self._keep_given("gradients can't be measured; the warning before says why")
            return
        line = self._meter.metrics()
        self._gradients += [line] if line else []
        norms = {k.removeprefix("emotion_gradient/"): v for k, v in line.items()}
        measured = [name for name in self._norms if name in norms]
        if measured and "task" not in norms:
            self._keep_given(
                "the task's gradient is not known; pass `task=` to `terms`"
            )
            return
        for name in measured:
            own, task = norms[name] / self._terms[name].weight, norms["task"]
            self._tried[name] += 1
            if math.isfinite(own) and norms[name] > AT_REST * task > 0:
                self._norms[name].append((own, task))
            if len(self._norms[name]) == _MEASURED or self._tried[name] == _TRIED:
                self._start(name)

    def _start(self, name: str) -> None:
        """Give a term its first weight; the given one if it pulled in no batch."""
        term, pairs = self._terms[name], self._norms.pop(name)
        if pairs:
            alike = [x for x in self._terms.values() if type(x) is type(term)]
            ratio = RATIOS[type(term)] / sum(x.weight > 0 for x in alike)
            found = first_weight(ratio, [t for _, t in pairs], [o for o, _ in pairs])
            # A term near its rest would get any weight, and keep it when it leaves.
            term.weight = min(found, RANGE * term.weight)
        self._tried.pop(name)
        if not isinstance(term, MeaningAnchor):
            self._weights[name] = Steered(start=term.weight)

    def _keep_given(self, reason: str) -> None:
        names = list(self._norms)
        if self._world.process == 0:
            logger.warning(
                "The first weights of %s stay the given ones: %s",
                ", ".join(names),
                reason,
            )
        for name in names:
            self._norms[name] = []
            self._start(name)

    def _update(self, targets: Targets) -> None:
        names = list(self._weights)
        found = torch.stack([self._figure(self._terms[name]) for name in names])
        # Equal on all processes already; so the weights are, to the last bit.
        figures = (self._world.reduce(found) / self._world.processes).tolist()
        for name, figure in zip(names, figures, strict=True):
            term = self._terms[name]
            if isinstance(term, ContrastPenalty):
                figure = targets.slope_error(figure)
            elif isinstance(term, ReferenceKL):
                figure = targets.kl_error(figure)
            self._errors[name] = figure
        errors = {name: self._errors[name] for name in names}
        self._weights = updated(self._weights, errors, guards=set(self._kl))
        for name, steered in self._weights.items():
            if self._terms[name].weight:  # one that was switched off stays so
                self._terms[name].weight = steered.weight
        self._tell()

    def _figure(self, term: AbstractTerm) -> Tensor:
        """Return what a target is about: share of the slope, KL, place in the band."""
        device = self._world.device
        if isinstance(term, ContrastPenalty):
            return term.left.to(device).float()
        if isinstance(term, BandPenalty):
            return term.outside.to(device).float()
        total, count, lost = self._kl[self._names[id(term)]]
        # 0 / 0 before the first batch; and what was lost in the latest is not known.
        return torch.where(lost > 0, torch.nan, total / count)

    def _tell(self) -> None:
        """Say once that a weight has long been of no help."""
        stuck = [k for k, w in self._weights.items() if w.stuck >= _PATIENCE]
        if not stuck or self._told:
            return
        self._told = True
        if self._world.process == 0:
            logger.warning(
                "Targets are missed for %d steps, with weights that can't help: %s. "
                "Training goes on, with weights within their limits. Ask for less, "
                "or give the terms other weights to start from",
                EVERY * _PATIENCE,
                "; ".join(self._said(name) for name in stuck),
            )

    def _said(self, name: str) -> str:
        kept, error = self._weights[name], self._errors[name]
        times = kept.weight / kept.start
        return (
            f"{name} has weight {kept.weight:.3g}, {times:.3g} times its first, and "
            f"error {error:.3g}"
        )
