"""Fitting: streaming equals batch, oracles agree, shuffled labels give nothing."""

import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.residual.store import ActivationStore
from emoreg.vectors import pooled
from emoreg.vectors.accuracy import Accuracy, accuracy
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extraction import SAMPLE, fit_and_test
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.pooled import StoryActivations, pool_stories, story_parts
from emoreg.vectors.readers import with_logistic
from emoreg.vectors.texts import Story, check_splits

Build = Callable[[str], PreTrainedModel]
EMOTIONS = ("calm", "sad", "proud", "angry")
LAYERS = (3, 7)
WIDTH = 12
EACH = 24
TOPICS = tuple(f"t{number:02d}" for number in range(1, 13))


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


def once(stories: StoryActivations) -> Callable[[], list[StoryActivations]]:
    """Return all stories as one part."""
    return lambda: [stories]


@dataclass
class Planted:
    """Activations made from known directions, with neutral tokens to go with them."""

    values: Tensor
    labels: list[str]
    neutral: Tensor
    directions: Tensor

    def numbers(self) -> Tensor:
        return torch.tensor([EMOTIONS.index(label) for label in self.labels])


def plant(offset: float = 0.0, strength: float = 2.0, each: int = EACH) -> Planted:
    """Draw texts around `strength` times a direction, with unequal noise."""
    # The corners of a simplex: centred and of one length.
    square = torch.linalg.qr(torch.randn(len(LAYERS), WIDTH, WIDTH)).Q
    directions = square[:, : len(EMOTIONS)].clone()
    directions -= directions.mean(1, keepdim=True)
    directions /= directions.norm(dim=-1, keepdim=True)
    spread = torch.linspace(0.2, 1.0, WIDTH)
    labels = [name for name in EMOTIONS for _ in range(each)]
    rows = torch.tensor([EMOTIONS.index(label) for label in labels])
    noise = torch.randn(len(labels), len(LAYERS), WIDTH) * spread
    values = offset + strength * directions[:, rows].transpose(0, 1) + noise
    neutral = offset + torch.randn(90, len(LAYERS), WIDTH) * spread.flip(0)
    return Planted(values, labels, neutral, directions)


def new_fitter(width: int = WIDTH) -> VectorFitter:
    return VectorFitter(emotions=EMOTIONS, layers=LAYERS, d_model=width)


def fit(data: Planted, **settings: Any) -> EmotionVectors:
    fitter = new_fitter().update(data.values, data.labels)
    return fitter.update_neutral(data.neutral).vectors(**settings)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def check_equal(one: EmotionVectors, other: EmotionVectors, atol: float) -> None:
    for name in ("directions", "centre", "raw_norm", "scale", "offset"):
        first, second = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(first, second, rtol=1e-3, atol=atol)


def plain_recipe(data: Planted, denoise: float) -> Tensor:
    """Return the mean-difference directions, spelled out in float64."""
    layers = []
    for layer in range(len(LAYERS)):
        x = data.values[:, layer].double().numpy()
        numbers = data.numbers().numpy()
        means = np.stack([x[numbers == k].mean(0) for k in range(len(EMOTIONS))])
        difference = means - means.mean(0)
        neutral = data.neutral[:, layer].double().numpy()
        _, sizes, parts = np.linalg.svd(neutral - neutral.mean(0))
        share = np.cumsum(sizes**2) / np.sum(sizes**2)
        rank = 0 if denoise == 0 else int(np.argmax(share >= denoise)) + 1
        for part in parts[:rank]:
            difference = difference - np.outer(difference @ part, part)
        layers.append(difference / np.linalg.norm(difference, axis=1, keepdims=True))
    return torch.from_numpy(np.stack(layers)).float()


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("denoise", [0.0, 0.5, 0.9])
def test_the_fit_is_the_recipe_spelled_out(denoise: float, offset: float) -> None:
    data = plant(offset)
    vectors = fit(data, denoise=denoise)
    wanted = plain_recipe(data, denoise)
    torch.testing.assert_close(vectors.directions[0], wanted, rtol=0, atol=2e-3)
    other = plain_recipe(data, 0.5 if denoise != 0.5 else 0.9)  # control
    assert not torch.allclose(vectors.directions[0], other, atol=2e-2)


