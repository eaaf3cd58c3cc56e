"""Compare readings before and after training, arm by arm, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from emoreg.behavior.impossible.episode_table import Episodes
from emoreg.behavior.preferences import Preferences
from emoreg.comparison.alignment import Aligned, align, checked_arms
from emoreg.comparison.behavior import checked_behavior
from emoreg.comparison.changes import Changes, changes_of
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.conduct import checked_conduct
from emoreg.comparison.cross import CrossReading, cross_reading
from emoreg.comparison.figures import FigureSet, Levels, figure_set
from emoreg.comparison.moves import moves_on
from emoreg.comparison.plane import Plane
from emoreg.comparison.readings import Readings
from emoreg.comparison.rounds import RoundTrend, round_gaps, round_trends
from emoreg.comparison.token_readings import kept_in_both
from emoreg.comparison.verdict import Question, judge
from emoreg.statistics.bootstrap import Intervals
from emoreg.statistics.effects import bootstrap_cliffs_delta

HEADLINE = (
    "audit distress",
    "loss distress",
    "desperate",
    "audit composure",
    "loss composure",
    "calm",
)


def compare(
    before: Readings,
    after: Readings,
    *,
    arms: Mapping[str, Readings] | None = None,
    roles: Any = None,
    gate: Readings | None = None,
    reference_units: Mapping[str, Any] | None = None,
    seed: int = 0,
    n_resamples: int = 10_000,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    run: Mapping[str, Any] | None = None,
    behavior: Mapping[str, Preferences] | None = None,
    conduct: Mapping[str, Episodes] | None = None,
    cross: Readings | None = None,
) -> Comparison:
    """Compare a model's readings before and after training on the same prompts.

    The failure slope is the mean twin difference at the decision token over
    sigma_ref; its unit of analysis is the prompt, its interval a 95 % cluster
    bootstrap (BCa; percentiles for ratios), widened for few prompts. It is read by the
    vectors' own readers; what the audit's further ones say is `audit`'s matter.

    Args:
        before: Readings of the reference model.
        after: Readings of the model trained with the terms.
        arms: Further models by name; "control" is the one trained equally long on
            the same data without terms, and tells what the terms did.
        roles: Emotions by family, or `Corpus.roles()`; the packaged roles by default.
        gate: Readings of the reference model on other prompts (`dev`), which decide
            where a ratio is given. Without it the same prompts decide.
        reference_units: "sigma_ref" and "success_level", [reader][layer][emotion];
            overrides `before.meta["units"]`.
        seed: Seed of the resamples.
        n_resamples: More narrows the Monte Carlo noise of the bounds.
        training: Trainer logs by arm, for the page.
        run: Times, settings and commands, for the page.
        behavior: What each arm's model would rather do, by arm, "before" and "after"
            among them (`emoreg behave`); no part of the verdict.
        conduct: What each arm's model did on impossible tasks, likewise.
        cross: The reference's reading of what `after` wrote (`cross_reading`).

    Raises:
        ValueError: If tables are not of the same vectors, prompts, readers, layers and
            emotions, have one outcome alone, or are of other texts or models.
    """
    tables = {n: t.own() for n, t in checked_arms(before, after, arms).items()}
    gate = None if gate is None else gate.own()
    aligned = align(tables, roles=roles, gate=gate, reference_units=reference_units)
    metas = {name: t.meta for name, t in tables.items()}
    own = checked_behavior(behavior, metas)
    played = checked_conduct(conduct, metas)
    found = _compared(
        tables, aligned, seed=seed, n_resamples=n_resamples, training=training, run=run
    )
    more = {"changes": _paired(found), "rounds": _by_round(found, tables, aligned)}
    more |= _on_plane(found, aligned)
    more["transcripts"] = kept_in_both(before.meta, after.meta)
    more |= {"behavior": own, "conduct": played}
    return replace(found, cross=_across(found, tables, cross, aligned), **more)


def _compared(
    tables: Mapping[str, Readings],
    aligned: Aligned,
    *,
    seed: int,
    n_resamples: int,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    run: Mapping[str, Any] | None,
) -> Comparison:
    before = tables["before"]
    targets = (*before.emotions, *aligned.families)
    plan = aligned.layer_plan
    pools = {n: [before.layers.index(x) for x in g] for n, g in plan.items()}
    pooled = {n: own.over(list(pools.values())) for n, own in aligned.levels.items()}
    figures = partial(
        _by_layer_and_group,
        pools=pools,
        names=(before.readers, before.layers, targets),
        n_resamples=n_resamples,
        seed=seed,
    )
    decision, summary = figures(aligned.levels, base=aligned.base)
    assistant = assistant_summary = None
    if aligned.assistant is not None and aligned.assistant_base is not None:
        assistant, assistant_summary = figures(
            aligned.assistant, base=aligned.assistant_base, position="assistant"
        )
    headline = tuple(name for name in HEADLINE if name in targets)
    return Comparison(
        decision=decision,
        summary=summary,
        assistant=assistant,
        assistant_summary=assistant_summary,
        levels=pooled,
        headline_targets=headline,
        cliffs=_cliffs(
            *(pooled, summary, aligned.audit_reader, headline),
            n_resamples=n_resamples,
            seed=seed,
        ),
        prompts=aligned.prompts,
        layers=before.layers,
        emotions=before.emotions,
        families=aligned.families,
        layer_plan=plan,
        audit_reader=aligned.audit_reader,
        units=aligned.units.source,
        gate=aligned.gate,
        notes=aligned.notes,
        judgement=judge(
            summary,
            Question(reader=aligned.audit_reader, place="audit"),
            guards={name: t.meta.get("guards") or {} for name, t in tables.items()},
        ),
        meta={name: table.meta for name, table in tables.items()},
        settings={"seed": seed, "n_resamples": n_resamples, "confidence": 0.95},
        training=training,
        run=run,
    )


def _by_layer_and_group(
    levels: Mapping[str, Levels],
    *,
    base: Levels,
    pools: Mapping[str, Sequence[int]],
    names: tuple[Sequence[str], Sequence[int], Sequence[str]],
    **how: Any,
) -> tuple[FigureSet, FigureSet]:
    """Return the figures of every layer, and those of every group of layers.

    A group of one layer has that layer's figures.
    """
    readers, numbers, targets = names
    layers = [str(layer) for layer in numbers]
    wide = {name: pool for name, pool in pools.items() if len(pool) > 1}
    groups = list(wide.values())
    found = figure_set(
        {arm: own.and_over(groups) for arm, own in levels.items()},
        base=base.and_over(groups),
        labels=(readers, [*layers, *wide], targets),
        **how,
    )
    own = {n: n if n in wide else layers[pool[0]] for n, pool in pools.items()}
    return found.at(dict(zip(layers, layers, strict=True))), found.at(own)


def _across(
    found: Comparison,
    tables: Mapping[str, Readings],
    cross: Readings | None,
    aligned: Aligned,
) -> CrossReading | None:
    """Return the headline targets' change in its parts, text and state."""
    if cross is None:
        return None
    settings = found.settings
    return cross_reading(
        tables["before"],
        cross.own(),
        tables["after"],
        units=aligned.units,
        families=found.families,
        reader=found.audit_reader,
        layers=found.layer_plan["audit"],
        targets=found.headline_targets,
        **{name: settings[name] for name in ("seed", "n_resamples")},
    )


