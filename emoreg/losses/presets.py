"""Sets of terms that belong together."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.band import BandPenalty
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.targets import Targets
from emoreg.losses.term import (
    AbstractTerm,
    Probe,
    probe_of,
    refuse_audit_items,
    refuse_mixed_placebo,
)
from emoreg.losses.twins import TwinPenalty
from emoreg.residual.layers import LayerPlan
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA, MEAN_DIFFERENCE, RANDOM

logger = logging.getLogger(__name__)

LOSS_READERS = (LDA, MEAN_DIFFERENCE)
"""What the contrast acts on: where the data separate, and where they move most."""


@runtime_checkable
class ReferenceUnits(Protocol):
    """What a preset needs of a `Reference`: units and levels, in raw projections."""

    @property
    def plan(self) -> LayerPlan:
        """Which layers a loss may use."""
        ...

    @property
    def vectors_hash(self) -> str:
        """Hash of the vectors that were calibrated."""
        ...

    def unit(
        self,
        figure: str,
        *,
        reader: str,
        layers: Sequence[int],
        emotions: Sequence[str],
    ) -> Float[Tensor, "layer emotion"]:
        """Return `sigma_ref`, `success_level`, `success_std` or `gap`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Terms with the reference whose units they use."""

    terms: tuple[AbstractTerm, ...]
    reference: ReferenceUnits
    roles: Roles
    """Which emotions a loss may use and which only the audit."""
    targets: Targets | None = None
    """From which the weights are set while training; None leaves them as they are."""

    def __iter__(self) -> Iterator[AbstractTerm]:
        """Iterate over the terms."""
        return iter(self.terms)

    def __len__(self) -> int:
        """Return how many terms there are."""
        return len(self.terms)


def decouple(
    vectors: EmotionVectors,
    reference: ReferenceUnits,
    *,
    readers: Sequence[str] | None = None,
    contrast: float = 1.0,
    band: float = 0.1,
    meaning: float = 1.0,
    kl: float = 0.1,
    keep: float | None = None,
    calm_band: tuple[float, float] | None = None,
    targets: Targets | None = None,
    paired: bool = False,
    roles: Roles | None = None,
) -> Terms:
    """Return the default set: contrast, calm band, meaning anchor, KL.

    Args:
        vectors: The model's emotion vectors.
        reference: What `calibrate` measured with these vectors.
        readers: Which directions the contrast acts on, all alike; band and anchor use
            the first. None takes `lda` and `mean-difference`, as far as there;
            `("random",)` makes a placebo arm, in units of its own.
        contrast: Weight of the decoupler, shared evenly by one for each reader.
        band: Weight of `BandPenalty` on calm; 0 where calm is the audit's.
        meaning: Weight of `MeaningAnchor`; lower it and directions may lose meaning.
        kl: Weight of `ReferenceKL`; higher keeps the output nearer the reference's.
        keep: Share of the failure contrast that may stay; 0 if not given, since deeper
            layers and other readers keep more than the terms' own.
        calm_band: Floor and ceiling of calm after failure, in `success_std`; (0, 1).
        targets: In place of these two; training sets the weights by it.
        paired: `TwinPenalty` in place of the contrast; rows need a column `pair`.
        roles: Which emotions are lowered and raised; the packaged roles when None.

    Raises:
        ValueError: If the reference belongs to other vectors, they have none of the
            loss emotions or readers, an audit item or a mixed placebo is asked for,
            or `targets` or `paired` are given beside what they leave no room for.
    """
    _check_paired(paired, keep, targets)
    keep, calm_band = _aims(targets, keep, calm_band)
    check_same_vectors(reference, vectors)
    roles = Corpus.packaged().roles() if roles is None else roles
    readers = _loss_readers(vectors, readers)
    signs, free = _signs(vectors, roles), _free(vectors, roles)
    _say_how_valid(vectors, list(signs), readers)
    held = ["calm"] if "calm" in vectors.emotions and band else []
    _refuse_audit(vectors, reference, readers, [*signs, *held], roles)
    each = contrast / len(readers)
    terms: list[AbstractTerm] = [
        _twins(vectors, reference, r, signs, weight=each)
        if paired
        else _contrast(vectors, reference, r, signs, weight=each, keep=keep)
        for r in readers
    ]
    if "calm" in free:
        terms.append(_calm_band(vectors, reference, readers[0], calm_band, band))
    stories = _probe(vectors, reference, readers[0], free)
    terms += [MeaningAnchor(stories, weight=meaning), ReferenceKL(weight=kl)]
    return Terms(terms=tuple(terms), reference=reference, roles=roles, targets=targets)


def loss_probe(
    vectors: EmotionVectors,
    reference: ReferenceUnits,
    *,
    reader: str | None = None,
    roles: Roles | None = None,
) -> tuple[Probe, Float[Tensor, " emotion"]]:
    """Return what a term beside the preset acts on: its probe, and a sign per emotion.

    The loss's emotions at the loss's layers, 1 where they are to be lowered and -1
    where raised: `JumpPenalty(*loss_probe(vectors, reference))`.

    Args:
        vectors: The model's emotion vectors.
        reference: What `calibrate` measured with these vectors.
        reader: Which directions; the first of the preset's when None.
        roles: Which emotions are lowered and raised; the packaged roles when None.

    Raises:
        ValueError: If the reference belongs to other vectors, they have none of the
            loss emotions or readers, or an audit item is asked for.
    """
    check_same_vectors(reference, vectors)
    roles = Corpus.packaged().roles() if roles is None else roles
    readers = _loss_readers(vectors, None if reader is None else [reader])[:1]
    signs = _signs(vectors, roles)
    _refuse_audit(vectors, reference, readers, list(signs), roles)
    probe = _probe(vectors, reference, readers[0], list(signs))
    return probe, torch.tensor(list(signs.values()))


def _check_paired(paired: bool, keep: float | None, targets: Targets | None) -> None:
    if paired and not (keep is None and targets is None):
        raise ValueError(
            "`keep` and `targets` must be left out beside `paired`, which asks each "
            "failing turn to read as its passing twin did, all of the way; got "
            f"keep={keep} and {targets}. Leave them out, or `paired`"
        )


def _aims(
    targets: Targets | None, keep: float | None, band: tuple[float, float] | None
) -> tuple[float, tuple[float, float]]:
    """Return `keep` and the calm band, from where they were given."""
    if targets is not None and not (keep is None and band is None):
        raise ValueError(
            "`keep` and `calm_band` must be left out beside `targets`, which say them; "
            f"got keep={keep}, calm_band={band} and {targets}"
        )
    if targets is not None:
        return targets.keep, targets.calm_band
    return keep or 0.0, Targets().calm_band if band is None else band


def _refuse_audit(
    vectors: EmotionVectors,
    reference: ReferenceUnits,
    readers: Sequence[str],
    emotions: Sequence[str],
    roles: Roles,
) -> None:
    for reader in readers:
        refuse_audit_items(
            roles,
            emotions=emotions,
            layers=reference.plan.loss,
            audit_layers=reference.plan.audit,
            reader=reader,
            split=vectors.split,
        )


def _free(vectors: EmotionVectors, roles: Roles) -> list[str]:
    """Return the emotions that are not the audit's, by the roles or the vectors."""
    declared = () if vectors.split is None else vectors.split.audit_emotions
    held = {*roles.audit_lower, *roles.audit_raise, *declared}
    return [emotion for emotion in vectors.emotions if emotion not in held]


