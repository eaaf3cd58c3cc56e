"""Replies of many conversations at a time, from a journal or from who writes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from emoreg.vectors.transcripts import Message
from emoreg.writing.journal import Journal
from emoreg.writing.replies import Asked, missing_replies
from emoreg.writing.writer import Writer


@runtime_checkable
class Talk(Protocol):
    """A conversation that is being led."""

    messages: list[Message]

    @property
    def key(self) -> str:
        """Its name in the journal."""
        ...

    @property
    def turn(self) -> int:
        """How many replies there were."""
        ...


_Talk = TypeVar("_Talk", bound=Talk)


def next_replies(
    talks: Sequence[_Talk],
    writer: Writer,
    journal: Journal,
    settings: Mapping[str, Any],
) -> Iterator[tuple[_Talk, str]]:
    """Yield each conversation's next reply, those that the journal holds first.

    Args:
        talks: Conversations that wait for a reply.
        writer: Who writes it.
        journal: Where it is kept before it counts.
        settings: `seed`, which every reply's own is made of, and `tokens`, the most
            that it may have.
    """
    asked = [Asked(talk.key, talk.turn, talk.messages) for talk in talks]
    # Before any reply is given out: whoever takes one goes on with its conversation.
    how = {name: settings[name] for name in ("seed", "tokens")}
    missing = missing_replies(asked, writer, journal, **how)
    for talk, (key, turn, _) in zip(talks, asked, strict=True):
        if (key, turn) in journal.answers:
            yield talk, journal.answers[key, turn]
    for place, reply in missing:
        yield talks[place], reply


def rates_so_far(outcomes: Iterable[str]) -> dict[str, str]:
    """Return the three commonest outcomes and their shares, for a progress bar."""
    counts = Counter(outcomes)
    common = counts.most_common(3)
    return {name: f"{count / counts.total():.0%}" for name, count in common}
