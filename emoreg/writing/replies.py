"""Asking for the replies that a journal lacks, each kept before it counts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from emoreg.writing.journal import Journal
from emoreg.writing.writer import Prompt, Writer, own_seed


class Asked(NamedTuple):
    """A conversation that waits for a reply, by its name in the journal."""

    key: str
    attempt: int
    messages: Sequence[Mapping[str, str]]


def missing_replies(
    asked: Sequence[Asked],
    writer: Writer,
    journal: Journal,
    *,
    seed: int,
    tokens: int,
) -> Iterator[tuple[int, str]]:
    """Return, place by place, the replies that the journal lacks, as they come.

    What is asked is taken down now, so that conversations may go on while replies come.

    Args:
        asked: All of them, so that batches are those of a run that was not cut off.
        writer: Who writes.
        journal: Where a reply is kept before it is given out.
        seed: Every reply's own is made of it.
        tokens: Longest reply.
    """
    prompts = [
        Prompt(
            messages=tuple(one.messages),
            seed=own_seed(seed, one.key, one.attempt),
            tokens=tokens,
            answered=(one.key, one.attempt) in journal.answers,
        )
        for one in asked
    ]
    keys = [(one.key, one.attempt) for one in asked]

    def kept() -> Iterator[tuple[int, str]]:
        for place, reply in writer.answers(prompts):
            journal.add(*keys[place], reply)
            yield place, reply

    return kept()
