"""Dialogues in which one speaker feels an emotion: their own words, as activations."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.pooling import Passage, span_means
from emoreg.residual.spans import message_spans
from emoreg.residual.store import ActivationStore
from emoreg.vectors.audit_readers import LabelledTexts
from emoreg.vectors.corpus import Corpus


def pool_dialogues(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Mapping[str, Any]],
    layers: Sequence[int],
    *,
    budget: int | None = None,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> Float[Tensor, "dialogue layer d_model"]:
    """Return each dialogue's mean activation over the words of who feels something."""
    passages = words_of(tokenizer, dialogues)
    means = span_means(
        model,
        passages,
        layers,
        budget=budget,
        description="Reading dialogues",
        quiet=quiet,
        store=store,
    )
    return over_turns(means, passages)


def labelled_dialogues(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    layers: Sequence[int],
    *,
    emotions: Iterable[str],
    split: str,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> LabelledTexts:
    """Return the dialogues of a split whose emotion is among `emotions`."""
    rows = dialogues_of(corpus, emotions, split)
    values = pool_dialogues(model, tokenizer, rows, layers, quiet=quiet, store=store)
    return LabelledTexts(values=values, labels=tuple(row["emotion"] for row in rows))


def dialogues_of(
    corpus: Corpus, emotions: Iterable[str], split: str
) -> list[Mapping[str, Any]]:
    """Return the dialogues of `fit`, `test` or `all`, if any, of some emotions.

    Raises:
        ValueError: If a record is wrong, or the file has none at all.
    """
    wanted = set(emotions)
    return [
        row
        for row in corpus.records("dialogues", split="all")
        if row["emotion"] in wanted and split in (row["split"], "all")
    ]


def words_of(
    tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Mapping[str, Any]]
) -> list[Passage]:
    """Return each dialogue with a span for every turn of who feels something.

    Raises:
        ValueError: If who feels something says nothing, or the template changes what
            is said.
    """
    return [_turns(tokenizer, dialogue) for dialogue in dialogues]


def _turns(tokenizer: PreTrainedTokenizerBase, dialogue: Mapping[str, Any]) -> Passage:
    ids, spans = message_spans(tokenizer, dialogue["messages"])
    speakers = [message["role"] for message in dialogue["messages"]]
    own = [
        span
        for span, speaker in zip(spans, speakers, strict=True)
        if speaker == dialogue["speaker"]
    ]
    if not own:
        raise ValueError(
            "a dialogue's `speaker` must be the role of one of its messages, found "
            f"{dialogue['speaker']!r} where the roles are "
            f"{', '.join(dict.fromkeys(speakers))}. Write the role of who feels "
            "something"
        )
    return Passage(ids=ids, spans=tuple(own))


def over_turns(
    means: Float[Tensor, "span *rest"], passages: Sequence[Passage]
) -> Float[Tensor, "dialogue *rest"]:
    """Return the mean over all of a dialogue's spans, each by its length."""
    rows, place = [], 0
    for passage in passages:
        sizes = torch.tensor([float(end - start) for start, end in passage.spans])
        own = means[place : place + len(sizes)]
        rows.append(torch.tensordot(sizes / sizes.sum(), own, dims=1))
        place += len(sizes)
    return torch.stack(rows) if rows else means[:0]
