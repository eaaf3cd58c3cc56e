"""How hard each term pulls at the trained weights, and whether against the task."""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.term import AbstractPassageTerm, AbstractTerm
from emoreg.residual.layers import unwrapped
from emoreg.training.world import World

AT_REST = 1e-4
"""Of the task's gradient: less is rounding, of a term that asks for nothing."""

Gradient = Mapping[str, Tensor]
"""By the parameter's name; one that a loss does not reach is left out."""

logger = logging.getLogger(__name__)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training moves, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def length(gradient: Gradient) -> Float[Tensor, ""]:
    """Return the norm over all parameters, in float32, on the first one's device."""
    if not gradient:
        return torch.zeros(())
    norms = [
        torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradient.values()
    ]
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))


def cosine(own: Gradient, task: Gradient) -> Float[Tensor, ""]:
    """Return the cosine of two gradients; NaN where `own` is at rest beside `task`."""
    shared = [name for name in own if name in task]
    size, other = length(own), length(task)
    if not shared:
        return torch.full_like(size, math.nan)
    dots = [(own[k].float() * task[k].float()).sum() for k in shared]
    dot = torch.stack([d.to(size.device) for d in dots]).sum()
    moves = (size > AT_REST * other) & (other > 0)
    return torch.where(moves, dot / (size * other), math.nan)


def obstacle(model: nn.Module, *, args: Any = None, scaler: Any = None) -> str:
    """Return why a second backward pass would fail or harm the first; empty if not.

    Args:
        model: As the trainer calls it, in all its wrappers.
        args: The trainer's settings, if there is one.
        scaler: The loss scaler of float16 training, if there is one.
    """
    modules, parameters = list(model.modules()), list(model.parameters())
    inner: Any = unwrapped(model)
    fused = getattr(args, "use_liger_kernel", False) or getattr(
        inner, "use_kernels", False
    )
    reasons = {
        "DeepSpeed runs the backward pass": type(model).__name__ == "DeepSpeedEngine"
        or any(hasattr(p, "ds_id") for p in parameters),
        "the weights are spread over processes": any(
            hasattr(p, "placements") for p in parameters
        ),
        "DDP takes the first backward pass for the whole (`static_graph`)": getattr(
            model, "static_graph", False
        ),
        "reentrant gradient checkpointing allows one backward pass alone; "
        "`use_reentrant=False` allows more": any(map(_is_reentrant, modules)),
        "activations are offloaded, and come back once": getattr(
            args, "activation_offloading", False
        ),
        "fused kernels overwrite what a second backward pass needs": fused,
        "a compiled backward pass runs once": any(map(_is_compiled, modules)),
        "float16 gradients overflow by design until the loss scale has settled; "
        "bf16 needs none": scaler is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _is_reentrant(module: nn.Module) -> bool:
    function = getattr(module, "_gradient_checkpointing_func", None)
    settings = function.keywords if isinstance(function, functools.partial) else {}
    on = getattr(module, "gradient_checkpointing", False)
    return bool(on and settings.get("use_reentrant", False))


def _is_compiled(module: nn.Module) -> bool:
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
    )


