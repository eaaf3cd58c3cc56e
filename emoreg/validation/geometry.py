"""Geometry: do the vectors lie to one another as people say the emotions do?"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from scipy.stats import pearsonr

from emoreg.statistics.clusters import adjusted_rand_index
from emoreg.validation.check import Check, Curves, Figure, Matrix
from emoreg.validation.figures import layer_curves
from emoreg.validation.held_out import clusters
from emoreg.validation.norms import Norm, read_norms
from emoreg.validation.subject import Subject
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA

VALENCE, CLUSTERS = "valence", "clusters"
THRESHOLD, COMPONENTS, FEWEST = 0.65, 10, 20
RIDGE = 1.0
RAND_THRESHOLD, STARTS = 0.15, 10


def valence(subject: Subject, path: Path | None) -> Check:
    """Return how well human valence is predicted from the first ten components.

    Leave-one-out ridge regression (standardized components, ridge 1) of rated valence
    on the vectors' principal components; correlation of prediction and rating.
    """
    question = "Do the vectors know how pleasant people find each emotion?"
    method = (
        f"Leave-one-out ridge regression of rated valence on the first {COMPONENTS} "
        "principal components of the vectors; correlation of predicted and rated. The "
        "first and second component against valence and arousal are printed as they "
        "are. Controls: the same from random and shuffled directions."
    )
    if path is None:
        reason = "no file of norms was given; pass `--norms FILE.csv`"
        return Check(name=VALENCE, question=question, method=method, not_run=reason)
    norms = read_norms(path, subject.vectors.emotions)
    if len(norms) < FEWEST:
        reason = f"the norms rate {len(norms)} of the emotions, {FEWEST} are needed"
        return Check(name=VALENCE, question=question, method=method, not_run=reason)

    def predicted(which: EmotionVectors, by: str, layer: int) -> float:
        return _predicted(which, norms, by, layer)

    figures, by_layer = _of_readers(
        subject, "r, cross-validated", len(norms), predicted
    )
    first = figures[0]
    reader, layer = first.reader, subject.layer_of[first.reader]
    return Check(
        name=VALENCE,
        question=question,
        method=method,
        headline=first,
        threshold=THRESHOLD,
        figures=(*figures, *_correlations(subject.vectors, norms, reader, layer)),
        layers=by_layer[reader],
        pictures=(_by_layer("Predicted against rated valence", "r", by_layer),),
        notes=(f"{len(norms)} of {len(subject.vectors.emotions)} emotions are rated.",),
    )


def paper_clusters(subject: Subject) -> Check:
    """Return how well k-means over the vectors agrees with the paper's ten clusters.

    The adjusted Rand index, 0 by chance and 1 for the same clusters; k-means with as
    many clusters, the best of ten starts by its own criterion.
    """
    vectors = subject.vectors
    known = [e for e in vectors.emotions if e in clusters()]
    labels = [clusters()[e] for e in known]
    many = len(set(labels))
    question = "Do the emotions fall into the clusters that the paper found?"
    method = (
        "k-means over the unit directions, with as many clusters as the paper's "
        "among these emotions; adjusted Rand index, 0 by chance."
    )
    if len(known) < 2 * many or many < 2:
        reason = f"{len(known)} emotions in {many} clusters are too few"
        return Check(name=CLUSTERS, question=question, method=method, not_run=reason)

    def index(which: EmotionVectors, by: str, layer: int) -> float:
        units = which.unit_directions(layer=layer, reader=by)
        rows = units[list(which.emotion_indices(known))].numpy()
        return adjusted_rand_index(labels, _kmeans(rows, many, subject.seed))

    figures, by_layer = _of_readers(subject, "adjusted Rand index", len(known), index)
    return Check(
        name=CLUSTERS,
        question=question,
        method=method,
        headline=figures[0],
        threshold=RAND_THRESHOLD,
        figures=figures,
        layers=by_layer[figures[0].reader],
        pictures=(
            _by_layer("Agreement with the paper's clusters", "index", by_layer),
            _between_layers(vectors, figures[0].reader),
        ),
    )


def _of_readers(
    subject: Subject,
    name: str,
    count: int,
    measure: Callable[[EmotionVectors, str, int], float],
) -> tuple[tuple[Figure, ...], dict[str, dict[int, float]]]:
    """Return a figure per reader at its layer, the one that reads best first."""
    vectors = subject.vectors
    readers = sorted(vectors.readers, key=lambda reader: reader != LDA)
    by_layer = {
        reader: {layer: measure(vectors, reader, layer) for layer in vectors.layers}
        for reader in readers
    }
    figures = []
    for reader in readers:
        layer = subject.layer_of[reader]
        controls = {"chance": 0.0}
        for key, other, by in subject.controls_for(reader):
            controls[key] = measure(other, by, layer)
        figures.append(
            Figure(
                name=name,
                value=by_layer[reader][layer],
                controls=controls,
                count=count,
                reader=reader,
                layer=layer,
            )
        )
    return tuple(figures), by_layer


def _components(
    vectors: EmotionVectors, reader: str, layer: int
) -> Float[np.ndarray, "emotion component"]:
    """Return the emotions' coordinates on the principal components, largest first."""
    units = vectors.unit_directions(layer=layer, reader=reader).double().numpy()
    centred = units - units.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    return left * sizes


