"""Where outcomes come from: a column, the text of the feedback, or rewards."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emoreg.residual.tokens import TurnMarkers
from emoreg.training.layouts import Layout
from emoreg.training.outcomes.feedback import Outcome, parse_feedback

PARSED = "emoreg_failed"
"""Column that parsed outcomes are written to."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """Outcomes are read from what stands between Assistant turns.

    That is the text of user and tool turns, in the tokens that the model sees: of
    transcripts, and of what tools answered inside a rollout. The first turn has seen no
    feedback. Pass a grader's verdicts in a column instead where there are any: a parser
    errs, and a run that passes its tests by cheating reads as passed.
    """

    parse: Callable[[str], Outcome] = parse_feedback
    """What a text reports; it may answer that this is unknown."""

    def outcomes(
        self,
        ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        markers: TurnMarkers,
    ) -> list[Outcome]:
        """Return one outcome per Assistant turn of a sequence."""
        row = torch.tensor([list(ids)])
        spoken = markers.assistant_tokens(row)[0]
        decisions = markers.decision_tokens(row)[0].nonzero().flatten().tolist()
        found = [Outcome(failure=None, source="no feedback yet")] * bool(decisions)
        for last, decision in pairwise(decisions):
            said = int(spoken[last + 1 : decision].sum())
            between = ids[last + 1 + said : decision + 1 - len(markers.opening)]
            text = tokenizer.decode(list(between), skip_special_tokens=True)
            found.append(self.parse(str(text)))
        return found


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """Outcomes are rewards of rollouts: the turns of one that scores low have failed.

    They are known only afterwards: at its decision token the model can at most expect
    them, so the effect is weaker than after feedback. Name a ground-truth grader, not a
    reward that the model may game: a hack that is paid for counts as passed.
    """

    function: str | None = None
    """A reward function's name; None takes the weighted sum that is trained on."""
    below: float | None = None
    """Rollouts below this failed, the others passed. None ranks within each group:
    0 for the best, 1 for the worst, unknown where all score alike."""

    def column(self, names: Sequence[str]) -> int | None:
        """Return which of a trainer's reward functions is meant; None for their sum.

        Raises:
            ValueError: If no function has the name.
        """
        if self.function is None:
            return None
        if self.function not in names:
            raise ValueError(
                "`function` must name a reward function of the trainer, got "
                f"{self.function!r}; there are {', '.join(names)}"
            )
        return list(names).index(self.function)

    def failures(
        self,
        rewards: Float[Tensor, "rollout function"],
        names: Sequence[str],
        weights: Float[Tensor, " function"],
        group: int,
    ) -> Float[Tensor, " rollout"]:
        """Return a failure per rollout, NaN where a reward is.

        Args:
            rewards: Rewards per function.
            names: The functions' names.
            weights: Their weights in the sum.
            group: Rollouts of one prompt, which stand one after the other.

        Raises:
            ValueError: If no function has the name.
        """
        column = self.column(names)
        if column is None:
            known = ~rewards.isnan().all(1)
            scores = (rewards.nan_to_num(0.0) * weights.to(rewards.device)).sum(1)
            scores = torch.where(known, scores, float("nan"))
        else:
            scores = rewards[:, column]
        if self.below is not None:
            failed = (scores < self.below).float()
            return torch.where(scores.isnan(), float("nan"), failed)
        return _worse_in_group(scores.view(-1, group)).flatten()


Source = str | Feedback | Reward
"""A dataset's column, or one of the above."""


def with_parsed_outcomes(
    dataset: Any,
    layout: Layout,
    source: Feedback,
    tokenizer: PreTrainedTokenizerBase,
    markers: TurnMarkers,
) -> tuple[Any, Counter[str]]:
    """Return the dataset with a column of parsed outcomes, and what said how many."""
    found: Counter[str] = Counter()
    column: list[Any] = []
    for row in dataset:
        parsed = [
            [x for ids in docs for x in source.outcomes(ids, tokenizer, markers)]
            for docs in layout.documents(row)
        ]
        for sequence in parsed:
            found.update(_label(outcome) for outcome in sequence)
        lists = [[outcome.failure for outcome in sequence] for sequence in parsed]
        alone = len(lists) == 1
        column.append(
            lists[0] if alone else dict(zip(layout.names, lists, strict=True))
        )
    return dataset.add_column(PARSED, column), found


def check_both_found(found: Counter[str]) -> None:
    """Refuse training data whose feedback all reads alike.

    Raises:
        ValueError: If no feedback was read as failing, or none as passing.
    """
    for verdict in ("failed", "passed"):
        if not any(label.startswith(verdict) for label in found):
            raise ValueError(
                f"some feedback must be read as {verdict}, or there is nothing to "
                f"compare; found {dict(found)}. Give outcomes in a column, or "
                "`Feedback(parse=...)` with a parser of your own"
            )


def _label(outcome: Outcome) -> str:
    verdict = "unknown"  # a parser may call its source anything
    if outcome.failure is not None:
        verdict = "failed" if outcome.failure > 0.5 else "passed"
    return f"{verdict} ({outcome.source})"


def _worse_in_group(
    scores: Float[Tensor, "group rollout"],
) -> Float[Tensor, "group rollout"]:
    """Return the share of the others that score better; ties count half.

    Among rollouts with a score: NaN is no rival, and where all others lack one, or
    score alike, there is no rank.
    """
    known = ~scores.isnan()
    better = (scores.unsqueeze(1) > scores.unsqueeze(2)).float()
    same = (scores.unsqueeze(1) == scores.unsqueeze(2)).float()
    others = (known.sum(1, keepdim=True) - 1).clamp(min=1)
    rank = (better.sum(2) + 0.5 * (same.sum(2) - 1)) / others
    lowest = scores.nan_to_num(torch.inf).amin(1, keepdim=True)
    highest = scores.nan_to_num(-torch.inf).amax(1, keepdim=True)
    return torch.where(known & (lowest < highest), rank, float("nan"))