@pytest.mark.parametrize("seed", range(3))
def test_streaming_equals_batch_in_any_order(seed: int) -> None:
    data = plant()
    whole = fit(data)
    draw = random.Random(seed)
    fitter = new_fitter()
    order = draw.sample(range(len(data.labels)), len(data.labels))
    tokens = draw.sample(range(len(data.neutral)), len(data.neutral))
    while order or tokens:
        # Stories and neutral tokens arrive mixed, some one by one.
        size = draw.choice((1, 2, 5, 17))
        rows, order = order[:size], order[size:]
        fitter.update(data.values[rows], [data.labels[i] for i in rows])
        picked, tokens = tokens[:size], tokens[size:]
        if picked:
            fitter.update_neutral(data.neutral[picked])
    check_equal(fitter.vectors(), whole, atol=1e-3)
    # Control: one text fewer is not the same.
    missing = new_fitter().update(data.values[1:], data.labels[1:])
    missing.update_neutral(data.neutral)
    with pytest.raises(AssertionError):
        check_equal(missing.vectors(), whole, atol=1e-3)


def test_half_precision_is_accumulated_in_float32() -> None:
    data = plant()
    halved = replace(data, values=data.values.bfloat16(), neutral=data.neutral.half())
    vectors = fit(halved)
    assert vectors.directions.dtype == torch.float32
    exact = replace(
        halved, values=halved.values.float(), neutral=halved.neutral.float()
    )
    check_equal(vectors, fit(exact), atol=1e-6)


def test_planted_directions_are_recovered() -> None:
    data = plant(each=400)
    vectors = fit(data, denoise=0.0)
    agreement = torch.einsum("led,led->le", vectors.directions[0], data.directions)
    assert float(agreement.min()) > 0.98
    torch.testing.assert_close(
        vectors.raw_norm, torch.full_like(vectors.raw_norm, 2.0), rtol=0.1, atol=0
    )
    # LDA finds the same after the noise is taken into account.
    spread = torch.linspace(0.2, 1.0, WIDTH)
    whitened = unit(data.directions / spread.square())
    fitted = fit(data, shrinkage=0.0).directions[1]
    assert float(torch.einsum("led,led->le", fitted, whitened).min()) > 0.95
    # Control: without anything planted, nothing is recovered.
    nothing = plant(strength=0.0, each=400)
    found = fit(nothing, denoise=0.0)
    agreement = torch.einsum("led,led->le", found.directions[0], nothing.directions)
    assert float(agreement.abs().mean()) < 0.6
    assert float(found.raw_norm.max()) < 0.3


