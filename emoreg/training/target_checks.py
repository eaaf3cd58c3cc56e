"""Whether a run's targets fit its terms."""

import logging
import math
from collections.abc import Sequence

import torch

from emoreg.losses.anchors import ReferenceKL
from emoreg.losses.band import BandPenalty
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.presets import Terms
from emoreg.losses.targets import Targets
from emoreg.losses.term import AbstractTerm
from emoreg.training.reference import Reference

logger = logging.getLogger(__name__)


def targets_of(
    terms: Terms | Sequence[AbstractTerm], targets: Targets | None
) -> Targets | None:
    """Return the targets that were given, or those that a preset's terms came with.

    Raises:
        ValueError: If both are there and differ.
    """
    own = terms.targets if isinstance(terms, Terms) else None
    if targets is not None and own is not None and targets != own:
        raise ValueError(
            "`targets` must be those that the terms were made for, or be left out: got "
            f"{targets}, the terms have {own}"
        )
    return own if targets is None else targets


def check_targets(
    targets: Targets | None, terms: Sequence[AbstractTerm], reference: Reference | None
) -> None:
    """Refuse targets that no term works for, or that the terms contradict.

    Raises:
        ValueError: If there is no contrast or KL with a weight above 0; if a contrast
            keeps another share than the targets; if a band on calm has other limits,
            or a floor above what a contrast lets calm rise to; if a KL is to a capped
            model.
    """
    if targets is None:
        return
    active = [term for term in terms if term.weight]
    if any(isinstance(term, ReferenceKL) and term.caps for term in active):
        raise ValueError(
            "`kl_budget` must speak of the distance to the reference as it is, and "
            "`ReferenceKL(caps=...)` pulls the model away from it. Distil the caps in "
            "a run without `targets`"
        )
    contrasts = [term for term in active if isinstance(term, ContrastPenalty)]
    for kind, setting, found in (
        (ContrastPenalty, "slope_reduction", contrasts),
        (ReferenceKL, "kl_budget", [t for t in active if isinstance(t, ReferenceKL)]),
    ):
        if not found:
            raise ValueError(
                f"`targets` must have a {kind.__name__} with a weight above 0 to reach "
                f"`{setting}` with; the terms have none. `presets.decouple` makes it"
            )
    for term in contrasts:
        if abs(term.keep - targets.keep) > 1e-6:
            raise ValueError(
                f"`slope_reduction={targets.slope_reduction:g}` must be what the terms "
                f"ask for, and {term.name} keeps {term.keep:g} of the slope. Give the "
                "targets to `presets.decouple`, or make it with "
                f"keep={targets.keep:g}"
            )
    bands = [t for t in active if isinstance(t, BandPenalty) and _on_calm(t)]
    if not bands:
        logger.warning(
            "No BandPenalty on calm has a weight above 0: `calm_band` is not held"
        )
    for band in bands:
        _check_band(targets, band, contrasts, reference)


def _on_calm(term: BandPenalty | ContrastPenalty) -> bool:
    return "calm" in term.probe.emotions


def _check_band(
    targets: Targets,
    band: BandPenalty,
    contrasts: Sequence[ContrastPenalty],
    reference: Reference | None,
) -> None:
    """Refuse a band that is not the targets', or that a contrast works against."""
    if reference is None:
        return  # the KL anchor needs one, so there is; what is missing is said there
    probe, (low, high) = band.probe, band.limits
    at = {"layers": probe.layers, "emotions": list(probe.emotions)}
    spread, sigma = (
        reference.unit(figure, reader=probe.reader, **at)
        for figure in ("success_std", "sigma_ref")
    )
    wanted = [edge * (spread / sigma) for edge in targets.calm_band]
    if not all(map(torch.allclose, (low, high), wanted)):
        raise ValueError(
            f"`calm_band={targets.calm_band}` must be what the terms ask for, and "
            f"{band.name} has other limits. Give the targets to `presets.decouple`"
        )
    most = min((t.overshoot for t in contrasts if _on_calm(t)), default=math.inf)
    if float(low.max()) > most:
        raise ValueError(
            "`calm_band` must not have a floor above what the contrast lets calm rise "
            f"to after failure, {most:g} sigma_ref over the level after success: the "
            f"floor {targets.calm_band[0]:g} is up to {float(low.max()):.2g} of them. "
            "Lower it; 0 is the level after success itself"
        )
