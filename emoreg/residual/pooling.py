"""Mean activations over spans of tokens: one row for each span."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.layers import backbone, checked_layers, d_model, num_layers
from emoreg.residual.store import ActivationStore, model_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Token ids of a text, and the half-open spans over which to average.

    A decision token is the span `(n - 1, n)` of a prompt of `n` tokens.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        """Check that each span holds a token of the text."""
        for start, end in self.spans:
            if not 0 <= start < end <= len(self.ids):
                raise ValueError(
                    f"a span must be 0 <= start < end <= {len(self.ids)}, the number "
                    f"of tokens, got ({start}, {end})"
                )


def span_means(
    model: nn.Module,
    passages: Sequence[Passage],
    layers: Sequence[int],
    *,
    budget: int = 2048,
    description: str = "Reading texts",
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> Float[Tensor, "span layer d_model"]:
    """Return the mean residual stream over every span, passage by passage, in order.

    Args:
        model: Any wrapping of a transformers decoder.
        passages: Texts with their spans.
        layers: Decoder blocks; the answer has them in ascending order.
        budget: Tokens per batch, padding included.
        description: What the progress bar says.
        quiet: No progress bar.
        store: Where batches are kept that were read, and looked up.

    Raises:
        FloatingPointError: If an activation is NaN or infinite (layer and text said).
    """
    order = checked_layers(layers, num_layers(model))
    first = [0]
    for passage in passages:
        first.append(first[-1] + len(passage.spans))
    values = torch.zeros(first[-1], len(order), d_model(model))

    name = model_hash(model) if store is not None else None

    def key(batch: Batch) -> str:
        assert store is not None
        texts = [(passages[row].ids, passages[row].spans) for row in batch.rows]
        return store.key(name or "", order, texts)

    def known(batch: Batch) -> bool:
        if store is None or name is None:
            return False
        found, places = store.get(key(batch)), _places(batch, first)
        if found is None:
            return False
        for place, part in zip(places, found.split(_sizes(places)), strict=True):
            values[place] = part
        return True

    def consume(batch: Batch, captured: Captured) -> None:
        weights, places = _weights(batch, passages), _places(batch, first)
        for column, layer in enumerate(order):
            stream = captured[layer].float()
            pooled = torch.einsum("bsp,bpd->bsd", weights.to(stream.device), stream)
            for k, row in enumerate(batch.rows):
                values[places[k], column] = pooled[k, : len(passages[row].spans)].cpu()
        if store is not None and name is not None:
            store.put(key(batch), torch.cat([values[place] for place in places]))

    sequences = [passage.ids for passage in passages]
    read_stream(
        model,
        sequences,
        order,
        consume,
        budget=budget,
        description=description,
        quiet=quiet,
        known=known,
    )
    return values


def embedding_means(
    model: nn.Module, passages: Sequence[Passage]
) -> Float[Tensor, "span d_model"]:
    """Return the mean input embedding over every span: the words without the model."""
    decoder: Any = backbone(model)
    table = decoder.get_input_embeddings().weight.detach()
    rows = [
        table[list(passage.ids[start:end])].float().mean(0).cpu()
        for passage in passages
        for start, end in passage.spans
    ]
    return torch.stack(rows) if rows else torch.zeros(0, table.shape[1])


def _weights(
    batch: Batch, passages: Sequence[Passage]
) -> Float[Tensor, "batch span pos"]:
    """Return each span's averaging weights."""
    most = max(len(passages[row].spans) for row in batch.rows)
    weights = torch.zeros(len(batch.rows), most, batch.input_ids.shape[1])
    for k, row in enumerate(batch.rows):
        for s, (start, end) in enumerate(passages[row].spans):
            weights[k, s, start:end] = 1 / (end - start)
    return weights


def _places(batch: Batch, first: Sequence[int]) -> list[slice]:
    """Return where the means of each row's spans belong."""
    return [slice(first[row], first[row + 1]) for row in batch.rows]


def _sizes(places: Sequence[slice]) -> list[int]:
    return [place.stop - place.start for place in places]
