"""Readings token by token: against a plain forward, and their texts inert on a page."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from emoreg.comparison.compare import compare
from emoreg.comparison.measure import measure
from emoreg.comparison.readings import Readings
from emoreg.comparison.report import render
from emoreg.comparison.token_readings import TokenReadings, kept_in_both
from emoreg.comparison.tokens import chosen, read_tokens, whole_pieces
from emoreg.comparison.tokens_page import SHADES, scale_end, shade
from emoreg.residual.tokens import conversation_ids
from emoreg.residual.tokens import render as as_text
from emoreg.training.reference import calibrate
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.transcripts import Conversation

EMOTIONS = ("desperate", "calm", "proud", "sad")
LAYERS = (1, 2, 3)
AUDIT = 3  # of four blocks
HOSTILE = (
    "</p></script><script>alert(1)</script><img src=x onerror=alert(2)>\" 'x'=\"&lt;"
)
MANY_BYTES = "naïve 漢字 🙂 👩‍👩‍👧 Ω"


@pytest.fixture
def tokenizer(letters: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return letters


def talk(number, variant, *, asked="sort a list", style="plain"):
    feedback = "2 failed" if variant == "fail" else "all pass"
    messages = [
        {"role": "user", "content": f"{asked} {number}"},
        {"role": "assistant", "content": "try this"},
        {"role": "user", "content": f"{feedback} {'.' * number}"},
        {"role": "assistant", "content": "so"},
    ]
    return Conversation(
        id=f"{number}-{variant}",
        pair=str(number),
        variant=variant,
        style=style,
        messages=tuple(messages),
        failed=(None, 1.0 if variant == "fail" else 0.0),
    )


def talks(**changes):
    return [
        talk(k, variant, **changes) for k in range(4) for variant in ("fail", "pass")
    ]


@pytest.fixture(scope="module")
def vectors():
    rows = torch.randn(
        len(LAYERS), len(EMOTIONS), 32, generator=torch.Generator().manual_seed(2)
    )
    return EmotionVectors.from_directions(rows, emotions=EMOTIONS, layers=LAYERS)


@pytest.fixture
def parts(tiny_model, tokenizer, vectors):
    """A model, its tokenizer, vectors and what was calibrated on it."""
    model = tiny_model("llama")
    reference = calibrate(model, tokenizer, talks(), vectors, passages=1, quiet=True)
    return model, tokenizer, vectors, reference


# -- pieces ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["plain", MANY_BYTES, HOSTILE, "\ufffd a \ufffd", " \n\n x"]
)
def test_pieces_are_the_text_and_whole_characters(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = whole_pieces(tokenizer, ids)
    assert "".join(piece for piece, *_ in pieces) == text
    bounds = [(start, end) for _, start, end in pieces]
    assert [at for span in bounds for at in range(*span)] == list(range(len(ids)))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece, *_ in pieces)


def test_tokens_one_by_one_would_break_characters(tokenizer):
    ids = tokenizer(MANY_BYTES, add_special_tokens=False)["input_ids"]
    assert any("\ufffd" in tokenizer.decode([token]) for token in ids)
    assert len(whole_pieces(tokenizer, ids)) == len(MANY_BYTES)


def test_bytes_that_make_no_character_come_to_an_end(tokenizer):
    half = tokenizer("🙂", add_special_tokens=False)["input_ids"][:3]
    pieces = whole_pieces(tokenizer, [*half * 9, *half])
    assert pieces[-1][2] == 30
    assert max(end - start for _, start, end in pieces) <= 8


# -- readings --------------------------------------------------------------------------


def test_readings_are_those_of_a_plain_forward(parts):
    model, tokenizer, vectors, reference = parts
    told = talk(1, "fail", asked=MANY_BYTES)
    found = read_tokens(
        model,
        tokenizer,
        [talk(2, "pass"), told],
        vectors,
        reference=reference,
        quiet=True,
    )[1]
    assert (found.reader, found.layer) == ("mean-difference", AUDIT)
    assert found.emotions == ("desperate", "calm")
    ids = conversation_ids(tokenizer, told.messages)
    with torch.no_grad():
        streams = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    # hidden_states[-1] is after the final norm, so the last block's comes from a hook.
    grabbed = []
    hook = model.model.layers[AUDIT].register_forward_hook(
        lambda *args: grabbed.append(
            args[2][0] if isinstance(args[2], tuple) else args[2]
        )
    )
    with torch.no_grad():
        model(torch.tensor([ids]))
    hook.remove()
    at = reference.readers.index("mean-difference"), reference.layers.index(AUDIT)
    level, spread = (
        getattr(reference, name)[at][:2] for name in ("success_level", "success_std")
    )

    def expected(stream):
        units = vectors.unit_directions(layer=AUDIT)[:2]
        z = (stream.reshape(-1, 32) @ units.T - level) / spread
        spans = whole_pieces(tokenizer, ids)
        return np.stack([z[start:end].mean(0).numpy() for _, start, end in spans])

    np.testing.assert_allclose(found.values, expected(grabbed[0]), rtol=1e-3, atol=1e-3)
    other = expected(streams[AUDIT])  # the block before: the check can fail
    assert not np.allclose(found.values, other, rtol=1e-1, atol=1e-1)


def test_pieces_know_whose_they_are_and_what_the_feedback_said(parts):
    model, tokenizer, vectors, reference = parts
    told = talk(1, "fail", asked=MANY_BYTES)
    (found,) = read_tokens(
        model, tokenizer, [told], vectors, reference=reference, quiet=True
    )
    assert "".join(found.pieces) == as_text(tokenizer, told.messages)
    own = [p for p, spoken in zip(found.pieces, found.spoken, strict=True) if spoken]
    assert "".join(own) == "try thisso"
    assert list(found.decisions.values()) == [None, 1.0]
    for at in found.decisions:
        assert not found.spoken[at]
        assert found.spoken[at + 1]


def test_decision_tokens_read_as_in_the_table(parts, tmp_path):
    model, tokenizer, vectors, reference = parts
    table = measure(model, tokenizer, talks(), vectors, reference=reference, quiet=True)
    table = Readings.load(table.save(tmp_path / "t.parquet"))
    (kept,) = (TokenReadings.restored(x) for x in table.meta["transcripts"])
    assert kept.id == "0-fail"
    rows = table.segments.to_pylist()
    units = {name: np.asarray(x)[0, -1, :2] for name, x in table.meta["units"].items()}
    for turn, at in enumerate(kept.decisions):
        row = next(
            k
            for k, r in enumerate(rows)
            if (r["prompt"], r["variant"], r["turn"], r["position"])
            == ("0", "fail", turn, "decision")
        )
        z = (table.values[row, 0, -1, :2] - units["success_level"]) / units[
            "success_std"
        ]
        np.testing.assert_allclose(kept.values[at], z, atol=0.011)


def test_a_table_keeps_texts_only_where_asked_and_read_in_units(parts):
    model, tokenizer, vectors, reference = parts
    prompts = [*talks(), talk(7, "fail", style="other"), talk(7, "pass", style="other")]
    how = {"reference": reference, "quiet": True}
    many = measure(model, tokenizer, prompts, vectors, **how)
    one = measure(model, tokenizer, prompts, vectors, texts=1, **how)
    none = measure(model, tokenizer, prompts, vectors, texts=0, **how)
    bare = measure(model, tokenizer, prompts, vectors, quiet=True)
    kept = [
        [x["id"] for x in t.meta.get("transcripts", ())]
        for t in (many, one, none, bare)
    ]
    assert kept == [["0-fail", "7-fail"], ["0-fail"], [], []]
    np.testing.assert_array_equal(many.values, none.values)


def test_the_first_failing_one_of_each_style_is_chosen():
    given = [
        talk(1, "pass", style="a"),
        talk(2, "fail", style="b"),
        talk(3, "fail", style="a"),
        talk(4, "fail", style="a"),
    ]
    assert [c.id for c in chosen(given, 4)] == ["2-fail", "3-fail"]
    assert [c.id for c in chosen(given, 1)] == ["2-fail"]
    unknown = replace(given[0], failed=(None, None))
    assert chosen([unknown], 4) == []


def test_other_texts_are_not_shown_as_the_same():
    text = {"id": "a", "style": "", "reader": "lda", "layer": 3, "emotions": ["calm"]}
    text |= {"pieces": ["a", "b"], "spoken": [0, 1], "decisions": [[0, None]]}
    text |= {"values": [[0.5, 1.0]]}
    (pair,) = kept_in_both({"transcripts": [text]}, {"transcripts": [text]})
    assert pair[0].described() == text
    for changes in ({"id": "b"}, {"pieces": ["a", "c"]}, {"layer": 2}):
        assert (
            kept_in_both({"transcripts": [text]}, {"transcripts": [text | changes]})
            == ()
        )
    assert kept_in_both({}, {"transcripts": [text]}) == ()


# -- the page --------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects elements, and the text of each version of each transcript."""

    def __init__(self):
        super().__init__()
        self.found, self.texts, self.version = [], {"before": "", "after": ""}, None

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.found.append((tag, own))
        if tag == "p":
            self.version = own.get("data-version")

    def handle_endtag(self, tag):
        if tag == "p":
            self.version = None

    def handle_data(self, data):
        if self.version:
            self.texts[self.version] += data


