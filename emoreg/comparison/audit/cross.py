"""Check of cross-reading: is it the state that changed, or only the wording?"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from emoreg.comparison.audit.case import AFTER, BEFORE, SIGNS, Case
from emoreg.comparison.cross import POSITION, Split, check_cross, split
from emoreg.comparison.readings import Readings
from emoreg.validation.check import Check, Figure

CROSS = "cross"
STATE = 0.5
"""Share of the change that must be of the state where a claim is made about it."""
BLANK = Check(
    name="E11 cross-reading",
    question="Is it the state that changed, or the wording?",
    method=(
        "Both models write the last Assistant turn themselves, and the base model also "
        "reads what the trained one wrote. Change of the failure slope over the "
        "Assistant tokens, mean over the audit readers with a base slope and the audit "
        "layers; text part: the same reader on other words; state part: the other "
        "reader on the same words. Reported: a miss takes away the claim that the "
        "state changed, and no verdict rests on it."
    ),
)


def cross_check(case: Case, own: Mapping[str, Readings]) -> Check:
    """Return E11, from three tables of what the models wrote, where there are some.

    Args:
        case: The arms on given text.
        own: On-policy, `before` and `after`, and `cross`, the base model's reading of
            what the trained one wrote.

    Raises:
        ValueError: If they don't belong together, or were read otherwise.
    """
    if not {BEFORE, CROSS, AFTER} <= {*own}:
        said = "no text of the models' own was read (`emoreg measure --generate`)"
        return replace(BLANK, not_run=said)
    check_cross(own[BEFORE], own[CROSS], own[AFTER])
    _check_alike(case, own[BEFORE])
    slopes = _slopes(case, own)
    found = {}
    for family in SIGNS:
        emotions = case.members(family)
        if readers := case.admitted(emotions):
            three = (
                case.by_reader(s, readers=readers, emotions=emotions).mean(axis=1)
                for s in slopes
            )
            found[family] = split(*three, seed=case.seed, n_resamples=case.n_resamples)
    if not found:
        said = "by no audit reader does the base model have a slope to lower"
        return replace(BLANK, not_run=said)
    figures = [f for family, parts in found.items() for f in _figures(family, parts)]
    shares = [f for f in figures if f.name.startswith("share")]
    if not shares:
        return replace(
            BLANK,
            figures=tuple(figures),
            not_run="the change on the models' own text is not told from zero, so it "
            "has no shares",
        )
    least = min(shares, key=lambda figure: figure.value)
    return replace(
        BLANK,
        headline=least,
        threshold=STATE,
        figures=(least, *(f for f in figures if f is not least)),
        notes=(_claim(least, len(found) - len(shares)),),
    )


def _slopes(
    case: Case, own: Mapping[str, Readings]
) -> list[Float[np.ndarray, "prompt reader layer emotion"]]:
    """Return the slopes of before, cross and after in `sigma_ref`, prompt by prompt.

    Prompts in which some model wrote nothing are left out.
    """
    twins = [own[name].twin_differences(POSITION) for name in (BEFORE, CROSS, AFTER)]
    prompts = twins[0].prompts
    if any(set(twin.prompts) != set(prompts) for twin in twins):
        raise ValueError(
            "the models' own text must be of the same prompts in all tables, found "
            f"{', '.join(str(len(twin.prompts)) for twin in twins)} prompts. Measure "
            "them on the same ones"
        )
    units = case.tables[BEFORE].meta.get("units") or {}
    sigma = np.asarray(units["sigma_ref"], np.float64)
    order = [[twin.prompts.index(prompt) for prompt in prompts] for twin in twins]
    values = [
        twin.values[rows] / sigma for twin, rows in zip(twins, order, strict=True)
    ]
    spoke = ~np.any([np.isnan(v).all(axis=(1, 2, 3)) for v in values], axis=0)
    return [v[spoke] for v in values]


def _check_alike(case: Case, own: Readings) -> None:
    """Refuse text of their own that was read otherwise than the given text."""
    table = case.tables[BEFORE]
    for item in ("model", "vectors_hash", "reference_hash"):
        ours, theirs = table.meta.get(item), own.meta.get(item)
        if ours != theirs:
            raise ValueError(
                f"`{item}` must be the same for the models' own text as for the given "
                f"one, {ours!r}; found {theirs!r}. Measure it alike"
            )
    if table.readers != own.readers or table.layers != own.layers:
        raise ValueError(
            "the models' own text must be read by the readers and at the layers of the "
            "other tables, found others. Measure it with the same vectors"
        )


def _claim(least: Figure, open_: int) -> str:
    """Return what may be said of the state, in words."""
    words = "At least half" if least.value >= STATE else "Less than half"
    said = f"{words} of the change on the models' own text is of the state"
    if least.value < STATE:
        said += ": claim none"
    if open_:
        said += ". The other family's change is not told from zero, so it has no share"
    return f"{said}."


def _figures(family: str, parts: Split) -> list[Figure]:
    """Return a family's parts, and their share where it has one."""
    named = {
        f"change of {family} on own text": parts.total,
        f"text part, {family}": parts.text,
        f"state part, {family}": parts.state,
    }
    found = [Figure.of(name, interval) for name, interval in named.items()]
    if parts.share is not None:
        found.insert(0, Figure.of(f"share of state, {family}", parts.share))
    return found
