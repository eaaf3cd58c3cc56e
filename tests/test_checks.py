"""The battery's checks on made-up activations: planted structure passes, noise misses.

What is planted is a direction per emotion in the pooled activations of the packaged
stories; the model beside them is tiny and knows nothing.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoModelForCausalLM, GraniteConfig, PreTrainedTokenizerFast

from emoreg.residual.layers import decoder_layers
from emoreg.residual.steer import steered
from emoreg.statistics.clusters import adjusted_rand_index
from emoreg.validation.areas import area
from emoreg.validation.battery import Sources, battery
from emoreg.validation.check import Check, Figure, Matrix
from emoreg.validation.concern import DRAWN, _of_many, concern
from emoreg.validation.dialogues import dialogues
from emoreg.validation.doses import _rhos, doses
from emoreg.validation.geometry import leave_one_out, paper_clusters, valence
from emoreg.validation.held_out import clusters, held_out_stories
from emoreg.validation.human_text import human_comments
from emoreg.validation.lens import logit_lens
from emoreg.validation.locality import _answered, _last_user_token, locality
from emoreg.validation.norms import read_norms
from emoreg.validation.preference_shift import _asked, _drawn, choices, shift_figures
from emoreg.validation.preferences import _pairs, bradley_terry, preferences
from emoreg.validation.ranks import Ranked, named
from emoreg.validation.scenarios import implicit_scenarios
from emoreg.validation.side_by_side import side_by_side
from emoreg.validation.stability import _halves, _with_shuffled_names, split_halves
from emoreg.validation.steering import PLACE, _log_probs, steering
from emoreg.validation.subject import Subject, fitted
from emoreg.validation.surface import surface, surface_features
from emoreg.vectors.corpus import EMOTIONS_FIT_TOPICS, Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.pooled import StoryActivations
from emoreg.vectors.random_directions import random_directions

LAYERS, WIDTH = (1, 2), 32
SIGNAL = 3.0


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus.packaged()


@pytest.fixture
def own(tmp_path: Path, corpus: Corpus) -> Corpus:
    """A corpus as `emoreg stories` writes it: no prompts to measure with."""
    names = {*emotions_of(corpus), "loving"}
    (tmp_path / "stories").mkdir()
    for name in names:
        file = f"stories/{name}.jsonl"
        (tmp_path / file).symlink_to(corpus.root / file)
    (tmp_path / "neutral.jsonl").symlink_to(corpus.root / "neutral.jsonl")
    (tmp_path / "emotions.json").write_text(json.dumps(sorted(names)))
    return Corpus(tmp_path)


def emotions_of(corpus: Corpus) -> tuple[str, ...]:
    return corpus.roles().core[:12]


def stories_of(
    corpus: Corpus, emotions: tuple[str, ...], *, signal: float
) -> StoryActivations:
    """Noise, and a direction of its own for each emotion."""
    stories = corpus.stories(emotions, split="all")
    units = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
    noise = torch.randn(len(stories), len(LAYERS), WIDTH)
    own = torch.stack([units[emotions.index(story.emotion)] for story in stories])
    return StoryActivations(
        values=noise + signal * own.unsqueeze(1),
        labels=tuple(story.emotion for story in stories),
        topics=tuple(story.topic for story in stories),
        layers=LAYERS,
    )


def subject_of(
    model: Any,
    tokenizer: Any,
    corpus: Corpus,
    *,
    signal: float,
    emotions: tuple[str, ...] = (),
) -> Subject:
    stories = stories_of(corpus, emotions or emotions_of(corpus), signal=signal)
    vectors = fitted(stories.of_topics(EMOTIONS_FIT_TOPICS))
    made = Subject(
        model=model, tokenizer=tokenizer, vectors=vectors, corpus=corpus, quiet=True
    )
    made.__dict__["stories"] = stories  # where a forward pass would put them
    return made


def with_corpus(subject: Subject, corpus: Corpus) -> Subject:
    """Return the same subject, stories and all, with another corpus."""
    made = replace(subject, corpus=corpus)
    made.__dict__["stories"] = subject.stories
    return made


@pytest.fixture
def planted(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast, corpus: Corpus
) -> Subject:
    return subject_of(model().eval(), tokenizer, corpus, signal=SIGNAL)


@pytest.fixture
def noise(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast, corpus: Corpus
) -> Subject:
    return subject_of(model().eval(), tokenizer, corpus, signal=0.0)


# -- statistics ---------------------------------------------------------------


def test_ranks_are_counted_one_by_one() -> None:
    scores = np.round(np.random.default_rng(0).normal(size=(20, 7)), 1)  # with ties
    found = Ranked.of(scores, [i % 7 for i in range(20)])
    for row in range(20):
        for column in range(7):
            wanted = int((scores[row] >= scores[row, column]).sum())
            assert found.ranks[row, column] == wanted
    part = found.within([1, 4])
    assert part.ranks.shape == (sum(i % 7 in (1, 4) for i in range(20)), 2)


def test_an_emotion_that_ranks_high_everywhere_gains_nothing() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(80, 20))
    truth = [i % 20 for i in range(80)]
    scores[:, 3] += 9  # first for every text
    for row in range(80):
        if truth[row] == 5:
            scores[row, 5] += 4  # first, or nearly, for its own
    held = named(Ranked.of(scores, truth))
    assert held[5]
    assert not held[3]
    assert sum(held.values()) <= 2  # control: noise holds nowhere


@pytest.mark.parametrize("seed", range(5))
def test_the_rand_index_is_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    one = generator.integers(0, 4, 40).tolist()
    other = [x if generator.random() < 0.6 else 9 for x in one]
    assert adjusted_rand_index(one, other) == pytest.approx(
        adjusted_rand_score(one, other)
    )
    assert adjusted_rand_index(one, [str(x) for x in one]) == 1.0
    with pytest.raises(ValueError, match="the same two things or more"):
        adjusted_rand_index([1], [1])


def test_the_area_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    readings = np.round(generator.normal(size=60), 1)
    own = ["sad" if i % 3 == 0 else "calm" for i in range(60)]
    truth = [name == "sad" for name in own]
    assert area(readings, "sad", own) == pytest.approx(roc_auc_score(truth, readings))


def test_leaving_one_out_is_scikit_learns_ridge() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(15, 4)), generator.normal(size=15)
    z = (x - x.mean(0)) / x.std(0)
    wanted = []
    for row in range(15):
        others = np.arange(15) != row
        ridge = Ridge(alpha=1.0).fit(z[others], y[others])
        wanted.append(ridge.predict(z[[row]])[0])
    np.testing.assert_allclose(leave_one_out(x, y), wanted, rtol=1e-8)


# -- stories ------------------------------------------------------------------


def test_planted_emotions_are_named_and_noise_is_not(
    planted: Subject, noise: Subject
) -> None:
    found, blind = held_out_stories(planted), held_out_stories(noise)
    assert found.verdict == "passed"
    assert all(found.emotions.values())
    assert found.headline is not None
    assert set(found.headline.controls) == {"chance", "random", "shuffled", "embedding"}
    assert found.headline.low <= found.headline.value <= found.headline.high  # type: ignore[operator]
    assert blind.verdict == "missed"  # control
    assert sum(blind.emotions.values()) <= 1


def test_words_that_give_the_emotion_away_are_no_evidence(planted: Subject) -> None:
    # As if the words alone named each emotion: the model would add nothing.
    planted.__dict__["story_embeddings"] = replace(
        planted.stories, values=planted.stories.values[:, :1], layers=(0,)
    )
    assert held_out_stories(planted).verdict == "not evidence"


def test_halves_agree_where_there_is_something(
    planted: Subject, noise: Subject
) -> None:
    found, blind = split_halves(planted), split_halves(noise)
    assert found.verdict == "passed"
    assert blind.verdict == "missed"  # control
    assert found.headline is not None
    assert abs(found.headline.controls["shuffled"]) < 0.2
    by_size = [f.value for f in found.figures if "stories each" in f.name]
    assert by_size[0] < by_size[-1]  # more stories, better readers


def test_halves_are_compared_name_by_name_in_whatever_order_stories_stand(
    planted: Subject,
) -> None:
    fit = planted.stories.of_topics(EMOTIONS_FIT_TOPICS)
    names = planted.vectors.emotions
    mixed = fit.rows(np.random.default_rng(0).permutation(len(fit.labels)).tolist())
    found = _halves(mixed, names)
    np.testing.assert_allclose(found, _halves(fit, names), atol=1e-5)
    assert found.mean() > 0.4
    assert abs(_halves(_with_shuffled_names(mixed, 0), names).mean()) < 0.2  # control


def test_an_emotion_that_lacks_topics_is_left_out_of_halves_and_said(
    planted: Subject,
) -> None:
    whole, (one, other) = planted.stories, planted.vectors.emotions[:2]
    gaps = {one: EMOTIONS_FIT_TOPICS[4:], other: EMOTIONS_FIT_TOPICS[:2]}
    told = enumerate(zip(whole.labels, whole.topics, strict=True))
    kept = [i for i, (e, topic) in told if topic not in gaps.get(e, ())]
    planted.__dict__["stories"] = whole.rows(kept)
    found = split_halves(planted)
    assert found.verdict == "passed"
    assert {*found.emotions} == {*planted.vectors.emotions} - {one}
    assert any(note.startswith("Left out of the halves,") for note in found.notes)
    assert sum(note.endswith(f": {other}.") for note in found.notes) == 1  # by sizes


def test_a_vector_made_of_punctuation_is_found_out(
    planted: Subject, corpus: Corpus
) -> None:
    stories = corpus.stories(planted.vectors.emotions, split="all")
    assert surface(planted).verdict == "passed"
    marks = torch.tensor(surface_features([s.text for s in stories])["length"])
    marks = (marks - marks.mean()) / marks.std()
    values = planted.stories.values.clone()
    # Emotions of the first half are told at greater length, and nothing else is told.
    values[:] = torch.randn_like(values)
    values[:, :, 0] += 20 * marks.unsqueeze(1)
    planted.__dict__["stories"] = replace(planted.stories, values=values)
    assert surface(planted).verdict == "missed"


def test_few_emotions_have_few_components(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast, corpus: Corpus
) -> None:
    few = emotions_of(corpus)[:3]
    subject = subject_of(model(), tokenizer, corpus, signal=SIGNAL, emotions=few)
    (table,) = surface(subject).pictures
    assert isinstance(table, Matrix)
    assert table.columns == ("component 1", "component 2")


def test_surface_features_are_counted() -> None:
    found = surface_features(['"Go!" I said. He left.', "Nothing here"])
    assert found["quoted speech"][0] == pytest.approx(3 / 22)
    assert found["length"] == [5.0, 2.0]
    assert found["first person"] == [0.2, 0.0]
    assert found["exclamation marks"][1] == 0.0


# -- geometry -----------------------------------------------------------------


def norms_file(path: Path, words: tuple[str, ...], ratings: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Word", "Length", "Arousal", "Valence"])
        for word, rating in zip(words, ratings, strict=True):
            writer.writerow([word, 3, rating**2, rating])
    return path


def vectors_along(corpus: Corpus, ratings: torch.Tensor) -> EmotionVectors:
    """Vectors in which one coordinate is the rating and the others are noise."""
    names = corpus.emotions()[: len(ratings)]
    directions = 0.3 * torch.randn(1, len(names), WIDTH)
    directions[:, :, 0] += ratings
    return EmotionVectors.from_directions(directions, emotions=names, layers=(1,))


def test_valence_is_found_where_it_was_planted(
    noise: Subject, corpus: Corpus, tmp_path: Path
) -> None:
    ratings = torch.randn(60)
    file = norms_file(tmp_path / "norms.csv", corpus.emotions()[:60], ratings.tolist())
    right = replace(noise, vectors=vectors_along(corpus, ratings))
    wrong = replace(noise, vectors=vectors_along(corpus, torch.randn(60)))
    for subject in (right, wrong):  # what needs stories of all of them
        subject.__dict__["controls"] = {"random": subject.vectors}
        subject.__dict__["layer_of"] = dict.fromkeys(subject.vectors.readers, 1)
    found, blind = valence(right, file), valence(wrong, file)
    assert found.headline is not None
    assert found.headline.value > 0.65
    assert found.verdict == "not evidence"  # the control given here is the vectors
    assert blind.verdict == "missed"
    assert valence(right, None).verdict == "not run"


def test_norms_say_what_they_lack(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("Word,Arousal,Valence\ncalm (quiet),1,7\nCalm (sea),3,5\nx,,\n")
    found = read_norms(path, ["calm", "sad"])
    assert set(found) == {"calm"}
    assert (found["calm"].valence, found["calm"].arousal) == (6.0, 2.0)
    path.write_text("Word,Valence\ncalm,7\n")
    with pytest.raises(ValueError, match="lacks arousal"):
        read_norms(path, ["calm"])
    with pytest.raises(ValueError, match="found none"):
        read_norms(tmp_path / "none.csv", ["calm"])
    for cell in ("NA", "nan"):
        path.write_text(f"Word,Arousal,Valence\nsad,,\ncalm,{cell},7\n")
        with pytest.raises(ValueError, match=rf"'{cell}' in line 3 of .*n\.csv.*empty"):
            read_norms(path, ["sad"])


def test_wrong_sources_are_told_before_any_check(tmp_path: Path) -> None:
    for source in ("norms", "goemotions", "emobank"):
        with pytest.raises(ValueError, match="found none"):
            battery(Sources(**{source: tmp_path / "none"}))
    (tmp_path / "emobank.csv").write_text("id,split,V,A,D\n")
    with pytest.raises(ValueError, match="lacks text"):
        battery(Sources(emobank=tmp_path))
    (tmp_path / "emobank.csv").write_text("id,split,V,A,D,text\n")
    assert battery(Sources(emobank=tmp_path))  # control


def test_the_papers_clusters_hold_all_of_its_emotions(corpus: Corpus) -> None:
    assert sorted(clusters()) == sorted(corpus.emotions())
    assert len(set(clusters().values())) == 10


def test_planted_clusters_are_found(noise: Subject, corpus: Corpus) -> None:
    names = corpus.emotions()
    homes = sorted(set(clusters().values()))
    directions = 0.2 * torch.randn(1, len(names), WIDTH)
    for row, name in enumerate(names):
        directions[0, row, homes.index(clusters()[name])] += 1.0
    vectors = EmotionVectors.from_directions(directions, emotions=names, layers=(1,))
    blank = EmotionVectors.from_directions(
        torch.randn(1, len(names), WIDTH), emotions=names, layers=(1,)
    )
    for which, verdict in ((vectors, "passed"), (blank, "missed")):
        subject = replace(noise, vectors=which)
        subject.__dict__["controls"] = {"random": blank}
        subject.__dict__["layer_of"] = dict.fromkeys(which.readers, 1)
        assert paper_clusters(subject).verdict == verdict


# -- words and prompts --------------------------------------------------------


def along_the_head(subject: Subject) -> EmotionVectors:
    """Directions that speak for each emotion's first letter, nearly alone."""
    model: Any = subject.model
    head = model.get_output_embeddings().weight.detach()
    units = []
    for emotion in subject.vectors.emotions:
        token = subject.tokenizer(f" {emotion}")["input_ids"][0]
        units.append(head[token] - head.mean(0))
    directions = torch.stack(units).expand(len(LAYERS), -1, -1).clone()
    names = subject.vectors.emotions
    return EmotionVectors.from_directions(directions, emotions=names, layers=LAYERS)