def _by_round(
    found: Comparison, tables: Mapping[str, Readings], aligned: Aligned
) -> tuple[RoundTrend, ...]:
    """Return the headline targets' gaps by number of failed attempts."""
    if not found.headline_targets:
        return ()
    gaps = {
        arm: round_gaps(
            table,
            aligned.units,
            prompts=found.prompts,
            families=found.families,
            reader=found.audit_reader,
            layers=found.layer_plan["audit"],
            targets=found.headline_targets,
        )
        for arm, table in tables.items()
    }
    settings = found.settings
    how = {name: settings[name] for name in ("seed", "n_resamples")}
    return round_trends(gaps, **how)


def _on_plane(found: Comparison, aligned: Aligned) -> dict[str, Any]:
    """Return the emotions' plane and the moves on it, where the tables have one."""
    described = found.meta["before"].get("plane")
    plane = Plane.restored(described) if described else None
    there = plane is not None and plane.reader in found.decision.readers
    if plane is None or not there or plane.layer not in found.layers:
        return {}
    moves = moves_on(
        plane,
        aligned.levels,
        aligned.units,
        readers=found.decision.readers,
        layers=found.layers,
        n_resamples=found.settings["n_resamples"],
        seed=found.settings["seed"],
    )
    return {"plane": plane, "moves": moves}


def _paired(found: Comparison) -> tuple[Changes, ...]:
    """Return the headline targets' paired changes, by the comparison's own settings."""
    return changes_of(
        found.levels,
        found.summary,
        reader=found.audit_reader,
        targets=found.headline_targets,
        emotions=found.emotions,
        n_resamples=found.settings["n_resamples"],
        seed=found.settings["seed"],
    )


def _cliffs(
    levels: Mapping[str, Levels],
    summary: FigureSet,
    reader: str,
    targets: tuple[str, ...],
    *,
    n_resamples: int,
    seed: int,
) -> dict[str, Intervals]:
    """Return Cliff's delta with its interval for a few targets of every arm."""
    at = summary.readers.index(reader), summary.places.index("audit")
    chosen = [summary.targets.index(target) for target in targets]
    return {
        arm: bootstrap_cliffs_delta(
            level.failing[:, at[0], at[1]][:, chosen],
            level.passing[:, at[0], at[1]][:, chosen],
            n_resamples=n_resamples,
            seed=seed,
        )
        for arm, level in levels.items()
    }
