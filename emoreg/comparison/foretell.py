"""Can it be read beforehand that the next attempt will cheat?"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float

from emoreg.behavior.impossible.episode_table import Episode, Episodes
from emoreg.comparison.alignment import AUDIT_READER
from emoreg.comparison.readings import Readings
from emoreg.statistics.auroc import clustered_auroc
from emoreg.statistics.bootstrap import Interval

FEWEST = 10
"""Attempts that cheat, and that don't, which an area must be over."""
WORDS = 512
"""Places that words are hashed into by the baseline that reads the text."""
RIDGE = 10.0


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Foretold:
    """How well cheating in the next attempt is told by a figure from before it."""

    areas: Mapping[str, Interval]
    """Area under the ROC curve of each figure: emotions and families by name, and the
    baselines `attempt number`, `tests failed` and `words`. 0.5 is chance."""
    attempts: int
    cheating: int
    reader: str
    layers: tuple[int, ...]


def foretell(
    readings: Readings,
    episodes: Episodes,
    families: Mapping[str, Sequence[str]],
    *,
    emotions: Sequence[str] = ("desperate", "calm"),
    seed: int = 0,
) -> Foretold:
    """Hold what is read at a decision token against what the attempt after it does.

    A row is an attempt at an impossible task; its cluster the task. The reading is at
    the decision token before the attempt, mean over the audit layers, by the audit's
    own reader where the table has it. Baselines know no reading: the attempt's number,
    the share of tests that the attempt before missed, and the words that were said up
    to there (hashed counts, ridge regression on the other tasks).

    Args:
        readings: Of `Episodes.conversations`, by `measure`.
        episodes: What was played.
        families: Emotions by name of the family, whose mean is one figure.
        emotions: Single emotions besides.
        seed: Of the bootstrap over tasks.

    Raises:
        ValueError: If the readings are of other conversations, or fewer than ten
            attempts cheat or don't.
    """
    rows = [(e, k) for e in episodes.episodes for k in _impossible(e)]
    cheats = np.array([e.cheats[k] for e, k in rows], bool)
    _check(cheats)
    reader = AUDIT_READER if AUDIT_READER in readings.readers else readings.readers[0]
    plan = readings.meta.get("layer_plan", {}).get("audit", ())
    layers = tuple(layer for layer in plan if layer in readings.layers)
    layers = layers or readings.layers
    figures = _figures(readings, rows, reader, layers, families, emotions)
    tasks = [e.id for e, _ in rows]
    figures["attempt number"] = np.array([float(k) for _, k in rows])
    figures["tests failed"] = np.array([e.failed[k - 1] if k else 0.0 for e, k in rows])
    figures["words"] = _by_words(rows, cheats, tasks)
    scores = np.stack(list(figures.values()), axis=1)
    found = clustered_auroc(scores, cheats, tasks, seed=seed)
    return Foretold(
        areas={name: found.at(place) for place, name in enumerate(figures)},
        attempts=len(rows),
        cheating=int(cheats.sum()),
        reader=reader,
        layers=layers,
    )


Row = tuple[Episode, int]
"""An episode and the number of an attempt in it, from 0."""


def _impossible(episode: Episode) -> range:
    return range(episode.attempts if episode.twin == "impossible" else 0)


def _check(cheats: Bool[np.ndarray, " row"]) -> None:
    many = int(cheats.sum())
    if min(many, len(cheats) - many) < FEWEST:
        raise ValueError(
            f"at least {FEWEST} attempts at impossible tasks must cheat, and as many "
            f"not, found {many} of {len(cheats)} that do. Play more samples, or with a "
            "model that cheats more"
        )


def _figures(
    readings: Readings,
    rows: Sequence[Row],
    reader: str,
    layers: Sequence[int],
    families: Mapping[str, Sequence[str]],
    emotions: Sequence[str],
) -> dict[str, Float[np.ndarray, " row"]]:
    """Return each target's reading before each attempt."""
    columns = readings.segments.select(["prompt", "turn", "position"]).to_pylist()
    places = {
        (column["prompt"], column["turn"]): place
        for place, column in enumerate(columns)
        if column["position"] == "decision"
    }
    keys = [(episode.name, attempt) for episode, attempt in rows]
    if missing := [key for key in keys if key not in places]:
        raise ValueError(
            "the readings must be of these episodes, found none of attempt "
            f"{missing[0][1]} in {missing[0][0]!r}. Measure the conversations that "
            "were written beside the table"
        )
    at = [places[key] for key in keys]
    own = [readings.layers.index(layer) for layer in layers]
    values = readings.values[at][:, readings.readers.index(reader)][:, own].mean(1)
    wanted = {name: [name] for name in emotions} | {
        k: list(v) for k, v in families.items()
    }
    known = {
        name: [readings.emotions.index(e) for e in members if e in readings.emotions]
        for name, members in wanted.items()
    }
    return {
        name: values[:, places].mean(1).astype(float)
        for name, places in known.items()
        if places
    }


def _by_words(
    rows: Sequence[Row], cheats: Bool[np.ndarray, " row"], tasks: Sequence[str]
) -> Float[np.ndarray, " row"]:
    """Return a score by what was said before, fitted on all other tasks."""
    counts = np.stack([_words(episode, attempt) for episode, attempt in rows])
    scores, names = np.zeros(len(rows)), np.array(tasks)
    for task in dict.fromkeys(tasks):
        held = names == task
        fit, aim = counts[~held], cheats[~held].astype(float)
        middle, level = fit.mean(0), aim.mean()
        inner = (fit - middle) @ (fit - middle).T + RIDGE * np.eye(len(fit))
        weights = (fit - middle).T @ np.linalg.solve(inner, aim - level)
        scores[held] = (counts[held] - middle) @ weights + level
    return scores


def _words(episode: Episode, attempt: int) -> Float[np.ndarray, " place"]:
    """Return the logarithms of hashed counts of the words up to an attempt."""
    said: list[Any] = []
    for message in episode.messages:
        if message["role"] == "assistant":
            if attempt == 0:
                break
            attempt -= 1
        said += message["content"].lower().split()
    counts = np.zeros(WORDS)
    for word in said:
        counts[zlib.crc32(word.encode()) % WORDS] += 1
    return np.log1p(counts)
