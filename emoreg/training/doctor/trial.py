"""Trying out a trainer's step, and leaving the trainer as if nothing had happened."""

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from emoreg.losses.term import AbstractTerm
from emoreg.residual.layers import decoder_layers
from emoreg.training.gradients import trained_parameters
from emoreg.training.seam import Seam

_NUDGE = 1e-2
"""Standard deviation of a nudge, in units of a weight's own size."""


@contextmanager
def undisturbed(trainer: Any) -> Iterator[None]:
    """Put everything that a trial step changes back as it was, also after an error.

    Weights are not among it, since no optimizer is made and none steps; `Trial.nudged`
    puts back what it moves. Kept are random numbers, gradients, modes, hooks, what is
    logged, the terms' state, and every attribute of the trainer. Inside, gradient
    checkpointing is on if training will switch it on.
    """
    seam, model = trainer.emotions, trainer.model
    regularizer = seam.regularizer
    owners = [trainer, trainer.state, trainer.accelerator, seam, regularizer]
    owners.append(trainer.accelerator.gradient_state)
    owners += [x for x in vars(regularizer).values() if _keeps_state(x)]
    with ExitStack() as stack:
        stack.enter_context(_same_random_numbers())
        stack.enter_context(_same_parameters(model))
        stack.enter_context(_same_modules(model))
        stack.enter_context(_same_terms(regularizer.terms))
        for owner in owners:
            stack.enter_context(_same_attributes(owner))
        # It would scale gradients, and they are compared here.
        trainer.accelerator.scaler = None
        regularizer.gradients.every = 0  # these steps are looked at one by one
        regularizer.term_weights.release()  # with the weights as they are
        _checkpoint(model, trainer.args)
        yield


@final
class Trial:
    """Steps of a trainer on chosen rows, for the gradients they leave.

    It goes through the trainer's own `get_batch_samples` and `training_step`. Gradients
    and copies take as much memory as an Adam optimizer will. Use it inside
    `undisturbed`.
    """

    def __init__(self, trainer: Any) -> None:
        """Take the trainer's own way from rows to a batch."""
        self._trainer, self._seam = trainer, trainer.emotions
        self._loader = trainer.get_train_dataloader()
        self._terms: Sequence[AbstractTerm] = self._seam.regularizer.terms
        self._weights = [term.weight for term in self._terms]
        self._states = _states(self._terms)
        self.trained = trained_parameters(trainer.model)

    def first_batch(self) -> Any:
        """Return the first batch that training would see."""
        return next(iter(self._loader))

    def batch(self, rows: Sequence[int]) -> Any:
        """Return chosen rows of the training data as one batch."""
        return self._loader.collate_fn([self._loader.dataset[row] for row in rows])

    def step(
        self,
        batches: Sequence[Any],
        active: Sequence[AbstractTerm],
        *,
        task: bool,
        fresh: bool = True,
    ) -> None:
        """Run one optimizer step's forward and backward passes, without the optimizer.

        Gradients are in the parameters' `grad` afterwards. Anchors run if active and
        due; `anchor` runs one by itself.

        Args:
            batches: The step's micro-batches, which decide how parts are scaled.
            active: Terms that keep their weight; all others get 0.
            task: Whether the trainer's own loss counts, or is multiplied by 0.
            fresh: Whether terms have the state they came with, or the one that the
                step before has left.
        """
        trainer = self._trainer
        self._set(active, fresh=fresh)
        trainer.current_gradient_accumulation_steps = len(batches)
        copies = iter([dict(batch) for batch in batches])
        device = trainer.args.device
        samples, items = trainer.get_batch_samples(copies, len(batches), device)
        with _task(self._seam, counts=task), without_dropout(trainer.model):
            for sample in samples:
                trainer.training_step(trainer.model, sample, items)

    def anchor(self, term: AbstractTerm) -> None:
        """Run the auxiliary batch of one anchor; its gradient is in `grad` then."""
        self._set([term], fresh=True)
        regularizer, model = self._seam.regularizer, self._trainer.model
        # Each starts one step after the one before it.
        step = next(i for i, a in enumerate(regularizer.anchors) if a.term is term)
        model.train()
        backward = self._trainer.accelerator.backward
        with without_dropout(model):
            regularizer.auxiliary(model, step=step, backward=backward)

    def gradient(self) -> dict[str, Tensor]:
        """Return the gradient that is there; the next step makes tensors of its own."""
        named = self.trained.items()
        return {name: p.grad.detach() for name, p in named if p.grad is not None}

    @contextmanager
    def nudged(self) -> Iterator[None]:
        """Move the trained weights a little, and put them back bit for bit.

        A term that asks for nothing yet (an anchor at its reference, a reading inside
        its band) shows its gradient only where something has moved.
        """
        kept = {name: p.detach().clone() for name, p in self.trained.items()}
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.no_grad():
                for p in self.trained.values():
                    size = float(p.float().square().mean().sqrt()) or 1.0
                    noise = torch.randn(p.shape, generator=generator)
                    p.add_((_NUDGE * size * noise).to(p.device, p.dtype))
            yield
        finally:
            with torch.no_grad():
                for name, p in self.trained.items():
                    p.copy_(kept[name])

    def _set(self, active: Sequence[AbstractTerm], *, fresh: bool) -> None:
        """Switch terms on and off, `fresh` with their first state; drop gradients."""
        for term, weight, state in zip(
            self._terms, self._weights, self._states, strict=True
        ):
            term.weight = weight if any(term is one for one in active) else 0.0
            if fresh:
                term.load_state_dict(_cloned(state))
        for parameter in self._trainer.model.parameters():
            parameter.grad = None