def test_the_neutral_subspace_is_gone() -> None:
    data = plant()
    fitter = new_fitter().update(data.values, data.labels)
    fitter.update_neutral(data.neutral)
    for variance in (0.3, 0.5, 0.8):
        bases = fitter.neutral_subspace(variance)
        vectors = fitter.vectors(denoise=variance)
        assert vectors.provenance["neutral_rank"] == [len(base) for base in bases]
        for row, base in enumerate(bases):
            eye = torch.eye(len(base))
            torch.testing.assert_close(base @ base.T, eye, atol=1e-5, rtol=0)
            left = vectors.directions[0, row] @ base.T
            assert float(left.abs().max()) < 1e-5
            # As many components as it takes, and no more.
            centred = data.neutral[:, row] - data.neutral[:, row].mean(0)
            total = centred.square().sum()
            share = (centred @ base.T).square().sum() / total
            fewer = (centred @ base[:-1].T).square().sum() / total
            assert float(share) >= variance - 1e-5
            assert float(fewer) < variance
    kept = fitter.vectors(denoise=0.0)  # control
    overlap = kept.directions[0, 0] @ fitter.neutral_subspace(0.5)[0].T
    assert float(overlap.abs().max()) > 0.05
    assert kept.provenance["neutral_rank"] == [0, 0]


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.5, 1.0])
def test_lda_equals_sklearns(shrinkage: float) -> None:
    data = plant()
    vectors = fit(data, shrinkage=shrinkage)
    for column, layer in enumerate(LAYERS):
        x = data.values[:, column]
        oracle = LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage=shrinkage, priors=[1 / len(EMOTIONS)] * 4
        ).fit(x.numpy(), data.numbers().numpy())
        weights = torch.from_numpy(oracle.coef_).float()
        wanted = unit(weights - weights.mean(0))
        torch.testing.assert_close(
            vectors.directions[1, column], wanted, rtol=0, atol=2e-4
        )
        scores = vectors.scores(x, layer=layer, reader="lda")
        named = torch.from_numpy(oracle.predict(x.numpy()))
        assert torch.equal(scores.argmax(1), named)
        # Their scores are ours, up to what all emotions share and one factor.
        theirs = torch.from_numpy(oracle.decision_function(x.numpy())).float()
        theirs = theirs - theirs.mean(1, keepdim=True)
        ours = scores - scores.mean(1, keepdim=True)
        factor = len(data.labels) / (len(data.labels) - len(EMOTIONS))
        torch.testing.assert_close(ours * factor, theirs, rtol=1e-3, atol=5e-3)
    if shrinkage == 1.0:  # the covariance is ignored, so LDA is the mean difference
        bare = fit(data, denoise=0.0).directions[0]
        torch.testing.assert_close(vectors.directions[1], bare, rtol=0, atol=1e-5)
    else:  # control
        assert not torch.allclose(
            vectors.directions[1], fit(data, shrinkage=0.7).directions[1], atol=1e-2
        )


def as_stories(data: Planted, topics: tuple[str, ...] = TOPICS) -> StoryActivations:
    return StoryActivations(
        values=data.values,
        labels=tuple(data.labels),
        topics=tuple(topics[i % len(topics)] for i in range(len(data.labels))),
        layers=LAYERS,
    )


def top1(vectors: EmotionVectors, data: Planted, layer: int = 7) -> dict[str, float]:
    stories = as_stories(data)
    return {
        reader: accuracy(vectors, stories, reader=reader, layer=layer).top1
        for reader in vectors.readers
    }


def test_shuffled_labels_give_nothing() -> None:
    data = plant(each=60)
    held_out = replace(data, values=data.values[::2], labels=data.labels[::2])
    train = replace(data, values=data.values[1::2], labels=data.labels[1::2])

    def fitted(labels: list[str]) -> EmotionVectors:
        vectors = fit(replace(train, labels=labels))
        numbers = torch.tensor([EMOTIONS.index(label) for label in labels])
        return with_logistic(vectors, train.values, numbers)

    # Several shuffles, since one may by luck agree with the truth.
    runs = []
    for seed in range(5):
        shuffled = random.Random(seed).sample(train.labels, len(train.labels))
        runs.append(top1(fitted(shuffled), held_out))
    for reader, right in top1(fitted(train.labels), held_out).items():
        assert right > 0.7, reader  # control: true labels name the emotion
        assert abs(np.mean([run[reader] for run in runs]) - 0.25) < 0.15, reader


def test_accuracy_counts_by_hand() -> None:
    vectors = EmotionVectors.from_directions(
        torch.eye(5).unsqueeze(0), emotions=list("abcde"), layers=[0]
    )
    values = torch.tensor(
        [[5.0, 4, 3, 2, 1], [5, 4, 3, 2, 1], [5, 4, 3, 2, 1], [0, 0, 0, 0, 9]]
    )
    stories = StoryActivations(
        values=values.unsqueeze(1), labels=("a", "c", "d", "e"), topics=("t01",) * 4,
        layers=(0,),
    )  # fmt: skip
    found = accuracy(vectors, stories, reader="mean-difference", layer=0)
    assert (found.top1, found.top3) == (2 / 4, 3 / 4)
    assert found.chance == (1 / 5, 3 / 5)
    assert (found.texts, found.emotions) == (4, 5)