@final
class GradientMeter:
    """Measures each term's gradient beside the task's, every so many steps.

    Decision terms on the first batch of a step that is due, by extra backward passes
    through the graph that training is about to use; anchors at their next auxiliary
    batch, against that step's task gradient, which is kept until then. Memory: a copy
    of the trained parameters' gradient while it is kept, and another one while a term
    is measured. Over processes the gradients are averaged first, as the trainer does,
    so that the figures are those of the global batch.
    """

    def __init__(
        self,
        world: World,
        names: Mapping[int, str],
        terms: Sequence[AbstractTerm],
        *,
        every: int,
    ) -> None:
        """Measure `terms` every `every` optimizer steps, from the first; 0 is never.

        `names` are what they are logged as, by `id`.
        """
        self.every, self._world = every, world
        self._names, self._terms = names, terms
        self._asked = self._told = False
        self._parameters: dict[str, nn.Parameter] = {}
        self._task: Gradient | None = None
        self._waiting: set[str] = set()
        self._found: dict[str, list[Tensor]] = {}

    def opened(
        self, model: nn.Module, *, step: int, args: Any = None, scaler: Any = None
    ) -> dict[str, Tensor] | None:
        """Return a place for a batch's weighted terms if they are due; None if not.

        Args:
            model: As it is called, in all its wrappers.
            step: Optimizer steps so far.
            args: A trainer's settings, if there is one.
            scaler: The loss scaler of float16 training, if there is one.
        """
        due = self.every and step % self.every == 0
        if not due or not any(term.weight for term in self._terms):
            return None
        if not self._asked:
            self._asked = True
            if reason := obstacle(model, args=args, scaler=scaler):
                self._give_up(reason)
        return {} if self.every else None

    def measure(
        self, model: nn.Module, task: Tensor | None, terms: Mapping[str, Tensor]
    ) -> None:
        """Measure losses whose backward pass is still to come; their graph is kept.

        Args:
            model: Whose trained parameters the gradients are of.
            task: The loss without terms; None where it is not known, and there are no
                cosines then.
            terms: Weighted decision terms by name. The anchors are measured when they
                run next.
        """
        self._parameters, self._task = trained_parameters(model), None
        self._waiting = {
            self._names[id(term)]
            for term in self._terms
            if term.weight and isinstance(term, AbstractPassageTerm)
        }
        if task is not None:
            self._task = self._gradient(task)
        if self._task is not None:
            self._note("task", length(self._task))
        for name, loss in terms.items():
            self._compare(name, loss)
        self._let_go()

    def around(
        self, name: str, backward: Callable[[Tensor], Any]
    ) -> Callable[[Tensor], Any]:
        """Return `backward`, with the anchor measured before it if it is waited for."""

        def measured(loss: Tensor) -> None:
            self._waiting.discard(name)
            self._compare(name, loss)
            self._let_go()
            backward(loss)

        return measured if name in self._waiting else backward

    def metrics(self) -> dict[str, float]:
        """Return means over what was measured since the last call.

        They are the same on every process. There is no cosine where a gradient is at
        rest.
        """
        found, self._found = self._found, {}
        means = {
            name: float(torch.stack(values).nanmean())
            if name.endswith("_cosine")
            else float(torch.stack(values).mean())
            for name, values in found.items()
        }
        return {
            f"emotion_gradient/{name}": value
            for name, value in means.items()
            if not (name.endswith("_cosine") and math.isnan(value))
        }

    def _compare(self, name: str, loss: Tensor) -> None:
        own = self._gradient(loss)
        if own is None:
            return
        self._note(name, length(own))
        if self._task is not None:
            self._note(f"{name}_cosine", cosine(own, self._task))

    def _note(self, name: str, value: Tensor) -> None:
        self._found.setdefault(name, []).append(value.to(self._world.device))

    def _let_go(self) -> None:
        if not self._waiting:
            self._task = None

    def _gradient(self, loss: Tensor) -> Gradient | None:
        """Return the gradient, averaged over processes; None if it can't be had."""
        many = self._world.processes > 1
        if not self.every:
            return None
        try:
            found = _backward(loss, self._parameters)
        except RuntimeError as error:
            self._give_up(" ".join(str(error).split()), stop=not many)
            if not many:
                return None
            # The other processes are about to sum theirs with this one's.
            named = self._parameters.items()
            found = {n: torch.full_like(p, math.nan) for n, p in named}
        return self._averaged(found) if many else found

    def _averaged(self, gradient: Gradient) -> Gradient:
        """Average over processes: zeros where a loss does not reach a parameter."""
        reduce, processes = self._world.reduce, self._world.processes
        named = self._parameters.items()
        return {
            n: reduce(gradient[n] if n in gradient else torch.zeros_like(p)) / processes
            for n, p in named
        }

    def _give_up(self, reason: str, *, stop: bool = True) -> None:
        if stop:
            self.every, self._task = 0, None
            self._waiting.clear()
        speaks = self._world.process == 0 or not stop
        if speaks and not self._told:
            logger.warning(
                "Gradients of the terms can't be measured, so `emotion_gradient` is "
                "%s: %s. `Monitor(gradients_every=0)` does not ask for them",
                "not logged" if stop else "NaN",
                reason,
            )
        self._told = True


def _backward(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> Gradient:
    """Return the gradient of `loss`, whose graph stays for the training's own pass."""
    # As the training's own backward pass runs: outside of autocast.
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(
            loss, list(parameters.values()), retain_graph=True, allow_unused=True
        )
    named = zip(parameters, found, strict=True)
    return {name: g.detach() for name, g in named if g is not None}
