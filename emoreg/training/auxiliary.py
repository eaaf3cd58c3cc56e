"""Passages beside the task: which, how they are held, and when their turn is."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
import torch.nn as nn
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emoreg.losses.anchors import (
    MeaningAnchor,
    ReferenceKL,
    prediction_mask,
    top_log_probs,
)
from emoreg.losses.term import AbstractPassageTerm, PassageReadings, Probe
from emoreg.residual.batches import Batch, read_stream
from emoreg.residual.capping import capped
from emoreg.residual.capture import Captured, capture
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import unwrapped
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.layouts import Layout

Ids = Sequence[int]
_MAX_ROW_TOKENS = 1024
"""Where the run's own rows are cut: each token keeps `k` numbers in memory."""


@runtime_checkable
class Anchor(Protocol):
    """Texts on which a term has a forward-backward pair of its own, now and then."""

    @property
    def term(self) -> AbstractPassageTerm:
        """Return the term that they are for."""
        ...

    @property
    def count(self) -> int:
        """Return how many texts there are."""
        ...

    def cache(self, model: nn.Module) -> None:
        """Keep what the term needs of the model as it is now: the reference."""
        ...

    def loss(
        self, model: nn.Module, rows: Sequence[int], device: torch.device, step: int = 0
    ) -> Tensor:
        """Return the unweighted term on the texts `rows`, by one forward pass."""
        ...


@final
class StoryAnchor:
    """Stories with the reference's readings, one small batch at a time."""

    def __init__(
        self, term: MeaningAnchor, stories: Sequence[Ids], *, quiet: bool = True
    ) -> None:
        """Hold the stories; `cache` reads them."""
        self.term, self.stories, self.quiet = term, tuple(stories), quiet
        self._readings: dict[int, Tensor] = {}

    @property
    def count(self) -> int:
        """Return how many stories there are."""
        return len(self.stories)

    def cache(self, model: nn.Module) -> None:
        """Read every story with the model as it is now, which is the reference."""

        def consume(batch: Batch, captured: Captured) -> None:
            readings = _read_all(self.term.probe, captured)
            for k, row in enumerate(batch.rows):
                self._readings[row] = readings[k, : len(self.stories[row])].cpu()

        read_stream(
            model,
            self.stories,
            self.term.probe.layers,
            consume,
            description="Caching story readings",
            quiet=self.quiet,
        )

    def loss(
        self, model: nn.Module, rows: Sequence[int], device: torch.device, step: int = 0
    ) -> Tensor:
        """Return the unweighted term on the stories `rows`, by one forward pass."""
        del step
        ids, mask = padded_texts([self.stories[row] for row in rows], device)
        reference = nn.utils.rnn.pad_sequence(
            [self._readings[row] for row in rows], batch_first=True
        ).to(device)
        with capture(model, self.term.probe.layers) as captured:
            logits = model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=1)
            values = _read_all(self.term.probe, captured)
        readings = PassageReadings(values=values, reference=reference, mask=mask)
        # Zero times the logits: under DDP every parameter must be part of the loss.
        return self.term(readings) + 0.0 * logits.logits.float().sum()


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A text, and which of its tokens are predictions to hold."""

    ids: Ids
    held: Sequence[bool]
    """True for each token whose prediction, made one token before it, is held."""


def texts_to_hold(neutral: Sequence[Ids], own: Sequence[Target]) -> list[Target]:
    """Return neutral texts, all of whose predictions are held, and own rows, by turns.

    There are as many of each; own rows are repeated where they are fewer.
    """
    plain = [Target(ids=ids, held=[True] * len(ids)) for ids in neutral]
    if not own:
        return plain
    pairs = [(text, own[i % len(own)]) for i, text in enumerate(plain)]
    return [text for pair in pairs for text in pair]


def spoken_rows(
    dataset: Any, layout: Layout | None, markers: TurnMarkers, *, count: int
) -> list[Target]:
    """Return an even sample of at most `count` rows that have Assistant turns.

    Of a row the predictions of Assistant tokens are held, of a preference pair the
    chosen half's, of a packed row its first document's. Data without a known layout or
    length, which is made during training, has no rows to give.
    """
    if layout is None or not hasattr(dataset, "__len__"):
        return []
    size = min(count, len(dataset))
    targets = []
    for row in (dataset[i * len(dataset) // size] for i in range(size)):
        ids = layout.documents(row)[0][0][:_MAX_ROW_TOKENS]
        spoken = markers.assistant_tokens(torch.tensor([ids]))[0]
        if spoken[1:].any():
            targets.append(Target(ids=ids, held=spoken.tolist()))
    return targets


@final
class PredictionAnchor:
    """Texts with the reference's most likely next tokens."""

    def __init__(self, term: ReferenceKL, texts: Sequence[Target]) -> None:
        """Hold the texts; `cache` runs them."""
        self.term, self.texts = term, tuple(texts)
        self._log_probs: list[Tensor] = []
        self._ids: list[Tensor] = []

    @property
    def count(self) -> int:
        """Return how many texts there are."""
        return len(self.texts)

    @torch.no_grad()
    def cache(self, model: nn.Module) -> None:
        """Keep the top log-probabilities of the model as it is now."""
        device = next(model.parameters()).device
        with evaluating(model), capped(model, self.term.caps):
            for row in range(len(self.texts)):
                values, top = top_log_probs(
                    self._predictions(model, [row], device), self.term.k
                )
                self._log_probs.append(values.cpu())
                self._ids.append(top.cpu())

    def loss(
        self, model: nn.Module, rows: Sequence[int], device: torch.device, step: int = 0
    ) -> Tensor:
        """Return the unweighted term on the texts `rows`, by one forward pass."""
        del step
        kept = self._predictions(model, rows, device)
        reference = torch.cat([self._log_probs[row] for row in rows]).to(device)
        top = torch.cat([self._ids[row] for row in rows]).to(device)
        return self.term(kept, reference, top)

    def _predictions(
        self, model: nn.Module, rows: Sequence[int], device: torch.device
    ) -> Float[Tensor, "token vocab"]:
        texts = [self.texts[row] for row in rows]
        ids, mask = padded_texts([text.ids for text in texts], device)
        held = nn.utils.rnn.pad_sequence(
            [torch.tensor(list(text.held)) for text in texts], batch_first=True
        ).to(device)
        held = prediction_mask(held)
        # A row of the run's own holds few tokens of many: no logits for the others.
        kept = held.any(0).nonzero()[:, 0]
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        logits = model(**inputs, logits_to_keep=kept).logits
        return logits[held[:, kept]]


