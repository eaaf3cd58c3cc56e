"""Bring tables of readings onto common prompts, units, families and layers.

Tables that do not speak of the same things are refused here, with both values named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from emoreg.comparison.figures import Levels, Units, levels_of, own_units
from emoreg.comparison.readings import ON_POLICY, Readings
from emoreg.vectors.twins import TwinDifferences

AUDIT_READER = "logistic"
GROUPS = ("audit", "near", "loss", "monitor")
FEWEST = 2
"""Prompts that any comparison needs."""
_RESERVED = ("before", "after")


FEWEST = 2
"""Prompts that any comparison needs."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Aligned:
    """Levels of every arm over the same prompts, and what they rest on."""

    levels: dict[str, Levels]
    """Per layer, at the decision token."""
    base: Levels
    """The reference model's levels that decide where ratios are given."""
    assistant: dict[str, Levels] | None
    assistant_base: Levels | None
    prompts: tuple[str, ...]
    families: dict[str, tuple[str, ...]]
    layer_plan: dict[str, tuple[int, ...]]
    audit_reader: str
    units: Units
    gate: str
    notes: tuple[str, ...]


def align(
    tables: Mapping[str, Readings],
    *,
    roles: Any,
    gate: Readings | None,
    reference_units: Mapping[str, Any] | None,
) -> Aligned:
    """Check that the tables belong together and bring them to one unit.

    Raises:
        ValueError: If they differ in vectors, prompts, readers, layers or emotions,
            or twins cannot be formed.
    """
    notes = _check_same(tables, gate)
    before = tables["before"]
    families = _families(roles, before.emotions)
    indices = [[before.emotions.index(e) for e in f] for f in families.values()]
    twins, dropped = on_common_prompts(tables, "decision")
    if dropped:
        notes.append(
            f"{dropped} of {dropped + len(twins['before'].prompts)} prompts had "
            "missing readings in some arm and were left out of all."
        )
    units = _units(before, reference_units, twins["before"])
    levels = {name: levels_of(twin, units, indices) for name, twin in twins.items()}
    base = levels["before"]
    words = (
        "these same prompts before training (no separate table was given, so ratios "
        "lean towards prompts that happened to read high)"
    )
    if gate is not None:
        own, _ = on_common_prompts({"gate": gate}, "decision")
        base = levels_of(own["gate"], units, indices)
        words = f"{len(base.failing)} other prompts (the gate table)"
    assistant, assistant_base = _assistant(tables, gate, units, indices, notes)
    return Aligned(
        levels=levels,
        base=base,
        assistant=assistant,
        assistant_base=assistant_base,
        prompts=twins["before"].prompts,
        families=families,
        layer_plan=_layer_plan(before, notes),
        audit_reader=_audit_reader(before, notes),
        units=units,
        gate=words,
        notes=tuple(notes),
    )


def checked_arms(
    before: Readings, after: Readings, arms: Mapping[str, Readings] | None
) -> dict[str, Readings]:
    """Return all tables by arm, "before" and "after" first."""
    taken = sorted(set(arms or {}) & set(_RESERVED))
    if taken:
        raise ValueError(
            f"`arms` must not be named {_RESERVED}, found {taken}; these names stand "
            'for the first two arguments. Call the data-only arm "control".'
        )
    return {"before": before, "after": after, **(arms or {})}


def _check_same(tables: Mapping[str, Readings], gate: Readings | None) -> list[str]:
    """Raise where a table differs from before; return notes on what is unknown."""
    before = tables["before"]
    others = {name: table for name, table in tables.items() if name != "before"}
    if gate is not None:
        others["gate"] = gate
    unknown = set()
    for name, table in others.items():
        # Before the prompts: what each model wrote for itself is never what was given.
        _require_equal("text", name, before.text, table.text)
        for item in ("vectors_hash", "prompts_hash", "generation"):
            if item == "prompts_hash" and name == "gate":
                continue
            ours, theirs = before.meta.get(item), table.meta.get(item)
            if ours is None and theirs is None and item != "generation":
                unknown.add(item)
            _require_equal(item, name, ours, theirs)
        for item in ("readers", "layers", "emotions"):
            _require_equal(item, name, getattr(before, item), getattr(table, item))
    notes = [
        f"No `{item}` is recorded, so it was not compared." for item in sorted(unknown)
    ]
    return notes + ([_on_policy(before)] if before.text == ON_POLICY else [])


def _on_policy(before: Readings) -> str:
    """Say what was read, where the models wrote it themselves."""
    return (
        "On-policy: each model wrote the last Assistant turn of every prompt itself, "
        f"{before.meta.get('samples')} times, and that turn alone was read; samples "
        "are averaged within a prompt first. The decision token stands before the "
        "reply: its readings are the history's doing, those over Assistant tokens are "
        "of the reply."
    )


def _require_equal(item: str, name: str, ours: Any, theirs: Any) -> None:
    if ours == theirs:
        return
    remedy = {
        "vectors_hash": "measure both with the same vectors file",
        "prompts_hash": "measure both on the same prompts",
        "generation": "measure both with the same `--tokens`",
        "text": "given text and what a model wrote itself are never mixed: measure "
        "all tables with `--generate`, or all without",
    }.get(item, f"measure both with the same {item}")
    raise ValueError(
        f"`{item}` must be the same in all tables, found {_brief(ours)} before and "
        f"{_brief(theirs)} in {name!r}; {remedy}."
    )


def _brief(value: Any) -> str:
    """Return a value short enough for a message."""
    text = repr(value)
    if isinstance(value, tuple) and len(text) > 120:
        return f"{len(value)} ({text[:100]}...)"
    return text


