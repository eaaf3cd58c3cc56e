"""Keeping the failure contrast from coming back in directions that no term reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.means import Sides, dual_form, present, share, weighted_sum
from emoreg.losses.term import (
    AbstractDecisionTerm,
    AbstractProbe,
    DecisionReadings,
    Reduce,
    alone,
    checked_weight,
    refuse_mixed_placebo,
)
from emoreg.vectors.readers import AUDIT_READERS

_LEAST = 1e-5
"""A direction that adds less than this share to a span adds rounding alone."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Complement(AbstractProbe):
    """The residual stream outside the span of some directions.

    `P h = h - Q^T Q h`, in the stream's own units. A reading has as many figures as
    the stream is wide, so a cached one costs `8 * layers * d_model` bytes per decision
    token: 16 kB for four layers of width 512, 131 kB for four of width 4096.
    """

    directions: Float[Tensor, "layer direction d_model"]
    """`Q`: orthonormal rows, and rows of zeros where directions depend on others."""
    layers: tuple[int, ...]
    emotions: tuple[str, ...]
    reader: str

    @classmethod
    def outside(cls, probes: Sequence[AbstractProbe]) -> "Complement":
        """Return what is outside the directions of all `probes`, those terms act on.

        Raises:
            ValueError: If there is none, they read different layers, only some of
                them are a placebo's, or one is the audit's.
        """
        layers = {probe.layers for probe in probes}
        if len(layers) != 1:
            raise ValueError(
                "`probes` must be some that all read the same layers, got layers "
                f"{sorted(layers)}. Make a complement for each set of layers"
            )
        readers = list(dict.fromkeys(probe.reader for probe in probes))
        refuse_mixed_placebo(readers)
        taken = [reader for reader in readers if reader in AUDIT_READERS]
        if taken:
            raise ValueError(
                f"a loss must not use what the audit judges by; reader {taken[0]!r} "
                "belongs to the audit. Choose a loss reader"
            )
        rows = torch.cat([probe.directions for probe in probes], dim=1)
        return cls(
            directions=orthonormal(rows),
            layers=layers.pop(),
            emotions=tuple(dict.fromkeys(e for p in probes for e in p.emotions)),
            reader="+".join(readers),
        )

    @property
    def width(self) -> int:
        """Return the width of the stream."""
        return self.directions.shape[-1]

    def to(self, device: torch.device) -> "Complement":
        """Return the complement on `device`."""
        return replace(self, directions=self.directions.to(device))

    def read(
        self, stream: Float[Tensor, "... d_model"], *, layer: int
    ) -> Float[Tensor, "... d_model"]:
        """Return the stream without its part in the span, in float32."""
        basis = self.directions[self.layers.index(layer)].to(stream.device)
        whole = stream.float()
        # In bfloat16, as in a caller's autocast, more than a shift would be lost.
        with torch.autocast(stream.device.type, enabled=False):
            return whole - whole @ basis.T @ basis


