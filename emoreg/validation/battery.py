"""The battery: every check of emotion vectors, in the order of the page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emoreg.validation.check import Check
from emoreg.validation.concern import concern
from emoreg.validation.dialogues import dialogues
from emoreg.validation.doses import doses
from emoreg.validation.geometry import paper_clusters, valence
from emoreg.validation.held_out import NAME as REQUIRED
from emoreg.validation.held_out import held_out_stories
from emoreg.validation.human_text import (
    human_comments,
    rated_sentences,
    read_sentences,
)
from emoreg.validation.lens import logit_lens
from emoreg.validation.locality import locality
from emoreg.validation.masking import masking
from emoreg.validation.norms import read_norms
from emoreg.validation.preferences import preferences
from emoreg.validation.scenarios import implicit_scenarios
from emoreg.validation.speakers import speakers
from emoreg.validation.stability import split_halves
from emoreg.validation.steering import steering
from emoreg.validation.subject import Subject
from emoreg.validation.surface import surface
from emoreg.vectors.comments import read_comments

__all__ = ["REQUIRED", "Sources", "battery"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Other people's texts and norms, none of which the package carries."""

    norms: Path | None = None
    """Ratings of words: a CSV with word, valence and arousal."""
    goemotions: Path | None = None
    """The GoEmotions folder."""
    emobank: Path | None = None
    """The EmoBank folder."""

    def check(self) -> None:
        """Read what is given, so that a wrong path is told before any check is run.

        Raises:
            ValueError: If something is missing or wrong.
        """
        if self.norms is not None:
            read_norms(self.norms, ())
        if self.goemotions is not None:
            none: Any = {"emotions": (), "per_emotion": 0, "others": 0, "seed": 0}
            read_comments(self.goemotions, "test", **none)
        if self.emobank is not None:
            read_sentences(self.emobank, 0)


def battery(sources: Sources) -> tuple[Callable[[Subject], Check], ...]:
    """Return the checks; `REQUIRED` names the one that comes before all others.

    Raises:
        ValueError: If a source is missing or wrong.
    """
    sources.check()
    return (
        held_out_stories,
        split_halves,
        logit_lens,
        implicit_scenarios,
        doses,
        steering,
        locality,
        concern,
        preferences,
        surface,
        lambda subject: valence(subject, sources.norms),
        paper_clusters,
        dialogues,
        speakers,
        masking,
        lambda subject: human_comments(subject, sources.goemotions),
        lambda subject: rated_sentences(subject, sources.emobank),
    )
