"""Checks for ways round: another direction, the model's own words, a mask."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.comparison.audit.case import AFTER, BEFORE, Case
from emoreg.comparison.audit.readers import share_left
from emoreg.comparison.figures import slope_in_standard_errors
from emoreg.losses.reroute import reroute_index
from emoreg.statistics.bootstrap import bootstrap_mean, bootstrap_ratio
from emoreg.validation.check import Check, Figure

OWN_WORDS, INDEX, MASK = 0.75, 0.25, 0.1
MISSING = "no evidence was gathered before and after (`emoreg measure --audit`)"


def rerouting_checks(case: Case, basis: dict[int, Tensor]) -> list[Check]:
    """Return E2 by the model's own words, E7 and E8.

    Args:
        case: The arms.
        basis: Per layer, an orthonormal basis of the directions that the loss acted on
            (`rank d_model`).
    """
    blanks = (_WORDS, _INDEX, _MASK)
    if not {BEFORE, AFTER} <= {*case.evidence}:
        return [replace(blank, not_run=MISSING) for blank in blanks]
    return [_own_words(case), _index(case, basis), _mask(case)]


_WORDS = Check(
    name="E2 own words",
    question="Do the model's own next words still lean to distress after failure?",
    method=(
        "Log-probability of words of distress minus words of composure as the next "
        "token at the decision token, failing minus passing: the model's own read-out, "
        "with no reader in between."
    ),
)
_INDEX = Check(
    name="E7 reroute index",
    question="Did the failure contrast move into directions no loss sees?",
    method=(
        "Change of the mean contrast (failing minus passing) outside the span of the "
        "loss's directions, over the length of the contrast before; the largest over "
        "the loss and audit layers."
    ),
)
_MASK = Check(
    name="E8 deflection",
    question="Does failure read more like an emotion that is felt and hidden?",
    method=(
        "Deflection vectors (what is felt where something else is shown), failing "
        "versions, change in standard deviations of the base model's twin differences; "
        "mean over felt emotions that a loss lowers and the audit layers. Passing "
        "versions stand beside it: what both share is drift. Judged expression is not "
        "part of it: no judge model is used."
    ),
)


def _own_words(case: Case) -> Check:
    names = case.evidence[BEFORE].names["words"]
    roles = case.roles
    down = [i for i, w in enumerate(names) if w in (*roles.lower, *roles.audit_lower)]
    up = [i for i, w in enumerate(names) if w in (*roles.raise_, *roles.audit_raise)]
    if not down or not up:
        said = "too few emotion words begin with a token of their own"
        return replace(_WORDS, not_run=said)
    after, before = (
        _lean(case.evidence[arm].words, down, up) for arm in (AFTER, BEFORE)
    )
    if np.isnan(before).any():
        return replace(_WORDS, not_run="the model's final norm was not found")
    errors = float(slope_in_standard_errors(before[:, None])[0])
    if errors < 3:
        said = f"the base model's own words do not lean ({errors:.1f} standard errors)"
        return replace(_WORDS, not_run=said)
    how: Any = {"seed": case.seed, "n_resamples": case.n_resamples, "keep": False}
    left = bootstrap_ratio(after[:, None], before[:, None], **how).at(0)
    figure = share_left(left, reader="own words")
    return replace(_WORDS, headline=figure, threshold=OWN_WORDS, figures=(figure,))


def _lean(
    words: Float[np.ndarray, "prompt version word"], down: list[int], up: list[int]
) -> Float[np.ndarray, " prompt"]:
    lean = words[..., down].mean(-1) - words[..., up].mean(-1)
    return (lean[:, 0] - lean[:, 1]).astype(np.float64)


def _index(case: Case, basis: dict[int, Tensor]) -> Check:
    before, after = case.evidence[BEFORE], case.evidence[AFTER]
    figures = []
    for layer, span in basis.items():
        at = before.names["layers"].index(layer)
        old, new = (
            torch.from_numpy((e.streams[:, 0, at] - e.streams[:, 1, at]).mean(0))
            for e in (before, after)
        )
        index = reroute_index(new[None], old[None], span[None].to(old.dtype))
        figures.append(
            Figure(
                name="reroute index",
                value=float(index[0]),
                count=len(before.streams),
                layer=layer,
                lower_is_better=True,
            )
        )
    worst = max(figures, key=lambda figure: figure.value)
    return replace(_INDEX, headline=worst, threshold=INDEX, figures=(worst, *figures))


def _mask(case: Case) -> Check:
    before, after = case.evidence[BEFORE], case.evidence[AFTER]
    if before.masked is None or after.masked is None:
        said = "no deflection vectors were given (`emoreg probes`, `--deflection`)"
        return replace(_MASK, not_run=said)
    names, roles = before.names["masked_emotions"], case.roles
    lowered = (*roles.lower, *roles.audit_lower)
    columns = [i for i, emotion in enumerate(names) if emotion in lowered]
    if not columns:
        return replace(_MASK, not_run="they have no emotion that a loss lowers")
    # Files of earlier versions lack them: their vectors had the same layers.
    layers = before.names.get("masked_layers", before.names["vector_layers"])
    rows = [layers.index(i) for i in case.split.audit_layers if i in layers]
    if not rows:
        return replace(_MASK, not_run="they have none of the audit's layers")
    spread = (before.masked[:, 0] - before.masked[:, 1]).std(0, ddof=1)
    moved = (after.masked - before.masked) / spread[None, None]
    each = moved[:, :, rows][..., columns].mean((2, 3)).astype(np.float64)
    shift = bootstrap_mean(each, seed=case.seed, keep=False)
    failing, passing = (
        Figure.of(
            f"shift on deflection vectors, {version}",
            found,
            lower_is_better=True,
        )
        for version, found in (("failing", shift.at(0)), ("passing", shift.at(1)))
    )
    both = (failing, passing)
    return replace(_MASK, headline=failing, threshold=MASK, figures=both)
