"""Trainers that make their rows while training: outcomes ride with the rollouts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emoreg.residual.tokens import TurnMarkers
from emoreg.training.columns import OUTCOMES, check_column, check_turns, padded
from emoreg.training.layouts import as_failures


def makes_rollouts(trainer: Any) -> bool:
    """Return whether a trainer generates the rows that it trains on."""
    return callable(getattr(trainer, "_calculate_rewards", None))


def check_rollouts(trainer: Any, column: str) -> None:
    """Refuse prompts whose outcomes would not reach the rollouts.

    Raises:
        ValueError: If the column is missing, or the trainer drops it.
    """
    check_column(trainer.train_dataset, column)
    if getattr(trainer.args, "remove_unused_columns", False):
        raise ValueError(
            "`remove_unused_columns` must be False, or the outcome column "
            f"{column!r} is dropped before the prompts are answered"
        )


def carry_outcomes(
    prompts: Sequence[Mapping[str, Any]],
    rollouts: dict[str, Any],
    *,
    column: str,
    markers: TurnMarkers,
) -> None:
    """Add each rollout's outcomes: those of its prompt's turns and of the reply's.

    The last decision token of a prompt is the one before the rollout; what the model
    then says, and what comes back from tools, has no outcome here.

    Args:
        prompts: The dataset's rows, one per rollout, in the rollouts' order.
        rollouts: What the trainer made of them; gets the outcomes.
        column: Where the rows' outcomes are.
        markers: How decision tokens are found.

    Raises:
        ValueError: If a prompt has more or fewer decision tokens than outcomes.
    """
    ids, mask = rollouts["prompt_ids"], rollouts["prompt_mask"].bool()
    turns = [as_failures(row[column]) for row in prompts]
    for row, own in enumerate(turns):
        check_turns(ids[row][mask[row]].tolist(), own, markers, f"prompt {row}")
    rollouts[OUTCOMES] = padded(map(torch.tensor, turns), len(turns)).to(ids.device)


def tokens_of(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Return the token ids that the model will read, and their mask.

    Rollouts are prompts, padded on the left, and completions, padded on the right.
    """
    if "input_ids" in inputs:
        return inputs["input_ids"], inputs.get("attention_mask")
    names = ("prompt", "completion")
    ids = torch.cat([inputs[f"{name}_ids"] for name in names], dim=1)
    return ids, torch.cat([inputs[f"{name}_mask"] for name in names], dim=1)
