"""How high the true emotion ranks among all, for texts whose emotion is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control
from torch import Tensor

from emoreg.statistics.bootstrap import bootstrap_mean
from emoreg.validation.check import Figure
from emoreg.vectors.emotion_vectors import EmotionVectors

DRAWS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ranked:
    """Ranks of emotions for labelled texts, 1 for the highest score."""

    ranks: Int[np.ndarray, "text emotion"]
    truth: Int[np.ndarray, " text"]
    """Column of each text's own emotion."""

    @classmethod
    def of(
        cls, scores: Float[np.ndarray, "text emotion"], truth: Sequence[int]
    ) -> "Ranked":
        """Rank each text's scores; ties share the worse rank."""
        ordered = np.sort(scores, axis=1)
        # How many are at least as high: the rank, the worse one where some are equal.
        below = np.stack(
            [
                np.searchsorted(row, own)
                for row, own in zip(ordered, scores, strict=True)
            ]
        )
        return cls(ranks=scores.shape[1] - below, truth=np.asarray(truth))

    @property
    def own(self) -> Int[np.ndarray, " text"]:
        """Rank of each text's own emotion."""
        return self.ranks[np.arange(len(self.truth)), self.truth]

    def within(self, columns: Sequence[int]) -> "Ranked":
        """Return the same among `columns` alone, for the texts that are of them."""
        rows = np.isin(self.truth, np.asarray(columns))
        place = {column: i for i, column in enumerate(columns)}
        truth = [place[column] for column in self.truth[rows]]
        return Ranked.of(-self.ranks[rows][:, list(columns)].astype(float), truth)


def standing_out(
    vectors: EmotionVectors,
    values: Float[Tensor, "text d_model"],
    columns: Sequence[int],
    reader: str,
    layer: int,
) -> Float[np.ndarray, "text emotion"]:
    """Return readings of some emotions, standardized per emotion over the texts."""
    read = vectors.project(values, layer=layer, reader=reader)[:, list(columns)].numpy()
    return (read - read.mean(0)) / np.maximum(read.std(0), 1e-9)


def own_places(
    scores: Float[np.ndarray, "emotion emotion"],
) -> Float[np.ndarray, " emotion"]:
    """Return the place of each row's own column in its row, 1 for the highest.

    What all rows give a column is taken out: it is no evidence for any of them.
    """
    centred = scores - scores.mean(0)
    own = np.diag(centred)
    return (centred < own[:, None]).sum(1) / (len(own) - 1)


def rank_figures(
    found: Ranked, *, controls: dict[str, Ranked], reader: str, layer: int, suffix: str
) -> list[Figure]:
    """Return top-1, top-3 and mean rank with 95 % intervals over emotions.

    Texts of one emotion are averaged first: the emotion is the cluster.
    """
    many = found.ranks.shape[1]
    chance = {
        "top-1": 1 / many,
        "top-3": min(1.0, 3 / many),
        "mean rank": (many + 1) / 2,
    }
    values = _clustered(found)
    bounds = bootstrap_mean(values, keep=False)
    beside = {name: _clustered(control).mean(0) for name, control in controls.items()}
    return [
        Figure(
            name=name + suffix,
            value=float(bounds.estimate[i]),
            low=float(bounds.low[i]),
            high=float(bounds.high[i]),
            controls={
                "chance": chance[name],
                **{key: float(means[i]) for key, means in beside.items()},
            },
            count=len(found.truth),
            reader=reader,
            layer=layer,
            lower_is_better=name == "mean rank",
        )
        for i, name in enumerate(chance)
    ]


def named(found: Ranked, *, rate: float = 0.05, seed: int = 0) -> dict[int, bool]:
    """Return, per emotion, whether its own texts rank it higher than others' do.

    The mean rank of an emotion over its own texts against as many texts drawn from
    those of other emotions, so that an emotion which ranks high everywhere gains
    nothing; Benjamini-Hochberg over emotions at a false discovery rate of `rate`.
    """
    generator = np.random.default_rng(seed)
    columns = sorted(set(found.truth.tolist()))
    chances = []
    for column in columns:
        own = found.truth == column
        others = found.ranks[~own, column]
        drawn = generator.choice(others, size=(DRAWS, int(own.sum()))).mean(1)
        reached = int((drawn <= found.ranks[own, column].mean()).sum())
        chances.append((reached + 1) / (DRAWS + 1))
    adjusted = false_discovery_control(np.array(chances))
    return {c: bool(p <= rate) for c, p in zip(columns, adjusted, strict=True)}


def _clustered(found: Ranked) -> Float[np.ndarray, "emotion figure"]:
    """Return top-1, top-3 and rank, averaged over the texts of each emotion."""
    own = found.own
    each = np.stack([own == 1, own <= 3, own], axis=1).astype(float)
    return np.stack([each[found.truth == c].mean(0) for c in np.unique(found.truth)])
