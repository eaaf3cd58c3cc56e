"""Deflection vectors: what is hidden is found outside the story space, noise is not."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import emoreg
from emoreg.cli import main
from emoreg.residual.capture import capture
from emoreg.residual.pooling import Passage
from emoreg.residual.store import ActivationStore
from emoreg.validation import masking as masking_check
from emoreg.validation import subject as subjects
from emoreg.validation.subject import Subject
from emoreg.vectors import deflection
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.deflection import (
    deflection_vectors,
    read_masked,
    story_space,
    without_stories,
)
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import neutral_ids
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.mean_differences import mean_vectors, neutral_space
from emoreg.vectors.reader_names import MEAN_DIFFERENCE
from emoreg.vectors.steering import at_strength

LAYERS, WIDTH = (1, 2), 32
NONE = [torch.zeros(0, WIDTH) for _ in LAYERS]
FELT, SHOWN = ("afraid", "angry", "sad"), ("calm", "kind", "proud")


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.packaged()


def story_vectors(emotions: tuple[str, ...], *, rank: int) -> EmotionVectors:
    """Story vectors that fill `rank` of 32 dimensions, the rest being free."""
    space = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    mix = torch.randn(len(LAYERS), len(emotions), rank)
    made = EmotionVectors.from_directions(
        mix @ space[:rank], emotions=emotions, layers=LAYERS
    )
    return replace(made, provenance={"num_layers": 4})


@pytest.fixture
def vectors(corpus: Corpus) -> EmotionVectors:
    return story_vectors(corpus.roles().core, rank=6)


def folder_of(path: Path, rows: list[dict[str, Any]]) -> Corpus:
    """Return a corpus of these masked texts and ten of the packaged neutral ones."""
    path.mkdir()
    packaged = (Corpus.packaged().root / "neutral.jsonl").read_text(encoding="utf-8")
    (path / "neutral.jsonl").write_text("\n".join(packaged.splitlines()[:10]))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "masked.jsonl").write_text(lines)
    return Corpus(path)


def masked_rows(each: int = 1) -> list[dict[str, Any]]:
    """Return texts for all pairs, in which marks say what is felt and what is shown."""
    pairs = [(f, s) for f in FELT for s in SHOWN for _ in range(each)]
    return [
        {
            "id": f"m{number}",
            "felt": felt,
            "shown": shown,
            "split": "fit",
            "text": "x" * (50 + number) + f"<{felt}>" * 9 + f"<{shown}>" * 9,
        }
        for number, (felt, shown) in enumerate(pairs)
    ]


def dialogue_rows() -> list[dict[str, Any]]:
    """Return the same as dialogues; the other speaker and the scenario have marks too.

    Those are of another emotion, so that reading them would be seen.
    """
    rows = []
    for number, row in enumerate(masked_rows()):
        speaker = ("user", "assistant")[number % 2]
        other = f"<{FELT[(FELT.index(row['felt']) + 1) % len(FELT)]}>" * 9
        said = {True: row.pop("text"), False: other}
        turns = [
            {"role": role, "content": said[role == speaker]}
            for role in ("user", "assistant") * 2
        ]
        before = {"role": "system", "content": other}
        rows.append({**row, "speaker": speaker, "messages": [before, *turns]})
    return rows


@pytest.fixture
def small(tmp_path: Path) -> Corpus:
    return folder_of(tmp_path / "corpus", masked_rows())


# ---------------------------------------------------------------- the story space


def test_the_story_space_is_that_of_the_singular_vectors(
    vectors: EmotionVectors,
) -> None:
    for row, base in enumerate(story_space(vectors)):
        long = (vectors.directions[0, row] * vectors.raw_norm[row, :, None]).numpy()
        sizes = np.linalg.svd(long.astype(np.float64), compute_uv=False) ** 2
        wanted = int(np.searchsorted(sizes.cumsum() / sizes.sum(), 0.99) + 1)
        assert len(base) == wanted <= 6
        eye = torch.eye(len(base), dtype=base.dtype)
        torch.testing.assert_close(base @ base.T, eye)
        outside = long - long @ base.numpy().T @ base.numpy()
        assert (outside**2).sum() <= 0.0101 * (long**2).sum()
        fewer = long - long @ base[:-1].numpy().T @ base[:-1].numpy()  # control
        assert (fewer**2).sum() > 0.01 * (long**2).sum()


def test_nothing_is_left_in_it_and_the_share_is_what_least_squares_leave(
    vectors: EmotionVectors,
) -> None:
    long = torch.randn(len(LAYERS), 5, WIDTH)
    made = EmotionVectors.from_directions(long, emotions=tuple("abcde"), layers=LAYERS)
    found = without_stories(made, vectors)
    for row, base in enumerate(story_space(vectors)):
        basis, y = base.numpy().T, long[row].double().numpy().T
        fit = np.linalg.lstsq(basis, y, rcond=None)[0]
        left = (y - basis @ fit).T
        shares = np.linalg.norm(left, axis=1) / np.linalg.norm(y.T, axis=1)
        assert found.provenance["norm_left"][row] == pytest.approx(
            shares.mean(), abs=5e-4
        )
        np.testing.assert_allclose(
            found.raw_norm[row].numpy(), np.linalg.norm(left, axis=1), rtol=1e-5
        )
        inside = found.directions[0, row].double() @ base.T
        assert float(inside.abs().max()) < 1e-6
        assert float((made.directions[0, row].double() @ base.T).abs().max()) > 0.05
    assert found.provenance["story_rank"] == [len(b) for b in story_space(vectors)]
    assert found.provenance["story_vectors"] == vectors.hash


def test_a_story_space_that_leaves_nothing_is_refused() -> None:
    axes = torch.eye(WIDTH).expand(len(LAYERS), -1, -1)
    names = tuple(f"e{i}" for i in range(WIDTH))
    full = EmotionVectors.from_directions(axes, emotions=names, layers=LAYERS)
    assert [len(base) for base in story_space(full)] == [WIDTH, WIDTH]
    made = EmotionVectors.from_directions(
        torch.randn(2, 3, WIDTH), emotions=tuple("abc"), layers=LAYERS
    )
    with pytest.raises(ValueError, match=r"nothing at layer \d: it has 32 of 32"):
        without_stories(made, full)
    part = full.subset(names[:6])
    with pytest.raises(ValueError, match=r"it has 6 of 32 .*`vectors\.subset"):
        without_stories(part, part)
    without_stories(made, part)  # control


# ------------------------------------------------------- mean differences, neutral


def test_mean_differences_are_the_fitters() -> None:
    values = torch.randn(12, len(LAYERS), WIDTH)
    labels = ["b", "a", "c"] * 4
    fitter = VectorFitter(emotions=("a", "b"), layers=LAYERS, d_model=WIDTH)
    kept = [i for i, label in enumerate(labels) if label != "c"]
    fitter.update(values[kept], [labels[i] for i in kept])
    fitter.update_neutral(torch.randn(50, len(LAYERS), WIDTH))
    bases = fitter.neutral_subspace(0.5)
    found = mean_vectors(
        values, labels, emotions=("a", "b"), layers=LAYERS, neutral=bases
    )
    wanted = fitter.vectors(denoise=0.5)
    at = wanted.reader_index(MEAN_DIFFERENCE)
    torch.testing.assert_close(found.directions[0], wanted.directions[at])
    torch.testing.assert_close(found.raw_norm, wanted.raw_norm)
    torch.testing.assert_close(found.centre, wanted.centre)
    bare = mean_vectors(  # control
        values, labels, emotions=("a", "b"), layers=LAYERS, neutral=NONE
    )
    assert not torch.allclose(bare.raw_norm, wanted.raw_norm, rtol=0.05)


def test_the_neutral_space_is_that_of_tokens_from_the_fiftieth_on(
    tiny_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, small: Corpus
) -> None:
    model = tiny_model("llama")
    found = neutral_space(model, tokenizer, small, LAYERS, variance=0.5, quiet=True)
    tokens = []
    for passage in small.neutral("fit"):
        ids = torch.tensor([neutral_ids(tokenizer, passage)])
        with torch.no_grad(), capture(model, LAYERS) as captured:
            model(ids)
            tokens.append(torch.stack([captured[i][0, 49:] for i in LAYERS], dim=1))
    x = torch.cat(tokens).double().numpy()
    for row, base in enumerate(found):
        centred = x[:, row] - x[:, row].mean(0)
        _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
        share = (sizes**2).cumsum() / (sizes**2).sum()
        rank = int(np.searchsorted(share, 0.5) + 1)
        assert len(base) == rank
        ours = base.double().numpy()
        np.testing.assert_allclose(
            ours.T @ ours, axes[:rank].T @ axes[:rank], atol=1e-3
        )
    none = neutral_space(model, tokenizer, small, LAYERS, variance=0.0)
    assert [len(base) for base in none] == [0, 0]


# ---------------------------------------------------------------- planted structure


@pytest.fixture
def marked(tiny_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model that has a direction for the mark of each emotion, felt or shown."""
    tokenizer.add_tokens([f"<{name}>" for name in (*FELT, *SHOWN)])
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    units = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q[: len(FELT + SHOWN)]
    with torch.no_grad():
        model.get_input_embeddings().weight[-len(units) :] = 4.0 * units
    return model, units


