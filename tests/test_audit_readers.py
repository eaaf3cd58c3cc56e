"""Readers of the audit: what they find, what they never saw, who may not use them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import emoreg
from emoreg.losses.term import refuse_audit_items
from emoreg.residual.layers import LayerPlan
from emoreg.residual.pooling import Passage, span_means
from emoreg.residual.spans import message_spans
from emoreg.residual.tokens import conversation_ids
from emoreg.training.reference import calibrate
from emoreg.vectors.audit_readers import (
    AuditReader,
    AuditReaders,
    LabelledTexts,
    audit_lines,
    fit_audit_readers,
)
from emoreg.vectors.audit_split import AuditSplit
from emoreg.vectors.comments import EMOTION_OF, labelled_comments, read_comments
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.dialogues import (
    dialogues_of,
    labelled_dialogues,
    pool_dialogues,
)
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import extract
from emoreg.vectors.reader_fits import METHODS, applied, lda, mlp, pca_contrast

EMOTIONS = ("calm", "sad", "proud")
LAYERS, WIDTH, EACH = (2, 5), 10, 12
Build = Callable[[str], PreTrainedModel]


def planted(seed: int, strength: float = 3.0) -> LabelledTexts:
    """Return texts around `strength` times a fixed direction per emotion."""
    directions = torch.linalg.qr(
        torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7))
    ).Q[: len(EMOTIONS)]
    draw = torch.Generator().manual_seed(seed)
    labels = [name for name in EMOTIONS for _ in range(EACH)]
    rows = torch.tensor([EMOTIONS.index(label) for label in labels])
    noise = torch.randn(len(labels), len(LAYERS), WIDTH, generator=draw)
    values = strength * directions[rows].unsqueeze(1) + noise
    return LabelledTexts(values=values, labels=tuple(labels))


def truth(texts: LabelledTexts) -> Tensor:
    return torch.tensor([EMOTIONS.index(label) for label in texts.labels])


@pytest.fixture
def audit() -> AuditReaders:
    found = fit_audit_readers("stories", planted(0), planted(1), at=(5,), layers=LAYERS)
    return AuditReaders(readers=tuple(found))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_names_held_out_texts(method: str) -> None:
    fit, test = planted(0), planted(1)
    (reader,) = fit_audit_readers(
        "stories", fit, test, at=(5,), layers=LAYERS, methods=[method]
    )
    assert reader.top1[0] > 0.8
    assert (reader.texts, reader.tested) == (36, 36)
    # Control: without a direction in the texts there is nothing to find.
    (blind,) = fit_audit_readers(
        "stories",
        planted(0, strength=0.0),
        planted(1, strength=0.0),
        at=(5,),
        layers=LAYERS,
        methods=[method],
    )
    assert blind.top1[0] < 0.6


def test_discriminants_are_those_of_scikit_learn() -> None:
    fit, test = planted(0), planted(1)
    x, y = fit.values[:, 0].double().numpy(), truth(fit).numpy()
    (weight, bias), *_ = lda(fit.values[:, 0], truth(fit), shrinkage=0.0)
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    # scikit-learn divides the scatter by n, we by n minus classes: one factor.
    factor = len(y) / (len(y) - len(EMOTIONS))
    theirs = oracle.decision_function(test.values[:, 0].double().numpy())
    ours = applied(((weight, bias),), test.values[:, 0]).double().numpy() * factor
    centred = theirs - theirs.mean(1, keepdims=True)
    np.testing.assert_allclose(
        ours - ours.mean(1, keepdims=True), centred, rtol=1e-3, atol=1e-3
    )
    (shrunk, _), *_ = lda(fit.values[:, 0], truth(fit), shrinkage=0.9)  # control
    assert not torch.allclose(shrunk, weight, rtol=0.05)


def test_the_contrast_is_the_first_direction_of_the_differences() -> None:
    fit = planted(0)
    ((weight, bias),) = pca_contrast(fit.values[:, 0], truth(fit))
    x = fit.values[:, 0].double().numpy()
    y = truth(fit).numpy()
    means = np.stack([x[y == k].mean(0) for k in range(len(EMOTIONS))])
    for row in range(len(EMOTIONS)):
        others = np.delete(means, row, axis=0).mean(0)
        contrast = x[y == row] - others
        values, vectors = np.linalg.eigh(contrast.T @ contrast)
        assert values[-1] > values[-2]
        own = weight[row].double().numpy()
        cosine = own @ vectors[:, -1] / np.linalg.norm(own)
        assert abs(cosine) == pytest.approx(1.0, abs=1e-4)
        assert own @ (means[row] - others) > 0
        assert abs(own @ vectors[:, -2]) < 0.1 * np.linalg.norm(own)  # control
    read = applied(((weight, bias),), fit.values[:, 0])
    torch.testing.assert_close(read.std(0), torch.ones(3), rtol=1e-4, atol=1e-4)


def test_the_network_sees_what_no_line_can() -> None:
    """Two classes in four corners, crosswise: a line is right half of the time."""

    def corners(seed: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        sign = torch.randint(0, 2, (400, 2), generator=draw) * 2.0 - 1.0
        noise = 0.2 * torch.randn(400, 6, generator=draw)
        noise[:, :2] += sign
        return noise, (sign.prod(1) > 0).long()

    (x, y), (x_test, y_test) = corners(0), corners(1)
    bent = (applied(mlp(x, y), x_test).argmax(1) == y_test).float().mean()
    line = (applied(lda(x, y), x_test).argmax(1) == y_test).float().mean()
    assert bent > 0.85
    assert line < 0.65


def test_the_network_is_the_same_every_time() -> None:
    fit = planted(0)
    one, other = (mlp(fit.values[:, 0], truth(fit)) for _ in range(2))
    for (w, b), (v, c) in zip(one, other, strict=True):
        assert torch.equal(w, v)
        assert torch.equal(b, c)
    (different, _), *_ = mlp(fit.values[:, 0], truth(fit), seed=1)  # control
    assert not torch.equal(different, one[0][0])


def test_emotions_that_a_reader_never_saw_are_not_read_as_zero(
    audit: AuditReaders,
) -> None:
    x = torch.randn(4, 3, WIDTH)
    found = audit.read(
        x, layer=5, reader="lda-stories", emotions=["sad", "greedy", "calm"]
    )
    assert found.shape == (4, 3, 3)
    assert bool(found[..., 1].isnan().all())
    own = audit["lda-stories"].read(x, layer=5)
    torch.testing.assert_close(found[..., 0], own[..., EMOTIONS.index("sad")])
    torch.testing.assert_close(own.mean(-1), torch.zeros(4, 3), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"one of .5,., where 'lda-stories'"):
        audit.read(x, layer=2, reader="lda-stories", emotions=["sad"])


def test_too_few_texts_are_refused() -> None:
    fit = planted(0)
    one = LabelledTexts(values=fit.values[: EACH + 1], labels=fit.labels[: EACH + 1])
    with pytest.raises(ValueError, match=r"found 2, of which too few for .'sad'."):
        fit_audit_readers("dialogues", one, fit, at=(5,), layers=LAYERS)
    alone = LabelledTexts(values=fit.values[:EACH], labels=fit.labels[:EACH])
    with pytest.raises(ValueError, match="two emotions or more"):
        fit_audit_readers("dialogues", alone, fit, at=(5,), layers=LAYERS)


# ------------------------------------------------------------------------ the file


def make_vectors(audit: AuditReaders | None, split: AuditSplit | None = None):
    made = EmotionVectors.from_directions(
        torch.randn(2, 4, WIDTH), emotions=[*EMOTIONS, "greedy"], layers=LAYERS
    )
    return replace(made, audit=audit, split=split)


def declared(readers: AuditReaders) -> AuditSplit:
    return AuditSplit(
        loss_layers=(2,),
        audit_layers=(5,),
        loss_emotions=("calm",),
        audit_emotions=("sad",),
        loss_readers=("mean-difference",),
        audit_readers=readers.names,
    )


def test_a_file_carries_readers_and_split(audit: AuditReaders, tmp_path: Path) -> None:
    vectors = make_vectors(audit, declared(audit))
    back = EmotionVectors.load(vectors.save(tmp_path / "v.safetensors"))
    assert back.audit is not None
    assert back.split == vectors.split
    assert back.audit.hash == audit.hash
    assert audit_lines(back.audit) == audit_lines(audit)
    x = torch.randn(3, WIDTH)
    for name in audit.names:
        one = vectors.project(x, layer=5, reader=name)
        assert torch.equal(
            one.nan_to_num(-99.0),
            back.project(x, layer=5, reader=name).nan_to_num(-99.0),
        )
        assert bool(one[:, 3].isnan().all())  # never fitted on *greedy*
    plain = replace(vectors, audit=None, split=None)
    assert plain.hash != vectors.hash == back.hash
    plain = EmotionVectors.load(plain.save(tmp_path / "plain.safetensors"))
    assert (plain.audit, plain.split) == (None, None)
    first = audit.readers[0]
    ((weight, bias),) = first.maps[0]
    moved = replace(first, maps=(((weight + 1e-6, bias),),))
    changed = AuditReaders(readers=(moved, *audit.readers[1:]))
    assert changed.hash != audit.hash  # control: the hash sees the weights
    # So tables that were read with other audit readers are told apart.
    assert replace(vectors, audit=changed).hash != vectors.hash


def test_a_split_that_was_changed_is_refused(
    audit: AuditReaders, tmp_path: Path
) -> None:
    path = make_vectors(audit, declared(audit)).save(tmp_path / "v.safetensors")
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    split = json.loads(metadata["split"])
    split["loss_layers"] = [2, 5]
    split["audit_layers"] = []
    metadata["split"] = json.dumps(split)
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match="the one that was declared with the vectors"):
        EmotionVectors.load(path)


def test_nothing_stands_on_both_sides() -> None:
    with pytest.raises(ValueError, match="layers 5 stand on both sides"):
        AuditSplit(
            loss_layers=(2, 5),
            audit_layers=(5,),
            loss_emotions=(),
            audit_emotions=(),
            loss_readers=(),
            audit_readers=(),
        )


def test_losses_refuse_what_the_file_declares_the_audits(audit: AuditReaders) -> None:
    roles, split = Corpus.packaged().roles(), declared(audit)
    refuse_audit_items(roles, emotions=["calm"], layers=[2], split=split)  # control
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"reader": "mlp-stories"}, "reader 'mlp-stories' belongs to the audit"),
        ({"emotions": ["sad"]}, "emotion 'sad' belongs to the audit"),
        ({"layers": [5]}, "layer 5 belongs to the audit"),
    )
    for asked, message in cases:
        refuse_audit_items(roles, **asked)  # control: without the file's split
        with pytest.raises(ValueError, match=message):
            refuse_audit_items(roles, **asked, split=split)


def test_a_term_can_get_no_direction_of_an_audit_reader(audit: AuditReaders) -> None:
    with pytest.raises(ValueError, match="`reader` must be one of"):
        make_vectors(audit).unit_directions(layer=5, reader="lda-stories")


# ----------------------------------------------------------------------- the texts


def test_a_speakers_words_are_found_whatever_stands_around_them(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [
        {"role": "user", "content": "Is it fine?"},
        {"role": "assistant", "content": "  It is fine. It is fine.  "},
        {"role": "user", "content": "Is it fine?"},
    ]
    ids, spans = message_spans(tokenizer, messages)
    said = [
        str(tokenizer.decode(list(ids[start:end]))).lstrip() for start, end in spans
    ]
    assert said == ["Is it fine?", "It is fine. It is fine.", "Is it fine?"]
    assert spans[0][1] < spans[1][0] < spans[1][1] < spans[2][0]
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="must keep what a message says"):
        message_spans(tokenizer, messages)


def test_a_dialogue_is_the_mean_over_all_words_of_who_feels(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    dialogue = {
        "speaker": "user",
        "messages": [
            {"role": "user", "content": "One two three."},
            {"role": "assistant", "content": "Four."},
            {"role": "user", "content": "Five!"},
        ],
    }
    found = pool_dialogues(model, tokenizer, [dialogue], (1, 2), quiet=True)
    ids, spans = message_spans(tokenizer, dialogue["messages"])
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    places = [p for i in (0, 2) for p in range(*spans[i])]
    for column, layer in enumerate((1, 2)):
        expected = states[layer + 1][0, places].mean(0)
        torch.testing.assert_close(found[0, column], expected, atol=1e-5, rtol=1e-4)
    all_places = [p for span in spans for p in range(*span)]
    wrong = states[2][0, all_places].mean(0)  # control: the other speaker's words too
    assert not torch.allclose(found[0, 0], wrong, atol=1e-4)
    silent = [dialogue, {**dialogue, "speaker": "User"}]
    with pytest.raises(ValueError, match="found 'User' where the roles are user, ass"):
        pool_dialogues(model, tokenizer, silent, (1, 2), quiet=True)


def goemotions(folder: Path) -> Path:
    """Write a folder of the set's format with made-up comments."""
    names = [*EMOTION_OF, "neutral"]
    (folder / "emotions.txt").write_text("\n".join(names))
    sad, joy, none = (names.index(n) for n in ("sadness", "joy", "neutral"))
    rows = [f"so sad, number {i}\t{sad}\tx{i}" for i in range(30)]
    rows += [f"what joy, number {i}\t{joy}\ty{i}" for i in range(25)]
    rows += [f"both at once {i}\t{joy},{sad}\tz{i}" for i in range(5)]
    rows += [f"the bus came {i}\t{none}\tn{i}" for i in range(9)]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(rows))
    return folder