def rows_of_step(
    step: int, *, count: int, size: int, process: int, processes: int
) -> list[int]:
    """Return which passages a process uses at its `step`-th auxiliary batch."""
    start = (step * processes + process) * size
    return [(start + k) % count for k in range(min(size, count))]


def due(anchors: Sequence[Anchor], step: int) -> list[Anchor]:
    """Return the anchors whose turn it is at optimizer step `step`.

    Each starts one step after the one before it, so that anchors of one period never
    meet: a step then runs one auxiliary batch at most.
    """
    return [
        anchor
        for start, anchor in enumerate(anchors)
        if anchor.term.weight > 0 and (step - start) % anchor.term.every == 0
    ]


def run_auxiliary(
    anchor: Anchor,
    model: nn.Module,
    *,
    step: int,
    process: int,
    processes: int,
    device: torch.device,
    backward: Callable[[Tensor], Any],
) -> Tensor:
    """Run one auxiliary forward-backward pair and return the unweighted value."""
    rows = rows_of_step(
        step // anchor.term.every,
        count=anchor.count,
        size=anchor.term.passages,
        process=process,
        processes=processes,
    )
    value = anchor.loss(model, rows, device, step)
    if not value.requires_grad:
        raise RuntimeError(
            f"the {anchor.term.name!r} term must carry gradient and does not: is any "
            "parameter at or below its layers trained?"
        )
    backward(anchor.term.weight * value)
    return value.detach()


def share_head(model: nn.Module) -> None:
    """Tell ZeRO-3 that the whole model uses the language-model head's weights.

    TRL's task forward takes them out of the head and never calls it; an auxiliary
    forward calls it. ZeRO-3 foresees each forward from the one before, so without
    this it gives a trained head's weights back before their gradient is there.
    """
    inner: Any = unwrapped(model)
    head = inner.get_output_embeddings()
    trained = [] if head is None else [p for p in head.parameters() if p.requires_grad]
    for parameter in trained:
        if hasattr(parameter, "ds_id"):  # DeepSpeed, which is loaded then, put it there
            sys.modules["deepspeed"].zero.register_external_parameter(inner, parameter)


def _read_all(
    probe: Probe, captured: Captured
) -> Float[Tensor, "passage pos layer emotion"]:
    readings = [probe.read(captured[layer], layer=layer) for layer in probe.layers]
    return torch.stack(readings, dim=2)


def padded_texts(
    sequences: Sequence[Ids], device: torch.device
) -> tuple[Int[Tensor, "passage pos"], Bool[Tensor, "passage pos"]]:
    """Return texts as one batch, padded on the right, and which tokens are real."""
    rows = [torch.tensor(list(ids)) for ids in sequences]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)
    return ids.to(device), mask.to(device)
