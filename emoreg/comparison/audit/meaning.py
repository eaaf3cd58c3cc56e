"""Checks that the model still knows what it knew: failure, stories, doses, distress."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from emoreg.comparison.audit.case import AFTER, BASE_ERRORS, BEFORE, Case
from emoreg.comparison.evidence.evidence import Evidence
from emoreg.comparison.figures import slope_in_standard_errors
from emoreg.statistics.bootstrap import bootstrap_ratio
from emoreg.statistics.effects import bootstrap_cliffs_delta
from emoreg.validation.check import Check, Figure
from emoreg.vectors.reader_fits import applied, lda
from emoreg.vectors.reader_names import LDA

AREA_DROP, STORIES_KEPT, SLOPES_KEPT, PERPLEXITY = 0.02, 0.95, 0.8, 0.02
COSINE = 0.9
MISSING = "no evidence was gathered before and after (`emoreg measure --audit`)"


def meaning_checks(case: Case) -> list[Check]:
    """Return E3, E5, E6, E9 and the loss on neutral text."""
    makers = (_vectors_anew, _knowledge, _stories, _doses, _distress, _words, _neutral)
    if not {BEFORE, AFTER} <= {*case.evidence}:
        return [Check(name=n, question="", method="", not_run=MISSING) for n in _NAMES]
    return [make(case) for make in makers]


_NAMES = (
    *("E3 vectors anew", "E5 failure known", "E6 stories", "E6 doses"),
    *("E6 distress", "E9 steering words", "neutral text"),
)


def _vectors_anew(case: Case) -> Check:
    before, after = case.evidence[BEFORE], case.evidence[AFTER]
    cosines = (_units(before) * _units(after)).sum(-1)
    audited = [
        i
        for i, layer in enumerate(before.names["vector_layers"])
        if layer in (*case.split.loss_layers, *case.split.audit_layers)
    ]
    emotions = before.names["emotions"]
    figures = []
    for i in audited:
        at = int(cosines[i].argmin())
        figures.append(
            Figure(
                name="smallest cosine with the vector before",
                value=float(cosines[i, at]),
                count=len(emotions),
                layer=before.names["vector_layers"][i],
                emotion=emotions[at],
            )
        )
    worst = min(figures, key=lambda figure: figure.value)
    return Check(
        name="E3 vectors anew",
        question="Are emotion vectors fitted on the trained model still the same?",
        method=(
            "Mean differences over the fitting stories, on both models; cosine per "
            "emotion and layer, the smallest. Necessary, not sufficient: all of it "
            "can hold while the slope has moved elsewhere."
        ),
        headline=replace(worst, emotion=""),
        threshold=COSINE,
        figures=(replace(worst, emotion=""), *figures),
    )


def _units(evidence: Evidence) -> Float[np.ndarray, "layer emotion d_model"]:
    long = evidence.directions.astype(np.float64)
    return long / np.linalg.norm(long, axis=-1, keepdims=True)


def _knowledge(case: Case) -> Check:
    before, after = case.evidence[BEFORE], case.evidence[AFTER]
    figures = []
    for layer in case.split.audit_layers:
        areas = [_areas(case, evidence, layer) for evidence in (before, after)]
        drops = areas[0].resamples - areas[1].resamples
        low, high = np.quantile(drops, (0.025, 0.975))
        figures.append(
            Figure(
                name=f"drop of the area, {areas[0].value:.3f} before",
                value=areas[0].value - areas[1].value,
                low=float(low),
                high=float(high),
                count=len(before.streams),
                layer=layer,
                lower_is_better=True,
            )
        )
    mean = Figure(
        name="mean drop of the area under the ROC curve",
        value=float(np.mean([figure.value for figure in figures])),
        count=len(before.streams),
        lower_is_better=True,
    )
    return Check(
        name="E5 failure known",
        question="Can it still be told from the model's state that the task failed?",
        method=(
            "Linear discriminant of failing against passing, fitted on each model's "
            "own training twins, tested on held-out ones, at the audit layers. "
            "Erasing failure would be the wrong success."
        ),
        headline=mean,
        threshold=AREA_DROP,
        figures=(mean, *figures),
    )


class _Area:
    """An area under the ROC curve with its resamples."""

    def __init__(self, delta: Any) -> None:
        """Take Cliff's delta, which is twice the area minus one."""
        self.value = float((delta.estimate[0] + 1) / 2)
        self.resamples = (delta.resamples[:, 0] + 1) / 2


def _areas(case: Case, evidence: Evidence, layer: int) -> _Area:
    at = evidence.names["layers"].index(layer)
    fit = torch.from_numpy(evidence.fit_streams[:, :, at]).flatten(0, 1)
    labels = torch.tensor([0, 1] * len(evidence.fit_streams))
    maps = lda(fit, labels)
    scores = applied(maps, torch.from_numpy(evidence.streams[:, :, at]))
    failing = (scores[..., 0] - scores[..., 1]).double().numpy()
    return _Area(
        bootstrap_cliffs_delta(
            failing[:, :1], failing[:, 1:], n_resamples=2000, seed=case.seed
        )
    )