@final
class RerouteAnchor(AbstractDecisionTerm):
    """Keeps the failure contrast outside the trained directions where it was.

    `L = mean_l ||P (D - D_ref)||^2 / ||D_ref||^2`, `D_l = E[h|F] - E[h|S]`, `P` the
    projection onto what is outside the span of the directions that terms act on.

    A model can lower a reading after failure and carry the same state in directions
    that nothing reads; here that costs. What failing and succeeding turns share stays
    free to move, and so does all that is read by other terms.

    `D - D_ref` is estimated as `E[P(h - h_ref)|F] - E[P(h - h_ref)|S]` on the same
    tokens: with unpaired means the spread between tasks, in all directions at once,
    would hide the shift. So it needs the reference's cached readings.

    The means are running ones in dual form, as in `ContrastPenalty`, and as there only
    failing segments feel the term. Were succeeding ones pulled too, half of it would
    be met by giving success what failure has come to carry, which outside the span no
    success anchor would see.
    """

    def __init__(
        self,
        probe: Complement,
        size: Float[Tensor, " layer"],
        *,
        weight: float = 0.3,
        decay: float = 0.9,
        anchor: float = 0.0,
    ) -> None:
        """Make the term.

        Args:
            probe: What is outside the directions that other terms act on.
            size: `||D_ref||^2`, from `contrast_size`: of the whole contrast, so that
                the term is a share of it.
            weight: Factor of the term; 0.3 times that of `ContrastPenalty` is a start.
            decay: Memory of the running means.
            anchor: Factor of `mean over succeeding segments, l of
                ||P(h - h_ref)||^2 / ||D_ref||^2`: holds what both sides share too.

        Raises:
            ValueError: If a size is not above 0, the weight negative, or `decay`
                outside [0, 1).
        """
        self.name, self.weight = "reroute", checked_weight(weight)
        self.probe, self._size, self._anchor = probe, checked_size(size), anchor
        shape = torch.Size((len(probe.layers), probe.width))
        self._sides = Sides(shape, decay)

    def __call__(self, readings: DecisionReadings, reduce: Reduce = alone) -> Tensor:
        """Return the share of the contrast that moved outside; see the class.

        Raises:
            ValueError: If the reference's readings are not cached.
        """
        moved = moved_from_reference(readings, by="reroute")
        self._size = self._size.to(moved.device)
        self._sides.begin(readings)
        sums = self._sides.add(moved, readings, reduce)
        apart = self._sides.gap
        slope = 2 * apart / self._size[:, None]
        loss = dual_form(
            (apart.square().sum(1) / self._size).mean(),
            (slope * sums.failing).sum(1).mean(),
            sums.failing_count,
            reduce(readings.failing_step),
            reduce,
        )
        return loss + self._anchor * self._success(moved, readings, reduce)

    def _success(
        self,
        moved: Float[Tensor, "segment layer d_model"],
        readings: DecisionReadings,
        reduce: Reduce,
    ) -> Tensor:
        """Return how far success has moved, as a share of the contrast."""
        weight = readings.succeeding
        squares = present(moved, weight).square() / self._size[:, None]
        held = weighted_sum(squares, weight).sum(1).mean()
        return held * share(reduce(readings.succeeding_step), reduce)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running means, the latest step's segments among them."""
        return self._sides.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the running means."""
        self._sides.load_state_dict(state)


def orthonormal(
    directions: Float[Tensor, "layer direction d_model"],
) -> Float[Tensor, "layer direction d_model"]:
    """Return orthonormal rows with the same span, layer by layer.

    Where directions depend on one another, the last rows are zeros: they project
    nothing.
    """
    _, sizes, axes = torch.linalg.svd(directions.double(), full_matrices=False)
    kept = sizes > _LEAST * sizes[:, :1]
    rows = torch.zeros_like(directions)
    rows[:, : axes.shape[1]] = torch.where(kept[..., None], axes, 0.0).to(rows.dtype)
    return rows


def checked_size(size: Float[Tensor, " layer"]) -> Float[Tensor, " layer"]:
    """Return the contrast's size, which a term is a share of.

    Raises:
        ValueError: If it is not above 0 at a layer.
    """
    if not bool((size > 0).all()):
        raise ValueError(
            "`size` must be above 0 at every layer, since the term is a share of "
            f"it, got {size.tolist()}. Give it failing and succeeding segments"
        )
    return size


def moved_from_reference(readings: DecisionReadings, *, by: str) -> Tensor:
    """Return how far the stream is from the reference's at the same tokens.

    Args:
        readings: Of a step's segments.
        by: Which term asks, for the message.

    Raises:
        ValueError: If the reference's readings are not cached.
    """
    if readings.reference is not None:
        return readings.values - readings.reference
    if len(readings.values):
        raise ValueError(
            f"{by} compares the residual stream with the reference's at the "
            "same tokens, whose cached readings must be there; these rows have "
            "none. Train on a data set with an outcome column, through "
            "`emoreg.attach`; rollouts, images and loops of your own cache none"
        )
    return readings.values


def contrast_size(
    streams: Float[Tensor, "segment layer d_model"], failure: Float[Tensor, " segment"]
) -> Float[Tensor, " layer"]:
    """Return `||D||^2` of a model's streams at decision tokens, `D = E[h|F] - E[h|S]`.

    From few segments it comes out too large, by the squared error of both means.

    Args:
        streams: Residual streams, in float32 or finer.
        failure: In [0, 1]; segments with NaN are left out.

    Raises:
        ValueError: If one side has no segment.
    """
    weights = torch.stack([failure, 1 - failure]).nan_to_num(0.0).to(streams.dtype)
    counts = weights.sum(1)
    if not bool((counts > 0).all()):
        raise ValueError(
            "`failure` must have failing and succeeding segments, found "
            f"{float(counts[0]):g} and {float(counts[1]):g}. Use a data set with both"
        )
    held = torch.where(failure.isnan()[:, None, None], 0.0, streams)
    means = torch.einsum("ks,sld->kld", weights, held) / counts[:, None, None]
    return (means[0] - means[1]).square().sum(1)


@torch.no_grad()
def reroute_index(
    contrast: Float[Tensor, "layer d_model"],
    reference: Float[Tensor, "layer d_model"],
    basis: Float[Tensor, "layer direction d_model"],
) -> Float[Tensor, " layer"]:
    """Return `||P (D - D_ref)|| / ||D_ref||`: the share that moved where none reads.

    Args:
        contrast: `D`, the trained model's failure contrast.
        reference: `D_ref`, that of the model before training.
        basis: Orthonormal rows at each layer, from `orthonormal`.
    """
    moved = contrast - reference
    read = torch.einsum("led,ld->le", basis, moved)
    outside = moved - torch.einsum("led,le->ld", basis, read)
    return outside.norm(dim=1) / reference.norm(dim=1)