@pytest.fixture
def spoken(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast, corpus: Corpus
) -> Subject:
    """A model whose vocabulary has a token for each emotion's word.

    The tiny tokenizer has letters alone, and all words would start with a space.
    """
    tokenizer.add_tokens([f" {emotion}" for emotion in emotions_of(corpus)])
    grown = model().eval()
    grown.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        grown.get_output_embeddings().weight.normal_(std=0.2)
    return subject_of(grown, tokenizer, corpus, signal=SIGNAL)


def test_vectors_along_the_head_speak_for_their_words(spoken: Subject) -> None:
    aligned = replace(spoken, vectors=along_the_head(spoken))
    aligned.__dict__["stories"] = spoken.stories
    aligned.__dict__["controls"] = spoken.controls
    aligned.__dict__["layer_of"] = dict.fromkeys(aligned.vectors.readers, LAYERS[0])
    assert logit_lens(aligned).verdict == "passed"
    assert logit_lens(spoken).verdict == "missed"  # control: planted in stories alone
    found = steering(aligned)
    assert found.headline is not None
    assert found.headline.value > 0.7
    assert found.headline.controls["random"] < found.headline.value - 0.15
    assert steering(spoken).headline.value < 0.75  # type: ignore[union-attr]


def test_a_mark_that_begins_every_text_is_no_words_first_token(
    planted: Subject,
) -> None:
    pieces = ["<unk>", "▁", "a", "▁calm", "▁sad"]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    core.normalizer = normalizers.Sequence(  # type: ignore[attr-defined]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.tokenize(" calm") == ["▁", "▁calm"]  # control
    subject = replace(planted, tokenizer=tokenizer)
    assert subject.first_tokens(["calm", "sad"]) == {"calm": 3, "sad": 4}


def test_the_users_last_token_is_that_of_the_message(planted: Subject) -> None:
    text, tokenizer = "Nobody came.", planted.tokenizer
    ids = planted.prompt(text).ids[: _last_user_token(planted, text) + 1]
    assert str(tokenizer.decode(list(ids))).endswith(text)
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "message['content']", "message['content'] | upper"
    )
    with pytest.raises(ValueError, match="must keep what a message says"):
        _last_user_token(planted, text)