def differences(units: torch.Tensor) -> torch.Tensor:
    """Return unit differences from the mean."""
    centred = units - units.mean(0)
    return centred / centred.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("source", ["masked", "masked_dialogues"])
def test_what_is_felt_is_found_and_what_stories_know_is_taken_out(
    marked: Any, tokenizer: PreTrainedTokenizerFast, small: Corpus, source: Any
) -> None:
    model, units = marked
    dialogues = "".join(json.dumps(row) + "\n" for row in dialogue_rows())
    (small.root / "masked_dialogues.jsonl").write_text(dialogues)
    felt, shown = units[: len(FELT)], units[len(FELT) :]
    # Stories know two of the directions: that of the first that is felt, and another.
    known = torch.stack([felt[0], shown[0]]).expand(len(LAYERS), -1, -1)
    stories = EmotionVectors.from_directions(
        known, emotions=("afraid", "calm"), layers=LAYERS
    )
    how: dict[str, Any] = {"source": source, "denoise": 0.0, "quiet": True}
    found = deflection_vectors(model, tokenizer, small, stories, **how)
    assert found.emotions == FELT
    assert found.readers == (MEAN_DIFFERENCE,)
    assert found.provenance["source"] == source
    true = differences(felt)
    true = true - (true @ felt[0])[:, None] * felt[0]
    true = true / true.norm(dim=-1, keepdim=True)
    cosine = (found.directions[0] * true).sum(-1)
    assert float(cosine.min()) > 0.9
    assert float((found.directions[0] @ felt[0]).abs().max()) < 1e-5
    # What was said in the open tells nothing about what was felt, and the reverse.
    assert float((found.directions[0] @ shown.T).abs().mean()) < 0.2
    by_shown = deflection_vectors(model, tokenizer, small, stories, by="shown", **how)
    assert by_shown.emotions == SHOWN
    outward = differences(shown)
    outward = outward - (outward @ shown[0])[:, None] * shown[0]
    outward = outward / outward.norm(dim=-1, keepdim=True)
    assert float((by_shown.directions[0] * outward).sum(-1).min()) > 0.9
    # Control: the names dealt out anew.
    also: dict[str, Any] = {"split": "fit", "source": source, "quiet": True}
    texts = read_masked(model, tokenizer, small, LAYERS, **also)
    dealt = [FELT[i % 3] for i in range(len(texts.felt))]  # each shown thing's own
    blind = without_stories(
        mean_vectors(texts.values, dealt, emotions=FELT, layers=LAYERS, neutral=NONE),
        stories,
    )
    assert float((blind.directions[0] * true).sum(-1).abs().mean()) < 0.4