@contextmanager
def counted_passes(
    trainer: Any, layers: Sequence[int]
) -> Iterator[dict[int, list[int]]]:
    """Count how often each block in `layers` runs with gradients.

    Yields:
        Per layer two numbers: during the trainer's loss, and outside it, which is the
        backward pass of gradient checkpointing.
    """
    counts = {layer: [0, 0] for layer in layers}
    seam, own = trainer.emotions, trainer.emotions.task_loss
    blocks, outside = decoder_layers(trainer.model), 1

    def inside(*args: Any, **kwargs: Any) -> Any:
        nonlocal outside
        outside = 0
        try:
            return own(*args, **kwargs)
        finally:
            outside = 1

    def count(layer: int) -> Any:
        def hook(*_: Any) -> None:
            counts[layer][outside] += torch.is_grad_enabled()

        return hook

    handles = [blocks[i].register_forward_hook(count(i)) for i in layers]
    try:
        with _task_loss(seam, inside):
            yield counts
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set every dropout rate to 0: two passes over the same rows must be the same.

    The mode stays `train`, on which gradient checkpointing and the terms depend.
    """
    changed: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        for name, value in vars(module).items():
            rate = "drop" in name or (
                name == "p" and "Dropout" in type(module).__name__
            )
            if rate and isinstance(value, float) and value:
                changed.append((module, name, value))
    try:
        for module, name, _ in changed:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def is_checkpointed(model: nn.Module) -> bool:
    """Return whether blocks run anew in the backward pass."""
    return any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


def _checkpoint(model: nn.Module, args: Any) -> None:
    """Switch gradient checkpointing on if the trainer will: `train` is what does it."""
    new, old = "activation_checkpointing", "gradient_checkpointing"
    name = new if hasattr(args, new) else old  # where both exist, the old one warns
    if getattr(args, name, False) and not is_checkpointed(model):
        getattr(model, f"{name}_enable")(getattr(args, f"{name}_kwargs", None))


@contextmanager
def _task(seam: Seam, *, counts: bool) -> Iterator[None]:
    """Let the trainer's own loss count, or multiply it by 0."""
    own = seam.task_loss

    def without(compute: Any, *args: Any, **kwargs: Any) -> Any:
        return own(lambda *a, **k: 0.0 * compute(*a, **k), *args, **kwargs)

    with _task_loss(seam, own if counts else without):
        yield


@contextmanager
def _task_loss(seam: Seam, function: Callable[..., Any]) -> Iterator[None]:
    """Have the trainer call `function` in place of the seam's `task_loss`."""
    before = dict(vars(seam))
    vars(seam)["task_loss"] = function
    try:
        yield
    finally:
        del vars(seam)["task_loss"]
        if "task_loss" in before:
            vars(seam)["task_loss"] = before["task_loss"]


@contextmanager
def _same_attributes(owner: Any) -> Iterator[None]:
    """Let `owner` work with copies of its lists and dicts, and give the real ones back.

    The data sets are left out: nothing here changes them, and they may be long lists.
    """
    kept = dict(vars(owner))
    for name, value in kept.items():
        if not name.endswith("_dataset"):
            vars(owner)[name] = _copied(value)
    try:
        yield
    finally:
        vars(owner).clear()
        vars(owner).update(kept)


def _keeps_state(part: Any) -> bool:
    """Say whether it is one of the package's own objects: monitor, ledger, alarm."""
    return type(part).__module__.startswith("emoreg.") and hasattr(part, "__dict__")


def _copied(value: Any) -> Any:
    """Return a copy of plain containers; what they hold stays the same."""
    if type(value) in (list, deque):
        twin = value.copy()
        twin.clear()
        twin.extend(_copied(item) for item in value)
        return twin
    if type(value) in (dict, OrderedDict, defaultdict):
        twin = value.copy()
        twin.update({key: _copied(item) for key, item in value.items()})
        return twin
    return value.copy() if type(value) is set else value


@contextmanager
def _same_terms(terms: Sequence[AbstractTerm]) -> Iterator[None]:
    states = _states(terms)
    try:
        with ExitStack() as stack:
            for term in terms:
                stack.enter_context(_same_attributes(term))
            yield
    finally:
        for term, state in zip(terms, states, strict=True):
            term.load_state_dict(state)


def _states(terms: Sequence[AbstractTerm]) -> list[dict[str, Tensor]]:
    return [_cloned(term.state_dict()) for term in terms]


def _cloned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


@contextmanager
def _same_parameters(model: nn.Module) -> Iterator[None]:
    kept = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    for parameter, _, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, grad, trained in kept:
            parameter.requires_grad_(trained)  # disabling an adapter freezes it
            parameter.grad = grad


@contextmanager
def _same_modules(model: nn.Module) -> Iterator[None]:
    """Keep modes, settings and hooks; parameters and children are the same objects."""
    kept = [(m, dict(vars(m)), dict(m._forward_hooks)) for m in model.modules()]
    try:
        yield
    finally:
        for module, settings, hooks in kept:
            vars(module).clear()
            vars(module).update(settings)
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    python, arrays = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