def test_dropout_plays_no_part(planted: Subject) -> None:
    model: Any = planted.model
    blocks: Any = decoder_layers(model)
    for block in blocks:
        block.self_attn.attention_dropout = 0.9
    ids = planted.prompt("How is the work going?").ids

    def measured() -> list[Any]:
        odds = choices(planted, [("write a poem", "sort a list")])
        return [odds, _log_probs(model, [ids], {}), _answered(model, ids, None)]

    wanted = measured()
    model.train()
    for found, one in zip(measured(), wanted, strict=True):
        np.testing.assert_array_equal(found, one)
    assert model.training
    first, second = (model(torch.tensor([ids])).logits for _ in range(2))
    assert not torch.equal(first, second)  # control


def test_a_steady_trend_is_one_and_its_reverse_minus_one() -> None:
    rows = [
        {"expect": {"calm": "-", "afraid": "+"}, "values": [1, 2, 3, 4]},
        {"expect": {"afraid": "+"}, "values": [1, 2, 3, 4]},
    ]
    directions = torch.eye(4)[:2].unsqueeze(0)
    vectors = EmotionVectors.from_directions(
        directions, emotions=("calm", "afraid"), layers=(1,)
    )
    doses = torch.arange(4.0)
    curve = torch.stack([-doses, doses**2, doses * 0, doses * 0], dim=1).unsqueeze(1)
    reader = vectors.readers[0]
    assert _rhos(vectors, [curve, curve], rows, reader, 1).tolist() == [1.0, 1.0]
    assert _rhos(vectors, [-curve, curve], rows, reader, 1).tolist() == [-1.0, 1.0]