def test_too_few_texts_are_refused_with_the_emotions_name() -> None:
    data = plant()
    short = [i for i, label in enumerate(data.labels) if label != "proud"]
    one = [*short, data.labels.index("proud")]
    two = [*one, data.labels.index("proud") + 1]
    for rows, count in ((short, 0), (one, 1)):
        fitter = new_fitter().update(data.values[rows], [data.labels[i] for i in rows])
        with pytest.raises(ValueError, match=f"at least 2.*found {count} for 'proud'"):
            fitter.vectors()
    fitter = new_fitter().update(data.values[two], [data.labels[i] for i in two])
    assert fitter.vectors().emotions == EMOTIONS  # control


def test_wrong_labels_are_refused_before_anything_is_counted() -> None:
    data = plant()
    fitter = new_fitter().update(data.values, data.labels)
    with pytest.raises(ValueError, match="one of the fitter's emotions, got 'glum'"):
        fitter.update(data.values[:2], ["calm", "glum"])
    with pytest.raises(ValueError, match="one emotion per text, got 1 for 2 texts"):
        fitter.update(data.values[:2], ["calm"])
    check_equal(
        fitter.vectors(), new_fitter().update(data.values, data.labels).vectors(), 0
    )
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"`denoise` must be in \[0, 1\)"):
            fitter.vectors(denoise=wrong)


# ---------------------------------------------------------------- logistic


def test_the_logistic_reader_equals_sklearns() -> None:
    data = plant(strength=1.2)
    l2 = 1e-2
    vectors = with_logistic(fit(data), data.values, data.numbers(), l2=l2)
    assert vectors.readers == ("mean-difference", "lda", "logistic")
    fresh = plant(strength=1.2)
    for column, layer in enumerate(LAYERS):
        x = data.values[:, column].double()
        mean, spread = x.mean(0), x.std(0)
        oracle = LogisticRegression(
            C=len(EMOTIONS) / (l2 * len(x)), max_iter=2000, tol=1e-8
        ).fit(((x - mean) / spread).numpy(), data.numbers().numpy())
        new = fresh.values[:, column].double()
        theirs = torch.from_numpy(oracle.predict_proba(((new - mean) / spread).numpy()))
        ours = vectors.scores(new.float(), layer=layer, reader="logistic").softmax(1)
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=0.02)
        sure = theirs.sort(1).values[:, -1] - theirs.sort(1).values[:, -2] > 0.05
        assert int(sure.sum()) > len(new) // 2
        assert torch.equal(ours.argmax(1)[sure], theirs.argmax(1)[sure])
        other = vectors.scores(new.float(), layer=layer, reader="lda").softmax(1)
        assert not torch.allclose(other.double(), theirs, atol=0.05)  # control
    lengths = vectors.directions[2].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


# ------------------------------------------------------- fitting and testing


def test_test_topics_never_reach_the_vectors() -> None:
    data = plant(each=24)
    stories = as_stories(data)
    held = torch.tensor([topic in TOPICS[8:] for topic in stories.topics])

    def extracted(values: Tensor) -> tuple[EmotionVectors, dict[str, int], list]:
        fitter = new_fitter().update_neutral(data.neutral)
        found = fit_and_test(
            once(replace(stories, values=values)), fitter, 0.5, 0.5, {}
        )
        return found.vectors, found.chosen, list(found.accuracies)

    vectors, chosen, accuracies = extracted(data.values)
    spoiled = torch.where(held[:, None, None], -data.values, data.values)
    same, same_chosen, worse = extracted(spoiled)
    check_equal(vectors, same, atol=0)
    assert vectors.hash == same.hash
    assert chosen == same_chosen
    assert {a.texts for a in accuracies} == {int(held.sum())}
    # Control: the accuracies, which are of the test topics, do notice.
    assert (
        np.mean([a.top1 for a in worse])
        < 0.2
        < 0.8
        < np.mean([a.top1 for a in accuracies])
    )
    fitting = torch.where(held[:, None, None], data.values, -data.values)
    assert extracted(fitting)[0].hash != vectors.hash