def check_same_vectors(reference: ReferenceUnits, vectors: EmotionVectors) -> None:
    """Raise a ValueError unless `reference` was calibrated with these vectors."""
    if reference.vectors_hash != vectors.hash:
        raise ValueError(
            "`reference` must have been calibrated with these vectors: it has the hash "
            f"{reference.vectors_hash}, they have {vectors.hash}. Run `emoreg "
            "calibrate` again"
        )


def _say_how_valid(
    vectors: EmotionVectors, emotions: Sequence[str], readers: Sequence[str]
) -> None:
    """Tell the user where vectors that a loss acts on were not found to hold."""
    if set(readers) == {RANDOM}:
        return  # the placebo's directions claim nothing
    found = vectors.validation
    if found is None:
        logger.warning(
            "These vectors were not validated in this model: a loss may act on "
            "directions that mean nothing in it. Run `emoreg validate`"
        )
        return
    doubtful = [e for e in emotions if not found["emotions"].get(e, False)]
    if doubtful:
        logger.warning(
            "The validation of these vectors says not to use %s, which the loss acts "
            "on. Leave them out with `roles`, or read the validation's page first",
            ", ".join(doubtful),
        )


def _loss_emotions(
    vectors: EmotionVectors, roles: Roles
) -> tuple[list[str], list[str]]:
    """Return the emotions to lower and to raise that have a vector."""
    lower = [e for e in roles.lower if e in vectors.emotions]
    raised = [e for e in roles.raise_ if e in vectors.emotions]
    if not lower and not raised:
        raise ValueError(
            "the vectors must contain some of the loss emotions "
            f"({', '.join((*roles.lower, *roles.raise_))}); they contain none"
        )
    return lower, raised


