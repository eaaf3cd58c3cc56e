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
    pool = _Pool(passages, checked_layers(layers, num_layers(model)), d_model(model))
    kept = None if store is None else _Kept(pool, store, model_hash(model))
    known = None if kept is None else kept.found
    how: Any = {"budget": budget, "description": description, "quiet": quiet}
    _read(model, pool, kept, known, **how)
    return pool.values


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
    pool = _Pool(passages, checked_layers(layers, num_layers(model)), d_model(model))
    name = model_hash(model)
    if name is None:
        raise RuntimeError(
            "the model must have no hooks to be read by several processes; a hook "
            "watches or changes its decoder. Remove it, or use one process"
        )
    kept, numbers = _Kept(pool, store, name), count()

    def known(batch: Batch) -> bool:
        return not share.owns(next(numbers)) or kept.found(batch)

    how: Any = {"budget": budget, "description": description, "quiet": quiet}
    _read(model, pool, kept, known, **how)


def _read(
    model: nn.Module,
    pool: "_Pool",
    kept: "_Kept | None",
    known: Callable[[Batch], bool] | None,
    **how: Any,
) -> None:
    """Run the batches that are not known; average them, and keep them if asked to."""

    def consume(batch: Batch, captured: Captured) -> None:
        pool.take(batch, captured)
        if kept is not None:
            kept.put(batch)

    sequences = [passage.ids for passage in pool.passages]
    read_stream(model, sequences, pool.layers, consume, known=known, **how)


class _Pool:
    """The means of all spans, filled batch by batch."""

    def __init__(
        self, passages: Sequence[Passage], layers: tuple[int, ...], width: int
    ) -> None:
        self.passages, self.layers = passages, layers
        self._first = [0]
        for passage in passages:
            self._first.append(self._first[-1] + len(passage.spans))
        self.values: Float[Tensor, "span layer d_model"] = torch.zeros(
            self._first[-1], len(layers), width
        )

    def take(self, batch: Batch, captured: Captured) -> None:
        """Average a batch's stream over the spans of its texts."""
        weights = _weights(batch, self.passages)
        for column, layer in enumerate(self.layers):
            stream = captured[layer].float()
            pooled = torch.einsum("bsp,bpd->bsd", weights.to(stream.device), stream)
            for k, place in enumerate(self.places(batch)):
                rows = place.stop - place.start
                self.values[place, column] = pooled[k, :rows].cpu()

    def places(self, batch: Batch) -> list[slice]:
        """Return where the means of each row's spans belong."""
        return [slice(self._first[row], self._first[row + 1]) for row in batch.rows]


class _Kept:
    """What a store has of a pool; nothing where the model has no hash."""

    def __init__(self, pool: _Pool, store: ActivationStore, name: str | None) -> None:
        self._pool, self._store, self._name = pool, store, name

    def found(self, batch: Batch) -> bool:
        """Fill in a batch that was kept; return whether it was."""
        values = None if self._name is None else self._store.get(self._key(batch))
        if values is None:
            return False
        places = self._pool.places(batch)
        sizes = [place.stop - place.start for place in places]
        for place, part in zip(places, values.split(sizes), strict=True):
            self._pool.values[place] = part
        return True

    def put(self, batch: Batch) -> None:
        """Keep a batch that was read."""
        if self._name is not None:
            parts = [self._pool.values[place] for place in self._pool.places(batch)]
            self._store.put(self._key(batch), torch.cat(parts))

    def _key(self, batch: Batch) -> str:
        chosen = (self._pool.passages[row] for row in batch.rows)
        texts = [(passage.ids, passage.spans) for passage in chosen]
        return self._store.key(self._name or "", self._pool.layers, texts)


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
