"""What all checks together say of each emotion and of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emoreg.validation.check import Check

COUNTS = ("passed", "missed", "no threshold")
"""Verdicts of checks that count for an emotion or a layer; a check that control
directions pass as well is evidence for neither."""
RECOMMENDED = 3
"""How many layers are recommended to be read at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Whether one emotion's direction may be used, and what that rests on."""

    emotion: str
    holds: tuple[str, ...]
    """Names of the checks in which it holds."""
    fails: tuple[str, ...]
    required: str
    """The check without which nothing else counts."""

    @property
    def use(self) -> bool:
        """Whether it may be used: see `standings`."""
        return self.required in self.holds and len(self.holds) > len(self.fails)

    @property
    def reason(self) -> str:
        """Return why, in a sentence."""
        total = len(self.holds) + len(self.fails)
        said = f"holds in {len(self.holds)} of {total} checks that judge it"
        if self.use:
            return said
        if self.required in self.fails:
            return f"fails {self.required!r}; {said}"
        if self.required not in self.holds:
            return f"was not judged by {self.required!r}; {said}"
        return said


def standings(
    checks: Sequence[Check], emotions: Sequence[str], *, required: str
) -> tuple[Standing, ...]:
    """Return each emotion's standing.

    It may be used if it holds in the check named `required` and in more than half of
    all checks that judge it and count (`COUNTS`).
    """
    judging = [c for c in checks if c.verdict in COUNTS]
    return tuple(
        Standing(
            emotion=emotion,
            holds=tuple(c.name for c in judging if c.emotions.get(emotion) is True),
            fails=tuple(c.name for c in judging if c.emotions.get(emotion) is False),
            required=required,
        )
        for emotion in emotions
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerStanding:
    """How one layer does over the checks that can tell layers apart."""

    layer: int
    figures: Mapping[str, float]
    """Check to the figure by which it prefers layers."""
    score: float
    """Mean over checks of the figure's place between the worst layer (0) and the best
    (1); NaN where no check tells layers apart."""


def layer_standings(
    checks: Sequence[Check], layers: Sequence[int]
) -> tuple[LayerStanding, ...]:
    """Return every layer's standing, by all checks that judge all of them and count."""
    telling = [
        c for c in checks if c.verdict in COUNTS and set(layers) <= set(c.layers)
    ]
    found = []
    for layer in layers:
        places = [_place(c.layers, layer, layers) for c in telling]
        found.append(
            LayerStanding(
                layer=layer,
                figures={c.name: c.layers[layer] for c in telling},
                score=sum(places) / len(places) if places else float("nan"),
            )
        )
    return tuple(found)


def recommended(found: Sequence[LayerStanding]) -> tuple[int, ...]:
    """Return the layers to read at: the best by score, in ascending order."""
    known = [standing for standing in found if standing.figures]
    best = sorted(known, key=lambda standing: -standing.score)[:RECOMMENDED]
    return tuple(sorted(standing.layer for standing in best))


def _place(figures: Mapping[int, float], layer: int, layers: Sequence[int]) -> float:
    low = min(figures[i] for i in layers)
    high = max(figures[i] for i in layers)
    return (figures[layer] - low) / (high - low) if high > low else 0.5