def _loss_readers(
    vectors: EmotionVectors, asked: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the readers that the contrast acts on, at least one and not mixed."""
    known = tuple(reader for reader in LOSS_READERS if reader in vectors.readers)
    readers = known if asked is None else tuple(asked)
    if not readers:
        raise ValueError(
            f"`readers` must name a reader of the vectors, {vectors.readers}; by "
            f"default those of {LOSS_READERS} among them; found none"
        )
    refuse_mixed_placebo(readers)
    return readers


def _signs(vectors: EmotionVectors, roles: Roles) -> dict[str, float]:
    """Return the emotions that the contrast acts on, 1 to lower and -1 to raise."""
    lower, raised = _loss_emotions(vectors, roles)
    return dict.fromkeys(lower, 1.0) | dict.fromkeys(raised, -1.0)


def _contrast(
    vectors: EmotionVectors,
    reference: ReferenceUnits,
    reader: str,
    named: Mapping[str, float],
    *,
    weight: float,
    keep: float,
) -> ContrastPenalty:
    probe = _probe(vectors, reference, reader, list(named))
    gap, name = _in_units(reference, "gap", probe), f"contrast-{reader}"
    signs = torch.tensor(list(named.values()))
    return ContrastPenalty(probe, signs, gap, weight=weight, keep=keep, name=name)


def _twins(
    vectors: EmotionVectors,
    reference: ReferenceUnits,
    reader: str,
    named: Mapping[str, float],
    *,
    weight: float,
) -> TwinPenalty:
    probe = _probe(vectors, reference, reader, list(named))
    return TwinPenalty(probe, weight=weight, name=f"twins-{reader}")


def _calm_band(
    vectors: EmotionVectors,
    reference: ReferenceUnits,
    reader: str,
    band: tuple[float, float],
    weight: float,
) -> BandPenalty:
    probe = _probe(vectors, reference, reader, ["calm"])
    spread = _in_units(reference, "success_std", probe)
    return BandPenalty(
        probe,
        _in_units(reference, "gap", probe),
        low=band[0] * spread,
        high=band[1] * spread,
        weight=weight,
    )


def _probe(
    vectors: EmotionVectors, reference: ReferenceUnits, reader: str, names: list[str]
) -> Probe:
    layers = reference.plan.loss
    at = {"reader": reader, "layers": layers, "emotions": names}
    return probe_of(
        vectors,
        **at,
        success_level=reference.unit("success_level", **at),
        sigma=reference.unit("sigma_ref", **at),
    )


def _in_units(
    reference: ReferenceUnits, figure: str, probe: Probe
) -> Float[Tensor, "layer emotion"]:
    """Return a figure of the reference in the probe's unit."""
    raw = reference.unit(
        figure, reader=probe.reader, layers=probe.layers, emotions=list(probe.emotions)
    )
    return raw / probe.sigma
