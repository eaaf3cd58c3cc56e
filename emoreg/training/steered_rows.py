"""The run's own rows, read while the model is pushed towards an emotion."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.nn as nn
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emoreg.losses.anchors import prediction_mask
from emoreg.losses.steered import SteeredRobustness
from emoreg.residual.layers import decoder_layers, final_norm, unwrapped
from emoreg.residual.steer import addition, steered
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.auxiliary import Target, padded_texts, spoken_rows
from emoreg.training.layouts import Layout
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.steering import mean_norms

_MOST_ROWS = 2048
"""Rows that are kept, evenly over the data."""

logger = logging.getLogger(__name__)


@final
class SteeredRows:
    """Rows of the run's data, whose Assistant tokens are to be said in spite of all."""

    def __init__(
        self,
        term: SteeredRobustness,
        rows: Sequence[Target],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Hold the rows; `cache` measures the norms that doses are shares of."""
        self.term, self.rows, self.tokenizer = term, tuple(rows), tokenizer

    @property
    def count(self) -> int:
        """Return how many rows there are."""
        return len(self.rows)

    def cache(self, model: nn.Module) -> None:
        """Measure the mean residual-stream norms of the model as it is now."""
        layers = self.term.push.layers
        corpus = Corpus.packaged()
        self.term.push.measured(mean_norms(model, self.tokenizer, corpus, layers))
        deaf = [layer for layer in layers if not _trains_above(model, layer)]
        if deaf:
            logger.warning(
                "Nothing above layers %s is trained, so nothing there can learn to "
                "respond to what the %r term adds to them. Name lower layers",
                deaf,
                self.term.name,
            )

    def loss(
        self, model: nn.Module, rows: Sequence[int], device: torch.device, step: int = 0
    ) -> Tensor:
        """Return the unweighted term on `rows` with the dose of `step`.

        There are logits of the tokens that predict a held one, and of no other.

        Raises:
            RuntimeError: If the model's forward pass went past the hooks.
        """
        texts = [self.rows[row] for row in rows]
        ids, mask = padded_texts([text.ids for text in texts], torch.device("cpu"))
        held = nn.utils.rnn.pad_sequence(
            [torch.tensor(list(text.held)) for text in texts], batch_first=True
        )
        held[:, 0] = False  # nothing predicts it
        predicting = prediction_mask(held)
        dose = self.term.draw(step)
        norm = self.term.push.norms[dose.layer]
        added = addition(dose.direction, strength=dose.strength, norm=norm)
        # Looked up on the host, so that the device is not waited for.
        place = predicting.flatten().nonzero().flatten().to(device)
        where, targets = (held | predicting).to(device), ids[held].to(device)
        with steered(model, {dose.layer: added}, where=where), _head_at(model, place):
            out = model(input_ids=ids.to(device), attention_mask=mask.long().to(device))
        if tuple(out.logits.shape[:2]) != (1, len(targets)):
            raise RuntimeError(
                f"the hooks of layer {dose.layer} and of the head must act in the "
                f"model's forward pass and did not: there are logits of "
                f"{tuple(out.logits.shape[:2])} tokens in place of {len(targets)}. A "
                "model compiled before `attach`, or a copy of one that a trainer has "
                "patched, does that: load the model anew, attach first, compile later"
            )
        return self.term(out.logits[0], targets)


def rows_to_steer(
    term: SteeredRobustness, dataset: Any, layout: Layout | None, markers: TurnMarkers
) -> list[Target]:
    """Return the rows whose Assistant tokens are targets; see `spoken_rows`.

    Of data with desirable and undesirable completions (`KTOTrainer`) only the former.

    Raises:
        ValueError: If there is none.
    """
    columns = set(getattr(dataset, "column_names", None) or ())
    if columns.issuperset(("completion_ids", "label")) and hasattr(dataset, "select"):
        good = [i for i, label in enumerate(dataset["label"]) if label]
        dataset = dataset.select(good)
    found = spoken_rows(dataset, layout, markers, count=_MOST_ROWS)
    if not found:
        what = "a loop of your own, which shows none"
        if dataset is not None:
            kind, named = type(dataset).__name__, ", ".join(sorted(columns)) or "none"
            what = f"a {kind} with the columns {named}"
        raise ValueError(
            f"{term.name} trains on rows of the run's own data, which must have "
            f"Assistant turns and be there before training; found {what}. Use a "
            "trainer with tokenized rows (SFT, DPO), no streaming and no prompts to be "
            "answered (GRPO, RLOO); or leave the term out"
        )
    return found


@contextmanager
def _head_at(model: nn.Module, place: Int[Tensor, " token"]) -> Iterator[None]:
    """Give the head the tokens at `place` of the flattened batch alone.

    The logits have the shape (1, token, vocab) then. The model is still called as a
    whole, as its wrappers need.
    """
    head: Any = unwrapped(model)
    head = head.get_output_embeddings()

    def narrow(
        _module: nn.Module, args: tuple[Float[Tensor, "batch pos d_model"], ...]
    ) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, 1)[place].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def _trains_above(model: nn.Module, layer: int) -> bool:
    """Return whether anything trained reads the output of block `layer`."""
    inner: Any = unwrapped(model)
    above = [
        *decoder_layers(model)[layer + 1 :],
        final_norm(model),
        inner.get_output_embeddings(),
    ]
    modules = [module for module in above if module is not None]
    return any(p.requires_grad for module in modules for p in module.parameters())
