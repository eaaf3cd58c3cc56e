"""Speaker probes: an emotion at the words of who has it, and at the other's.

The paper finds that the two `present` probes agree, the two `other` ones agree, and the
pairs are nearly orthogonal (https://transformer-circuits.pub/2026/emotions/). Here the
other speaker's turns count from the first on that answers who feels something: before
that nothing of it can be known. In the packaged dialogues the other speaker stays
matter of fact, so that there is less to read at their words than in the paper's, where
both feel something.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import (
    LayerPlan,
    checked_layers,
    num_layers,
)
from emoreg.residual.pooling import Passage, span_means
from emoreg.residual.spans import message_spans
from emoreg.residual.store import ActivationStore
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.dialogues import over_turns
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.mean_differences import (
    mean_vectors,
    neutral_space,
    origin,
    with_texts_enough,
)

OWN, OTHER = "own", "other"
"""Words of who feels something, and of the other speaker."""
PRESENT_USER, PRESENT_ASSISTANT = "present-user", "present-assistant"
OTHER_USER, OTHER_ASSISTANT = "other-at-user", "other-at-assistant"
CELLS: Final = {
    PRESENT_USER: ("user", OWN),
    PRESENT_ASSISTANT: ("assistant", OWN),
    OTHER_USER: ("assistant", OTHER),
    OTHER_ASSISTANT: ("user", OTHER),
}
"""Whose emotion it is, and at whose words it is read: `other-at-user` is the
assistant's emotion at the user's words."""


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cell:
    """Dialogues of one emotion owner, read at one speaker's words."""

    values: Float[Tensor, "dialogue layer d_model"]
    words: tuple[Passage, ...]
    """What was read: one dialogue each, with a span for every turn."""
    labels: tuple[str, ...]
    """Whose emotion it is, its name."""


