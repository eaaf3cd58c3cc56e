"""Auxiliary batches: which texts they hold, what of them, and when they run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from datasets import Dataset
from torch.nn.functional import kl_div
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.presets import Terms
from emoreg.losses.term import Probe
from emoreg.residual.tokens import TurnMarkers
from emoreg.training.attach import attach
from emoreg.training.auxiliary import (
    PredictionAnchor,
    StoryAnchor,
    Target,
    due,
    spoken_rows,
    texts_to_hold,
)
from emoreg.training.layouts import Layout
from emoreg.training.reference import Reference
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors

Model = Callable[[], PreTrainedModel]
NEUTRAL = ((5, 6, 7, 8), (9, 10, 11), (12, 13, 14))


def tokenized(tokenizer: PreTrainedTokenizerFast, count: int) -> Dataset:
    rows = [row["prompt"] + row["completion"] for row in map(dict, cases.make_rows())]
    ids = [
        tokenizer.apply_chat_template(messages, return_dict=False)
        for messages in rows[:count]
    ]
    return Dataset.from_list([{"input_ids": one} for one in ids])


def spoken_by_hand(
    tokenizer: PreTrainedTokenizerFast, example: dict[str, Any]
) -> list[bool]:
    """Which tokens lie in Assistant turns, from differences of rendered prefixes."""
    messages = example["prompt"] + example["completion"]
    held: list[bool] = []
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before: Any = tokenizer.apply_chat_template(
            messages[:k], add_generation_prompt=True, return_dict=False
        )
        held += [False] * (len(before) - len(held))
        content = tokenizer(message["content"], add_special_tokens=False)["input_ids"]
        held += [True] * len(content)
    whole: Any = tokenizer.apply_chat_template(messages, return_dict=False)
    return held + [False] * (len(whole) - len(held))


def to_hold(rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> list[Target]:
    layout, markers = Layout.of(rows, None), TurnMarkers.of(tokenizer)
    return texts_to_hold(
        NEUTRAL, spoken_rows(rows, layout, markers, count=len(NEUTRAL))
    )


# -- which texts ---------------------------------------------------------------------


def test_neutral_texts_and_own_rows_take_turns(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = tokenized(tokenizer, 8)
    texts = to_hold(rows, tokenizer)
    assert [tuple(text.ids) for text in texts[::2]] == list(NEUTRAL)
    assert all(all(text.held) for text in texts[::2])
    chosen = [0, 2, 5]  # three of eight, evenly
    assert [list(text.ids) for text in texts[1::2]] == [
        rows[i]["input_ids"] for i in chosen
    ]
    examples = list(map(dict, cases.make_rows()))
    for text, i in zip(texts[1::2], chosen, strict=True):
        assert list(text.held) == spoken_by_hand(tokenizer, examples[i])
        assert 0 < sum(text.held) < len(text.held)  # control: some, not all


def test_rows_that_say_nothing_are_left_out(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    markers = TurnMarkers.of(tokenizer)
    silent = Dataset.from_list([{"input_ids": [5, 6, 7]}] * 4)
    unread = Dataset.from_list([{"text": "none"}])
    for dataset in (silent, unread, unread.to_iterable_dataset(), None):
        layout = Layout.find(dataset, None)
        own = spoken_rows(dataset, layout, markers, count=len(NEUTRAL))
        texts = texts_to_hold(NEUTRAL, own)
        assert [tuple(text.ids) for text in texts] == list(NEUTRAL)
    few = to_hold(tokenized(tokenizer, 2), tokenizer)
    assert len(few) == 2 * len(NEUTRAL)  # control: two rows serve three times


def test_a_long_row_is_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    (ids,) = tokenized(tokenizer, 1)["input_ids"]
    long = Dataset.from_list([{"input_ids": ids * 100}])
    text = to_hold(long, tokenizer)[1]
    assert len(text.ids) == len(text.held) == 1024 < len(ids * 100)


# -- what of them --------------------------------------------------------------------


def test_the_held_predictions_are_those_of_the_marked_tokens(
    model: Model, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Against the full-vocabulary KL at the token before each marked one."""
    texts = to_hold(tokenized(tokenizer, 8), tokenizer)
    untrained, moved = model(), model()
    vocabulary = untrained.config.vocab_size
    anchor = PredictionAnchor(ReferenceKL(k=vocabulary), texts)
    anchor.cache(untrained)
    with torch.no_grad():
        moved.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    rows = [0, 1, 3]
    with torch.no_grad():
        found = anchor.loss(moved, rows, torch.device("cpu"))
        assert float(anchor.loss(untrained, rows, torch.device("cpu"))) < 1e-5
    distances = {True: [], False: []}
    for text in (texts[row] for row in rows):
        ids = torch.tensor([list(text.ids)])
        with torch.no_grad():
            was, now = (
                m(input_ids=ids).logits[0].log_softmax(-1) for m in (untrained, moved)
            )
        each = kl_div(now, was, log_target=True, reduction="none").sum(-1)
        for place, held in enumerate(text.held[1:]):
            distances[held].append(float(each[place]))
    wanted = sum(distances[True]) / len(distances[True])
    assert float(found) == pytest.approx(wanted, rel=1e-3)
    every = distances[True] + distances[False]
    assert float(found) != pytest.approx(sum(every) / len(every), rel=1e-3)  # control