def test_the_length_that_is_left_lies_outside_neutral_and_story_space(
    marked: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, _ = marked
    corpus = folder_of(tmp_path / "corpus", masked_rows(each=2))
    neutral = neutral_space(model, tokenizer, corpus, LAYERS, variance=0.5, quiet=True)
    # Of story vectors without the neutral components, as `extract` leaves them.
    raw = torch.randn(len(LAYERS), 4, WIDTH)
    long = torch.stack([x - (x @ b.T) @ b for x, b in zip(raw, neutral, strict=True)])
    stories = EmotionVectors.from_directions(
        long, emotions=("sad", "calm", "proud", "kind"), layers=LAYERS
    )
    found = deflection_vectors(model, tokenizer, corpus, stories, quiet=True)
    for row, base in enumerate(neutral):
        assert float((found.directions[0, row] @ base.T).abs().max()) < 1e-4
        story = stories.directions[0, row]
        assert float((found.directions[0, row] @ story.T).abs().max()) < 0.2
    bare = deflection_vectors(  # control
        model, tokenizer, corpus, stories, denoise=0.0, quiet=True
    )
    assert float((bare.directions[0, 0] @ neutral[0].T).abs().max()) > 0.05
    said = found.provenance
    assert said["texts"] == dict.fromkeys(FELT, 6)
    assert said["neutral_rank"] == [len(base) for base in neutral]
    assert bare.provenance["neutral_rank"] == [0, 0]
    assert said["story_emotions"] == 4
    assert all(0 < share < 1 for share in said["norm_left"])


# ------------------------------------------------------------------ files and faults


def test_the_file_comes_back_and_is_read_and_steered_with_like_any_other(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    small: Corpus,
    vectors: EmotionVectors,
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    store = ActivationStore(tmp_path / "store")
    found = deflection_vectors(
        model, tokenizer, small, vectors, quiet=True, store=store
    )
    assert any(store.folder.iterdir())
    again = deflection_vectors(
        model, tokenizer, small, vectors, quiet=True, store=store
    )
    assert again.hash == found.hash
    back = EmotionVectors.load(found.save(tmp_path / "d.safetensors"))
    assert back.hash == found.hash
    assert back.provenance == found.provenance
    assert back.provenance["kind"] == "deflection, by what is felt"
    lengths = back.directions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    emoreg.Monitor(back, emotions=FELT, readers=[MEAN_DIFFERENCE])
    twin = Corpus.packaged().transcripts("dev")[:1]
    table = emoreg.measure(model, tokenizer, twin, back, quiet=True)
    assert {*table.emotions} == {*FELT}
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        plain = model(ids).logits
        with at_strength(model, back, "sad", 1.0, norms={LAYERS[0]: 1.0}):
            moved = model(ids).logits
    assert not torch.allclose(plain, moved, atol=1e-3)


def test_faults_are_said_with_what_to_do(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    vectors: EmotionVectors,
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    rows = masked_rows()
    rows.append({**rows[0], "id": "only", "felt": "jealous"})
    corpus = folder_of(tmp_path / "corpus", rows)

    def made(**options: Any) -> EmotionVectors:
        how = {"vectors": vectors, "corpus": corpus, "denoise": 0.0, **options}
        return deflection_vectors(model, tokenizer, quiet=True, **how)

    assert "jealous" not in made().emotions  # one text is no mean
    assert made(emotions=["sad", "angry"]).emotions == ("sad", "angry")
    with pytest.raises(ValueError, match=r"found 1 of 'jealous'\. Write more"):
        made(emotions=["jealous", "sad"])
    with pytest.raises(ValueError, match="Did you mean `sad`"):
        made(emotions=["sadd", "angry"])
    with pytest.raises(ValueError, match="two emotions or more"):
        made(emotions=["sad"])
    with pytest.raises(ValueError, match="belong to the model"):
        made(vectors=replace(vectors, provenance={"num_layers": 9}))
    short = [{**row, "text": "too short"} for row in masked_rows()]
    with pytest.raises(ValueError, match=r"at least 50 tokens.*masked m0"):
        made(corpus=folder_of(tmp_path / "short", short))


# ------------------------------------------------------------------------ the check


@pytest.fixture
def subject(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    vectors: EmotionVectors,
    monkeypatch: pytest.MonkeyPatch,
) -> Subject:
    made = Subject(
        model=tiny_model("llama"),
        tokenizer=tokenizer,
        vectors=vectors,
        corpus=corpus,
        quiet=True,
    )
    made.__dict__["layer_of"] = {MEAN_DIFFERENCE: LAYERS[0]}
    monkeypatch.setattr(subjects, "neutral_space", lambda *_, **__: NONE)
    return made


def planted_reading(
    subject: Subject, signal: float, *, inside: bool
) -> Callable[..., Any]:
    """Return a stand-in for reading: noise, and a direction for what is felt.

    It lies inside the story space, or outside of it.
    """
    rows = subject.corpus.records("masked", split="all")
    felt = {
        tuple(subject.tokenizer(row["text"])["input_ids"]): row["felt"] for row in rows
    }
    names = sorted({*felt.values()})
    base = torch.cat(story_space(subject.vectors)).float()
    room = torch.linalg.svd(base, full_matrices=True).Vh
    rank = int((torch.linalg.svdvals(base) > 1e-4).sum())
    units = room[:rank] if inside else room[rank:]

    def means(_: Any, passages: list[Passage], *__: Any, **___: Any) -> torch.Tensor:
        rows = [
            torch.randn(len(LAYERS), WIDTH)
            + signal * units[names.index(felt[passage.ids]) % len(units)]
            for passage in passages
        ]
        return torch.stack(rows)

    return means


@pytest.mark.parametrize(
    ("signal", "inside", "verdict"),
    [(8.0, False, "passed"), (8.0, True, "missed"), (0.0, False, "missed")],
)
def test_masking_is_seen_where_it_lies_outside_the_story_space(
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    signal: float,
    inside: bool,
    verdict: str,
) -> None:
    read = planted_reading(subject, signal, inside=inside)
    monkeypatch.setattr(deflection, "span_means", read)
    found = masking_check.masking(subject)
    assert found.headline is not None
    assert found.verdict == verdict
    assert set(found.headline.controls) == {"chance", "random", "shuffled", "embedding"}
    assert found.headline.low <= found.headline.value <= found.headline.high  # type: ignore[operator]
    assert abs(found.headline.controls["shuffled"] - 0.5) < 0.2
    assert "84 texts to fit on, 36 to test on" in found.notes[0]
    by_name = {figure.name: figure.value for figure in found.figures}
    before = by_name["area of what is felt, by vectors before that"]
    assert before > 0.8 if signal else before < 0.65
    assert by_name["mean rank of what is felt, among 12"] < 4 or verdict == "missed"
    share = next(f for f in found.figures if f.name.startswith("share of the norm"))
    assert share.value < 0.6 if inside else share.value > 0.8
    stories = by_name["area of what is felt, by story readers"]
    assert 0 <= stories <= 1
    cosine = next(f for f in found.figures if f.name.startswith("cosine"))
    assert cosine.count == len({*subject.vectors.emotions} & FELT_IN_CORE)


FELT_IN_CORE = {
    *("desperate", "afraid", "angry", "sad", "guilty", "panicked", "frustrated"),
    *("ashamed", "overwhelmed", "lonely"),
}


def test_the_check_says_why_it_was_not_run(subject: Subject, tmp_path: Path) -> None:
    bare = replace(subject, corpus=Corpus(subject.corpus.root / "stories"))
    assert "no masked texts" in masking_check.masking(bare).not_run
    rows = [{**row, "id": f"t{row['id']}", "split": "test"} for row in masked_rows()]
    few = folder_of(tmp_path / "few", [*masked_rows(), *rows])
    found = masking_check.masking(replace(subject, corpus=few))
    assert found.verdict == "not run"
    assert "3 emotions have masked texts, 5 are needed" in found.not_run
    names = subject.corpus.emotions()
    full = replace(subject, vectors=story_vectors(names, rank=WIDTH))
    assert "nothing is left" in masking_check.masking(full).not_run


def test_the_command_refuses_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["probes", "--kind", "deflection", "--model", "demo"]
    arguments += ["--vectors", str(tmp_path / "none"), "--out", str(tmp_path / "o")]
    assert main(arguments) == 2
    assert "must be a file made by `emoreg extract`" in capsys.readouterr().err


# ---------------------------------------------------------------------- a real model


@pytest.mark.slow
def test_in_the_demo_model_felt_emotions_leave_a_trace() -> None:
    """Among texts to fit on alone: the test split is the battery's."""
    model, tokenizer = emoreg.demo.load()
    corpus = Corpus.packaged()
    texts = read_masked(model, tokenizer, corpus, (15,), split="fit", quiet=True)
    neutral = neutral_space(model, tokenizer, corpus, (15,), variance=0.5, quiet=True)
    # Every other text of an emotion is held out.
    before = [texts.felt[:row].count(name) for row, name in enumerate(texts.felt)]
    fit = [row for row, count in enumerate(before) if count % 2 == 0]
    held = [row for row, count in enumerate(before) if count % 2 == 1]
    names = tuple(dict.fromkeys(texts.felt))

    def hits(labels: list[str]) -> float:
        found = mean_vectors(
            texts.values[fit], labels, emotions=names, layers=(15,), neutral=neutral
        )
        read = found.project(texts.values[held, 0], layer=15)
        read = read - read.mean(0)
        own = torch.tensor([names.index(texts.felt[row]) for row in held])
        higher = read >= read.gather(1, own[:, None])
        return float(higher.float().sum(1).mean())

    rank = hits([texts.felt[row] for row in fit])
    dealt = [texts.felt[row] for row in fit]
    random.Random(0).shuffle(dealt)
    assert rank < 5.0  # of 12; 6.5 by chance
    assert hits(dealt) > 5.2  # control
