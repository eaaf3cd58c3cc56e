"""Length-sorted batches under a token budget, and running them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from emoreg.residual.capture import Captured, capture, run_truncated, truncated
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import backbone, checked_layers, num_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Right-padded token ids with the positions of its rows in the given order."""

    rows: tuple[int, ...]
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]


CALL_SHARE = 16
"""A call of the model costs about as much as this part of a budget of tokens: on the
demo model and two cores 45 of 768."""


def token_batches(
    sequences: Sequence[Sequence[int]], *, budget: int, pad_id: int
) -> Iterator[Batch]:
    """Yield batches of similar length, longest first, of at most `budget` tokens.

    Padding is the largest avoidable cost of mixed lengths. Of all ways to cut the
    sorted sequences into batches this is the one with the fewest tokens, padding
    included, where every batch counts a `CALL_SHARE`th of the budget more. Longest
    first, so that a run that is going to be out of memory is so at once.
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    start = 0
    for size in _cut([len(sequences[i]) for i in order], budget):
        rows = tuple(order[start : start + size])
        start += size
        width = len(sequences[rows[0]])
        ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, row in enumerate(rows):
            length = len(sequences[row])
            ids[k, :length] = torch.as_tensor(sequences[row], dtype=torch.long)
            mask[k, :length] = 1
        yield Batch(rows=rows, input_ids=ids, attention_mask=mask)


def _cut(widths: Sequence[int], budget: int) -> list[int]:
    """Return the cheapest sizes of batches for sequences sorted longest first.

    Dynamic programming from the end: the cheapest way on from each sequence is its
    batch's first width times rows, one call, and the cheapest way on from there.
    """
    call, count = max(1, budget // CALL_SHARE), len(widths)
    onward, sizes = np.zeros(count + 1), np.ones(count, dtype=np.int64)
    for i in reversed(range(count)):
        most = min(count - i, max(1, budget // max(widths[i], 1)))
        costs = widths[i] * np.arange(1, most + 1) + onward[i + 1 : i + 1 + most]
        sizes[i] = 1 + int(costs.argmin())
        onward[i] = call + costs[sizes[i] - 1]
    cut, start = [], 0
    while start < count:
        cut.append(int(sizes[start]))
        start += cut[-1]
    return cut


def default_budget(device: torch.device) -> int:
    """Return tokens per batch: few on a CPU, whose caches are small, many elsewhere.

    On a CPU 768 took nine tenths of the time of 2,048 on short texts (8 to 160 tokens)
    and as much on the packaged stories.
    """
    return 768 if device.type == "cpu" else 16_384


def read_stream(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    consume: Callable[[Batch, Captured], None],
    *,
    budget: int | None = None,
    description: str = "Reading",
    quiet: bool = False,
    known: Callable[[Batch], bool] | None = None,
) -> None:
    """Run `sequences` through the truncated, head-less stack and hand on each batch.

    Args:
        model: Any wrapping of a transformers decoder.
        sequences: Token ids, one sequence a text.
        layers: Decoder blocks whose output `consume` wants.
        consume: Called with each batch and its captured stream, which is gone after.
            Both are on the model's first device, however many it is spread over.
        budget: Tokens per batch, padding included; what suits the model's device when
            None (`default_budget`).
        description: What the progress bar says.
        quiet: No progress bar.
        known: Called with each batch before it is run; one for which it returns True
            is not run.

    Raises:
        FloatingPointError: If an activation is NaN or infinite (layer and row said).
        RuntimeError: If the weights are spread over processes.
    """
    _check_whole(model)
    wanted = checked_layers(layers, num_layers(model))
    decoder, device = backbone(model), next(model.parameters()).device
    total = sum(map(len, sequences))
    bar = tqdm(total=total, desc=description, unit="tok", disable=quiet)
    # Order matters: the capturing hook of the last layer must fire before the hook
    # that ends the pass.
    captures = capture(model, wanted, device=device)
    with evaluating(model), captures as captured, truncated(model, wanted[-1]), bar:
        size = default_budget(device) if budget is None else budget
        for batch in token_batches(sequences, budget=size, pad_id=0):
            if known is not None and known(batch):
                bar.update(int(batch.attention_mask.sum()))
                continue
            batch = _on(batch, device)
            inputs = {"input_ids": batch.input_ids}
            if not bool(batch.attention_mask.all()):
                inputs["attention_mask"] = batch.attention_mask
            run_truncated(decoder, **inputs)
            _check_finite(batch, captured, wanted)
            with torch.no_grad():
                consume(batch, captured)
            bar.update(int(batch.attention_mask.sum()))


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        rows=batch.rows,
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
    )


def _check_whole(model: nn.Module) -> None:
    """Refuse sharded weights: a pass that ends early would leave some gathered."""
    sharded = any(hasattr(p, "ds_id") and p.numel() == 0 for p in model.parameters())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        sharded |= any(isinstance(module, FSDPModule) for module in model.modules())
    if sharded:
        raise RuntimeError(
            "the model must hold its weights whole to be read; ZeRO-3 or FSDP has "
            "sharded them. Read it before training starts, or save it and read it in "
            "a process of its own (`emoreg measure --adapter`)"
        )


def _check_finite(batch: Batch, captured: Captured, layers: Sequence[int]) -> None:
    real = batch.attention_mask.bool()
    for layer in layers:
        # The largest entry is NaN or infinite if any is, and costs a tenth of a look
        # at each.
        finite = captured[layer].abs().amax(-1).isfinite() | ~real
        if not bool(finite.all()):
            row = batch.rows[int((~finite).any(1).nonzero()[0])]
            raise FloatingPointError(
                f"activations must be finite, found NaN or infinity at layer {layer} "
                f"in text {row}. Load the model in float32 or bfloat16 (float16 "
                "overflows in models with massive activations)"
            )
