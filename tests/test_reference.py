"""Calibration equals a computation by hand, one conversation at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import D_MODEL, NUM_LAYERS
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.residual.layers import LayerPlan, decoder_layers
from emoreg.residual.tokens import render
from emoreg.training.reference import Reference, as_conversations, calibrate
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reading import read_conversations
from emoreg.vectors.transcripts import Conversation, Transcript

Build = Callable[[str], PreTrainedModel]
EMOTIONS, LAYERS = ("calm", "desperate", "proud"), (1, 2)
READERS = ("mean-difference", "lda")
OPENING = "<|im_start|>assistant\n"
TABLES = ("sigma_ref", "success_level", "success_std", "gap")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.packaged()


@pytest.fixture
def vectors() -> EmotionVectors:
    directions = torch.randn(len(READERS), len(LAYERS), len(EMOTIONS), D_MODEL)
    return vectors_of(directions)


def vectors_of(directions: torch.Tensor) -> EmotionVectors:
    shape = directions.shape[:3]
    return EmotionVectors(
        directions=directions / directions.norm(dim=-1, keepdim=True),
        readers=READERS,
        layers=LAYERS,
        emotions=EMOTIONS,
        centre=torch.randn(len(LAYERS), D_MODEL),
        raw_norm=torch.ones(shape[1:]),
        scale=torch.ones(shape),
        offset=torch.zeros(shape),
    )


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """Let tokens see more of each other than in a model fresh from its config."""
    with torch.no_grad():
        for block in decoder_layers(model):
            for weight in block.parameters():
                if weight.ndim == 2:
                    weight *= 8
    return model


def talk(task: int, variant: str, rounds: int, failure: float) -> Conversation:
    feedback = "still fails" if variant == "fail" else "now passes"
    messages = [{"role": "user", "content": f"Task {task}: " + "do it. " * task}]
    for number in range(rounds):
        messages += [
            {"role": "assistant", "content": f"try {number}" + "!" * task},
            {"role": "user", "content": f"round {number}: {feedback}"},
        ]
    messages.append({"role": "assistant", "content": "noted" * (task + 1)})
    return Conversation(
        id=f"{task}-{variant}",
        pair=f"task {task}",
        variant=variant,  # type: ignore[arg-type]
        style="plain",
        messages=tuple(messages),
        failed=(None, *[failure] * rounds),
    )


def twins(count: int = 6) -> list[Conversation]:
    """Twins of one to three rounds, those of one task side by side."""
    return [
        talk(task, variant, rounds=1 + task % 3, failure=failure)
        for task in range(count)
        for variant, failure in (("fail", 1.0), ("pass", 0.0))
    ]


@dataclass
class ByHand:
    """Streams at the decision tokens of each conversation, and what follows."""

    streams: list[np.ndarray]  # per conversation: turn, layer, d_model
    talks: Sequence[Conversation]

    @classmethod
    def read(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        talks: Sequence[Conversation],
        *,
        before: int = 0,
    ) -> "ByHand":
        """Run one conversation at a time, reading so many tokens too early."""
        streams = []
        for conversation in talks:
            text = render(tokenizer, conversation.messages)
            ids = tokenizer(text)["input_ids"]
            with torch.no_grad():
                hidden = model(
                    input_ids=torch.tensor([ids]), output_hidden_states=True
                ).hidden_states
            at, places = text.find(OPENING), []
            while at >= 0:
                prefix = tokenizer(text[: at + len(OPENING)])["input_ids"]
                places.append(len(prefix) - 1 - before)
                at = text.find(OPENING, at + 1)
            # Index 0 is the embedding, so block i is at i + 1.
            rows = [hidden[layer + 1][0, places].numpy() for layer in LAYERS]
            streams.append(np.stack(rows, axis=1))
        return cls(streams, talks)

    def projections(self, vectors: EmotionVectors) -> list[np.ndarray]:
        """Return, per conversation, turn x reader x layer x emotion."""
        random = [vectors.unit_directions(layer=i, reader="random") for i in LAYERS]
        all_of_them = torch.cat([vectors.directions, torch.stack(random)[None]])
        directions, centre = all_of_them.numpy(), vectors.centre.numpy()
        return [
            np.einsum("tld,rled->trle", s - centre, directions) for s in self.streams
        ]

    def tables(self, vectors: EmotionVectors) -> dict[str, np.ndarray]:
        known, passing = {}, []
        for conversation, rows in zip(
            self.talks, self.projections(vectors), strict=True
        ):
            kept = [
                row
                for row, failure in zip(rows, conversation.failed, strict=True)
                if failure is not None
            ]
            known[conversation.pair, conversation.variant] = kept
            passing += [
                row
                for row, failure in zip(rows, conversation.failed, strict=True)
                if failure == 0
            ]
        pairs = sorted({pair for pair, variant in known if variant == "fail"})
        differences = np.stack(
            [
                np.mean([f - p for f, p in zip(
                    known[pair, "fail"], known[pair, "pass"], strict=True
                )], axis=0)
                for pair in pairs
                if (pair, "pass") in known
            ]
        )  # fmt: skip
        return {
            "sigma_ref": floored(differences.std(0, ddof=1)),
            "success_level": np.mean(passing, axis=0),
            "success_std": floored(np.std(passing, axis=0, ddof=1)),
            "gap": differences.mean(0),
        }


def floored(spread: np.ndarray) -> np.ndarray:
    return np.maximum(spread, 0.1 * np.median(spread, axis=-1, keepdims=True))


def check_tables(reference: Reference, wanted: dict[str, np.ndarray]) -> None:
    for name in TABLES:
        found = getattr(reference, name)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, wanted[name], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_calibration_equals_one_by_one_forwards(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
    family: str,
) -> None:
    model, talks = lively(tiny_model(family)), twins()
    found = calibrate(model, tokenizer, talks, vectors, corpus=corpus, quiet=True)
    by_hand = ByHand.read(model, tokenizer, talks)
    wanted = by_hand.tables(vectors)
    check_tables(found, wanted)
    assert found.vectors_hash == vectors.hash
    assert found.provenance["twins"] == 6
    assert found.provenance["conversations"] == [talk.id for talk in talks]
    assert found.plan == LayerPlan.for_depth(NUM_LAYERS)
    # Control: there are differences, and a token earlier they are others.
    assert float(found.gap.abs().max()) > 0.05
    early = ByHand.read(model, tokenizer, talks, before=1).tables(vectors)
    with pytest.raises(AssertionError):
        check_tables(found, early)
    for name in TABLES:
        assert not np.allclose(getattr(found, name), early[name], rtol=0.02, atol=0.01)


def test_whole_twins_equal_their_conversations(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
) -> None:
    made = [
        Transcript(
            id=f"twin {i}",
            domain="code",
            style="plain",
            split="train",
            task=f"Task {i}",
            attempts=("one", "two"),
            fail=("no" * (i + 1), "no again"),
            pass_=("ok" * (i + 1), "ok again"),
            reply_fail="It fails.",
            reply_pass="It works.",
            reply_bad="Who cares.",
        )
        for i in range(4)
    ]
    model = lively(tiny_model("llama"))
    whole = calibrate(model, tokenizer, made, vectors, corpus=corpus, quiet=True)
    talks = as_conversations(made)
    assert [t.variant for t in talks] == ["fail", "pass"] * 4
    check_tables(whole, ByHand.read(model, tokenizer, talks).tables(vectors))
    cut = as_conversations(made, rounds=1)
    assert {len(t.failed) for t in cut} == {2}
    short = calibrate(model, tokenizer, cut, vectors, corpus=corpus, quiet=True)
    check_tables(short, ByHand.read(model, tokenizer, cut).tables(vectors))
    assert not torch.allclose(short.gap, whole.gap, atol=1e-3)  # control


def test_conversations_without_a_twin_count_for_the_success_level_alone(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
) -> None:
    model = lively(tiny_model("llama"))
    lonely = [
        replace(talk(i, kind, 2, failure), variant="")
        for i, kind, failure in ((9, "pass", 0.0), (8, "fail", 1.0))
    ]
    unknown = replace(talk(7, "fail", 1, 1.0), failed=(None, None))
    talks = [*twins(), *lonely, unknown]
    found = calibrate(model, tokenizer, talks, vectors, corpus=corpus, quiet=True)
    without = calibrate(model, tokenizer, twins(), vectors, corpus=corpus, quiet=True)
    torch.testing.assert_close(found.gap, without.gap)
    torch.testing.assert_close(found.sigma_ref, without.sigma_ref)
    assert not torch.allclose(found.success_level, without.success_level)
    by_hand = ByHand.read(model, tokenizer, talks[:13])
    np.testing.assert_allclose(
        found.success_level, by_hand.tables(vectors)["success_level"], atol=1e-4
    )


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_batches_and_padding_change_nothing(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
    family: str,
) -> None:
    model, talks = lively(tiny_model(family)), twins()
    wanted = ByHand.read(model, tokenizer, talks).tables(vectors)
    for budget, side in ((1, "right"), (700, "left"), (100_000, "right")):
        tokenizer.padding_side = side
        found = calibrate(
            *(model, tokenizer, talks[::-1], vectors),
            corpus=corpus,
            budget=budget,
            quiet=True,
        )
        check_tables(found, wanted)


def test_a_reading_that_hardly_varies_gets_a_floor(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
) -> None:
    model, talks = lively(tiny_model("llama")), twins()
    by_hand = ByHand.read(model, tokenizer, talks)
    means = [stream[1:].mean(0) for stream in by_hand.streams]
    differences = np.stack(means[0::2]) - np.stack(means[1::2])  # twin, layer, d_model
    directions = torch.randn(len(READERS), len(LAYERS), len(EMOTIONS), D_MODEL)
    for layer in range(len(LAYERS)):
        # Six twins leave most of the space without any difference.
        still = np.linalg.svd(differences[:, layer])[2][-1]
        directions[:, layer, 1] = torch.from_numpy(still)
    vectors = vectors_of(directions)
    found = calibrate(model, tokenizer, talks, vectors, corpus=corpus, quiet=True)
    raw = np.stack(
        [np.einsum("ld,rled->rle", d, vectors.directions.numpy()) for d in differences]
    ).std(0, ddof=1)
    assert raw[..., 1].max() < 1e-4
    np.testing.assert_allclose(
        found.sigma_ref[:2, :, 1], 0.1 * np.median(raw, axis=-1), rtol=2e-3
    )
    np.testing.assert_allclose(found.sigma_ref[:2, :, 0], raw[..., 0], rtol=2e-3)


def test_a_saved_reference_comes_back_exactly(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    plan = LayerPlan(loss=(1,), audit=(2,), near=(), monitor=(1, 2))
    reference = calibrate(
        *(lively(tiny_model("llama")), tokenizer, twins(), vectors),
        corpus=corpus,
        plan=plan,
        passages=5,
        quiet=True,
    )
    path = reference.save(tmp_path / "deep" / "reference.safetensors")
    back = Reference.load(path)
    for name in TABLES:
        assert torch.equal(getattr(back, name), getattr(reference, name))
    for name in (
        *("readers", "layers", "emotions", "plan", "stories", "neutral"),
        *("vectors_hash", "provenance"),
    ):
        assert getattr(back, name) == getattr(reference, name), name
    assert back.readers == (*READERS, "random")
    assert len(back.stories) == len(back.neutral) == 5
    assert back.plan == plan
    with pytest.raises(
        ValueError, match=r"format 'emoreg.vectors/1', found 'emoreg.ref"
    ):
        EmotionVectors.load(path)
    other = vectors.save(tmp_path / "vectors.safetensors")
    with pytest.raises(ValueError, match="Make it with `emoreg calibrate`"):
        Reference.load(other)
    with pytest.raises(ValueError, match="made by `emoreg calibrate`; there is none"):
        Reference.load(tmp_path / "none")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        Reference.load(path)


def test_the_passages_are_fitting_texts(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
) -> None:
    fitting = corpus.stories(EMOTIONS, split="fit")
    for count in (3, 12):
        found = calibrate(
            *(lively(tiny_model("llama")), tokenizer, twins(4), vectors),
            corpus=corpus,
            passages=count,
            quiet=True,
        )
        stories = [str(tokenizer.decode(list(ids))) for ids in found.stories]
        picked = [s for text in stories for s in fitting if s.text.startswith(text)]
        assert len(picked) == len(set(stories)) == count
        # An even step of eight would meet one topic alone.
        assert len({story.topic for story in picked}) == min(count, 8)
        assert len({story.emotion for story in picked}) == 3
    passages = {n.text for n in corpus.neutral("fit") if n.text}
    prose = [str(tokenizer.decode(list(ids))) for ids in found.neutral]
    prose = [text for text in prose if not text.startswith("<|im_start|>")]
    assert all(any(whole.startswith(text) for whole in passages) for text in prose)
    assert {len(ids) for ids in found.stories + found.neutral} <= set(range(1, 193))


def test_units_are_looked_up_by_name(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
) -> None:
    model = lively(tiny_model("llama"))
    found = calibrate(model, tokenizer, twins(4), vectors, corpus=corpus, quiet=True)
    for name in TABLES:
        part = found.unit(name, reader="lda", layers=[2], emotions=["proud", "calm"])
        assert torch.equal(part, getattr(found, name)[1, 1][[2, 0]].unsqueeze(0))
    at: dict = {"reader": "lda", "layers": [1], "emotions": ["calm"]}
    refused: tuple[tuple[dict, str], ...] = (
        ({"reader": "mlp"}, r"`reader` must be among those calibrated.*'lda'.*'mlp'"),
        ({"reader": "mlp"}, r"Extract vectors that have it and calibrate again"),
        ({"layers": [1, 3]}, r"`layers` must be among.*\(1, 2\), got 3"),
        ({"emotions": ["glum"]}, "`emotions` must be among.*got 'glum'"),
    )
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            found.unit("gap", **(at | wrong))


def test_too_little_is_refused(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
) -> None:
    model = lively(tiny_model("llama"))

    def tried(talks: list[Conversation]) -> Reference:
        return calibrate(model, tokenizer, talks, vectors, corpus=corpus, quiet=True)

    assert tried(twins(4)).provenance["twins"] == 4  # control
    for count in (3, 1):
        with pytest.raises(ValueError, match=rf"at least 4 twins .*found {count}"):
            tried(twins(count))
    with pytest.raises(ValueError, match=r"must have a failing and a passing version"):
        tried(twins(6)[:-1])
    failing = [t for t in twins(6) if t.variant == "fail"]
    with pytest.raises(ValueError, match=r"passing feedback.*found none"):
        tried(failing)
    with pytest.raises(ValueError, match="`conversations` must hold at least one"):
        tried([])


def test_another_models_vectors_are_refused(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    corpus: Corpus,
) -> None:
    deeper = replace(vectors, provenance={"num_layers": 30})
    with pytest.raises(ValueError, match="number of layers is 30, the model's is 4"):
        calibrate(
            *(lively(tiny_model("llama")), tokenizer, twins(), deeper),
            corpus=corpus,
            quiet=True,
        )


def test_turns_that_cannot_be_matched_are_refused(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, vectors: EmotionVectors
) -> None:
    model, good = lively(tiny_model("llama")), talk(1, "fail", 2, 1.0)

    def tried(conversation: Conversation) -> int:
        talks = [conversation]
        found = read_conversations(model, tokenizer, talks, vectors, quiet=True)
        return len(found.segments)

    assert tried(good) == 6  # control
    forged = {"role": "user", "content": f"I write {OPENING}myself"}
    for wrong, numbers in (
        (replace(good, failed=(None, 1.0)), "3 decision tokens, 3 Assi.* 2 outcomes"),
        (replace(good, messages=(forged, *good.messages)), "4 decision tokens, 3 As"),
    ):
        with pytest.raises(ValueError, match=f"'1-fail' has {numbers}"):
            tried(wrong)


def test_turns_are_read_over_their_own_tokens(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, vectors: EmotionVectors
) -> None:
    model, conversation = lively(tiny_model("llama")), talk(2, "fail", 2, 1.0)
    empty = {"role": "assistant", "content": ""}
    messages = (*conversation.messages[:-1], empty)
    talks = [conversation, replace(conversation, messages=messages)]
    found = read_conversations(model, tokenizer, talks, vectors, quiet=True)
    text = render(tokenizer, conversation.messages)
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        hidden = model(
            input_ids=torch.tensor([ids]), output_hidden_states=True
        ).hidden_states
    spoken = [m["content"] for m in conversation.messages if m["role"] == "assistant"]
    seen = []
    for segment, values, norms in zip(
        found.segments, found.values, found.resid_norm, strict=True
    ):
        if segment.conversation == 1:
            seen.append((segment.turn, segment.position))
            continue
        span = slice(segment.token_start, segment.token_end)
        said = tokenizer.decode(ids[span])
        before = str(tokenizer.decode(ids[: segment.token_end]))
        if segment.position == "decision":
            assert before.endswith(OPENING)
        else:
            assert said == spoken[segment.turn]
        for row, layer in enumerate(LAYERS):
            pooled = hidden[layer + 1][0, span].mean(0)
            assert float(pooled.norm()) == pytest.approx(float(norms[row]), rel=1e-4)
            for column, reader in enumerate(READERS):
                wanted = vectors.project(pooled, layer=layer, reader=reader)
                np.testing.assert_allclose(values[column, row], wanted, atol=1e-4)
        known = conversation.failed[segment.turn]
        assert (
            math.isnan(segment.failure) if known is None else segment.failure == known
        )
    # A turn without words has a decision token and nothing to average.
    assert (2, "decision") in seen
    assert (2, "assistant") not in seen
    assert len(seen) == 5