def test_the_layer_is_chosen_where_the_emotions_are() -> None:
    data = plant(each=24)
    for good in range(len(LAYERS)):
        values = torch.randn_like(data.values)
        values[:, good] = data.values[:, good]
        fitter = new_fitter().update_neutral(data.neutral)
        stories = replace(as_stories(data), values=values)
        found = fit_and_test(once(stories), fitter, 0.5, 0.5, {})
        assert set(found.chosen.values()) == {LAYERS[good]}
        headlines = [found.headline(reader) for reader in found.vectors.readers]
        assert {a.layer for a in headlines} == {LAYERS[good]}
        recorded = found.vectors.provenance["accuracy"]
        assert [Accuracy(**fields) for fields in recorded] == headlines


def test_the_layer_is_not_chosen_by_texts_that_were_fitted() -> None:
    # In so many dimensions noise can be learned by heart, which the first layer is.
    width, labels = 600, [name for name in EMOTIONS for _ in range(24)]
    rows = torch.tensor([EMOTIONS.index(label) for label in labels])
    values = torch.randn(len(labels), len(LAYERS), width)
    values[:, 1] += 6 * torch.linalg.qr(torch.randn(width, 4)).Q.T[rows]
    data = Planted(values, labels, torch.randn(9, len(LAYERS), width), values)
    by_heart = new_fitter(width).update(values, labels).vectors(denoise=0.0)
    assert min(top1(by_heart, data, layer=3).values()) > 0.9  # control
    fitter = new_fitter(width).update_neutral(data.neutral)
    found = fit_and_test(once(as_stories(data)), fitter, 0.5, 0.5, {})
    assert set(found.chosen.values()) == {7}


def test_parts_give_what_all_at_once_gives() -> None:
    data = plant(each=24)
    stories = as_stories(data)
    alive: list[weakref.ref] = []

    def parts() -> Iterator[StoryActivations]:
        for start in range(0, len(stories.labels), 7):
            part = stories.rows(range(start, min(start + 7, len(stories.labels))))
            assert sum(seen() is not None for seen in alive) <= 1  # one at a time
            alive.append(weakref.ref(part.values.untyped_storage()))
            yield part
            del part

    def extracted(parts: Callable[[], Any]) -> Any:
        fitter = new_fitter().update_neutral(data.neutral)
        return fit_and_test(parts, fitter, 0.5, 0.5, {})

    whole, pieces = extracted(once(stories)), extracted(parts)
    check_equal(whole.vectors, pieces.vectors, atol=1e-4)
    assert whole.chosen == pieces.chosen
    for one, other in zip(whole.accuracies, pieces.accuracies, strict=True):
        assert one.top1 == pytest.approx(other.top1, abs=1e-6)
        assert (one.layer, one.texts) == (other.layer, other.texts)
    some = stories.rows(range(len(stories.labels) - 7))
    fewer = extracted(once(some))  # control: a part that is lost
    assert fewer.accuracies[0].texts < whole.accuracies[0].texts


def test_a_sample_is_bounded_whatever_the_corpus() -> None:
    data = plant(each=SAMPLE * 12)
    found = fit_and_test(
        once(as_stories(data)), new_fitter().update_neutral(data.neutral), 0.5, 0.5, {}
    )
    many = Counter(
        (label, topic in TOPICS[8:])
        for label, topic in zip(found.sample.labels, found.sample.topics, strict=True)
    )
    assert set(many.values()) == {SAMPLE}
    assert found.vectors.provenance["stories"] == len(EMOTIONS) * SAMPLE * 8


def test_no_story_to_test_on_is_said() -> None:
    data = plant(each=24)
    stories = as_stories(data).of_topics(TOPICS[:8])
    fitter = new_fitter().update_neutral(data.neutral)
    with pytest.raises(ValueError, match="stories to test on, found none"):
        fit_and_test(once(stories), fitter, 0.5, 0.5, {})


