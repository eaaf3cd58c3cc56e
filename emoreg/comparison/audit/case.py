"""What an audit looks at: two models and further arms, in one unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from jaxtyping import Float

from emoreg.comparison.evidence.evidence import Evidence
from emoreg.comparison.evidence.honesty import COMPOSURE, DISTRESS
from emoreg.comparison.figures import RATIO_CROSSING, slope_in_standard_errors
from emoreg.comparison.readings import Readings
from emoreg.statistics.bootstrap import Intervals, bootstrap_ratio
from emoreg.vectors.audit_split import AuditSplit
from emoreg.vectors.corpus import Roles

BASE_ERRORS = 3.0
"""Standard errors that a base slope must exceed for a ratio to be given."""
SIGNS = {DISTRESS: 1, COMPOSURE: -1}
"""The audited families, and the sign of their failure slope before training."""
BEFORE, AFTER = "before", "after"
CONTROL, PERSISTED = "control", "persisted"


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slopes:
    """Readings of both versions in `sigma_ref` above the success level."""

    failing: Float[np.ndarray, "prompt reader layer emotion"]
    passing: Float[np.ndarray, "prompt reader layer emotion"]

    @property
    def slope(self) -> Float[np.ndarray, "prompt reader layer emotion"]:
        """Return failing minus passing."""
        return self.failing - self.passing


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Tables and evidence of every arm, and what the training was not to touch."""

    tables: Mapping[str, Readings]
    """By arm: `before`, `after`, and further ones."""
    evidence: Mapping[str, Evidence]
    """Likewise; arms may lack it."""
    gate: Readings
    """The base model on other prompts, which decide where a ratio is given."""
    split: AuditSplit
    roles: Roles
    seed: int = 0
    n_resamples: int = 10_000

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Return the audit's readers that the tables have."""
        held = self.split.audit_readers
        return tuple(r for r in self.tables[BEFORE].readers if r in held)

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Return the arms beside before and after."""
        return tuple(name for name in self.tables if name not in (BEFORE, AFTER))

    @property
    def metas(self) -> dict[str, dict[str, Any]]:
        """Return what each arm's table says of itself."""
        return {name: table.meta for name, table in self.tables.items()}

    @cached_property
    def slopes(self) -> dict[str, Slopes]:
        """Return every arm's readings, on the prompts that all of them have."""
        twins = {name: t.twin_differences() for name, t in self.tables.items()}
        prompts = twins[BEFORE].prompts
        found = {}
        for name, twin in twins.items():
            if set(twin.prompts) != set(prompts):
                raise ValueError(
                    "all tables must hold the same prompts, found "
                    f"{len(prompts)} before and {len(twin.prompts)} in {name!r}. "
                    "Measure them on the same ones"
                )
            rows = [twin.prompts.index(prompt) for prompt in prompts]
            found[name] = self._scaled(twin.failing[rows], twin.passing[rows])
        return found

    @cached_property
    def gate_slopes(self) -> Slopes:
        """Return the base model's readings on the other prompts."""
        twin = self.gate.twin_differences()
        return self._scaled(twin.failing, twin.passing)

    def members(self, family: str) -> tuple[str, ...]:
        """Return a family's emotions that the tables have."""
        known = self.tables[BEFORE].emotions
        return tuple(e for e in self.roles.families[family] if e in known)

    def pooled(
        self,
        values: Float[np.ndarray, "prompt reader layer emotion"],
        *,
        reader: str,
        emotions: Sequence[str],
        layers: Sequence[int] | None = None,
    ) -> Float[np.ndarray, " prompt"]:
        """Return a reader's mean over emotions and layers that it was fitted on.

        The split's audit layers where none are named. NaN if it knows none of them.
        """
        table = self.tables[BEFORE]
        rows = [
            table.layers.index(i)
            for i in (self.split.audit_layers if layers is None else layers)
        ]
        columns = [table.emotions.index(e) for e in emotions]
        part = values[:, table.readers.index(reader)][:, rows][:, :, columns]
        known = np.isfinite(part).all(axis=0)
        return (
            part[:, known].mean(axis=1) if known.any() else np.full(len(part), np.nan)
        )

    def by_reader(
        self,
        values: Float[np.ndarray, "prompt reader layer emotion"],
        *,
        readers: Sequence[str],
        emotions: Sequence[str],
    ) -> Float[np.ndarray, "prompt chosen"]:
        """Return `pooled` over the audit layers, a column for each reader."""
        columns = [self.pooled(values, reader=r, emotions=emotions) for r in readers]
        return np.stack(columns, axis=1)

    def admitted(
        self, emotions: Sequence[str], layers: Sequence[int] | None = None
    ) -> tuple[str, ...]:
        """Return the audit readers by which the base model has a slope to lower."""
        chosen = []
        for reader in self.readers:
            slope = self.pooled(
                self.gate_slopes.slope, reader=reader, emotions=emotions, layers=layers
            )
            if abs(float(slope_in_standard_errors(slope[:, None])[0])) > BASE_ERRORS:
                chosen.append(reader)
        return tuple(chosen)

    def shares(
        self,
        readers: Sequence[str],
        emotions: Sequence[str],
        layers: Sequence[int] | None = None,
    ) -> dict[str, Intervals]:
        """Return the share of the slope left by those readers that can have one.

        A base slope on other prompts is not enough: on these it must have the same
        sign, and no more than one resample in a thousand may turn it round. Shares of
        all readers rest on the same resamples.
        """
        found = {}
        at: Any = {"emotions": emotions, "layers": layers}
        for reader in readers:
            after, before, gate = (
                self.pooled(slope.slope, reader=reader, **at)[:, None]
                for slope in (self.slopes[AFTER], self.slopes[BEFORE], self.gate_slopes)
            )
            left = bootstrap_ratio(
                after, before, seed=self.seed, n_resamples=self.n_resamples
            )
            assert left.crossing is not None
            if before.mean() * gate.mean() > 0 and left.crossing[0] <= RATIO_CROSSING:
                found[reader] = left
        return found

    def _scaled(
        self,
        failing: Float[np.ndarray, "prompt reader layer emotion"],
        passing: Float[np.ndarray, "prompt reader layer emotion"],
    ) -> Slopes:
        sigma, level = (self._unit(name) for name in ("sigma_ref", "success_level"))
        return Slopes(
            failing=(failing - level) / sigma, passing=(passing - level) / sigma
        )

    def _unit(self, name: str) -> Float[np.ndarray, "reader layer emotion"]:
        units = self.tables[BEFORE].meta.get("units")
        if not units:
            raise ValueError(
                "the table before must have its units, found none. Measure with "
                "`--reference`, the file of `emoreg calibrate`"
            )
        return np.asarray(units[name], np.float64)
