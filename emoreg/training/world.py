"""Where a process runs among others, and what a whole optimizer step holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.term import Reduce, alone


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Where a process runs, and how its tensors are summed with the others'."""

    device: torch.device
    process: int = 0
    processes: int = 1
    reduce: Reduce = alone

    @classmethod
    def around(cls, model: nn.Module) -> "World":
        """Return the world of one process, where the model is."""
        return cls(device=next(model.parameters()).device)

    @classmethod
    def of(cls, accelerator: Any) -> "World":
        """Return the world of an accelerate run."""

        def reduce(x: Tensor) -> Tensor:
            return accelerator.reduce(x.clone(), reduction="sum")

        many = accelerator.num_processes > 1
        return cls(
            device=accelerator.device,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            reduce=reduce if many else alone,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepTotals:
    """Failing and succeeding weight of this process's whole optimizer step.

    Terms are means over the step's segments. The mean of its parts' means is another
    number where outcomes are spread unevenly, or a part has none.
    """

    failing: Float[Tensor, ""]
    succeeding: Float[Tensor, ""]

    @classmethod
    def of(cls, outcomes: Sequence[Tensor], device: torch.device) -> "StepTotals":
        """Count the outcomes of a step's batches."""
        failing = torch.stack([x.nan_to_num(0.0).sum() for x in outcomes]).sum()
        passing = torch.stack([(1 - x).nan_to_num(0.0).sum() for x in outcomes]).sum()
        return cls(failing=failing.to(device), succeeding=passing.to(device))
