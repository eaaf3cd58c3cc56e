"""Fixed dialogues read now and then: a change here is the model's, not the batch's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
import torch.nn as nn
from jaxtyping import Float

from emoreg.losses.term import Probe
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.training.layouts import as_failures
from emoreg.training.outcomes.columns import check_turns
from emoreg.training.rows import read_decisions
from emoreg.training.watching.tallies import figures, tally
from emoreg.training.world import World
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.transcripts import Conversation


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSet:
    """Conversations that are read teacher-forced, in eval mode, every few steps.

    They must not be trained on. Their turns are split over the processes.
    """

    conversations: Sequence[Conversation]
    every: int = 50
    """Optimizer steps between two readings, which fall on log lines."""

    def __post_init__(self) -> None:
        """Refuse a set that shows no contrast."""
        known = {x for c in self.conversations for x in c.failed if x is not None}
        if (
            self.every < 1
            or not any(x > 0 for x in known)
            or not any(x < 1 for x in known)
        ):
            raise ValueError(
                "a probe set must hold failing and passing turns and `every` must be "
                f"at least 1; found the outcomes {sorted(known)} and {self.every}. "
                "`ProbeSet.packaged()` has twelve twins"
            )

    @classmethod
    def packaged(cls, *, twins: int = 12, every: int = 50) -> "ProbeSet":
        """Return packaged `dev` twins of one round, which nothing here trains on."""
        chosen = Corpus.packaged().transcripts("dev")
        chosen = chosen[:: max(1, len(chosen) // twins)][:twins]
        return cls(
            conversations=[c for twin in chosen for c in twin.conversations(1)],
            every=every,
        )

    def read(
        self,
        model: nn.Module,
        tokenizer: Any,
        markers: TurnMarkers,
        probes: Sequence[Probe],
        world: World,
    ) -> dict[str, float]:
        """Return `emotion_probe/<name>/L<layer>/<reader>/{fail,pass,slope}`.

        Raises:
            ValueError: If a conversation has more or fewer outcomes than turns.
        """
        own = list(self.conversations)[world.process :: world.processes]
        sequences = [conversation_ids(tokenizer, c.messages) for c in own]
        turns = [as_failures(list(c.failed)) for c in own]
        for conversation, ids, failed in zip(own, sequences, turns, strict=True):
            check_turns(ids, failed, markers, f"conversation {conversation.id!r}")
        read = read_decisions(model, sequences, probes, markers, quiet=True)
        width = sum(len(p.layers) * len(p.emotions) for p in probes)
        device = world.device
        failed = torch.tensor([x for row in turns for x in row], device=device)
        values = torch.cat([torch.zeros(0, width), *read]).to(device)
        weights = torch.stack([failed, 1 - failed]).nan_to_num(0.0)
        return _by_key(world.reduce(tally(values, weights)).cpu().numpy(), probes)


def _by_key(
    sums: Float[np.ndarray, "side column sum"], probes: Sequence[Probe]
) -> dict[str, float]:
    result, column = {}, 0
    for probe in probes:
        for layer in probe.layers:
            for emotion in probe.emotions:
                key = f"emotion_probe/{emotion}/L{layer}/{probe.reader}"
                fail, passed = (figures(side[column])[""] for side in sums)
                result |= {
                    f"{key}/fail": fail,
                    f"{key}/pass": passed,
                    f"{key}/slope": fail - passed,
                }
                column += 1
    return result
