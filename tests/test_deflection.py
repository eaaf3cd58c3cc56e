"""Deflection vectors and speaker probes: planted structure is found, noise is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from emoreg.cli import main
from emoreg.residual.pooling import Passage
from emoreg.validation import masking as masking_check
from emoreg.validation import speakers as speakers_check
from emoreg.validation.subject import Subject
from emoreg.vectors import deflection, speakers
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.deflection import deflection_vectors, story_space
from emoreg.vectors.dialogues import OTHER, OWN, words_of
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.speakers import CELLS, speaker_probes

LAYERS, WIDTH = (1, 2), 32


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.packaged()


@pytest.fixture
def vectors(corpus: Corpus) -> EmotionVectors:
    """Story vectors that fill six of 32 dimensions, the rest being free."""
    space = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    emotions = corpus.roles().core
    mix = torch.randn(len(LAYERS), len(emotions), 6)
    made = EmotionVectors.from_directions(
        mix @ space[:6], emotions=emotions, layers=LAYERS
    )
    return replace(made, provenance={"num_layers": 4})


def planted(
    rows: list[Any], labels: list[str], outside: torch.Tensor, *, signal: float
) -> torch.Tensor:
    """Return noise, with a direction for each label outside the story space."""
    names = sorted(set(labels))
    places = torch.tensor([names.index(label) for label in labels])
    noise = torch.randn(len(rows), len(LAYERS), WIDTH)
    return noise + signal * outside[places % len(outside)].unsqueeze(1)


def test_the_story_space_is_that_of_the_singular_vectors(
    vectors: EmotionVectors,
) -> None:
    for row, base in enumerate(story_space(vectors)):
        long = (vectors.directions[0, row] * vectors.raw_norm[row, :, None]).numpy()
        sizes = np.linalg.svd(long.astype(np.float64), compute_uv=False) ** 2
        wanted = int(np.searchsorted(sizes.cumsum() / sizes.sum(), 0.99) + 1)
        assert len(base) == wanted <= 6
        torch.testing.assert_close(
            base @ base.T, torch.eye(len(base)), atol=1e-5, rtol=0
        )
        outside = long - long @ base.numpy().T @ base.numpy()
        assert (outside**2).sum() <= 0.0101 * (long**2).sum()
        fewer = long - long @ base[:-1].numpy().T @ base[:-1].numpy()  # control
        assert (fewer**2).sum() > 0.01 * (long**2).sum()


def test_what_is_hidden_is_found_outside_the_story_space(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    vectors: EmotionVectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = corpus.records("masked", split="fit")
    felt = [row["felt"] for row in rows]
    outside = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q[:12]
    for base in story_space(vectors):
        outside = outside - (outside @ base.T) @ base

    def means(*_: Any, **__: Any) -> torch.Tensor:
        return planted(list(rows), felt, outside, signal=6.0)

    monkeypatch.setattr(deflection, "span_means", means)
    found = deflection_vectors(
        tiny_model("llama"), tokenizer, corpus, vectors, quiet=True
    )
    assert found.emotions == tuple(dict.fromkeys(felt))
    names = sorted(set(felt))
    true = torch.stack([outside[names.index(e)] for e in found.emotions])
    true = true - true.mean(0)
    true = true / true.norm(dim=-1, keepdim=True)
    cosine = (found.directions[0] * true).sum(-1)
    assert float(cosine.min()) > 0.85
    rolled = (found.directions[0].roll(1, dims=1) * true).sum(-1)  # control
    assert float(rolled.mean()) < 0.3
    for row, base in enumerate(story_space(vectors)):
        inside = found.directions[0, row] @ base.T
        torch.testing.assert_close(inside, torch.zeros_like(inside), atol=1e-5, rtol=0)
    lengths = found.directions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert found.provenance["texts"] == dict.fromkeys(found.emotions, 7)
    assert len(found.provenance["norm_left"]) == len(LAYERS)
    assert all(0.5 < share <= 1 for share in found.provenance["norm_left"])


def test_a_real_model_is_read_and_the_file_comes_back(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    vectors: EmotionVectors,
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    found = deflection_vectors(model, tokenizer, corpus, vectors, quiet=True)
    back = EmotionVectors.load(found.save(tmp_path / "d.safetensors"))
    assert back.hash == found.hash
    assert back.provenance["kind"] == "deflection, by what is felt"
    shown = deflection_vectors(
        model, tokenizer, corpus, vectors, by="shown", quiet=True
    )
    assert shown.emotions != found.emotions
    with pytest.raises(ValueError, match="belong to the model"):
        deflection_vectors(
            model,
            tokenizer,
            corpus,
            replace(vectors, provenance={"num_layers": 9}),
            quiet=True,
        )


def test_words_are_those_of_who_is_asked_for(
    tokenizer: PreTrainedTokenizerFast, corpus: Corpus
) -> None:
    rows = corpus.records("dialogues", split="test")[:4]
    own, other = (words_of(tokenizer, rows, whose) for whose in (OWN, OTHER))
    for row, mine, theirs in zip(rows, own, other, strict=True):
        assert mine.ids == theirs.ids
        said = [m["content"] for m in row["messages"] if m["role"] == row["speaker"]]
        assert [tokenizer.decode(mine.ids[slice(*s)]) for s in mine.spans] == said
        rest = [m["content"] for m in row["messages"] if m["role"] != row["speaker"]]
        assert [tokenizer.decode(theirs.ids[slice(*s)]) for s in theirs.spans] == rest


def test_probes_of_each_cell_are_the_mean_differences_of_it(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    found = speaker_probes(model, tokenizer, corpus, layers=LAYERS, quiet=True)
    assert found.readers == tuple(CELLS)
    rows = corpus.records("dialogues", split="fit")
    from emoreg.residual.pooling import span_means
    from emoreg.vectors.dialogues import over_turns

    for cell, (speaker, whose) in CELLS.items():
        own = [row for row in rows if row["speaker"] == speaker]
        passages = words_of(tokenizer, own, whose)
        values = over_turns(span_means(model, passages, LAYERS, quiet=True), passages)
        labels = np.array([row["emotion"] for row in own])
        means = torch.stack([values[labels == e].mean(0) for e in found.emotions])
        centre = means.mean(0)
        for row, layer in enumerate(LAYERS):
            r = means[:, row] - centre[row]
            unit = r / r.norm(dim=-1, keepdim=True)
            mine = found.unit_directions(layer=layer, reader=cell)
            torch.testing.assert_close(mine, unit, atol=1e-4, rtol=1e-3)
            x = torch.randn(5, WIDTH)
            scores = found.scores(x, layer=layer, reader=cell)
            torch.testing.assert_close(
                scores, (x - centre[row]) @ unit.T, atol=1e-3, rtol=1e-3
            )
    assert found.provenance["texts"] == dict.fromkeys(CELLS, 48)
    back = EmotionVectors.load(found.save(tmp_path / "s.safetensors"))
    assert back.hash == found.hash


# ------------------------------------------------------------------- checks


@pytest.fixture
def subject(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    vectors: EmotionVectors,
) -> Subject:
    made = Subject(
        model=tiny_model("llama"),
        tokenizer=tokenizer,
        vectors=vectors,
        corpus=corpus,
        quiet=True,
    )
    made.__dict__["layer_of"] = {"mean-difference": LAYERS[0]}
    return made


def answering(signal: float, by: dict[tuple[int, ...], str]) -> Callable[..., Any]:
    """Return a stand-in for reading: noise with a direction for each text's emotion."""
    names = sorted(set(by.values()))
    units = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q

    def means(_model: Any, passages: list[Passage], *_: Any, **__: Any) -> torch.Tensor:
        rows = []
        for passage in passages:
            unit = units[names.index(by[passage.ids]) % WIDTH]
            rows += [torch.randn(len(LAYERS), WIDTH) + signal * unit] * len(
                passage.spans
            )
        return torch.stack(rows)

    return means


