"""Which texts a run's terms are given, each kind its own."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.steered import SteeredRobustness
from emoreg.losses.term import AbstractTerm
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.auxiliary import (
    Anchor,
    PredictionAnchor,
    StoryAnchor,
    spoken_rows,
    texts_to_hold,
)
from emoreg.training.layouts import Layout
from emoreg.training.reference import Reference
from emoreg.training.steered_rows import SteeredRows, rows_to_steer


def anchors_of(
    terms: Sequence[AbstractTerm],
    model: nn.Module,
    *,
    reference: Reference | None,
    dataset: Any,
    layout: Layout | None,
    tokenizer: PreTrainedTokenizerBase,
    markers: TurnMarkers,
    quiet: bool,
) -> list[Anchor]:
    """Return what the terms with a weight above 0 have beside the task, and hold it.

    Args:
        terms: The run's; those on its own batches have nothing beside it.
        model: As it is now: the reference.
        reference: Whose stories and neutral texts are held; None holds none.
        dataset: The run's own data, of which `ReferenceKL` holds some predictions
            beside those of neutral texts, and which `SteeredRobustness` trains on.
        layout: How its rows become sequences.
        tokenizer: The run's.
        markers: Of its chat template.
        quiet: No progress bars.

    Raises:
        ValueError: If `SteeredRobustness` finds no rows.
    """
    anchors: list[Anchor] = []
    for term in (term for term in terms if term.weight):
        if isinstance(term, SteeredRobustness):
            rows = rows_to_steer(term, dataset, layout, markers)
            anchors.append(SteeredRows(term, rows, tokenizer))
        elif isinstance(term, MeaningAnchor) and reference is not None:
            anchors.append(StoryAnchor(term, reference.stories, quiet=quiet))
        elif isinstance(term, ReferenceKL) and reference is not None:
            neutral = reference.neutral
            own = spoken_rows(dataset, layout, markers, count=len(neutral))
            anchors.append(PredictionAnchor(term, texts_to_hold(neutral, own)))
    for anchor in anchors:
        anchor.cache(model)
    return anchors