def speaker_probes(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    *,
    emotions: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    denoise: float = 0.5,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> EmotionVectors:
    """Return four readers, one for each pair of token owner and emotion owner.

    Each is the mean difference over dialogues: mean over an emotion's, minus the mean
    over emotions, at one speaker's words, without neutral components. The packaged
    dialogues have two texts to fit on for each emotion and cell: thin; `provenance`
    says how many there were. `raw_norm` is that of the first reader.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with a chat template.
        corpus: Its `dialogues` and neutral texts of the `fit` split are used.
        emotions: Which to fit; all with two dialogues in each cell when None.
        layers: Decoder blocks; the monitored ones when None.
        denoise: Share of neutral variance that is taken out.
        quiet: No progress bar.
        store: Where activations of dialogues are kept.

    Raises:
        ValueError: If an emotion that is asked for, or all but one, have fewer than two
            dialogues in a cell.
    """
    depth = num_layers(model)
    asked = LayerPlan.for_depth(depth).monitor if layers is None else layers
    layers = checked_layers(asked, depth)
    parts = (model, tokenizer, corpus, layers)
    cells = read_cells(*parts, split="fit", quiet=quiet, store=store)
    chosen = shared_emotions(cells, emotions)
    neutral = neutral_space(*parts, variance=denoise, quiet=quiet)
    probes = probes_of(cells, emotions=chosen, layers=layers, neutral=neutral)
    provenance = {
        "kind": "speakers",
        **_counts(cells, chosen),
        "neutral_rank": [len(base) for base in neutral],
        **origin(model),
    }
    return replace(probes, provenance=provenance)


def _counts(cells: Mapping[str, Cell], emotions: Sequence[str]) -> dict[str, Any]:
    """Return how many dialogues there are, in all and in each cell."""
    found = {
        name: [cell.labels.count(emotion) for emotion in emotions]
        for name, cell in cells.items()
    }
    return {
        # By whose emotion it is: each dialogue is in two of the cells.
        "texts": {
            "user": sum(found[PRESENT_USER]),
            "assistant": sum(found[PRESENT_ASSISTANT]),
        },
        "cells": {name: sum(each) for name, each in found.items()},
        "fewest": {name: min(each) for name, each in found.items()},
    }


def read_cells(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    layers: Sequence[int],
    *,
    split: str,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> dict[str, Cell]:
    """Return the dialogues of a split for each of `CELLS`, every text read once."""
    rows = corpus.records("dialogues", split=split)
    found = [message_spans(tokenizer, row["messages"]) for row in rows]
    whole = [Passage(ids=ids, spans=spans) for ids, spans in found]
    means = span_means(
        model,
        whole,
        layers,
        description=f"Reading dialogues ({split})",
        quiet=quiet,
        store=store,
    )
    parts = means.split([len(passage.spans) for passage in whole])
    return {
        name: _cell(rows, whole, parts, speaker, whose)
        for name, (speaker, whose) in CELLS.items()
    }


def turns_of(
    messages: Sequence[Mapping[str, Any]], speaker: str, whose: str
) -> list[int]:
    """Return which turns are of `speaker`, or answers of the other one to them."""
    roles = [message["role"] for message in messages]
    if whose == OWN:
        return [turn for turn, role in enumerate(roles) if role == speaker]
    first = roles.index(speaker) if speaker in roles else len(roles)
    spoken = {"user", "assistant"} - {speaker}
    return [turn for turn, role in enumerate(roles) if role in spoken and turn > first]


def _cell(
    rows: Sequence[Mapping[str, Any]],
    whole: Sequence[Passage],
    parts: Sequence[Tensor],
    speaker: str,
    whose: str,
) -> Cell:
    kept, words, labels = [], [], []
    for row, passage, means in zip(rows, whole, parts, strict=True):
        turns = turns_of(row["messages"], speaker, whose)
        if row["speaker"] == speaker and turns:
            kept.append(means[turns])
            spans = tuple(passage.spans[turn] for turn in turns)
            words.append(replace(passage, spans=spans))
            labels.append(row["emotion"])
    empty = parts[0][:0]
    values = over_turns(torch.cat([empty, *kept]), words)
    return Cell(values=values, words=tuple(words), labels=tuple(labels))


def shared_emotions(
    cells: Mapping[str, Cell], asked: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the emotions that every cell has two dialogues or more of.

    Raises:
        ValueError: If one that is asked for has fewer, or fewer than two have enough.
    """
    found = [
        with_texts_enough(cell.labels, asked, what=f"dialogues for {name!r}")
        for name, cell in cells.items()
    ]
    common = [e for e in found[0] if all(e in emotions for emotions in found)]
    # Of each of the common ones there is enough; are there two of them?
    return with_texts_enough([*common, *common], asked, what="dialogues in every cell")


def probes_of(
    cells: Mapping[str, Cell],
    *,
    emotions: Sequence[str],
    layers: Sequence[int],
    neutral: Sequence[Float[Tensor, "_ d_model"]],
) -> EmotionVectors:
    """Return the cells' mean differences as readers around one centre.

    Scores allow for each cell's own centre.
    """
    found = [
        mean_vectors(
            cell.values, cell.labels, emotions=emotions, layers=layers, neutral=neutral
        )
        for cell in cells.values()
    ]
    units = torch.cat([vectors.directions for vectors in found])
    centres = torch.stack([vectors.centre for vectors in found])
    centre = centres.mean(0)
    return replace(
        found[0],
        directions=units,
        readers=tuple(cells),
        centre=centre,
        scale=torch.ones(units.shape[:3]),
        offset=-torch.einsum("rled,rld->rle", units, centres - centre),
    )


def cell_cosines(probes: EmotionVectors) -> Float[Tensor, "layer reader reader"]:
    """Return the cosines of the readers with one another, means over emotions."""
    units = probes.directions
    return torch.einsum("rled,sled->lrs", units, units) / len(probes.emotions)