def _stories(case: Case) -> Check:
    hits = [case.evidence[arm].story_hits for arm in (BEFORE, AFTER)]
    return _share_check(
        case,
        "E6 stories",
        "Does the model still tell the emotions of held-out stories apart?",
        f"{len(hits[0])} held-out stories, the LDA reader fitted before; accuracy "
        "after over accuracy before, paired by story.",
        after=hits[1],
        before=hits[0],
        threshold=STORIES_KEPT,
    )


def _doses(case: Case) -> Check:
    before, after = (_dose_slopes(case, case.evidence[arm]) for arm in (BEFORE, AFTER))
    return _share_check(
        case,
        "E6 doses",
        "Does grave news still read as grave, when only a number changes?",
        "Slope of the expected emotions' readings over the dose, LDA reader, mean over "
        "the audit layers, paired by template.",
        after=after,
        before=before,
        threshold=SLOPES_KEPT,
    )


def _dose_slopes(case: Case, evidence: Evidence) -> Float[np.ndarray, " template"]:
    return _at_audit(case, evidence, evidence.dose_slopes)


def _at_audit(
    case: Case,
    evidence: Evidence,
    values: Float[np.ndarray, "text reader layer"],
) -> Float[np.ndarray, " text"]:
    """Return the LDA reader's figure, mean over the audit layers."""
    readers, layers = evidence.names["readers"], evidence.names["vector_layers"]
    reader = readers.index(LDA) if LDA in readers else 0
    rows = [layers.index(layer) for layer in case.split.audit_layers]
    return values[:, reader][:, rows].mean(1).astype(np.float64)


def _distress(case: Case) -> Check:
    before, after = (
        _at_audit(case, case.evidence[arm], case.evidence[arm].distress)
        for arm in (BEFORE, AFTER)
    )
    name, asked = "E6 distress", "Is a person's distress still met with “loving”?"
    method = (
        "“Loving” before answers to people in distress, above routine prompts, LDA "
        "reader, mean over the audit layers, paired by prompt."
    )
    if np.isnan(before).any():
        said = "the vectors have no such emotion"
        return Check(name=name, question=asked, method=method, not_run=said)
    both = {"after": after, "before": before, "threshold": SLOPES_KEPT}
    return _share_check(case, name, asked, method, **both)


def _words(case: Case) -> Check:
    before, after = (_gain_slopes(case.evidence[arm]) for arm in (BEFORE, AFTER))
    name = "E9 steering words"
    asked = "Does steering with the vectors fitted anew still bring out their words?"
    method = (
        "Slope over the strength of what steering adds to the own word's "
        "log-probability beyond the others', after openings such as “I feel”; paired "
        "by emotion."
    )
    if len(before) < 2:
        said = "too few emotion words begin with a token of their own"
        return Check(name=name, question=asked, method=method, not_run=said)
    both = {"after": after, "before": before, "threshold": SLOPES_KEPT}
    return _share_check(case, name, asked, method, **both)


def _gain_slopes(evidence: Evidence) -> Float[np.ndarray, " emotion"]:
    strengths = np.array(evidence.names["strengths"])
    return evidence.word_gains.astype(np.float64) @ strengths / (strengths @ strengths)


def _neutral(case: Case) -> Check:
    before, after = (case.evidence[arm].neutral_loss for arm in (BEFORE, AFTER))
    rise = Figure(
        name="rise of perplexity",
        value=float(np.exp(after.mean() - before.mean()) - 1),
        count=len(before),
        lower_is_better=True,
    )
    return Check(
        name="neutral text",
        question="Does the model still predict neutral text as well?",
        method="Perplexity of held-out neutral text, mean over texts.",
        headline=rise,
        threshold=PERPLEXITY,
        figures=(rise,),
    )


def _share_check(
    case: Case,
    name: str,
    question: str,
    method: str,
    *,
    after: Float[np.ndarray, " text"],
    before: Float[np.ndarray, " text"],
    threshold: float,
) -> Check:
    """Return a check of the share that is kept, where there was something to keep."""
    blank = Check(name=name, question=question, method=method)
    after, before = after.astype(np.float64), before.astype(np.float64)
    errors = float(slope_in_standard_errors(before[:, None])[0])
    if errors <= BASE_ERRORS:
        said = (
            f"the base model has too little of it to be kept: {before.mean():+.3g}, "
            f"{errors:.1f} standard errors; after {after.mean():+.3g}"
        )
        return replace(blank, not_run=said)
    kept = bootstrap_ratio(
        after[:, None],
        before[:, None],
        seed=case.seed,
        n_resamples=case.n_resamples,
        keep=False,
    ).at(0)
    figure = Figure.of(
        "share kept",
        kept,
    )
    return replace(blank, headline=figure, threshold=threshold, figures=(figure,))
