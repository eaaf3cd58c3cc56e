"""Who writes: anything that answers prompts, in whatever order it is done."""

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


@runtime_checkable
class Writer(Protocol):
    """A model that answers prompts."""

    def settings(self) -> dict[str, Any]:
        """Return what its answers depend on, as JSON-able values."""
        ...

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield the place of a prompt and its answer, as each is done."""
        ...