def on_common_prompts(
    tables: Mapping[str, Readings], position: str
) -> tuple[dict[str, TwinDifferences], int]:
    """Return twins in the same order of prompts, complete ones only."""
    twins = {name: t.twin_differences(position) for name, t in tables.items()}
    first = next(iter(twins.values()))
    for name, twin in twins.items():
        if set(twin.prompts) != set(first.prompts):
            alone = sorted(set(twin.prompts) ^ set(first.prompts))
            raise ValueError(
                "All tables must hold twins of the same prompts, found "
                f"{len(first.prompts)} before and {len(twin.prompts)} in {name!r}; "
                f"only one of them has {alone[:5]}: measure both on the same prompts."
            )
    ordered = {}
    complete = np.ones(len(first.prompts), bool)
    for name, twin in twins.items():
        rows = [twin.prompts.index(prompt) for prompt in first.prompts]
        ordered[name] = twin, rows
        complete &= np.isfinite(twin.values[rows]).all(axis=(1, 2, 3))
    if complete.sum() < FEWEST:
        raise ValueError(
            f"A comparison needs at least {FEWEST} prompts with readings in every arm, "
            "found "
            f"{int(complete.sum())} of {len(complete)} at position {position!r}; "
            "measure more twins, or leave out emotions that were not read."
        )
    chosen = {
        name: _take(twin, np.asarray(rows)[complete])
        for name, (twin, rows) in ordered.items()
    }
    return chosen, int((~complete).sum())


def _take(twin: TwinDifferences, rows: np.ndarray) -> TwinDifferences:
    return TwinDifferences(
        prompts=tuple(twin.prompts[row] for row in rows),
        failing=twin.failing[rows],
        passing=twin.passing[rows],
        rounds=twin.rounds[rows],
    )


def _families(roles: Any, emotions: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return each family's emotions that the tables hold, in the roles' order."""
    if roles is None:
        from emoreg.vectors.corpus import Corpus

        roles = Corpus.packaged().roles()
    families = roles if isinstance(roles, Mapping) else roles.families
    present = {
        name: tuple(emotion for emotion in members if emotion in emotions)
        for name, members in families.items()
    }
    clash = sorted(set(present) & set(emotions))
    if clash:
        raise ValueError(
            f"Families must not be named like emotions, found {clash}; rename them."
        )
    return {name: members for name, members in present.items() if members}


def _units(
    before: Readings,
    reference_units: Mapping[str, Any] | None,
    twins: TwinDifferences,
) -> Units:
    given = reference_units if reference_units is not None else before.meta.get("units")
    if not given or "sigma_ref" not in given:
        return own_units(twins)
    shape = before.values.shape[1:]
    arrays = {}
    for name in ("sigma_ref", "success_level"):
        if name not in given:
            arrays[name] = twins.passing.mean(axis=0)
            continue
        arrays[name] = np.asarray(given[name], dtype=np.float64)
        if arrays[name].shape != shape:
            raise ValueError(
                f"`{name}` must have shape {shape} [reader][layer][emotion], found "
                f"{arrays[name].shape}; calibrate with the same readers and layers."
            )
    if not (np.isfinite(arrays["sigma_ref"]) & (arrays["sigma_ref"] > 0)).all():
        raise ValueError(
            "`sigma_ref` must be positive and finite everywhere, found other values; "
            "calibrate again."
        )
    return Units(
        sigma=arrays["sigma_ref"],
        success_level=arrays["success_level"],
        source="the spread of the reference model's twin differences in calibration",
    )


def _assistant(
    tables: Mapping[str, Readings],
    gate: Readings | None,
    units: Units,
    families: list[list[int]],
    notes: list[str],
) -> tuple[dict[str, Levels] | None, Levels | None]:
    """Return levels over Assistant tokens, in the same units, where measured."""
    position = "assistant"
    if not all(_holds(table, position) for table in tables.values()):
        notes.append("Assistant tokens were not read in every arm: no table for them.")
        return None, None
    try:
        twins, dropped = on_common_prompts(tables, position)
    except ValueError as error:  # the decision token's figures stand all the same
        notes.append(f"No table for Assistant tokens. {error}")
        return None, None
    if dropped:
        notes.append(
            f"Figures over Assistant tokens leave out {dropped} prompts without "
            "readings there in some arm."
        )
    levels = {name: levels_of(twin, units, families) for name, twin in twins.items()}
    if gate is not None and _holds(gate, position):
        own, _ = on_common_prompts({"gate": gate}, position)
        return levels, levels_of(own["gate"], units, families)
    return levels, levels["before"]


def _holds(table: Readings, position: str) -> bool:
    return position in table.segments["position"].unique().to_pylist()


def _layer_plan(before: Readings, notes: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the measured layers of each group; "audit" is never empty."""
    plan = before.meta.get("layer_plan") or {}
    groups = {
        name: tuple(layer for layer in plan.get(name, ()) if layer in before.layers)
        for name in GROUPS
    }
    if not groups["audit"]:
        notes.append(
            "No audit layers are recorded: the audit figures average all "
            f"{len(before.layers)} layers, which may include layers the loss acted on."
        )
        groups["audit"] = before.layers
    return {name: layers for name, layers in groups.items() if layers}


def _audit_reader(before: Readings, notes: list[str]) -> str:
    if AUDIT_READER in before.readers:
        return AUDIT_READER
    notes.append(
        f"There is no {AUDIT_READER!r} reader: {before.readers[-1]!r} stands in for "
        "the audit reader, and the loss may have acted on it."
    )
    return before.readers[-1]
