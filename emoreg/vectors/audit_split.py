"""What a loss may use and what only the audit may: declared, and hashed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from emoreg.residual.layers import LayerPlan
from emoreg.vectors.texts import Roles


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSplit:
    """Layers, emotions and readers, each either a loss's or the audit's.

    A vectors file carries the split that was declared when it was made. Losses refuse
    what is the audit's, by its name, and a file whose split was changed is refused.
    """

    loss_layers: tuple[int, ...]
    audit_layers: tuple[int, ...]
    loss_emotions: tuple[str, ...]
    audit_emotions: tuple[str, ...]
    loss_readers: tuple[str, ...]
    audit_readers: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that nothing is on both sides."""
        for kind in ("layers", "emotions", "readers"):
            loss, audit = (getattr(self, f"{side}_{kind}") for side in _SIDES)
            if both := sorted(map(str, {*loss} & {*audit})):
                raise ValueError(
                    f"what judges a training must not take part in it; {kind} "
                    f"{', '.join(both)} stand on both sides. Take them off one"
                )

    @classmethod
    def declared(
        cls,
        *,
        plan: LayerPlan,
        roles: Roles,
        layers: Sequence[int],
        emotions: Sequence[str],
        loss_readers: Sequence[str],
        audit_readers: Sequence[str],
    ) -> "AuditSplit":
        """Return the split of a plan and roles, of what the vectors have."""
        held = (*roles.audit_lower, *roles.audit_raise)
        used = (*roles.lower, *roles.raise_)
        return cls(
            loss_layers=tuple(i for i in plan.loss if i in layers),
            audit_layers=tuple(i for i in plan.audit if i in layers),
            loss_emotions=tuple(e for e in used if e in emotions),
            audit_emotions=tuple(e for e in held if e in emotions),
            loss_readers=tuple(loss_readers),
            audit_readers=tuple(audit_readers),
        )

    @property
    def hash(self) -> str:
        """Return the first 16 hex digits of a hash over all of it."""
        written = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def described(self) -> dict[str, Any]:
        """Return it as JSON-able values, with its hash."""
        return {**asdict(self), "hash": self.hash}

    @classmethod
    def restored(cls, described: Mapping[str, Any]) -> "AuditSplit":
        """Return what `described` was made from.

        Raises:
            ValueError: If it is not what was hashed.
        """
        parts = {k: tuple(v) for k, v in described.items() if k != "hash"}
        split = cls(**parts)
        if split.hash != described["hash"]:
            raise ValueError(
                "the split into loss and audit items must be the one that was declared "
                f"with the vectors: its hash is {described['hash']}, what stands there "
                f"has {split.hash}. Extract the vectors again"
            )
        return split


_SIDES = ("loss", "audit")
