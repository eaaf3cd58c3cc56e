"""From answers to texts: what is taken, what is not and why, what is still missing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from emoreg.writing.checks import Draft, Seen, drafts
from emoreg.writing.plan import Request

ATTEMPTS = 3
"""How often a request is put before it is given up."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """What became of all answers, as far as there are any."""

    taken: Mapping[str, tuple[str, ...]]
    """Texts by request, in the order of the plan."""
    rejected: Mapping[str, int]
    """How many texts were not taken, by reason."""
    missing: tuple[tuple[Request, int], ...]
    """Requests to be put next, each with the number of its attempt."""
    round: tuple[tuple[Request, int], ...]
    """The same with those of this attempt that are answered: wherever a run was cut
    off, an attempt has the same requests."""
    given_up: tuple[str, ...]
    """Requests that were put `ATTEMPTS` times and have too few texts."""


def judge(plan: Sequence[Request], answers: Mapping[tuple[str, int], str]) -> Judged:
    """Return what is taken of the answers.

    Round by round and in the order of the plan, whatever the order in which answers
    came: a text that two answers share goes to the same one of them every time. So how
    many ask at once, and where a run was cut off, make no difference.
    """
    seen, counts = Seen(), Counter[str]()
    taken: dict[str, list[str]] = {request.key: [] for request in plan}
    missing: list[tuple[Request, int]] = []
    asked: list[tuple[Request, int]] = []
    for attempt in range(ATTEMPTS):
        asked = [(r, attempt) for r in plan if len(taken[r.key]) < r.texts]
        for request, _ in asked:
            wanted = request.texts - len(taken[request.key])
            answer = answers.get((request.key, attempt))
            if answer is None:
                missing.append((request, attempt))
                continue
            for draft in drafts(request, answer):
                reason = draft.reason or seen.reason(draft.text)
                counts[reason] += 1
                if not reason and wanted > 0:
                    _take(draft, taken[request.key], seen)
                    wanted -= 1
        if missing:
            break
    waiting = {request.key for request, _ in missing}
    few = [r.key for r in plan if len(taken[r.key]) < r.texts and r.key not in waiting]
    del counts[""]
    return Judged(
        taken={key: tuple(texts) for key, texts in taken.items()},
        rejected=dict(counts),
        missing=tuple(missing),
        round=tuple(asked) if missing else (),
        given_up=() if missing else tuple(few),
    )


def _take(draft: Draft, taken: list[str], seen: Seen) -> None:
    taken.append(draft.text)
    seen.add(draft.text)
