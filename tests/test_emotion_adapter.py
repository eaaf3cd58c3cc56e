"""An adapter that carries an emotion: along its direction, in own turns alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import emoreg
from emoreg.residual.capture import capture
from emoreg.residual.tokens import TurnMarkers, conversation_ids
from emoreg.training.reference import Reference
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.steering import mean_norms

Build = Callable[[], PreTrainedModel]
STRENGTH = 0.2


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


def moved(model: Any, tokenizer: Any, vectors: EmotionVectors) -> dict[str, float]:
    """How far an adapter moves held-out dialogues, in mean norms of the stream."""
    markers, layer = TurnMarkers.of(tokenizer), cases.LOSS_LAYER
    (norm,) = mean_norms(model, tokenizer, Corpus.packaged(), [layer]).values()
    way = vectors.direction("calm", layer=layer, reader="mean-difference")
    found: dict[str, list[torch.Tensor]] = {"own": [], "aside": [], "others": []}
    for talk in cases.twins(8)[10:]:
        ids = torch.tensor([conversation_ids(tokenizer, talk.messages)])
        streams = []
        for off in (False, True):
            with capture(model, [layer]) as captured, torch.no_grad():
                if off:
                    with model.disable_adapter():
                        model(input_ids=ids)
                else:
                    model(input_ids=ids)
                streams.append(captured[layer][0])
        shift = (streams[0] - streams[1]) / norm
        own = (markers.assistant_tokens(ids) | markers.decision_tokens(ids))[0]
        along = shift @ way
        found["own"].append(along[own])
        found["aside"].append((shift - along[:, None] * way)[own].norm(dim=1))
        found["others"].append(shift[~own].norm(dim=1))
    return {name: float(torch.cat(parts).mean()) for name, parts in found.items()}


def test_it_moves_its_own_turns_along_the_direction_and_nothing_else(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
    tmp_path: Path,
) -> None:
    parts = (tokenizer, cases.twins(5), vectors, reference)
    made: Any = emoreg.emotion_adapter(
        model(), *parts, strength=STRENGTH, steps=120, learning_rate=1e-2, quiet=True
    )
    found = moved(made, tokenizer, vectors)
    assert found["own"] == pytest.approx(STRENGTH, rel=0.35)
    assert found["aside"] < 0.6 * STRENGTH
    assert found["others"] < 0.6 * STRENGTH
    start: Any = emoreg.emotion_adapter(model(), *parts, steps=0, quiet=True)
    assert moved(start, tokenizer, vectors)["own"] == 0  # control
    made.save_pretrained(tmp_path)  # plain peft loads it
    again: Any = PeftModel.from_pretrained(model(), tmp_path)
    assert moved(again, tokenizer, vectors) == pytest.approx(found, rel=1e-3)


def test_one_seed_is_one_adapter(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
) -> None:
    def made(seed: int) -> dict[str, torch.Tensor]:
        found: Any = emoreg.emotion_adapter(
            *(model(), tokenizer, cases.twins(2), vectors, reference),
            steps=3,
            seed=seed,
            quiet=True,
        )
        return {n: p.detach() for n, p in found.named_parameters() if "lora" in n}

    first = made(1)
    assert cases.equal(first, made(1))
    assert not cases.equal(first, made(2))  # control


def test_bad_input_is_refused(
    model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    reference: Reference,
) -> None:
    def call(**changed: Any) -> None:
        given: dict[str, Any] = {"transcripts": cases.twins(2), "emotion": "calm"}
        given |= changed
        emoreg.emotion_adapter(
            given.pop("model", None) or model(),
            tokenizer,
            given.pop("transcripts"),
            vectors,
            reference,
            quiet=True,
            **given,
        )

    with pytest.raises(ValueError, match="must hold a dialogue"):
        call(transcripts=[])
    with pytest.raises(ValueError, match="belongs to the audit"):
        call(emotion="upset")
    tuned = emoreg.subspace_lora(model(), vectors)
    with pytest.raises(ValueError, match="no adapter yet"):
        call(model=tuned)