@pytest.fixture
def comparison(parts):
    model, tokenizer, vectors, reference = parts
    told = talks(asked=f"{HOSTILE} {MANY_BYTES}", style=HOSTILE)
    how = {"reference": reference, "quiet": True}
    before = measure(model, tokenizer, told, vectors, **how)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3.0)
    after = measure(model, tokenizer, told, vectors, **how)
    return compare(before, after, roles={}, n_resamples=100)


def test_hostile_text_is_inert_and_stands_twice_as_it_was_read(comparison, tokenizer):
    page = render(comparison)
    section = page[page.index('id="tokens"') :]
    section = section[: section.index("</section>")]
    parser = Page()
    parser.feed(section)
    told = as_text(tokenizer, talk(0, "fail", asked=f"{HOSTILE} {MANY_BYTES}").messages)
    assert parser.texts == {"before": told, "after": told}
    tags = [tag for tag, _ in parser.found]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not any(name.startswith("on") for _, own in parser.found for name in own)
    assert "innerHTML" not in section
    marked = [
        own
        for tag, own in parser.found
        if tag == "span" and " d" in own.get("class", "")
    ]
    assert len(marked) == 2 * 2


def test_colours_and_numbers_are_the_readings(comparison):
    page = render(comparison)
    found = re.search(r'id="token-values">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found.group(1))
    ((before, after),) = comparison.transcripts
    for version, own in (("before", before), ("after", after)):
        shown = np.asarray(data["values"][0][version])
        np.testing.assert_allclose(shown, own.values.T, atol=0.051)
    assert data["values"][0]["before"] != data["values"][0]["after"]
    cells = re.findall(r'<span class="([wc]\d|)(?: d)?" title="([^"]+)">', page)
    wanted = [shade(v, data["limit"]) for v in data["values"][0]["before"][0]]
    assert sorted(style for style, _ in cells) == sorted(
        wanted + [shade(v, data["limit"]) for v in data["values"][0]["after"][0]]
    )
    for style, title in cells:
        assert {"w": "+", "c": "−"}.get(style[:1], title[0]) == title[0]


def test_no_text_leaves_with_a_trackers_page_or_in_the_json(comparison, monkeypatch):
    sent = {}
    # The trackers' clients take long to import, and none is needed here.
    tracker = SimpleNamespace(report_to_wandb=lambda *_, page: sent.update(page=page))
    monkeypatch.setitem(sys.modules, "emoreg.training.watching.trackers", tracker)
    comparison.to_wandb(object())
    assert "漢" not in sent["page"]
    assert "漢" in render(comparison)
    assert "漢" not in comparison.to_json()


def test_tables_without_texts_have_no_such_section(comparison):
    assert 'id="tokens"' not in render(replace(comparison, transcripts=()))


def test_the_scale_is_one_and_the_same_on_both_sides():
    assert shade(0.0, 4.0) == shade(0.3, 4.0) == ""
    assert (shade(4.0, 4.0), shade(-4.0, 4.0)) == ("w5", "c5")
    assert (shade(90.0, 4.0), shade(1.0, 4.0), shade(-1.7, 4.0)) == ("w5", "w1", "c2")
    for value in np.linspace(0, 6, 50):
        assert shade(value, 4.0)[1:] == shade(-value, 4.0)[1:]
    assert SHADES == 5

    def text(values):
        return TokenReadings(
            id="",
            style="",
            reader="lda",
            layer=1,
            emotions=("calm",),
            pieces=tuple("a" * len(values)),
            spoken=(False,) * len(values),
            decisions={},
            values=np.asarray(values, float)[:, None],
        )

    calm, wild = text([0.1] * 9), text([-5.9] * 9)
    assert scale_end([calm.values, calm.values]) == 1.0
    assert scale_end([calm.values, wild.values]) == 8.0
    assert scale_end([calm.values, text([12.0] * 9).values]) == 20.0
    assert scale_end([np.full((3, 1), 0.6)], least=0.5) == 0.8
    assert scale_end([np.zeros((3, 1)), np.zeros((2, 1))], least=0.5) == 0.5