def _predicted(
    vectors: EmotionVectors,
    norms: Mapping[str, Norm],
    reader: str,
    layer: int,
) -> float:
    rows = list(vectors.emotion_indices(list(norms)))
    x = _components(vectors, reader, layer)[rows, :COMPONENTS]
    y = np.array([norm.valence for norm in norms.values()])
    return float(np.corrcoef(leave_one_out(x, y), y)[0, 1])


def leave_one_out(
    x: Float[np.ndarray, "row feature"], y: Float[np.ndarray, " row"]
) -> Float[np.ndarray, " row"]:
    """Return each row's ridge prediction from all other rows.

    Features are standardized over all rows, which says nothing of `y`.
    """
    z = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
    found = np.empty_like(y, dtype=float)
    for row in range(len(y)):
        others = np.arange(len(y)) != row
        mean, middle = y[others].mean(), z[others].mean(0)
        centred = z[others] - middle
        a = centred.T @ centred + RIDGE * np.eye(z.shape[1])
        weights = np.linalg.solve(a, centred.T @ (y[others] - mean))
        found[row] = mean + (z[row] - middle) @ weights
    return found


def _correlations(
    vectors: EmotionVectors, norms: Mapping[str, Norm], reader: str, layer: int
) -> list[Figure]:
    rows = list(vectors.emotion_indices(list(norms)))
    x = _components(vectors, reader, layer)[rows]
    found = []
    for place in range(min(4, x.shape[1])):
        for name in ("valence", "arousal"):
            rated = [getattr(norm, name) for norm in norms.values()]
            result: Any = pearsonr(x[:, place], rated)
            found.append(
                Figure(
                    name=f"|r| of component {place + 1} and {name}",
                    value=abs(float(result.statistic)),
                    controls={"chance": 0.0},
                    count=len(rows),
                    reader=reader,
                    layer=layer,
                )
            )
    return found


def _kmeans(x: Float[np.ndarray, "row feature"], many: int, seed: int) -> list[int]:
    best, fewest = None, np.inf
    for start in range(STARTS):
        centres, labels = kmeans2(x, many, minit="++", rng=seed + start)
        spread = float(((x - centres[labels]) ** 2).sum())
        if spread < fewest:
            best, fewest = labels, spread
    assert best is not None
    return best.tolist()


def _between_layers(vectors: EmotionVectors, reader: str) -> Matrix:
    """Return the correlation of the emotions' cosines between layers."""
    upper = np.triu_indices(len(vectors.emotions), 1)
    cosines = []
    for layer in vectors.layers:
        units = vectors.unit_directions(layer=layer, reader=reader)
        cosines.append((units @ units.T).numpy()[upper])
    names = tuple(str(layer) for layer in vectors.layers)
    values = np.corrcoef(np.stack(cosines)) if len(names) > 1 else np.ones((1, 1))
    title = "How alike the emotions' cosines are between layers (r)"
    return Matrix(title=title, rows=names, columns=names, values=values)


def _by_layer(
    title: str, y_title: str, values: Mapping[str, Mapping[int, float]]
) -> Curves:
    layers = tuple(next(iter(values.values())))
    series = {reader: tuple(found.values()) for reader, found in values.items()}
    return layer_curves(f"{title}, by layer", y_title, layers, series)
