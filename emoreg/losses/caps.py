"""How far along an emotion's direction a model may go: about as after success."""

from collections.abc import Sequence

from emoreg.losses.presets import ReferenceUnits, check_same_vectors
from emoreg.losses.term import probe_of, refuse_audit_items
from emoreg.residual.capping import Cap
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors


def caps(
    vectors: EmotionVectors,
    reference: ReferenceUnits,
    *,
    emotion: str = "desperate",
    layers: Sequence[int] | None = None,
    reader: str | None = None,
    spread: float = 1.0,
    roles: Roles | None = None,
) -> dict[int, Cap]:
    """Return the caps of one emotion, for `capped` and `ReferenceKL(caps=...)`.

    `c_l = success_level_l + spread * success_std_l`, as a projection: where decision
    tokens stand after passing feedback, and some of their spread.

    Args:
        vectors: The model's emotion vectors.
        reference: What `calibrate` measured with them.
        emotion: Which is capped; none that the audit judges by.
        layers: Decoder blocks; the loss layers when None.
        reader: Which direction; the first of the vectors' when None.
        spread: How much room there is above the success level, in `success_std`.
        roles: Which emotions are the audit's; the packaged roles when None.

    Raises:
        ValueError: If the reference belongs to other vectors, there is no such
            emotion, layer or reader, or one is the audit's.
    """
    check_same_vectors(reference, vectors)
    layers = tuple(reference.plan.loss if layers is None else layers)
    reader = vectors.readers[0] if reader is None else reader
    refuse_audit_items(
        Corpus.packaged().roles() if roles is None else roles,
        emotions=[emotion],
        layers=layers,
        audit_layers=reference.plan.audit,
        reader=reader,
        split=vectors.split,
    )
    at = {"reader": reader, "layers": layers, "emotions": [emotion]}
    probe = probe_of(
        vectors,
        **at,
        success_level=reference.unit("success_level", **at),
        sigma=reference.unit("success_std", **at),
    )
    ceilings = (probe.zero + spread * probe.sigma)[:, 0].tolist()
    return {
        layer: Cap(direction=probe.directions[row, 0], ceiling=ceilings[row])
        for row, layer in enumerate(layers)
    }
