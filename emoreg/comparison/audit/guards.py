"""Checks of cost: how far the output moved, and whether the slope comes back."""

from dataclasses import replace
from typing import Any

import numpy as np

from emoreg.comparison.audit.case import (
    AFTER,
    BEFORE,
    CONTROL,
    DISTRESS,
    PERSISTED,
    Case,
)
from emoreg.statistics.bootstrap import bootstrap_ratio
from emoreg.validation.check import Check, Figure

KL_BUDGET, RELAPSE = 0.05, 0.5


def guard_checks(case: Case) -> list[Check]:
    """Return the KL from the reference, and E12."""
    return [_kl(case), _persistence(case)]


def _kl(case: Case) -> Check:
    blank = Check(
        name="KL",
        question="How far did the output move from the reference?",
        method=(
            "KL(reference || model) on retained answers and held-out neutral text, nat "
            "per token; beyond the control arm's where there is one."
        ),
    )
    found = {arm: _guard(case, arm) for arm in (AFTER, CONTROL)}
    after, control = found[AFTER], found[CONTROL]
    if after is None:
        return replace(blank, not_run="it was not measured (`emoreg measure --guards`)")
    figures = [
        Figure(
            name=f"KL, {arm}",
            value=float(guard["value"]),
            low=guard.get("low"),
            high=guard.get("high"),
            count=int(guard.get("n") or 0),
            lower_is_better=True,
        )
        for arm, guard in found.items()
        if guard is not None
    ]
    excess = figures[0]
    if control is not None:
        value = figures[0].value - figures[1].value
        name = "KL beyond the control arm's"
        excess = replace(figures[0], name=name, value=value, low=None, high=None)
        figures.insert(0, excess)
    return replace(blank, headline=excess, threshold=KL_BUDGET, figures=tuple(figures))


def _guard(case: Case, arm: str) -> dict[str, Any] | None:
    if arm not in case.tables:
        return None
    found = (case.tables[arm].meta.get("guards") or {}).get("kl") or {}
    return found if found.get("value") is not None else None


def _persistence(case: Case) -> Check:
    blank = Check(
        name="E12 persistence",
        question="Does the slope come back once the terms are off?",
        method=(
            f"{DISTRESS} after more steps without the terms: the share of what was "
            "lowered that came back, mean over the audit readers with a base slope."
        ),
    )
    if PERSISTED not in case.tables:
        return replace(blank, not_run=f"no arm is named {PERSISTED}")
    emotions = case.members(DISTRESS)
    readers = case.admitted(emotions)
    if not readers:
        return replace(blank, not_run="the base model has no slope to lower")
    slope = {
        arm: case.by_reader(
            case.slopes[arm].slope, readers=readers, emotions=emotions
        ).mean(axis=1)
        for arm in (BEFORE, AFTER, PERSISTED)
    }
    lowered = slope[BEFORE] - slope[AFTER]
    if lowered.mean() <= 0:
        return replace(blank, not_run="nothing was lowered that could come back")
    back = bootstrap_ratio(
        np.asarray(slope[PERSISTED] - slope[AFTER])[:, None],
        lowered[:, None],
        seed=case.seed,
        n_resamples=case.n_resamples,
        keep=False,
    ).at(0)
    figure = Figure.of(
        "share of the change that came back",
        back,
        lower_is_better=True,
    )
    return replace(blank, headline=figure, threshold=RELAPSE, figures=(figure,))
