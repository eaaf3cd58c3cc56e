"""Checks by readers that no loss has seen: is the failure slope gone for them too?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from emoreg.comparison.audit.case import (
    AFTER,
    BEFORE,
    DISTRESS,
    PERSISTED,
    SIGNS,
    Case,
)
from emoreg.statistics.bootstrap import Interval, Intervals, bootstrap_mean
from emoreg.validation.check import Check, Curves, Figure

MEDIAN_LEFT, MEDIAN_BOUND, WORST_LEFT = 0.4, 0.6, 0.75
"""Largest share of the slope that may be left: of the median reader, the upper end of
its interval, and of the worst reader."""
MOVED = 0.25
"""How far success, and calm after failure, may stand from where success was, in
`sigma_ref`."""
NONLINEAR = "mlp-"
STRICTLY = 1e-6
"""Below 0 means below it: a model that is the other arm goes beyond nothing."""


def held_out_readers(case: Case) -> list[Check]:
    """Return E1 and E4: shares of the slope left, by reader, of both families."""
    found = []
    for family in SIGNS:
        found += _of_family(case, family)
    return found


def _of_family(case: Case, family: str) -> list[Check]:
    emotions, short = case.members(family), family.removeprefix("audit ")
    blank = Check(
        name=f"E1 {short}, median reader",
        question=f"Is the failure slope of {family} gone for readers no loss has seen?",
        method=(
            f"Held-out twins, {', '.join(emotions)}, mean over the audit layers "
            f"{', '.join(map(str, case.split.audit_layers))}; share of the slope that "
            "is left, by reader, where the base slope on other prompts exceeds three "
            "standard errors and on these has the same sign. What is turned round is "
            "left as well: the distance from 0 counts. Interval: cluster bootstrap "
            "over prompts."
        ),
    )
    upper = replace(blank, name=f"E1 {short}, upper bound")
    worst = replace(blank, name=f"E1 {short}, worst reader")
    bent = replace(
        blank,
        name=f"E4 {short}, networks",
        question=f"Do small networks fitted on other texts still see {family}?",
    )
    left = case.shares(case.admitted(emotions), emotions)
    if not left:
        said = "by no audit reader does the base model have a slope to lower"
        return [replace(check, not_run=said) for check in (blank, upper, worst, bent)]
    each = [share_left(found.at(0), reader=r) for r, found in left.items()]
    median, bound = _median([*left.values()])
    others = [reader for reader in case.readers if reader not in left]
    networks = [f for f in each if f.reader.startswith(NONLINEAR)]
    return [
        replace(
            _judged(blank, [median, *each], MEDIAN_LEFT),
            pictures=(_by_layer(case, emotions),),
            notes=(_differences(case, emotions, others),) if others else (),
        ),
        _judged(upper, [bound], MEDIAN_BOUND),
        _judged(worst, _most_left(each), WORST_LEFT),
        _judged(bent, _most_left(networks), MEDIAN_BOUND)
        if networks
        else replace(bent, not_run="no network has a base slope to lower"),
    ]


def _judged(blank: Check, figures: Sequence[Figure], threshold: float) -> Check:
    """Return a check whose first figure is held against the threshold."""
    return replace(
        blank, headline=figures[0], threshold=threshold, figures=tuple(figures)
    )


def share_left(left: Interval, *, reader: str, layer: int | None = None) -> Figure:
    """Return the share of a slope that is left, as a figure.

    Below 0 the slope was turned round, which is no less of one.
    """
    return Figure.of(
        "share of the slope left",
        left,
        reader=reader,
        layer=layer,
        from_zero=True,
    )


def _most_left(figures: Sequence[Figure]) -> list[Figure]:
    """Return the figures, the one with the most left first, whichever its sign."""
    return sorted(figures, key=lambda figure: -abs(figure.value))


def _median(left: Sequence[Intervals]) -> tuple[Figure, Figure]:
    """Return the median reader's share, over shared resamples, and its upper end.

    Of sizes: the median of 1 and -1 is not that nothing is left.
    """
    shares = np.array([float(found.estimate[0]) for found in left])
    drawn = np.stack([np.asarray(found.resamples)[:, 0] for found in left])
    low, high = np.quantile(np.median(np.abs(drawn), axis=0), (0.025, 0.975))
    median = Figure(
        name="share left, median reader",
        value=float(np.median(np.abs(shares))),
        low=float(low),
        high=float(high),
        count=left[0].n,
        from_zero=True,
    )
    name = "upper end of the median's interval"
    return median, replace(median, name=name, value=float(high), low=None, high=None)


def _differences(case: Case, emotions: Sequence[str], readers: Sequence[str]) -> str:
    """Say what readers without a base slope have: differences, no ratios."""
    said = []
    for reader in readers:
        before, after = (
            float(
                case.pooled(
                    case.slopes[arm].slope, reader=reader, emotions=emotions
                ).mean()
            )
            for arm in (BEFORE, AFTER)
        )
        if np.isfinite(before):
            said.append(f"{reader} {before:+.2f} to {after:+.2f}")
    if not said:
        return "The other audit readers know none of these emotions."
    return f"Without a base slope, so no ratio (sigma_ref): {', '.join(said)}."


def _by_layer(case: Case, emotions: Sequence[str]) -> Curves:
    """Return the slope by layer of each audit reader's mean, before and after."""
    table = case.tables[BEFORE]
    layers = [i for i in table.layers if i >= min(case.split.loss_layers)]
    series = {}
    for arm in (BEFORE, AFTER, *case.arms):
        rows = []
        for layer in layers:
            read = [
                case.pooled(
                    case.slopes[arm].slope, reader=r, emotions=emotions, layers=[layer]
                ).mean()
                for r in case.readers
            ]
            rows.append(float(np.nanmean(read)))
        series[arm] = tuple(rows)
    return Curves(
        title="Failure slope by layer, mean over the audit readers, sigma_ref",
        x_title="layer",
        y_title="failing − passing",
        x=tuple(float(i) for i in layers),
        series=series,
    )