def test_a_trainers_kl_holds_its_own_rows(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    trainer: Any = cases.make_sft(model(), tokenizer, tmp_path, max_steps=4)
    terms = cases.make_terms(vectors, reference)
    trainer = attach(trainer, terms=terms, outcome="failed", reference=reference)
    (anchor,) = [
        a
        for a in trainer.emotions.regularizer.anchors
        if isinstance(a, PredictionAnchor)
    ]
    own = [list(text.ids) for text in anchor.texts[1::2]]
    assert own == [
        trainer.train_dataset[i * 8 // len(own)]["input_ids"] for i in range(len(own))
    ]
    assert {tuple(text.ids) for text in anchor.texts[::2]} == {*reference.neutral}
    trainer.train()
    logged = cases.logged(trainer, "emotion_loss/kl")
    assert [entry["emotion_loss/kl"] > 0 for entry in logged] == [True]


# -- when ----------------------------------------------------------------------------


def anchors(probe: Probe, *periods: int) -> list[Any]:
    made: list[Any] = []
    for i, period in enumerate(periods):
        story = MeaningAnchor(probe, every=period)
        text = Target(ids=(5, 6), held=(True, True))
        made.append(
            PredictionAnchor(ReferenceKL(every=period), [text])
            if i % 2
            else StoryAnchor(story, [(5, 6)])
        )
    return made


@pytest.mark.parametrize("period", [2, 3, 4, 7])
def test_anchors_of_one_period_never_meet(
    vectors: EmotionVectors, reference: Reference, period: int
) -> None:
    probe = cases.make_terms(vectors, reference).terms[0].probe  # type: ignore[attr-defined]
    made = anchors(probe, period, period)
    steps = [due(made, step) for step in range(6 * period)]
    assert max(map(len, steps)) == 1
    assert [sum(anchor in step for step in steps) for anchor in made] == [6, 6]
    # Control: two of every step must meet, and the period still holds.
    assert all(len(due(anchors(probe, 1, 1), step)) == 2 for step in range(4))


# -- what the audit judges by ---------------------------------------------------------


def contrast(probe: Probe) -> ContrastPenalty:
    size = torch.ones(len(probe.layers), len(probe.emotions))
    return ContrastPenalty(probe, torch.ones(len(probe.emotions)), size)


def test_terms_made_by_hand_may_not_use_the_audits(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    probe = cases.make_terms(vectors, reference).terms[0].probe  # type: ignore[attr-defined]

    def tried(changed: Probe, terms: Any = None) -> Any:
        trainer = cases.make_sft(model(), tokenizer, tmp_path)
        given = [contrast(changed)] if terms is None else terms
        return attach(trainer, terms=given, outcome="failed", reference=reference)

    tried(probe)  # control
    assert probe.emotions[0] == "desperate"
    audited = ("upset", *probe.emotions[1:])
    layer = (reference.plan.audit[0],) * len(probe.layers)
    for changed, named in (
        (replace(probe, emotions=audited), "'upset'"),
        (replace(probe, layers=layer), f"layer {layer[0]}"),
        (replace(probe, reader="logistic"), "'logistic'"),
    ):
        with pytest.raises(ValueError, match=f"{named}.* belongs to the audit"):
            tried(changed)
    # Who states other roles is held to those.
    roles = replace(
        Corpus.packaged().roles(), audit_lower=("desperate",), lower=("upset",)
    )
    changed = replace(probe, emotions=audited)
    own = Terms(terms=(contrast(changed),), reference=reference, roles=roles)
    tried(changed, own)
    own = Terms(terms=(contrast(probe),), reference=reference, roles=roles)
    with pytest.raises(ValueError, match="'desperate' belongs to the audit"):
        tried(probe, own)
