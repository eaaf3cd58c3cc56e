"""What an audit holds side by side must be of the same prompts, units and models."""

from collections.abc import Mapping
from typing import Any

from emoreg.comparison.audit.case import BEFORE, Case
from emoreg.comparison.evidence.evidence import Evidence
from emoreg.comparison.readings import FIXED, Readings
from emoreg.vectors.emotion_vectors import EmotionVectors

GATE = "gate"


def check_belonging(case: Case, vectors: EmotionVectors) -> None:
    """Raise a ValueError unless tables and evidence may be held against each other.

    Evidence is paired text by text, so that its labels must be the same, in the same
    order.
    """
    for name, table in (*case.tables.items(), (GATE, case.gate)):
        _check_table(name, table, case.tables[BEFORE], vectors)
    ours, others = (
        set(table.twin_differences().prompts)
        for table in (case.tables[BEFORE], case.gate)
    )
    if shared := ours & others:
        raise ValueError(
            "the gate must be of other prompts than those that are judged, found "
            f"{len(shared)} in both. Measure it on `dev`"
        )
    first = next(iter(case.evidence.values()), None)
    for name, found in case.evidence.items():
        assert first is not None
        _check_evidence(name, found, first, vectors)
        _check_of_table(name, found, case.tables.get(name), ours)


def _check_table(
    name: str, table: Readings, first: Readings, vectors: EmotionVectors
) -> None:
    if table.text != FIXED:
        raise ValueError(
            f"the audit's tables must be of given text, {name!r} is {table.text}. "
            "Measure it without `--generate`; own text goes to `cross`"
        )
    found = table.meta.get("vectors_hash")
    if found != vectors.hash or table.readers != first.readers:
        raise ValueError(
            f"all tables must be read with the vectors {vectors.hash} and readers "
            f"{first.readers}, {name!r} was with {found} and {table.readers}. "
            "Measure it again"
        )
    same = ("reference_hash",) if name == GATE else ("reference_hash", "prompts_hash")
    for item in same:
        if table.meta.get(item) != first.meta.get(item):
            raise ValueError(
                f"all tables must have one `{item}`, found {first.meta.get(item)} "
                f"before and {table.meta.get(item)} of {name!r}. Measure them alike"
            )


def _check_evidence(
    name: str, found: Evidence, first: Evidence, vectors: EmotionVectors
) -> None:
    if found.meta["vectors_hash"] != vectors.hash:
        raise ValueError(
            f"the evidence of {name!r} must be gathered with the vectors "
            f"{vectors.hash}, found {found.meta['vectors_hash']}. Gather it again"
        )
    masked = found.masked is not None and first.masked is not None
    items = [item for item in first.names if masked or not item.startswith("masked")]
    other = [item for item in items if found.names.get(item) != first.names[item]]
    hashes = ("corpus_hash", "deflection_hash") if masked else ("corpus_hash",)
    other += [item for item in hashes if found.meta.get(item) != first.meta.get(item)]
    if other:
        raise ValueError(
            f"the evidence of all arms must have the same {other[0]}, {name!r} has "
            "others. Gather it with the same prompts, corpus and deflection vectors"
        )


def _check_of_table(
    name: str, found: Evidence, table: Readings | None, prompts: set[str]
) -> None:
    if table is None:
        return
    if {*found.names["prompts"]} != prompts:
        raise ValueError(
            f"the evidence of {name!r} must be of the prompts of its table, found "
            f"{len(found.names['prompts'])} that are not those {len(prompts)}. "
            "Gather it again"
        )
    for item in ("model", "adapter_hash"):
        if _differ(item, found.meta, table.meta):
            raise ValueError(
                f"the evidence of {name!r} must be of the model of its table, found "
                f"another `{item}`: it is of an earlier run. Measure both again "
                "(`emoreg measure --audit`)"
            )


def _differ(item: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return item in one and item in other and one[item] != other[item]
