"""Mean activations over spans of tokens: one row for each span."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capture import Captured
from emoreg.residual.layers import backbone, checked_layers, d_model, num_layers
from emoreg.residual.processes import Share
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


Consume = Callable[[Sequence[int], Float[Tensor, "span layer d_model"]], None]
"""Called with the numbers of some spans, in the order of their passages, and means."""


def span_means(
    model: nn.Module,
    passages: Sequence[Passage],
    layers: Sequence[int],
    *,
    budget: int | None = None,
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
    count = sum(len(passage.spans) for passage in passages)
    values = torch.zeros(count, len(order), d_model(model))

    def consume(spans: Sequence[int], means: Tensor) -> None:
        values[list(spans)] = means

    how: Any = {"budget": budget, "description": description, "quiet": quiet}
    read_spans(model, passages, order, consume, store=store, **how)
    return values


def read_spans(
    model: nn.Module,
    passages: Sequence[Passage],
    layers: Sequence[int],
    consume: Consume,
    *,
    budget: int | None = None,
    description: str = "Reading texts",
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> None:
    """Hand on what `span_means` returns batch by batch, so that none of it piles up.

    What a store has of a batch at these layers, and perhaps at more, is not read again.
    """
    spans = _Spans(passages, checked_layers(layers, num_layers(model)))
    kept = None if store is None else _Kept(spans, store, model_hash(model))

    def known(batch: Batch) -> bool:
        means = None if kept is None else kept.found(batch)
        if means is not None:
            consume(spans.numbers(batch), means)
        return means is not None

    def take(batch: Batch, captured: Captured) -> None:
        means = spans.means(batch, captured)
        if kept is not None:
            kept.put(batch, means)
        consume(spans.numbers(batch), means)

    how: Any = {"budget": budget, "description": description, "quiet": quiet}
    sequences = [passage.ids for passage in passages]
    read_stream(model, sequences, spans.layers, take, known=known, **how)


def read_share(
    model: nn.Module,
    passages: Sequence[Passage],
    layers: Sequence[int],
    *,
    store: ActivationStore,
    share: Share,
    budget: int | None = None,
    description: str = "Reading texts",
    quiet: bool = False,
) -> None:
    """Read this process's share of what `span_means` would read, into a store.

    Every process goes through the same batches and runs its own. With all shares in
    the store, `span_means` reads nothing and returns what one process would, bit for
    bit.

    Raises:
        RuntimeError: If the model has no hash, so that nothing can be kept.
    """
    spans = _Spans(passages, checked_layers(layers, num_layers(model)))
    name = model_hash(model)
    if name is None:
        raise RuntimeError(
            "the model must have a hash to be read by several processes; a hook in its "
            "decoder blocks, or weights that are offloaded, leave it none. Remove the "
            "hook, load the weights whole, or use one process"
        )
    kept, numbers = _Kept(spans, store, name), count()

    def known(batch: Batch) -> bool:
        return not share.owns(next(numbers)) or kept.found(batch) is not None

    def take(batch: Batch, captured: Captured) -> None:
        kept.put(batch, spans.means(batch, captured))

    how: Any = {"budget": budget, "description": description, "quiet": quiet}
    sequences = [passage.ids for passage in passages]
    read_stream(model, sequences, spans.layers, take, known=known, **how)


class _Spans:
    """All spans of some passages, numbered through, and their means in a batch."""

    def __init__(self, passages: Sequence[Passage], layers: tuple[int, ...]) -> None:
        self.passages, self.layers = passages, layers
        self._first = [0]
        for passage in passages:
            self._first.append(self._first[-1] + len(passage.spans))

    def numbers(self, batch: Batch) -> list[int]:
        """Return the numbers of a batch's spans, row by row."""
        return [
            number
            for row in batch.rows
            for number in range(self._first[row], self._first[row + 1])
        ]

    def means(
        self, batch: Batch, captured: Captured
    ) -> Float[Tensor, "span layer d_model"]:
        """Return the mean stream over each of a batch's spans, on the host."""
        weights = _weights(batch, self.passages)
        real = weights.any(-1)  # rows have different numbers of spans
        columns = []
        for layer in self.layers:
            stream = captured[layer].float()
            # A caller's autocast is for the model: means are in float32.
            with torch.autocast(stream.device.type, enabled=False):
                pooled = torch.einsum("bsp,bpd->bsd", weights.to(stream.device), stream)
            columns.append(pooled.cpu()[real])
        return torch.stack(columns, dim=1)


class _Kept:
    """What a store has of some spans; nothing where the model has no hash."""

    def __init__(self, spans: _Spans, store: ActivationStore, name: str | None) -> None:
        self._spans, self._store, self._name = spans, store, name

    def found(self, batch: Batch) -> Float[Tensor, "span layer d_model"] | None:
        """Return a batch's means; None unless they were kept at all these layers."""
        kept = None if self._name is None else self._store.get(self._key(batch))
        if kept is None:
            return None
        held, means = kept[0].tolist(), kept[1]
        if not {*self._spans.layers} <= {*held}:
            return None
        return means[:, [held.index(layer) for layer in self._spans.layers]]

    def put(self, batch: Batch, means: Float[Tensor, "span layer d_model"]) -> None:
        """Keep a batch that was read, in place of what was kept at fewer layers."""
        if self._name is not None:
            layers = torch.tensor(self._spans.layers)
            self._store.put(self._key(batch), (layers, means))

    def _key(self, batch: Batch) -> str:
        chosen = (self._spans.passages[row] for row in batch.rows)
        texts = [(passage.ids, passage.spans) for passage in chosen]
        return self._store.key(self._name or "", "means at layers", texts)


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