@pytest.mark.parametrize(("signal", "verdict"), [(8.0, "passed"), (0.0, "missed")])
def test_masking_is_seen_where_it_is_planted(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, signal: float, verdict: str
) -> None:
    by = {
        tuple(subject.tokenizer(row["text"])["input_ids"]): row["felt"]
        for row in subject.corpus.records("masked", split="all")
    }
    read = answering(signal, by)
    monkeypatch.setattr(deflection, "span_means", read)
    monkeypatch.setattr("emoreg.validation.subject.span_means", read)
    found = masking_check.masking(subject)
    assert found.headline is not None
    assert found.verdict == verdict
    assert set(found.headline.controls) == {"chance", "shuffled"}
    assert "84 texts to fit on, 36 to test on" in found.notes[0]
    names = {figure.name for figure in found.figures}
    assert "area of what is shown, by story readers" in names


@pytest.mark.parametrize(("signal", "verdict"), [(8.0, "passed"), (0.0, "missed")])
def test_speakers_are_one_where_they_are_planted_as_one(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, signal: float, verdict: str
) -> None:
    rows = subject.corpus.records("dialogues", split="all")
    by = {
        p.ids: row["emotion"]
        for p, row in zip(words_of(subject.tokenizer, rows), rows, strict=True)
    }
    read = answering(signal, by)
    monkeypatch.setattr(speakers, "span_means", read)
    monkeypatch.setattr("emoreg.validation.subject.span_means", read)
    found = speakers_check.speakers(subject)
    assert found.verdict == verdict
    cosines = {f.name: f.value for f in found.figures if f.name.startswith("cosine")}
    both = cosines["cosine of present, of the two speakers"]
    assert both > 0.7 if signal else both < 0.4
    assert "cosine of stories and present-user" in cosines
    bare = replace(subject, corpus=Corpus(subject.corpus.root / "stories"))
    assert speakers_check.speakers(bare).verdict == "not run"
    assert masking_check.masking(bare).verdict == "not run"


def test_the_command_refuses_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["probes", "--kind", "speakers", "--model", "demo"]
    arguments += ["--vectors", str(tmp_path / "none"), "--out", str(tmp_path / "o")]
    assert main(arguments) == 2
    assert "must be a file made by `emoreg extract`" in capsys.readouterr().err
