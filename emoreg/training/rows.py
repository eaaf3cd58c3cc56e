"""The reference's readings of the training rows, cached before step 1."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from emoreg.losses.term import Probe
from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.layouts import Layout


def cached_rows(
    model: nn.Module,
    dataset: Any,
    layout: Layout,
    probes: Sequence[Probe],
    markers: TurnMarkers,
    *,
    quiet: bool,
) -> list[list[list[list[float]]]]:
    """Return, per row, sequence and Assistant turn, all `probes`' readings, flattened.

    One pass without gradient over the layers that are needed, with the model as it is
    now, which is the reference.
    """
    sequences = [ids for example in dataset for ids in layout.ids(example)]
    layers = sorted({layer for probe in probes for layer in probe.layers})
    rows: list[list[list[float]]] = [[] for _ in sequences]

    def consume(batch: Batch, captured: Captured) -> None:
        decision = markers.decision_tokens(batch.input_ids)
        decision &= batch.attention_mask.bool()
        for k, row in enumerate(batch.rows):
            at = decision[k].nonzero().flatten()
            parts = [_read(probe, captured, k, at) for probe in probes]
            rows[row] = torch.cat(parts, dim=1).tolist()

    read_stream(
        model,
        sequences,
        layers,
        consume,
        description="Caching reference readings",
        quiet=quiet,
    )
    width = sum(len(p.layers) * len(p.emotions) for p in probes)
    # A row without decision tokens still needs a shape that a column can hold.
    filled = [row or [[math.nan] * width] for row in rows]
    size = len(layout.sequences)
    return [filled[start : start + size] for start in range(0, len(filled), size)]


def _read(probe: Probe, captured: Captured, row: int, at: Tensor) -> Tensor:
    values = [probe.read(captured[i][row, at], layer=i) for i in probe.layers]
    return torch.stack(values, dim=1).flatten(1)
