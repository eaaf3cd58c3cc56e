"""Who writes: anything that answers prompts, in whatever order it is done."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A conversation to be answered."""

    messages: tuple[Mapping[str, str], ...]
    seed: int
    """Its own, so that it does not depend on what else is asked."""
    tokens: int
    """Longest answer."""
    answered: bool = False
    """By a run before this one. It is here for who writes in batches, which are then
    those of an uncut run; its answer is not asked for."""


@runtime_checkable
class Writer(Protocol):
    """A model that answers prompts."""

    def settings(self) -> dict[str, Any]:
        """Return what its answers depend on, as JSON-able values."""
        ...

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield the place of a prompt and its answer, as each is done.

        Those that are `answered` are left out.
        """
        ...


def own_seed(seed: int, key: str, attempt: int) -> int:
    """Return a prompt's own seed, from a run's seed, the prompt's name and the try."""
    digest = hashlib.sha256(f"{seed}/{key}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def check_sampling(temperature: float, at_a_time: int) -> None:
    """Refuse what can't be sampled with.

    Raises:
        ValueError: If the temperature is not above 0, where every try at a request
            would give the same text, or fewer than one text is to be written at a time.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(
            "`temperature` must be above 0, or every try at a request gives the same "
            f"text, found {temperature}. Use 0.9, or what the model's makers advise"
        )
    if at_a_time < 1:
        raise ValueError(
            f"texts written at a time must be 1 or more, found {at_a_time}. Use 8"
        )
