"""Speaker probes: whose emotion it is, and at whose words it is read."""

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
from emoreg.residual.pooling import Passage, span_means
from emoreg.residual.spans import message_spans
from emoreg.residual.store import ActivationStore
from emoreg.validation import speakers as speakers_check
from emoreg.validation import subject as subjects
from emoreg.validation.areas import areas
from emoreg.validation.subject import Subject
from emoreg.vectors import speakers
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.dialogues import over_turns
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.mean_differences import neutral_space
from emoreg.vectors.reader_names import MEAN_DIFFERENCE, RANDOM
from emoreg.vectors.speakers import (
    CELLS,
    OTHER,
    OTHER_ASSISTANT,
    OTHER_USER,
    OWN,
    PRESENT_ASSISTANT,
    PRESENT_USER,
    cell_cosines,
    probes_of,
    read_cells,
    shared_emotions,
    speaker_probes,
    turns_of,
)

LAYERS, WIDTH = (1, 2), 32
EMOTIONS = ("afraid", "angry", "calm", "proud", "sad", "tired")
NONE = [torch.zeros(0, WIDTH) for _ in LAYERS]


def dialogue(
    number: int, emotion: str, speaker: str, split: str = "fit"
) -> dict[str, Any]:
    """Return a dialogue with marks: what is felt, and what is met with."""
    felt, met = f"<{emotion}>" * 6, f"[{emotion}]" * 6
    said = {"user": felt, "assistant": met}
    if speaker == "assistant":
        said = {"user": met, "assistant": felt}
    roles = ("user", "assistant", "user", "assistant")
    # The user who does not feel it begins before anything of it can be known.
    turns = [{"role": role, "content": said[role]} for role in roles]
    if speaker == "assistant":
        turns[0]["content"] = f"Hello {number}"
    return {
        "id": f"g{number}",
        "emotion": emotion,
        "speaker": speaker,
        "split": split,
        "messages": turns,
    }


def rows_of(emotions: tuple[str, ...] = EMOTIONS) -> list[dict[str, Any]]:
    wanted = [
        (emotion, speaker, split)
        for emotion in emotions
        for speaker in ("user", "assistant")
        for split in ("fit", "fit", "test")
    ]
    return [dialogue(number, *which) for number, which in enumerate(wanted)]


def folder_of(path: Path, rows: list[dict[str, Any]]) -> Corpus:
    """Return a corpus of these dialogues and ten of the packaged neutral texts."""
    path.mkdir()
    packaged = (Corpus.packaged().root / "neutral.jsonl").read_text(encoding="utf-8")
    (path / "neutral.jsonl").write_text("\n".join(packaged.splitlines()[:10]))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "dialogues.jsonl").write_text(lines)
    return Corpus(path)


@pytest.fixture
def small(tmp_path: Path) -> Corpus:
    return folder_of(tmp_path / "corpus", rows_of())