def test_scenarios_doses_and_answers_of_a_model_that_knows_nothing(
    planted: Subject, own: Corpus
) -> None:
    subject = with_corpus(planted, own)
    found = implicit_scenarios(subject)
    assert found.headline is not None
    assert found.verdict in ("missed", "not evidence")
    assert {e for e in found.emotions} <= set(planted.vectors.emotions)
    few = replace(planted, vectors=planted.vectors.subset(["calm"]))
    assert implicit_scenarios(few).verdict == "not run"
    early = replace(subject, vectors=replace(planted.vectors, layers=(0, 1)))
    early.__dict__["stories"] = replace(planted.stories, layers=(0, 1))
    assert {*doses(early).layers} == {0, 1}
    said = locality(subject)
    assert said.headline is not None
    assert -1.0 <= said.headline.value <= 1.0


@pytest.mark.parametrize("seed", range(3))
def test_strengths_are_those_that_made_the_choices(seed: int) -> None:
    generator = np.random.default_rng(seed)
    true = generator.normal(size=12)
    true -= true.mean()
    pairs = [(i, j) for i in range(12) for j in range(i)]
    shares = np.array([1 / (1 + np.exp(true[j] - true[i])) for i, j in pairs])
    found = bradley_terry(12, pairs, shares)
    assert np.corrcoef(found, true)[0, 1] > 0.99
    # Against the score equations: expected wins are the wins, up to the ridge.
    wins, expected = np.zeros(12), np.zeros(12)
    for (i, j), share in zip(pairs, shares, strict=True):
        here = 1 / (1 + np.exp(found[j] - found[i]))
        wins[[i, j]] += share, 1 - share
        expected[[i, j]] += here, 1 - here
    np.testing.assert_allclose(wins - expected, 0.05 * found, atol=1e-3)