@pytest.mark.parametrize("stored", [True, False])
def test_a_corpus_of_many_parts_is_read_once(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: bool,
) -> None:
    model = tiny_model("llama")
    stories = Corpus.packaged().stories(("calm", "sad"), split="all")
    whole = pool_stories(model, tokenizer, stories, (1, 2), quiet=True)
    monkeypatch.setattr(pooled, "PART", 5)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model.get_input_embeddings().register_forward_hook(count)
    store = ActivationStore(tmp_path) if stored else None
    with story_parts(
        model, tokenizer, stories, (1, 2), quiet=True, store=store
    ) as parts:
        first = list(parts())
        once_through = passes
        second = list(parts())
    assert once_through >= len(first) == 5
    assert passes == once_through
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.values, other.values)
    together = torch.cat([part.values for part in first])
    torch.testing.assert_close(together, whole.values, atol=1e-5, rtol=1e-4)
    assert sum((part.labels for part in first), ()) == whole.labels


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda s: not (s.emotion == "sad" and s.topic < "t06"), "found 1 of `sad`"),
        (lambda s: s.topic not in ("t07", "t08"), "t07, t08, by which layers"),
        (lambda s: s.topic < "t09", "t09, t10, t11, t12, by which accuracy"),
        (lambda s: s.emotion == "sad", "two emotions or more.*found `sad` alone"),
    ],
)
def test_a_corpus_too_thin_is_refused_before_a_text_is_read(
    kept: Callable[[Story], bool], message: str
) -> None:
    stories = Corpus.packaged().stories(("calm", "sad"), split="all")
    check_splits(stories)  # control
    with pytest.raises(ValueError, match=message):
        check_splits([story for story in stories if kept(story)])


# ------------------------------------------------------------- pooled means


def make_stories(lengths: list[int]) -> list[Story]:
    draw = random.Random(0)
    letters = "abcdefgh ij."
    return [
        Story(
            emotion=EMOTIONS[i % 4],
            topic=TOPICS[i % 12],
            perspective="first",
            text="".join(draw.choice(letters) for _ in range(length)),
            source=f"stories/made.jsonl:{i + 1}",
        )
        for i, length in enumerate(lengths)
    ]


@torch.no_grad()
def pooled_by_hand(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    stories: list[Story],
    layers: tuple[int, ...],
    first: int = 50,
) -> Tensor:
    """Pool one story at a time, from the hidden states that the model returns."""
    rows = []
    for story in stories:
        ids = torch.tensor([tokenizer(story.text)["input_ids"]])
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        means = [hidden[layer + 1][0, first - 1 :].mean(0) for layer in layers]
        rows.append(torch.stack(means))
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "gpt_neox"])
def test_padding_order_and_batch_size_change_no_mean(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    model = tiny_model(family)
    stories = make_stories([50, 120, 51, 77, 90, 63, 150])
    wanted = pooled_by_hand(model, tokenizer, stories, (0, 2))
    for budget in (1, 320, 10_000):
        found = pool_stories(
            model, tokenizer, stories, [2, 0], budget=budget, quiet=True
        )
        assert found.layers == (0, 2)
        assert found.labels == tuple(story.emotion for story in stories)
        torch.testing.assert_close(found.values, wanted, rtol=1e-4, atol=1e-5)
    order = [3, 0, 6, 2, 5, 1, 4]
    shuffled = pool_stories(
        model, tokenizer, [stories[i] for i in order], [0, 2], budget=320, quiet=True
    )
    torch.testing.assert_close(shuffled.values, wanted[order], rtol=1e-4, atol=1e-5)
    for first in (49, 51):  # control: the 50th token it is
        off = pooled_by_hand(model, tokenizer, stories[1:2], (0, 2), first)
        assert not torch.allclose(off, wanted[1:2], rtol=1e-4, atol=1e-5)


def test_a_short_story_is_refused_with_its_place(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, stories = tiny_model("llama"), make_stories([80, 49, 60])
    message = r"from the 50th on; stories/made.jsonl:2 has 49. Lengthen it"
    with pytest.raises(ValueError, match=message):
        pool_stories(model, tokenizer, stories, [0], quiet=True)
    kept = pool_stories(model, tokenizer, stories[::2], [0], quiet=True)  # control
    assert kept.values.isfinite().all()