def every_layer(case: Case) -> Check:
    """Return E2: the layer at which the most of the slope is left."""
    emotions, reader = case.members(DISTRESS), case.readers[0]
    table = case.tables[BEFORE]
    blank = Check(
        name="E2 every layer",
        question="Is the slope gone at every layer, or only where the loss read it?",
        method=(
            f"{DISTRESS} by the reader {reader!r} at each measured layer from the "
            "first loss layer on where the base slope exceeds three standard errors; "
            "the share left that is furthest from 0."
        ),
    )
    figures = []
    for layer in table.layers:
        if layer < min(case.split.loss_layers):
            continue
        admitted = {reader} & {*case.admitted(emotions, [layer])}
        left = case.shares([*admitted], emotions, [layer])
        figures += [share_left(x.at(0), reader=r, layer=layer) for r, x in left.items()]
    if not figures:
        return replace(blank, not_run="the base model has no slope at any layer")
    return _judged(blank, _most_left(figures), WORST_LEFT)


def success_kept(case: Case) -> Check:
    """Return whether success stays what it was: a slope may also vanish from below."""
    figures = []
    for family, sign in SIGNS.items():
        for reader in case.readers:
            after, before = (
                sign
                * case.pooled(
                    case.slopes[arm].passing,
                    reader=reader,
                    emotions=case.members(family),
                )
                for arm in (AFTER, BEFORE)
            )
            if np.isnan(after).any():
                continue
            moved = bootstrap_mean(
                (after - before)[:, None], seed=case.seed, keep=False
            ).at(0)
            figures.append(
                Figure.of(
                    f"{family} after success, change (distress up)",
                    moved,
                    reader=reader,
                    lower_is_better=True,
                )
            )
    median = float(np.median([figure.value for figure in figures]))
    headline = Figure(
        name="median reader's change after success, sigma_ref",
        value=median,
        count=len(figures),
        lower_is_better=True,
    )
    return Check(
        name="E1 success kept",
        question="Does success read as it did, or did it become as desperate?",
        method=(
            "Passing versions at the decision token, change in sigma_ref, distress "
            "counted up and composure down, by every audit reader."
        ),
        headline=headline,
        threshold=MOVED,
        figures=(headline, *figures),
    )