@pytest.fixture
def marked(tiny_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model with a direction for each mark: what is felt, and what is met with."""
    marks = [f"<{e}>" for e in EMOTIONS] + [f"[{e}]" for e in EMOTIONS]
    tokenizer.add_tokens(marks)
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    units = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q[: len(marks)]
    with torch.no_grad():
        model.get_input_embeddings().weight[-len(marks) :] = 4.0 * units
    return model, units


# ------------------------------------------------------------------------ whose words


def test_turns_are_own_or_answers_to_them() -> None:
    def said(roles: str) -> list[dict[str, str]]:
        names = {"u": "user", "a": "assistant", "s": "system"}
        return [{"role": names[letter], "content": "x"} for letter in roles]

    assert turns_of(said("suaua"), "user", OWN) == [1, 3]
    assert turns_of(said("suaua"), "user", OTHER) == [2, 4]
    assert turns_of(said("suaua"), "assistant", OWN) == [2, 4]
    assert turns_of(said("suaua"), "assistant", OTHER) == [3]  # not the first
    assert turns_of(said("ua"), "assistant", OTHER) == []
    assert turns_of(said("u"), "assistant", OTHER) == []


def test_what_is_read_are_the_words_of_each_cell(
    tiny_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, small: Corpus
) -> None:
    model = tiny_model("llama")
    cells = read_cells(model, tokenizer, small, LAYERS, split="fit", quiet=True)
    assert tuple(cells) == tuple(CELLS)
    rows = small.records("dialogues", split="fit")
    for name, (speaker, whose) in CELLS.items():
        own = [row for row in rows if row["speaker"] == speaker]
        assert cells[name].labels == tuple(row["emotion"] for row in own)
        for row, passage in zip(own, cells[name].words, strict=True):
            turns = turns_of(row["messages"], speaker, whose)
            wanted = [row["messages"][turn]["content"] for turn in turns]
            read = [
                tokenizer.decode(list(passage.ids[slice(*s)])) for s in passage.spans
            ]
            assert read == wanted
            assert not any("Hello" in text for text in read)
        means = span_means(model, cells[name].words, LAYERS, quiet=True)
        torch.testing.assert_close(
            cells[name].values, over_turns(means, cells[name].words)
        )


# ------------------------------------------------------------------ planted structure


def test_present_and_other_are_told_apart(
    marked: Any, tokenizer: PreTrainedTokenizerFast, small: Corpus
) -> None:
    model, units = marked
    found = speaker_probes(
        model, tokenizer, small, layers=LAYERS, denoise=0.0, quiet=True
    )
    assert found.readers == tuple(CELLS)
    assert found.emotions == EMOTIONS
    felt, met = (
        (part - part.mean(0)) / (part - part.mean(0)).norm(dim=-1, keepdim=True)
        for part in units.split(len(EMOTIONS))
    )
    for cell, true in (
        (PRESENT_USER, felt),
        (PRESENT_ASSISTANT, felt),
        (OTHER_USER, met),
        (OTHER_ASSISTANT, met),
    ):
        for layer in LAYERS:
            cosine = (found.unit_directions(layer=layer, reader=cell) * true).sum(-1)
            assert float(cosine.min()) > 0.85, cell
    cosines = cell_cosines(found)
    assert cosines.shape == (len(LAYERS), 4, 4)
    torch.testing.assert_close(
        cosines.diagonal(dim1=1, dim2=2), torch.ones(len(LAYERS), 4)
    )
    assert float(cosines[:, 0, 1].min()) > 0.8
    assert float(cosines[:, 2, 3].min()) > 0.8
    assert float(cosines[:, :2, 2:].abs().max()) < 0.35
    # Control: with the names dealt out anew the two speakers do not agree.
    cells = read_cells(model, tokenizer, small, LAYERS, split="fit", quiet=True)
    dealt = {}
    for name, cell in cells.items():
        labels = list(cell.labels)
        random.Random(name).shuffle(labels)
        dealt[name] = replace(cell, labels=tuple(labels))
    blind = cell_cosines(
        probes_of(dealt, emotions=EMOTIONS, layers=LAYERS, neutral=NONE)
    )
    assert float(blind[:, 0, 1].max()) < 0.5


def test_probes_are_the_mean_differences_of_their_cell(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    small: Corpus,
) -> None:
    model = tiny_model("llama")
    found = speaker_probes(model, tokenizer, small, layers=LAYERS, quiet=True)
    neutral = neutral_space(model, tokenizer, small, LAYERS, variance=0.5, quiet=True)
    rows = small.records("dialogues", split="fit")
    for cell, (speaker, whose) in CELLS.items():
        own = [row for row in rows if row["speaker"] == speaker]
        values = []
        for row in own:
            ids, spans = message_spans(tokenizer, row["messages"])
            chosen = [spans[t] for t in turns_of(row["messages"], speaker, whose)]
            tokens = [place for span in chosen for place in range(*span)]
            single = Passage(ids=ids, spans=tuple((t, t + 1) for t in tokens))
            values.append(span_means(model, [single], LAYERS, quiet=True).mean(0))
        x = torch.stack(values)
        labels = np.array([row["emotion"] for row in own])
        means = torch.stack([x[labels == e].mean(0) for e in found.emotions])
        centre = means.mean(0)
        for row, layer in enumerate(LAYERS):
            r = means[:, row] - centre[row]
            r = r - (r @ neutral[row].T) @ neutral[row]
            unit = r / r.norm(dim=-1, keepdim=True)
            mine = found.unit_directions(layer=layer, reader=cell)
            torch.testing.assert_close(mine, unit, atol=1e-3, rtol=1e-2)
            y = torch.randn(5, WIDTH)
            scores = found.scores(y, layer=layer, reader=cell)
            torch.testing.assert_close(
                scores, (y - centre[row]) @ unit.T, atol=1e-2, rtol=1e-2
            )
            if cell == PRESENT_USER:  # as long as the first reader's
                torch.testing.assert_close(
                    found.raw_norm[row], r.norm(dim=-1), rtol=1e-2, atol=1e-4
                )


# ------------------------------------------------------------------- files and faults


def test_counts_and_the_file_come_back(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    small: Corpus,
    tmp_path: Path,
) -> None:
    model, store = tiny_model("llama"), ActivationStore(tmp_path / "store")
    found = speaker_probes(
        model, tokenizer, small, layers=LAYERS, quiet=True, store=store
    )
    assert any(store.folder.iterdir())
    again = speaker_probes(
        model, tokenizer, small, layers=LAYERS, quiet=True, store=store
    )
    assert again.hash == found.hash
    assert found.provenance["texts"] == {"user": 12, "assistant": 12}
    assert found.provenance["cells"] == dict.fromkeys(CELLS, 12)
    assert found.provenance["fewest"] == dict.fromkeys(CELLS, 2)
    assert len(found.provenance["neutral_rank"]) == len(LAYERS)
    back = EmotionVectors.load(found.save(tmp_path / "s.safetensors"))
    assert back.hash == found.hash
    assert back.provenance == found.provenance
    x = torch.randn(3, WIDTH)
    for cell in CELLS:
        torch.testing.assert_close(
            back.scores(x, layer=1, reader=cell), found.scores(x, layer=1, reader=cell)
        )
    part = speaker_probes(
        model, tokenizer, small, emotions=["sad", "calm"], layers=[2], quiet=True
    )
    assert (part.emotions, part.layers) == (("sad", "calm"), (2,))
    assert part.provenance["texts"] == {"user": 4, "assistant": 4}


def test_thin_emotions_are_left_out_or_refused(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    rows = rows_of()
    rows = [r for r in rows if (r["emotion"], r["speaker"]) != ("sad", "assistant")]
    for row in rows:  # the assistant is tired, and the user says no more after that
        if (row["emotion"], row["speaker"]) == ("tired", "assistant"):
            row["messages"] = row["messages"][:2]
    corpus = folder_of(tmp_path / "corpus", rows)

    def made(**options: Any) -> EmotionVectors:
        how = {"layers": LAYERS, "denoise": 0.0, "quiet": True, **options}
        return speaker_probes(tiny_model("llama"), tokenizer, corpus, **how)

    assert made().emotions == ("afraid", "angry", "calm", "proud")
    with pytest.raises(ValueError, match=r"dialogues for 'present-assistant'.*'sad'"):
        made(emotions=["sad", "calm"])
    with pytest.raises(ValueError, match=r"dialogues for 'other-at-user'.*'tired'"):
        made(emotions=["tired", "calm"])
    with pytest.raises(ValueError, match="Did you mean `calm`"):
        made(emotions=["calmm", "proud"])
    with pytest.raises(ValueError, match="two emotions or more"):
        made(emotions=["calm"])
    with pytest.raises(ValueError, match="must lie in"):
        made(layers=[9])


# -------------------------------------------------------------------------- the check


@pytest.fixture
def subject(
    tiny_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> Subject:
    corpus = Corpus.packaged()
    emotions = corpus.roles().core
    vectors = EmotionVectors.from_directions(
        torch.randn(len(LAYERS), len(emotions), WIDTH),
        emotions=emotions,
        layers=LAYERS,
    )
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


def planted_reading(subject: Subject, signal: float) -> Callable[..., Any]:
    """Return a stand-in for reading: noise, and at own words a direction."""
    rows = subject.corpus.records("dialogues", split="all")
    of = {message_spans(subject.tokenizer, row["messages"])[0]: row for row in rows}
    names = sorted({row["emotion"] for row in rows})
    units = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q

    def means(_: Any, passages: list[Passage], *__: Any, **___: Any) -> torch.Tensor:
        read = []
        for passage in passages:
            row = of[passage.ids]
            own = signal * units[names.index(row["emotion"])]
            for message in row["messages"]:
                noise = torch.randn(len(LAYERS), WIDTH)
                is_own = message["role"] == row["speaker"]
                read.append(noise + own if is_own else noise)
        return torch.stack(read)

    return means


@pytest.mark.parametrize(("signal", "verdict"), [(8.0, "passed"), (0.0, "missed")])
def test_speakers_are_one_where_they_are_planted_as_one(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, signal: float, verdict: str
) -> None:
    monkeypatch.setattr(speakers, "span_means", planted_reading(subject, signal))
    found = speakers_check.speakers(subject)
    assert found.verdict == verdict
    assert found.headline is not None
    assert set(found.headline.controls) == {"chance", "random", "shuffled", "embedding"}
    assert found.headline.low <= found.headline.value <= found.headline.high  # type: ignore[operator]
    assert found.headline.count == 48
    by_name = {figure.name: figure.value for figure in found.figures}
    # Nothing was planted at the words of who feels nothing.
    assert abs(by_name["area across speakers, other probes"] - 0.5) < 0.12
    assert abs(by_name["area at the other's answers, present probes"] - 0.5) < 0.12
    both = by_name["cosine of present, of the two speakers"]
    assert both > 0.7 if signal else both < 0.4
    dealt = {
        f.name: f.controls["shuffled"] for f in found.figures if "of pre" in f.name
    }
    assert all(abs(value) < 0.2 for value in dealt.values())
    assert abs(by_name["cosine of other, of the two speakers"]) < 0.2
    assert "cosine of stories and present-user" in by_name
    assert "48 dialogues with the user's emotion and 48" in found.notes[0]
    assert any("nearly all noise" in note for note in found.notes)


def test_the_check_says_why_it_was_not_run(subject: Subject, tmp_path: Path) -> None:
    bare = replace(subject, corpus=Corpus(subject.corpus.root / "stories"))
    assert "no dialogues" in speakers_check.speakers(bare).not_run
    few = folder_of(tmp_path / "few", rows_of(EMOTIONS[:3]))
    found = speakers_check.speakers(replace(subject, corpus=few))
    assert found.verdict == "not run"
    assert "3 emotions have 2 dialogues to fit on" in found.not_run


# ----------------------------------------------------------------------- a real model


@pytest.mark.slow
def test_in_the_demo_model_probes_carry_over_from_one_speaker_to_the_other() -> None:
    """Among dialogues to fit on alone: the test split is the battery's."""
    model, tokenizer = emoreg.demo.load()
    parts = (model, tokenizer, Corpus.packaged(), (15,))
    cells = read_cells(*parts, split="fit", quiet=True)
    names = shared_emotions(cells, None)
    assert len(names) == 24
    neutral = [torch.zeros(0, cells[PRESENT_USER].values.shape[-1])]
    found = probes_of(cells, emotions=names, layers=(15,), neutral=neutral)

    def area(reader: str, cell: str) -> float:
        x, own = cells[cell].values, cells[cell].labels
        each = areas(found, x, own, labels=found.emotions, reader=reader, layer=15)
        return float(np.mean(list(each.values())))

    assert area(PRESENT_USER, PRESENT_ASSISTANT) > 0.85
    assert area(PRESENT_ASSISTANT, PRESENT_USER) > 0.85
    assert abs(area(RANDOM, PRESENT_USER) - 0.5) < 0.12  # control
    cosines = cell_cosines(found)[0]
    assert cosines[0, 1] > 0.25
    assert cosines[0, 2] < 0.15
