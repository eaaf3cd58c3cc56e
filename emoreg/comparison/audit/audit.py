"""`audit`: all checks that try to prove a training wrong, and the verdict of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from emoreg.behavior.dose import DoseCurve
from emoreg.behavior.impossible.episode_table import Episodes
from emoreg.comparison.audit.belonging import check_belonging
from emoreg.comparison.audit.case import AFTER, BEFORE, Case
from emoreg.comparison.audit.conduct import conduct_check, steering_check
from emoreg.comparison.audit.cross import cross_check
from emoreg.comparison.audit.guards import guard_checks
from emoreg.comparison.audit.honesty import honesty_checks
from emoreg.comparison.audit.meaning import meaning_checks
from emoreg.comparison.audit.readers import (
    against_arms,
    calm_level,
    every_layer,
    held_out_readers,
    success_kept,
)
from emoreg.comparison.audit.rerouting import rerouting_checks
from emoreg.comparison.evidence.evidence import Evidence
from emoreg.comparison.export import plain, require_writable, to_text
from emoreg.comparison.readings import Readings
from emoreg.losses.reroute import orthonormal
from emoreg.validation.check import Check
from emoreg.vectors.audit_split import AuditSplit
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.whole_files import write_whole

SCHEMA = "emoreg.audit/1"
WARNING = ("E3", "E4", "E7", "E12", "E13")
"""Checks whose miss is a warning; a miss of any other one fails."""
REPORTED = ("E11",)
"""But these: their miss says what may be claimed, and changes no verdict."""

Verdict = Literal["PASS", "WARN", "FAIL"]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Audit:
    """What every check found, and the verdict that follows from them alone."""

    checks: tuple[Check, ...]
    facts: Mapping[str, str]
    """What was audited, with hashes and counts."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Return the checks whose miss fails the audit and that missed."""
        missed = self._named("missed", warning=False)
        return tuple(name for name in missed if not name.startswith(REPORTED))

    @property
    def reported(self) -> tuple[str, ...]:
        """Return the checks that missed and only say what may be claimed."""
        missed = self._named("missed", warning=False)
        return tuple(name for name in missed if name.startswith(REPORTED))

    @property
    def warned(self) -> tuple[str, ...]:
        """Return the checks that missed and only warn."""
        return self._named("missed", warning=True)

    @property
    def open(self) -> tuple[str, ...]:
        """Return the checks that could not be run, of those a PASS needs."""
        return self._named("not run", warning=False)

    @property
    def verdict(self) -> Verdict:
        """Return FAIL on a miss that counts, WARN on other misses or open checks."""
        if self.failed:
            return "FAIL"
        return "WARN" if self.warned or self.open else "PASS"

    @property
    def headline(self) -> str:
        """Return the verdict with its reasons, in one paragraph."""
        passed = [check for check in self.checks if check.verdict == "passed"]
        ran = [check for check in self.checks if not check.not_run]
        said = [f"{self.verdict}: {len(passed)} of {len(ran)} checks that ran passed."]
        for names, words in (
            (self.failed, "Missed"),
            (self.warned, "Missed, as a warning"),
            (self.reported, "Missed, so no claim that the state changed"),
            (self.open, "Not run, so no PASS"),
        ):
            if names:
                said.append(f"{words}: {'; '.join(names)}.")
        if not self.failed and not self.warned:
            said.append("No evasion was found by these checks.")
        said.append("This is about representations on these prompts, not feelings.")
        return " ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values, schema "emoreg.audit/1"."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "headline": self.headline,
            "failed": list(self.failed),
            "warned": list(self.warned),
            "reported": list(self.reported),
            "not_run": list(self.open),
            "checks": [{**plain(asdict(c)), "verdict": c.verdict} for c in self.checks],
            "facts": plain(self.facts),
        }

    def save(self, folder: str | Path) -> Path:
        """Write index.html and audit.json into a folder; return the page.

        Raises:
            ValueError: If the folder can't be written.
        """
        from emoreg.comparison.audit.page import render_audit

        folder = Path(folder)
        require_writable(folder)
        page = render_audit(self, WARNING, REPORTED)
        write_whole(folder / "audit.json", to_text(self.to_dict()).encode())
        return write_whole(folder / "index.html", page.encode())

    def _named(self, verdict: str, *, warning: bool) -> tuple[str, ...]:
        return tuple(
            check.name
            for check in self.checks
            if check.verdict == verdict and check.name.startswith(WARNING) == warning
        )


