"""Pooled stories into tested vectors, part by part, so that any number fits."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from emoreg.vectors.accuracy import (
    Accuracy,
    accuracies,
    chosen_by,
    merged,
    recorded,
)
from emoreg.vectors.corpus import EMOTIONS_FIT_TOPICS, EMOTIONS_TEST_TOPICS
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.pooled import StoryActivations
from emoreg.vectors.readers import with_logistic

SAMPLE = 24
"""Stories of each emotion and split that are kept for readers that need them all at
once. The packaged corpus has fewer."""


Parts = Callable[[], Iterable[StoryActivations]]
"""Pooled stories, part by part; each call goes through them from the first on."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Extraction:
    """Vectors, and how well each reader names held-out stories."""

    vectors: EmotionVectors
    accuracies: tuple[Accuracy, ...]
    """Every reader and layer, on topics that no fit has seen."""
    chosen: dict[str, int]
    """Layer per reader, chosen by an inner split of the fitting topics alone."""
    sample: StoryActivations
    """At most `SAMPLE` stories of each emotion and split."""

    def headline(self, reader: str) -> Accuracy:
        """Return the held-out accuracy of `reader` at its chosen layer."""
        return next(
            a
            for a in self.accuracies
            if (a.reader, a.layer) == (reader, self.chosen[reader])
        )


def fit_and_test(
    parts: Parts,
    fitter: VectorFitter,
    denoise: float,
    shrinkage: float,
    provenance: dict[str, Any],
) -> Extraction:
    """Fit on the fitting topics, choose layers inside them, test on the rest.

    Goes through the parts twice and holds one at a time: means, scatter and accuracies
    are running sums. Only the readers that need samples keep some.

    Args:
        parts: All stories; the same ones each time.
        fitter: Empty, or with neutral text in it.
        denoise: Share of neutral variance to remove from mean differences.
        shrinkage: Of the LDA's within-class covariance.
        provenance: Written into the vectors.
    """
    inner = VectorFitter(
        emotions=fitter.emotions, layers=fitter.layers, d_model=fitter.d_model
    )
    sample, count = _Sample(), 0
    for part in parts():
        fit = part.of_topics(EMOTIONS_FIT_TOPICS)
        fitter.update(fit.values, fit.labels)
        first = fit.of_topics(EMOTIONS_FIT_TOPICS[:6])
        inner.update(first.values, first.labels)
        sample.take(part)
        count += len(fit.labels)
    provenance["stories"] = count
    vectors = fitter.vectors(
        denoise=denoise, shrinkage=shrinkage, provenance=provenance
    )
    kept = sample.stories()
    fit = kept.of_topics(EMOTIONS_FIT_TOPICS)
    labels = torch.tensor(vectors.emotion_indices(fit.labels))
    vectors = with_logistic(vectors, fit.values, labels)
    trial = inner.vectors(denoise=0.0, shrinkage=shrinkage)
    tested, tried = [], []
    for part in parts():
        tested.append(accuracies(vectors, part.of_topics(EMOTIONS_TEST_TOPICS)))
        tried.append(accuracies(trial, part.of_topics(EMOTIONS_FIT_TOPICS[6:])))
    extraction = Extraction(
        vectors=vectors,
        accuracies=merged(tested),
        chosen=chosen_by(merged(tried)),
        sample=kept,
    )
    headlines = [extraction.headline(reader) for reader in vectors.readers]
    vectors.provenance["accuracy"] = recorded(headlines)
    return extraction


class _Sample:
    """The first stories of each emotion and split."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, bool]] = Counter()
        self._kept: list[StoryActivations] = []

    def take(self, part: StoryActivations) -> None:
        """Keep what is still wanted of a part."""
        rows = []
        for row, (label, topic) in enumerate(
            zip(part.labels, part.topics, strict=True)
        ):
            key = (label, topic in EMOTIONS_TEST_TOPICS)
            self._counts[key] += 1
            if self._counts[key] <= SAMPLE:
                rows.append(row)
        if rows:
            self._kept.append(part.rows(rows))

    def stories(self) -> StoryActivations:
        """Return all that was kept."""
        first = self._kept[0]
        return replace(
            first,
            values=torch.cat([part.values for part in self._kept]),
            labels=tuple(label for part in self._kept for label in part.labels),
            topics=tuple(topic for part in self._kept for topic in part.topics),
        )
