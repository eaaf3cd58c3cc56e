"""Trainers that make their rows while training: outcomes ride with the rollouts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emoreg.residual.tokens import TurnMarkers, tokenizer_of
from emoreg.training.layouts import as_failures
from emoreg.training.outcomes.columns import OUTCOMES, check_column, check_turns, padded
from emoreg.training.outcomes.feedback import validate_outcome
from emoreg.training.outcomes.sources import Feedback, Reward, Source


def makes_rollouts(trainer: Any) -> bool:
    """Return whether a trainer generates the rows that it trains on."""
    return getattr(trainer, "reward_funcs", None) is not None


def check_rollouts(trainer: Any, source: Source) -> None:
    """Refuse prompts whose outcomes would not reach the rollouts.

    Raises:
        ValueError: If the column is missing, or the trainer drops it; if no reward
            function has the name.
    """
    if isinstance(source, Reward):
        source.column(trainer.reward_func_names)
    if not isinstance(source, str):
        return
    check_column(trainer.train_dataset, source)
    if getattr(trainer.args, "remove_unused_columns", False):
        raise ValueError(
            "`remove_unused_columns` must be False, or the outcome column "
            f"{source!r} is dropped before the prompts are answered"
        )


def carry_outcomes(
    trainer: Any,
    prompts: Sequence[Mapping[str, Any]],
    rollouts: dict[str, Any],
    rewards: Tensor | None,
    *,
    source: Source,
    markers: TurnMarkers,
) -> None:
    """Add outcomes to what the trainer made of its prompts.

    Args:
        trainer: Knows its tokenizer and reward functions.
        prompts: The dataset's rows, one per rollout, in the rollouts' order.
        rollouts: What the trainer made of them; gets the outcomes.
        rewards: Of all processes' rollouts, one column per function.
        source: A column has the outcomes of its prompt's turns and of the reply's;
            feedback is read from the whole rollout; a reward is that of all turns
            that were generated.
        markers: How decision tokens are found.

    Raises:
        ValueError: If a prompt has more or fewer decision tokens than outcomes.
    """
    ids, mask = tokens_of(rollouts)
    kept = torch.ones_like(ids) if mask is None else mask
    rows = [row[real.bool()].tolist() for row, real in zip(ids, kept, strict=True)]
    if isinstance(source, str):
        turns = _of_column(prompts, rollouts, source, markers)
    elif isinstance(source, Feedback):
        tokenizer = tokenizer_of(trainer.processing_class)
        turns = [
            [
                validate_outcome(o.failure)
                for o in source.outcomes(r, tokenizer, markers)
            ]
            for r in rows
        ]
    else:
        own = _own_failures(trainer, source, rewards, len(rows))
        counts = [int(row.sum()) for row in markers.decision_tokens(ids)]
        before = [int(row.sum()) for row in _inside(rollouts, "prompt", markers)]
        turns = [
            [math.nan] * max(0, asked - 1) + [failure] * (count - max(0, asked - 1))
            for failure, count, asked in zip(own, counts, before, strict=True)
        ]
    rollouts[OUTCOMES] = padded(map(torch.tensor, turns), len(turns)).to(ids.device)


def _of_column(
    prompts: Sequence[Mapping[str, Any]],
    rollouts: Mapping[str, Any],
    column: str,
    markers: TurnMarkers,
) -> list[list[float]]:
    ids, mask = rollouts["prompt_ids"], rollouts["prompt_mask"].bool()
    turns = [as_failures(row[column]) for row in prompts]
    for row, own in enumerate(turns):
        check_turns(ids[row][mask[row]].tolist(), own, markers, f"prompt {row}")
    return turns


def _own_failures(
    trainer: Any, source: Reward, rewards: Tensor | None, count: int
) -> list[float]:
    """Return the failures of this process's rollouts, of the rewards of all."""
    if rewards is None:
        raise RuntimeError(
            "the trainer must have calculated rewards for its rollouts, and did not"
        )
    train = trainer.model.training
    group = trainer.num_generations if train else trainer.num_generations_eval
    found = source.failures(
        rewards, trainer.reward_func_names, trainer.reward_weights, group
    )
    start = trainer.accelerator.process_index * count
    return found[start : start + count].tolist()


def _inside(rollouts: Mapping[str, Any], part: str, markers: TurnMarkers) -> Tensor:
    """Mark the decision tokens of the prompts, or of the completions."""
    mask = rollouts[f"{part}_mask"].bool()
    return markers.decision_tokens(rollouts[f"{part}_ids"]) & mask


def tokens_of(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Return the token ids that the model will read, and their mask.

    Rollouts are prompts, padded on the left, and completions, padded on the right.
    """
    if "input_ids" in inputs:
        return inputs["input_ids"], inputs.get("attention_mask")
    names = ("prompt", "completion")
    ids = torch.cat([inputs[f"{name}_ids"] for name in names], dim=1)
    return ids, torch.cat([inputs[f"{name}_mask"] for name in names], dim=1)
