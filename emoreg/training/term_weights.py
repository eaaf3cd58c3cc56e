"""The terms' weights while training: measured at the start, then set from targets."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.band import BandPenalty
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.targets import RANGE, Targets, TargetWeight, first_weight, updated
from emoreg.losses.term import AbstractTerm
from emoreg.training.gradients import AT_REST, GradientMeter
from emoreg.training.world import World

EVERY = 10
"""Optimizer steps from one update of the weights to the next."""
RATIOS = {ContrastPenalty: 0.20, MeaningAnchor: 0.10, BandPenalty: 0.05}
"""How hard a kind of term pulls at the start, as a share of the task; several of one
kind share it."""
_MEASURED, _TRIED = 4, 8
"""Batches that a first weight is made from, and most that are looked at for them."""
_DECAY = 0.8
"""Memory of the KL from one of its batches to the next, which are few."""
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
        self._told = False
        self._set: set[str] = set()
        self._weights: dict[str, TargetWeight] = {}
        # By name: decayed sum of the KL and count of its batches, and the latest KL.
        self._kl: dict[str, Tensor] = {}
        # By name, until there is a first weight: norms of the term's and the task's
        # gradient in each batch.
        self._norms: dict[str, list[tuple[float, float]]] = {}
        self._errors: dict[str, float] = {}
        self._gradients: list[dict[str, float]] = []

    def aim(self, targets: Targets | None) -> None:
        """Set the weights from `targets` from now on; None leaves them as they are."""
        if targets is None:
            return
        self._targets = targets
        for name, term in self._terms.items():
            if not term.weight:
                continue
            if type(term) in RATIOS:
                self._norms[name] = []
            elif isinstance(term, ReferenceKL):
                self._weights[name] = TargetWeight(start=term.weight)
                self._kl[name] = torch.zeros(3, device=self._world.device)
        self._set = {*self._norms, *self._weights}
        self._ask()

    def release(self) -> None:
        """Leave the weights as they are."""
        self._targets = None

    def heard(self, term: AbstractTerm, value: Tensor) -> None:
        """Take the value that an anchor had in this process; all processes call it."""
        name = self._names[id(term)]
        if self._targets is None or name not in self._kl:
            return
        latest = self._world.reduce(value.float()) / self._world.processes
        total, count, _ = self._kl[name]
        fine = latest.isfinite()
        kept = torch.where(fine, _DECAY, 1.0)
        total = kept * total + torch.where(fine, latest, 0.0)
        self._kl[name] = torch.stack([total, kept * count + fine, latest])

    def after(self, step: int) -> None:
        """Do what is due after the batches of optimizer step `step`."""
        if self._targets is None:
            return
        if self._norms:
            self._measure()
        if (step + 1) % EVERY == 0:
            self._update(self._targets)

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
        weights = {
            name: [w.start, w.error, w.integral, w.stuck]
            for name, w in self._weights.items()
        }
        return {
            _STATE: {
                "given": {name: self._terms[name].weight for name in self._set},
                "weights": weights,
                "kl": {name: kept.cpu() for name, kept in self._kl.items()},
                "norms": {name: list(pairs) for name, pairs in self._norms.items()},
                "errors": dict(self._errors),
            }
        }

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
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
        for name in self._set & state["given"].keys():
            self._terms[name].weigh(state["given"][name])
            self._norms.pop(name, None)
            if name in state["norms"]:
                self._norms[name] = list(state["norms"][name])
            if name in state["weights"]:
                start, error, integral, stuck = state["weights"][name]
                self._weights[name] = TargetWeight(
                    start=start, error=error, integral=integral, stuck=stuck
                )
            if name in state["kl"]:
                self._kl[name] = state["kl"][name].to(device)
            if name in state["errors"]:
                self._errors[name] = state["errors"][name]
        self._ask()

    def _ask(self) -> None:
        """Have each step's gradients measured while a first weight is missing."""
        self._meter.every = 1 if self._norms else self._usual

    def _measure(self) -> None:
        """Note the norms that this step has measured; first weights that are due."""
        line = self._meter.metrics()
        self._gradients += [line] if line else []
        norms = {k.removeprefix("emotion_gradient/"): v for k, v in line.items()}
        for name in [k for k in self._norms if not self._terms[k].weight]:
            del self._norms[name]  # switched off meanwhile, and stays so
        measured = [name for name in self._norms if name in norms]
        if not self._meter.every:
            self._usual = 0
            self._keep_given("gradients can't be measured; the warning before says why")
        elif measured and "task" not in norms:
            self._keep_given(
                "the task's gradient is not known; pass `task=` to `terms`"
            )
        else:
            for name in measured:
                self._note(name, norms[name], norms["task"])
        if not self._norms:
            self._ask()

    def _note(self, name: str, own: float, task: float) -> None:
        """Keep the norms of a batch; set the first weight if there are enough."""
        pairs = self._norms[name]
        pairs.append((own / self._terms[name].weight, task))
        enough = len(self._pulling(name)) == _MEASURED
        if enough or len(pairs) == _TRIED:
            self._start(name)

    def _pulling(self, name: str) -> list[tuple[float, float]]:
        """Return the norms of the batches in which a term was not at rest."""
        weight = self._terms[name].weight
        return [
            (own, task)
            for own, task in self._norms[name]
            if math.isfinite(own) and task > 0 and own * weight > AT_REST * task
        ]

    def _start(self, name: str) -> None:
        """Give a term its first weight; the given one if it pulled in no batch."""
        term, pairs = self._terms[name], self._pulling(name)
        if pairs:
            alike = [x for x in self._terms.values() if type(x) is type(term)]
            ratio = RATIOS[type(term)] / sum(x.weight > 0 for x in alike)
            found = first_weight(ratio, [t for _, t in pairs], [o for o, _ in pairs])
            # A term near its rest would get any weight, and keep it when it leaves.
            term.weigh(min(found, RANGE * term.weight))
        del self._norms[name]
        if not isinstance(term, MeaningAnchor):
            self._weights[name] = TargetWeight(start=term.weight)

    def _keep_given(self, reason: str) -> None:
        names = list(self._norms)
        if names and self._world.process == 0:
            logger.warning(
                "The first weights of %s stay the given ones: %s",
                ", ".join(names),
                reason,
            )
        for name in names:
            self._norms[name] = []
            self._start(name)

    def _update(self, targets: Targets) -> None:
        # One that was switched off stays so, and its last error is no reason to act.
        now = {k: w for k, w in self._weights.items() if self._terms[k].weight}
        if not now:
            return
        found = torch.stack([self._figure(self._terms[name]) for name in now])
        # All processes have the same figures; the mean makes sure, to the last bit.
        figures = (self._world.reduce(found) / self._world.processes).tolist()
        errors = {
            name: _error(self._terms[name], figure, targets)
            for name, figure in zip(now, figures, strict=True)
        }
        self._errors |= errors
        self._weights |= updated(now, errors, guards=self._kl)
        for name in now:
            self._terms[name].weigh(self._weights[name].weight)
        self._tell()

    def _figure(self, term: AbstractTerm) -> Tensor:
        """Return what a target is about: share of the slope, KL, place in the band."""
        device = self._world.device
        if isinstance(term, ContrastPenalty):
            return term.left.to(device).float()
        if isinstance(term, BandPenalty):
            return term.outside.to(device).float()
        total, count, latest = self._kl[self._names[id(term)]]
        # 0 / 0 before the first batch. After one that is not finite, nothing is known.
        return torch.where(latest.isfinite(), total / count, torch.nan)

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


def _error(term: AbstractTerm, figure: float, targets: Targets) -> float:
    """Return the error of what a target is about; a place in the band is one."""
    if isinstance(term, ContrastPenalty):
        return targets.slope_error(figure)
    if isinstance(term, ReferenceKL):
        return targets.kl_error(figure)
    return figure