def test_choices_and_concern_of_a_model_that_knows_nothing(
    planted: Subject, own: Corpus
) -> None:
    found = preferences(with_corpus(planted, own))
    assert found.headline is not None
    assert found.headline.count == 64
    assert found.verdict in ("missed", "not evidence")
    assert concern(planted).verdict == "not run"  # it has no vector for loving
    names = ("loving", "sad", "calm", "afraid")
    other = subject_of(
        planted.model, planted.tokenizer, own, signal=SIGNAL, emotions=names
    )
    said = concern(other)
    assert said.headline is not None
    assert said.headline.count == 20


def test_comments_are_read_from_the_users_folder(
    planted: Subject, corpus: Corpus, tmp_path: Path
) -> None:
    names = ["sadness", "pride", "gratitude", "love", "nervousness", "fear", "neutral"]
    (tmp_path / "emotions.txt").write_text("\n".join(names), encoding="utf-8")
    lines = [f"Comment {i} of a sort.\t{i % 7}\tid{i}" for i in range(70)]
    lines.append("Two labels.\t1,2\tx")
    (tmp_path / "test.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert "2 of the labels have a vector" in human_comments(planted, tmp_path).not_run
    names_of = ("sad", "proud", "grateful", "loving", "nervous", "afraid")
    other = subject_of(
        planted.model, planted.tokenizer, corpus, signal=SIGNAL, emotions=names_of
    )
    found = human_comments(other, tmp_path)
    assert found.headline is not None
    assert found.headline.count == 70
    assert found.verdict in ("missed", "not evidence")
    assert human_comments(planted, None).verdict == "not run"
    with pytest.raises(ValueError, match=r"must hold emotions\.txt"):
        human_comments(planted, tmp_path / "none")


def test_dialogues_are_read_at_the_words_of_who_feels(planted: Subject) -> None:
    found = dialogues(planted)
    assert found.headline is not None
    assert found.headline.reader == "lda"
    assert set(found.headline.controls) == {"chance", "random", "shuffled", "embedding"}
    assert found.headline.count == 2 * len(found.emotions)
    bare = dialogues(replace(planted, corpus=Corpus(planted.corpus.root / "stories")))
    assert bare.not_run == "the corpus has no dialogues"


def test_readers_stand_side_by_side_with_what_speaks_against_the_offer() -> None:
    def check(name: str, figure: str, **values: float) -> Check:
        figures = tuple(
            Figure(name=figure, value=value, reader=reader.replace("_", "-"))
            for reader, value in values.items()
        )
        return Check(name=name, question="", method="", figures=figures)

    vectors = EmotionVectors.from_directions(
        torch.eye(3).unsqueeze(0), emotions=["a", "b", "c"], layers=[1], reader="lda"
    )
    vectors = with_readers(vectors, ("mean-difference", "lda", "logistic"))
    ran = [
        check("held-out stories", "top-1", mean_difference=0.4, lda=0.5, logistic=0.45),
        check("steering", PLACE, mean_difference=0.8, lda=0.9),
    ]
    found = side_by_side(ran, vectors)
    (table,) = found.pictures
    assert isinstance(table, Matrix)
    assert table.rows == vectors.readers
    assert table.columns == ("stories, top-1", "steering, place")
    np.testing.assert_array_equal(
        table.values, [[0.4, 0.8], [0.5, 0.9], [0.45, np.nan]]
    )
    assert "For reading the file offers lda. None of its other" in found.notes[0]
    assert "Better did lda in steering, place (0.90 against 0.80)." in found.notes[1]
    # Control: another reader that reads better is named.
    better = [check("held-out stories", "top-1", lda=0.5, logistic=0.6)]
    said = side_by_side(better, vectors).notes
    assert "Better did logistic in stories, top-1 (0.60 against 0.50)." in said[0]
    assert said[1].endswith("No check that judges it was run.")
    assert side_by_side([], vectors).pictures == ()


def with_readers(vectors: EmotionVectors, names: tuple[str, ...]) -> EmotionVectors:
    """Return vectors with the first reader's directions under several names."""
    return replace(
        vectors,
        readers=names,
        directions=vectors.directions.expand(len(names), -1, -1, -1).clone(),
        scale=vectors.scale.expand(len(names), -1, -1).clone(),
        offset=vectors.offset.expand(len(names), -1, -1).clone(),
    )


def test_loving_is_held_against_many_random_directions(planted: Subject) -> None:
    at = {"d_model": planted.vectors.d_model, "layer": planted.vectors.layers[0]}
    draw = np.random.default_rng(0)
    routine, distress = draw.normal(size=(2, 40, 1, at["d_model"]))
    values = {
        "routine": torch.from_numpy(routine).float(),
        "distress": torch.from_numpy(distress + 1.0).float(),
    }
    found = _of_many(at["d_model"], values, 0, at["layer"])
    units = random_directions(at["d_model"], at["layer"], DRAWN).numpy()
    gaps = []
    for unit in units:
        one, other = ((values[k][:, 0].numpy() @ unit) for k in ("routine", "distress"))
        gaps.append((other.mean() - one.mean()) / one.std())
    assert found == pytest.approx(float(np.quantile(gaps, 0.95)), rel=1e-4)
    assert found > float(np.mean(gaps)) + 0.3  # control: one direction is often less


def test_a_choice_moves_with_what_is_added_to_its_own_tokens(planted: Subject) -> None:
    questions = [("write a poem", "sort a list"), ("peel an apple", "read the news")]
    plain = choices(planted, questions)
    vector = 4 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    moved = {on: choices(planted, questions, on=on, vector=vector) for on in (0, 1)}
    np.testing.assert_array_equal(choices(planted, questions), plain)  # no hook stays
    for on, odds in moved.items():
        for row, (one, other) in enumerate(questions):
            ids, spans = _asked(planted, one, other)
            said = str(planted.tokenizer.decode(list(ids[slice(*spans[on])])))
            assert said.lstrip() == (one, other)[on]
            where = torch.zeros(1, len(ids), dtype=torch.bool)
            where[0, slice(*spans[on])] = True
            with steered(planted.model, {0: vector}, where=where), torch.no_grad():
                logits = planted.model(torch.tensor([ids])).logits[0, -1]
            a, b = (
                planted.tokenizer(x, add_special_tokens=False)["input_ids"][0]
                for x in "AB"
            )
            assert odds[row] == pytest.approx(float(logits[a] - logits[b]), abs=1e-4)
    # Control: it matters to which of the two it was added.
    assert not np.allclose(moved[0], moved[1], atol=1e-3)
    assert not np.allclose(moved[0], plain, atol=1e-3)


def test_choices_are_those_of_a_model_that_scales_its_logits(planted: Subject) -> None:
    config = GraniteConfig(
        vocab_size=len(planted.tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
        initializer_range=0.5,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    subject = replace(planted, model=model)
    questions = [("write a poem", "sort a list"), ("peel an apple", "read")]
    a, b = (planted.tokenizer(x)["input_ids"][0] for x in "AB")
    for odds, pair in zip(choices(subject, questions), questions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([_asked(subject, *pair)[0]])).logits[0, -1]
        assert odds == pytest.approx(float(logits[a] - logits[b]), abs=1e-4)
        assert abs(odds) > 1e-2  # control


def test_activities_of_all_kinds_are_steered(corpus: Corpus) -> None:
    kinds = [row["category"] for row in corpus.records("activities")]
    pairs = _drawn(_pairs(len(kinds), 0), 0)
    assert len({*pairs}) == 48
    assert {kinds[first] for first, _ in pairs} == {*kinds}


def test_the_shift_is_that_of_the_log_odds(planted: Subject) -> None:
    texts = ["write a poem", "sort a list", "peel an apple"]
    goes_with = {e: float(i) for i, e in enumerate(planted.vectors.emotions)}
    found = shift_figures(planted, texts, [(0, 1), (1, 2)], goes_with)
    each = {f.emotion: f.value for f in found if f.emotion}
    assert len(each) == min(len(goes_with), 12)
    expected = np.corrcoef([goes_with[e] for e in each], list(each.values()))[0, 1]
    assert found[0].value == pytest.approx(expected, abs=1e-6)
    assert found[1].value == pytest.approx(np.mean(np.abs(list(each.values()))))
    assert set(found[1].controls) == {"random"}
