"""Doses: does a reading rise with how grave things are, when only a number changes?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import false_discovery_control, page_trend_test, spearmanr

from emoreg.validation.check import Check, Curves, Figure
from emoreg.validation.figures import emotion_figures, mean_figure
from emoreg.validation.subject import Subject
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA

NAME = "doses"
THRESHOLD, SHOWN = 0.5, 6


def doses(subject: Subject) -> Check:
    """Return how steadily readings follow the dose, in the direction that is expected.

    Spearman's rho of dose and reading per template and expected emotion, its sign
    turned where a fall is expected; Page's test over the templates of one emotion.
    """
    every = subject.evaluation("dose")
    rows = [row for row in every if expected_signs(subject.vectors, row)]
    question = "Does a reading follow the dose when only a number changes?"
    if not rows:
        return Check(
            name=NAME,
            question=question,
            method="Templates in which only a number changes.",
            not_run="no template expects anything of the vectors' emotions",
        )
    reader = LDA if LDA in subject.vectors.readers else subject.vectors.readers[0]
    layer = subject.layer_of[reader]
    curves = read_doses(subject, rows)
    places = [(reader, layer)] + [
        (name, i)
        for name in subject.vectors.readers
        for i in subject.vectors.layers
        if (name, i) != (reader, layer)
    ]
    controls = {
        "random": (subject.controls["random"], ""),
        "shuffled": (subject.controls["shuffled"], LDA),
    }
    figures = []
    for name, i in places:
        beside = {
            key: float(np.mean(_rhos(own, curves, rows, by or name, i)))
            for key, (own, by) in controls.items()
        }
        rhos = _rhos(subject.vectors, curves, rows, name, i)
        figures.append(
            mean_figure(
                "rho", rhos, controls={"chance": 0.0, **beside}, reader=name, layer=i
            )
        )
    emotions, each = _per_emotion(subject.vectors, curves, rows, reader, layer)
    return Check(
        name=NAME,
        question=question,
        method=(
            f"{len(rows)} templates, read at the decision token; rho of dose and "
            "reading, its sign turned where a fall is expected, so that 1 is a steady "
            "trend the expected way. Interval: bootstrap over templates. An emotion "
            "holds by Page's test over its templates (false discovery rate 5 %)."
        ),
        headline=figures[0],
        threshold=THRESHOLD,
        figures=(*figures, *each),
        emotions=emotions,
        layers={
            i: f.value for (r, i), f in zip(places, figures, strict=True) if r == reader
        },
        pictures=_pictures(subject.vectors, curves, rows, reader, layer),
    )


def expected_signs(vectors: EmotionVectors, row: Mapping[str, Any]) -> dict[str, int]:
    """Return 1 for each emotion that should rise with a template's dose, else -1."""
    known = vectors.emotions
    return {e: 1 if s == "+" else -1 for e, s in row["expect"].items() if e in known}


def read_doses(subject: Subject, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return, per template, activations of its doses in ascending order.

    Each is `dose layer d_model`, at the decision token.
    """
    prompts, sizes = [], []
    for row in rows:
        values = sorted(row["values"])
        sizes.append(len(values))
        # `replace`: a template may hold other braces.
        texts = [row["template"].replace("{x}", f"{value:,g}") for value in values]
        prompts += [subject.prompt(text) for text in texts]
    values = subject.means(prompts, description="Reading doses")
    return list(values.split(sizes))


def dose_curve(
    vectors: EmotionVectors, activations: Any, reader: str, layer: int, emotion: str
) -> Float[np.ndarray, " dose"]:
    """Return an emotion's reading at each dose."""
    at = vectors.layer_index(layer)
    read = vectors.project(activations[:, at], layer=layer, reader=reader)
    return read[:, vectors.emotion_indices([emotion])[0]].numpy()


def _rhos(
    vectors: EmotionVectors,
    curves: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    reader: str,
    layer: int,
) -> Float[np.ndarray, " template"]:
    """Return each template's mean rho over its expected emotions."""
    found = []
    for row, activations in zip(rows, curves, strict=True):
        each = [
            sign * _rho(dose_curve(vectors, activations, reader, layer, emotion))
            for emotion, sign in expected_signs(vectors, row).items()
        ]
        found.append(float(np.mean(each)))
    return np.array(found)


def _rho(curve: Float[np.ndarray, " dose"]) -> float:
    found: Any = spearmanr(np.arange(len(curve)), curve)
    return float(found.statistic)


def _per_emotion(
    vectors: EmotionVectors,
    curves: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    reader: str,
    layer: int,
) -> tuple[dict[str, bool], list[Figure]]:
    """Return whether each expected emotion follows its templates, by Page's test."""
    known: dict[str, list[np.ndarray]] = {}
    for row, activations in zip(rows, curves, strict=True):
        for emotion, sign in expected_signs(vectors, row).items():
            curve = dose_curve(vectors, activations, reader, layer, emotion)
            known.setdefault(emotion, []).append(sign * curve)
    # Page's test takes one length; templates of another are left to rho.
    tables = {e: _same_length(found) for e, found in known.items()}
    tables = {e: table for e, table in tables.items() if len(table) >= 3}
    chances = [page_trend_test(table).pvalue for table in tables.values()]
    adjusted = false_discovery_control(np.array(chances)) if chances else []
    verdicts = {e: bool(p <= 0.05) for e, p in zip(tables, adjusted, strict=True)}
    figures = emotion_figures(
        "rho",
        {
            e: float(np.mean([_rho(curve) for curve in found]))
            for e, found in known.items()
        },
        reader=reader,
        layer=layer,
        chance=0.0,
        counts={e: len(found) for e, found in known.items()},
    )
    return verdicts, figures


def _same_length(curves: Sequence[np.ndarray]) -> np.ndarray:
    lengths = [len(curve) for curve in curves]
    most = max(set(lengths), key=lengths.count)
    return np.stack([curve for curve in curves if len(curve) == most])


def _pictures(
    vectors: EmotionVectors,
    curves: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    reader: str,
    layer: int,
) -> tuple[Curves, ...]:
    return tuple(
        Curves(
            title=f"{row['id']}: {row['template'][:60]}…",
            x_title=f"dose, {row['unit']} (in order)",
            y_title="reading",
            x=tuple(float(i + 1) for i in range(len(row["values"]))),
            series={
                f"{emotion} ({'rise' if sign > 0 else 'fall'} expected)": tuple(
                    dose_curve(vectors, activations, reader, layer, emotion).tolist()
                )
                for emotion, sign in expected_signs(vectors, row).items()
            },
        )
        for row, activations in list(zip(rows, curves, strict=True))[:SHOWN]
    )