def test_comments_are_drawn_by_emotion(tmp_path: Path) -> None:
    rows = read_comments(
        goemotions(tmp_path),
        "train",
        emotions=("sad", "joyful"),
        per_emotion=20,
        others=3,
        seed=0,
    )
    counts = {
        name: sum(own == name for _, own in rows) for name in ("sad", "joyful", "")
    }
    assert counts == {"sad": 20, "joyful": 20, "": 3}
    assert not any("both" in text for text, _ in rows)
    with pytest.raises(ValueError, match=r"must hold test\.tsv, found none"):
        read_comments(tmp_path, "test", emotions=(), per_emotion=1, others=1, seed=0)


def test_extraction_fits_the_audits_readers_too(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    emotions = ("sad", "calm", "desperate", "joyful")
    found = extract(
        model,
        tokenizer,
        Corpus.packaged(),
        emotions=emotions,
        quiet=True,
        goemotions=goemotions(tmp_path),
    ).vectors
    assert found.audit is not None
    assert found.split is not None
    assert set(found.audit.names) == {
        *("pca-stories", "mlp-stories"),
        *(f"{method}-dialogues" for method in METHODS),
        *(f"{method}-human" for method in METHODS),
    }
    plan = LayerPlan.for_depth(4)
    for reader in found.audit.readers:
        assert set(reader.layers) == {*plan.audit, *plan.near} & {*found.layers}
    assert found.audit["lda-dialogues"].emotions == ("desperate", "calm", "sad")
    assert found.audit["lda-dialogues"].texts == 12
    assert set(found.audit["lda-human"].emotions) == {"sad", "joyful"}
    assert found.split.audit_readers == ("logistic", *found.audit.names)
    assert set(found.split.loss_emotions) == {"calm", "desperate"}
    bare = extract(
        model, tokenizer, Corpus.packaged(), emotions=emotions, quiet=True, audit=False
    ).vectors
    assert bare.audit is None
    # The vectors themselves are what they were.
    assert bare.hash == replace(found, audit=None, split=None).hash


def small_corpus(folder: Path, dialogues: Callable[[dict], dict | None]) -> Corpus:
    """Return a part of the packaged corpus, with its dialogues as they are changed."""
    packaged = Corpus.packaged()
    (folder / "stories").mkdir(parents=True)
    for emotion in (*EMOTIONS, "joyful"):
        content = (packaged.root / "stories" / f"{emotion}.jsonl").read_bytes()
        (folder / "stories" / f"{emotion}.jsonl").write_bytes(content)
    (folder / "emotions.json").write_text(json.dumps([*EMOTIONS, "joyful"]))
    neutral = (packaged.root / "neutral.jsonl").read_text(encoding="utf-8")
    (folder / "neutral.jsonl").write_text("\n".join(neutral.splitlines()[:10]))
    rows = [dialogues(dict(r)) for r in packaged.records("dialogues", split="all")]
    lines = [json.dumps(row) for row in rows if row]
    (folder / "dialogues.jsonl").write_text("\n".join(lines))
    return Corpus(folder)


def test_texts_that_are_too_few_leave_out_readers_and_nothing_else(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = set[str]()

    def of_proud_one(row: dict) -> dict | None:
        again = row["emotion"] in seen and row["emotion"] == "proud"
        seen.add(row["emotion"])
        return None if again else row

    comments = goemotions(tmp_path)
    (comments / "dev.tsv").write_text("the bus came\t19\tn")  # none to test on
    assert (comments / "emotions.txt").read_text().splitlines()[19] == "neutral"
    corpus = small_corpus(tmp_path / "corpus", of_proud_one)
    how: dict[str, Any] = {"quiet": True, "goemotions": comments}
    with caplog.at_level("INFO", logger="emoreg"):
        found = extract(tiny_model("llama"), tokenizer, corpus, **how).vectors
    assert found.audit is not None
    assert {name.rpartition("-")[2] for name in found.audit.names} == {
        *("stories", "dialogues")
    }
    assert set(found.audit["lda-dialogues"].emotions) == {"calm", "sad"}
    assert "No reader of dialogues for proud, which has one" in caplog.messages
    assert "No reader of human: there are none to test it on" in caplog.messages
    only_fit = small_corpus(
        tmp_path / "fit", lambda row: row if row["split"] == "fit" else None
    )
    assert dialogues_of(only_fit, EMOTIONS, "fit")
    assert dialogues_of(only_fit, EMOTIONS, "test") == []  # and not an error


@pytest.mark.parametrize(
    ("how", "speaker", "message"),
    [
        ({"emotions": ("calm", "sad", "calm")}, "user", "found 'calm' 2 times"),
        ({"emotions": ("calm",)}, "user", "two emotions or more.*found `calm` alone"),
        ({}, "human", r"dialogues\.jsonl:1: `speaker` must be .*`human`"),
        ({"goemotions": Path("nowhere")}, "user", r"must hold emotions\.txt"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_reads(
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
    speaker: str,
    message: str,
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the model was asked to read")

    monkeypatch.setattr("emoreg.vectors.extract.read_neutral", read)
    wrong = small_corpus(tmp_path / "corpus", lambda row: row | {"speaker": speaker})
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        extract(model, tokenizer, wrong, quiet=True, **how)
    with pytest.raises(AssertionError, match="asked to read"):  # control
        extract(model, tokenizer, Corpus.packaged(), emotions=EMOTIONS, quiet=True)


def test_a_base_model_without_template_is_extracted_all_the_same(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = None
    found = extract(
        tiny_model("llama"),
        tokenizer,
        Corpus.packaged(),
        emotions=("sad", "calm"),
        quiet=True,
    ).vectors
    assert found.audit is not None
    assert found.audit.names == ("pca-stories", "mlp-stories")


def test_dialogues_of_other_emotions_are_left_out(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = labelled_dialogues(
        tiny_model("llama"),
        tokenizer,
        Corpus.packaged(),
        (1,),
        emotions=("sad", "greedy"),
        split="test",
        quiet=True,
    )
    assert set(found.labels) == {"sad"}
    assert len(found.values) == len(found.labels) == 2


def test_comments_of_rare_emotions_are_left_out(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    found = labelled_comments(
        tiny_model("llama"),
        tokenizer,
        goemotions(tmp_path),
        (1, 2),
        split="train",
        emotions=("sad", "joyful"),
        per_emotion=120,
        fewest=28,
        quiet=True,
    )
    assert set(found.labels) == {"sad"}
    assert found.values.shape == (30, 2, 32)


def test_a_reader_knows_how_it_was_tested(audit: AuditReaders) -> None:
    reader: AuditReader = audit["mlp-stories"]
    line = next(text for text in audit_lines(audit) if "mlp-stories" in text)
    assert f"top-1 {reader.top1[0]:.2f} (chance 0.333) over 3 emotions" in line
    assert "fitted on 36, tested on 36" in line


def test_tables_hold_the_audits_readings_and_comparisons_leave_them_out(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, corpus = tiny_model("llama"), Corpus.packaged()
    emotions = ("calm", "sad", "upset", "relaxed")  # dialogues have no "upset"
    found = extract(model, tokenizer, corpus, emotions=emotions, quiet=True)
    vectors, layers = found.vectors, found.vectors.layers
    assert vectors.audit is not None
    plan = LayerPlan.for_depth(4)
    twins = corpus.transcripts("dev")[:5]
    reference = calibrate(
        model, tokenizer, twins, vectors, plan=plan, passages=2, quiet=True
    )
    table = emoreg.measure(
        model, tokenizer, twins, vectors, reference=reference, quiet=True
    )
    path = table.save(tmp_path / "t.parquet")
    assert emoreg.Readings.load(path).meta["units"] == table.meta["units"]
    assert table.readers == vectors.all_readers
    row = table.segments["position"].to_pylist().index("decision")
    ids = conversation_ids(tokenizer, twins[0].conversations()[0].messages)
    place = table.segments["token_start"][row].as_py()
    stream = span_means(
        model,
        [Passage(ids=tuple(ids), spans=((place, place + 1),))],
        layers,
        quiet=True,
    )
    for reader in vectors.audit.readers:
        for layer in layers:
            found = table.values[row, table.readers.index(reader.name)]
            found = found[table.layers.index(layer)]
            if layer not in reader.layers:
                assert np.isnan(found).all()
                continue
            known = [emotions.index(e) for e in emotions if e in reader.emotions]
            want = reader.read(stream[0, vectors.layer_index(layer)], layer=layer)
            wanted = dict(zip(reader.emotions, want.tolist(), strict=True))
            for place_, emotion in enumerate(emotions):
                if place_ in known:
                    assert found[place_] == pytest.approx(wanted[emotion], abs=1e-3)
                else:
                    assert np.isnan(found[place_])
    assert np.isnan(table.values).any()  # some reader knows no "upset"
    deep = vectors.audit["mlp-stories"].layers[-1]
    at = reference.readers.index("mlp-stories"), reference.layers.index(deep)
    assert bool((reference.sigma_ref[at] > 0).all())
    bare = replace(vectors, audit=None, split=None)
    plain = emoreg.measure(model, tokenizer, twins, bare, quiet=True)
    np.testing.assert_array_equal(table.values[:, :3], plain.values)
    own = table.of_readers(vectors.readers)
    one, other = (
        emoreg.compare(t, t, n_resamples=200).table()
        for t in (table, replace(own, meta={**own.meta, "audit_readers": []}))
    )
    assert one == other
