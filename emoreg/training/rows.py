"""The reference's readings of the training rows, cached before step 1."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from emoreg.losses.term import AbstractProbe
from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.layouts import Layout


def cached_rows(
    model: nn.Module,
    dataset: Any,
    layout: Layout,
    probes: Sequence[AbstractProbe],
    markers: TurnMarkers,
    *,
    quiet: bool,
) -> list[list[list[list[float]]]]:
    """Return, per row, sequence and Assistant turn, all `probes`' readings, flattened.

    One pass without gradient over the layers that are needed, with the model as it is
    now, which is the reference.
    """
    sequences = [docs for example in dataset for docs in layout.documents(example)]
    places = [(k, ids) for k, documents in enumerate(sequences) for ids in documents]
    read = read_decisions(
        model, [ids for _, ids in places], probes, markers, quiet=quiet
    )
    rows: list[list[list[float]]] = [[] for _ in sequences]
    for (sequence, _), figures in zip(places, read, strict=True):
        rows[sequence] += figures.tolist()
    width = sum(len(p.layers) * p.width for p in probes)
    # A row without decision tokens still needs a shape that a column can hold.
    filled = [row or [[math.nan] * width] for row in rows]
    size = len(layout.sequences)
    return [filled[start : start + size] for start in range(0, len(filled), size)]


def read_decisions(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    probes: Sequence[AbstractProbe],
    markers: TurnMarkers,
    *,
    quiet: bool,
) -> list[Float[Tensor, "turn figure"]]:
    """Return all `probes`' readings at each sequence's decision tokens, on the host.

    A probe's figures are flattened, layers first, then the `width` figures of each.
    """
    layers = sorted({layer for probe in probes for layer in probe.layers})
    found: list[Tensor] = [torch.empty(0)] * len(sequences)

    def consume(batch: Batch, captured: Captured) -> None:
        decision = markers.decision_tokens(batch.input_ids)
        decision &= batch.attention_mask.bool()
        for k, row in enumerate(batch.rows):
            at = decision[k].nonzero().flatten()
            parts = [_read(probe, captured, k, at) for probe in probes]
            found[row] = torch.cat(parts, dim=1).cpu()

    read_stream(
        model,
        sequences,
        layers,
        consume,
        description="Reading decision tokens",
        quiet=quiet,
    )
    return found


def _read(probe: AbstractProbe, captured: Captured, row: int, at: Tensor) -> Tensor:
    values = [probe.read(captured[i][row, at], layer=i) for i in probe.layers]
    return torch.stack(values, dim=1).flatten(1)
