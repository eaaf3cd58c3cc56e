"""Where twins exist: each failing turn to where its passing twin stood."""

from typing import final

import torch
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
class TwinPenalty(AbstractDecisionTerm):
    """Pulls each failing turn's reading to its passing twin's, in the reference.

    `L = mean over failing segments, l, e of (p - p_twin)^2
    + 1/2 mean over succeeding segments, l, e of (p - p_ref)^2`.

    Twins differ in the feedback alone, so `p_twin` is what this very turn would read
    had its feedback been the other: no running mean, no confounds, one row a batch is
    enough. `ContrastPenalty` asks the same of the mean over tasks and leaves each task
    its own offset; here every failing turn has a target. Only directions that the
    probe reads are matched, never the whole state, so that the model may go on knowing
    that it failed.

    The second line is the success anchor: without it both twins could move together.

    The data set needs a column `pair`, by which rows are found to be twins; the
    trainer's seam then gives the term the twin's cached readings.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        weight: float = 1.0,
        anchor: float = 0.5,
        name: str = "twins",
    ) -> None:
        """Make the term.

        Args:
            probe: How to read; its unit is `sigma_ref`.
            weight: Factor of the whole term.
            anchor: Factor of the success anchor; 0 leaves success free to drift.
            name: What it is logged as.

        Raises:
            ValueError: If the weight is negative.
        """
        self.name, self.weight = name, checked_weight(weight)
        self.probe, self._anchor = probe, anchor

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the mean squared distance from the twins.

        Args:
            readings: Their `reference` is the passing twin's where a segment fails.
            reduce: Sums over processes.

        Raises:
            ValueError: If the reference's readings are not cached.
        """
        if readings.reference is None and len(readings.values):
            raise ValueError(
                f"{self.name} compares failing turns with their passing twins, whose "
                "cached readings must be there; these rows have none. Train on a data "
                "set with a column `pair`, through `emoreg.attach`; rollouts, images "
                "and loops of your own have no twins"
            )
        twin = readings.values if readings.reference is None else readings.reference
        weight = readings.failing
        apart = present(readings.values - twin, weight)
        pulled = weighted_sum(apart.square(), weight).mean()
        loss = pulled * share(reduce(readings.failing_step), reduce)
        return loss + self._anchor * success_anchor(readings, reduce)


def toward_twins(
    own: Tensor, twin: Tensor, failure: Tensor, twin_failure: Tensor
) -> Tensor:
    """Return what each turn is compared with: its twin where it alone failed.

    Args:
        own: `[turn figure]`, the reference's readings of these turns.
        twin: Those of the same turns in the other version.
        failure: `[turn]`, in [0, 1], NaN where unknown.
        twin_failure: That of the twin's turns.
    """
    alone_failed = (failure > 0) & (twin_failure == 0)
    return torch.where(alone_failed[:, None], twin, own)
