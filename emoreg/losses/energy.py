"""Bringing whole distributions of failing readings to those of succeeding ones."""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emoreg.losses.means import present, share, success_anchor, weighted_sum
from emoreg.losses.term import (
    AbstractDecisionTerm,
    DecisionReadings,
    Probe,
    Reduce,
    alone,
    checked_weight,
)


@final
class EnergyDistance(AbstractDecisionTerm):
    """Makes failing readings like succeeding ones: means, spread and rare spikes.

    With `a` a failing and `b` a succeeding reading, per layer and emotion::

        L = mean_{l,e} [ 2 E|a - b| - E|a - a'| - E|b - b'| ]
            + 1/2 mean over succeeding segments, l, e of (p - p_ref)^2

    `a` is of the present batch, with gradient; `a'`, `b`, `b'` are of two banks of
    past readings without one, so that one row a batch is enough. The gradient is that
    of the distance itself, in which `a` stands on both sides of `E|a - a'|`: twice
    what the present batch alone would get. Until both banks are full the whole term is
    zero.

    It is for what a mean hides. Readings are compared as they are, the spread between
    tasks included, whether the reference's are cached or not. It has no direction: the
    success anchor and the missing gradient on succeeding segments are what keep
    success from becoming desperate instead. Nor has it a target: it asks for all of
    the difference to go.

    Each process has banks of its own, of the rows it saw, so that no collective depends
    on the data; a checkpoint has those of the process that wrote it.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        weight: float = 1.0,
        size: int = 64,
        anchor: float = 0.5,
    ) -> None:
        """Make the term.

        Args:
            probe: How to read; its unit is `sigma_ref`.
            weight: Factor of the term.
            size: Readings in each bank; more are surer and older.
            anchor: Factor of the success anchor; 0 leaves success free to drift.

        Raises:
            ValueError: If the banks are too small to have a spread, or the weight is
                negative.
        """
        if size < 2:
            raise ValueError(f"`size` must be at least 2, got {size}. 64 is a start")
        self.name, self.weight = "energy", checked_weight(weight)
        self.probe, self.size, self._anchor = probe, size, anchor
        shape = (len(probe.layers), len(probe.emotions))
        self._failing, self._succeeding = Bank(shape, size), Bank(shape, size)

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the distance; see the class."""
        values, weight = readings.values, readings.failing
        for bank, side in self._banks(readings):
            if not readings.continues:
                bank.settle()
            bank.add(values.detach(), side)
        scale = share(reduce(readings.failing_step), reduce)
        anchor = self._anchor * success_anchor(readings, reduce)
        mine = present(values, weight)
        across, within = self._succeeding.distance(mine), self._failing.distance(mine)
        value = 2 * across - within - self._succeeding.spread()
        pull = 2 * (across - within)
        each = value.detach() + pull - pull.detach()
        loss = weighted_sum(each, weight).mean() * scale + anchor
        return torch.where(self._failing.full & self._succeeding.full, loss, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return both banks, the latest step's readings among them."""
        state: dict[str, Tensor] = {}
        for name, bank in (
            ("failing", self._failing),
            ("succeeding", self._succeeding),
        ):
            bank.settle()
            state[f"{name}_values"] = bank.values.cpu()
            state[f"{name}_weights"] = bank.weights.cpu()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back both banks."""
        for name, bank in (
            ("failing", self._failing),
            ("succeeding", self._succeeding),
        ):
            bank.start_from(state[f"{name}_values"], state[f"{name}_weights"])

    def _banks(self, readings: DecisionReadings) -> list[tuple["Bank", Tensor]]:
        return [
            (self._failing, readings.failing),
            (self._succeeding, readings.succeeding),
        ]


@final
class Bank:
    """The latest readings of one side, with their weights, oldest first.

    What is added takes effect at `settle`, so that the parts of a step see the same.
    Until it is full there may be rows of weight 0, which stand for nothing: how many
    segments a batch has is known on the device alone, and is not waited for.
    """

    def __init__(self, shape: tuple[int, int], size: int) -> None:
        """Start empty; `shape` is layers and emotions."""
        self.size = size
        self.start_from(torch.zeros(0, *shape), torch.zeros(0))

    def start_from(self, values: Tensor, weights: Tensor) -> None:
        """Take these as what the bank holds."""
        self.values, self.weights = values, weights
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @property
    def full(self) -> Bool[Tensor, ""]:
        """Return whether it holds as many readings as it can."""
        return (self.weights > 0).sum() >= self.size

    def add(
        self,
        values: Float[Tensor, "segment layer emotion"],
        weights: Float[Tensor, " segment"],
    ) -> None:
        """Keep the segments that are there for the next `settle`."""
        self._waiting.append((present(values, weights), weights))
        # A bank from a checkpoint, or a new one, follows the readings.
        self.values = self.values.to(values)
        self.weights = self.weights.to(weights)

    def settle(self) -> None:
        """Let in what was added; the oldest go, and rows of weight 0 before them."""
        values = torch.cat([self.values, *(v for v, _ in self._waiting)])
        weights = torch.cat([self.weights, *(w for _, w in self._waiting)])
        latest = (weights > 0).int().argsort(stable=True)[-self.size :]
        self.start_from(values.index_select(0, latest), weights.index_select(0, latest))

    def distance(
        self, values: Float[Tensor, "segment layer emotion"]
    ) -> Float[Tensor, "segment layer emotion"]:
        """Return the mean distance of each value to what the bank holds."""
        apart = (values[:, None] - self.values[None]).abs()
        shares = self.weights / self.weights.sum().clamp(min=1e-6)
        return torch.einsum("sble,b->sle", apart, shares)

    def spread(self) -> Float[Tensor, "layer emotion"]:
        """Return the mean distance between two different readings in the bank."""
        apart = (self.values[:, None] - self.values[None]).abs()
        total = torch.einsum("able,a,b->le", apart, self.weights, self.weights)
        pairs = self.weights.sum().square() - self.weights.square().sum()
        return total / pairs.clamp(min=1e-6)
