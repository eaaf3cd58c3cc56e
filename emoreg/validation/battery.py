"""The battery: every check of emotion vectors, in the order of the page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emoreg.validation.check import Check
from emoreg.validation.subject import Subject

REQUIRED = "held-out stories"
"""The check that an emotion must hold in before any other counts for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Other people's texts and norms, none of which the package carries."""

    norms: Path | None = None
    """Ratings of words: a CSV with word, valence and arousal."""
    goemotions: Path | None = None
    """The GoEmotions folder."""
    emobank: Path | None = None
    """The EmoBank folder."""


def battery(sources: Sources) -> tuple[tuple[str, Callable[[Subject], Check]], ...]:
    """Return each check's name and how it is run."""
    del sources
    return ()