def audit(
    before: Readings,
    after: Readings,
    vectors: EmotionVectors,
    *,
    gate: Readings,
    arms: Mapping[str, Readings] | None = None,
    evidence: Mapping[str, Evidence] | None = None,
    conduct: Mapping[str, Episodes] | None = None,
    doses: Mapping[str, DoseCurve] | None = None,
    cross: Mapping[str, Readings] | None = None,
    roles: Roles | None = None,
    seed: int = 0,
) -> Audit:
    """Try to show that a training hid the failure slope in place of lowering it.

    Everything is judged by readers, layers and emotions that no loss may touch, on
    prompts that no training has seen, each figure with an interval where it is a mean.

    Args:
        before: Readings of the reference model, with units (`emoreg calibrate`).
        after: Readings of the trained model on the same prompts.
        vectors: The vectors with which both were read, their split among them.
        gate: Readings of the reference model on other prompts (`dev`): a share is
            given only where they show a slope to lower.
        arms: Further models: `control`, `placebo...`, `persisted` (docs/audit.md).
        evidence: By arm, what `gather_evidence` returned.
        conduct: Episodes on impossible tasks, "before" and "after".
        doses: Likewise dose curves of corner-cutting under steering.
        cross: On-policy tables, "before", "cross" and "after" (docs/audit.md).
        roles: Which emotions are the audit's; the packaged ones when None.
        seed: Of the bootstraps.

    Raises:
        ValueError: If the vectors have no split, or something does not fit them.
    """
    case = Case(
        tables={BEFORE: before, AFTER: after, **(arms or {})},
        evidence=evidence or {},
        gate=gate,
        split=_split_of(vectors),
        roles=Corpus.packaged().roles() if roles is None else roles,
        seed=seed,
    )
    check_belonging(case, vectors)
    checks = [
        *held_out_readers(case),
        success_kept(case),
        every_layer(case),
        calm_level(case),
        *rerouting_checks(case, _basis(vectors, case)),
        *meaning_checks(case),
        *guard_checks(case),
        steering_check(doses or {}, case.metas),
        conduct_check(conduct or {}, case.metas),
        *honesty_checks(case),
        cross_check(case, cross or {}),
        *against_arms(case),
    ]
    return Audit(checks=tuple(checks), facts=_facts(case, vectors))


def _split_of(vectors: EmotionVectors) -> AuditSplit:
    if vectors.split is None:
        raise ValueError(
            "the vectors must say what is the audit's, these do not. Extract them with "
            "their audit readers (`emoreg extract`, without `audit=False`)"
        )
    return vectors.split


def _basis(vectors: EmotionVectors, case: Case) -> dict[int, Tensor]:
    """Return, per loss and audit layer, the span of what a loss acts on by default."""
    split, bases = case.split, {}
    for layer in (*split.loss_layers, *split.audit_layers):
        rows = [
            vectors.direction(emotion, layer=layer, reader=reader)
            for reader in split.loss_readers
            for emotion in split.loss_emotions
        ]
        bases[layer] = orthonormal(torch.stack(rows)[None])[0]
    return bases


def _facts(case: Case, vectors: EmotionVectors) -> dict[str, str]:
    before, after = (case.tables[arm].meta for arm in (BEFORE, AFTER))
    return {
        "Model": str(before.get("model") or "unnamed"),
        "After": str(after.get("adapter") or after.get("model") or "unnamed"),
        "Arms": ", ".join(case.arms) or "none",
        "Prompts": f"{len(case.slopes[BEFORE].failing)}, set {before['prompts_hash']}",
        "Vectors": vectors.hash,
        "Split": case.split.hash,
        "Audit readers": ", ".join(case.readers),
        "Audit layers": ", ".join(map(str, case.split.audit_layers)),
        "Audit emotions": ", ".join(case.split.audit_emotions),
        "Reference": str(before.get("reference_hash")),
        "Seed": str(case.seed),
    }