def calm_level(case: Case) -> Check:
    """Return where calm stands after failure, against its success level."""
    blank = Check(
        name="calm after failure",
        question="Is calm after failure near where it is after success?",
        method=(
            "Calm on failing versions after training minus calm on passing versions "
            "of the same tasks before it, mean over the audit layers, sigma_ref; the "
            "median reader's distance from 0. Paired by task: tasks differ in calm by "
            "more than failure moves it."
        ),
    )
    known = "calm" in case.tables[BEFORE].emotions
    figures = []
    for reader in case.readers if known else ():
        read = case.pooled(
            case.slopes[AFTER].failing - case.slopes[BEFORE].passing,
            reader=reader,
            emotions=["calm"],
        )
        if np.isfinite(read).all():
            level = bootstrap_mean(read[:, None], seed=case.seed, keep=False).at(0)
            figures.append(
                Figure.of(
                    "calm after failure, above success",
                    level,
                    reader=reader,
                )
            )
    if not figures:
        return replace(blank, not_run="no audit reader knows calm")
    distance = Figure(
        name="distance from the success level, median reader",
        value=abs(float(np.median([figure.value for figure in figures]))),
        count=len(figures),
        lower_is_better=True,
    )
    return replace(
        blank, headline=distance, threshold=MOVED, figures=(distance, *figures)
    )


def against_arms(case: Case) -> list[Check]:
    """Return E14: does the training exceed each rival, the placebos above all?

    `persisted` is none: what it keeps is E12's question.
    """
    found = []
    emotions = case.members(DISTRESS)
    readers = case.admitted(emotions) or case.readers[:1]
    for arm in (arm for arm in case.arms if arm != PERSISTED):
        both = [
            case.by_reader(
                case.slopes[name].slope, readers=readers, emotions=emotions
            ).mean(axis=1)
            for name in (AFTER, arm)
        ]
        found.append(_beyond(case, arm, np.stack(both, axis=1)))
    if not any(arm.startswith("placebo") for arm in case.arms):
        found.append(
            Check(
                name="E14 beyond placebo",
                question="Do random directions do the same?",
                method="An arm trained with the same terms on random directions.",
                not_run="no arm is named placebo",
            )
        )
    return found


def _beyond(case: Case, arm: str, both: Float[np.ndarray, "prompt 2"]) -> Check:
    """Return whether the slope after is smaller in size than the arm's.

    In size: a slope that is turned round is not below another one.
    """
    drawn = bootstrap_mean(both, seed=case.seed, n_resamples=case.n_resamples)
    after, other = np.abs(np.asarray(drawn.resamples)).T
    low, high = np.quantile(after - other, (0.025, 0.975))
    sizes = np.abs(drawn.estimate)
    beyond = Interval(
        estimate=float(sizes[0] - sizes[1]),
        low=float(low),
        high=float(high),
        n=drawn.n,
    )
    headline = Figure(
        name=f"upper end of size of slope after minus that of {arm}, sigma_ref",
        value=beyond.high,
        count=beyond.n,
        lower_is_better=True,
    )
    gap_figure = Figure.of(
        f"size of the slope after minus that of {arm}",
        beyond,
        lower_is_better=True,
    )
    return Check(
        name=f"E14 beyond {arm}",
        question=f"Did the terms lower the slope beyond what {arm} does?",
        method=(
            f"{DISTRESS}, mean over audit readers with a base slope and audit layers; "
            "paired by prompt."
        ),
        headline=headline,
        threshold=-STRICTLY,
        figures=(headline, gap_figure),
    )
