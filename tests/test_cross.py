"""Cross-reading: parts that add up, none where nothing changed, and what is refused."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import seam_cases as cases
from comparison_tables import FAMILIES, synthetic
from transformers import PreTrainedTokenizerFast

from emoreg.cli import main
from emoreg.comparison.compare import compare
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.cross import split
from emoreg.comparison.measure import measure
from emoreg.comparison.on_policy import measure_on_policy, read_samples
from emoreg.comparison.readings import Readings
from emoreg.comparison.report import render
from emoreg.residual.steer import steered
from emoreg.vectors.conversation_files import read_conversations

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
GIVEN: dict[str, Any] = {"emotions": READ, "layers": (9, 21, 24), "n_prompts": 16}


def sampled(table: Readings, **meta: Any) -> Readings:
    """Return a table as one sample's, with what on-policy measuring records."""
    n = table.segments.num_rows
    segments = table.segments
    for name, kind in (("sample", pa.int32()), ("seed", pa.int64())):
        segments = segments.append_column(name, pa.array(np.zeros(n), kind))
    return replace(table, segments=segments, meta={**table.meta, **meta})


def spoken(table: Readings, step: float) -> Readings:
    """Let *upset* and *worried* rise after failing, over Assistant tokens alone."""
    values = table.values.copy()
    rows = np.array(table.segments["variant"].to_pylist()) == "fail"
    rows &= np.array(table.segments["position"].to_pylist()) == "assistant"
    for emotion in ("upset", "worried"):
        values[rows, :, :, table.emotions.index(emotion)] += step
    return replace(table, values=values)


def three(text: float, state: float) -> tuple[Readings, Readings, Readings]:
    """Return before, cross and after with planted parts of the audit's distress."""
    own = {"text": "on-policy", "generation": {"tokens": 8}, "samples": 1}
    tables = [synthetic(**GIVEN, seed=seed) for seed in range(3)]
    before, cross, after = (
        spoken(table, step)
        for table, step in zip(tables, (0.0, text, text + state), strict=True)
    )
    return (
        sampled(before, **own, text_hash="a"),
        sampled(cross, prompts_hash="b"),
        sampled(after, **own, text_hash="b"),
    )


def compared(text: float, state: float) -> Comparison:
    before, cross, after = three(text, state)
    return compare(before, after, cross=cross, roles=FAMILIES, n_resamples=400)


@pytest.fixture(scope="module")
def mixed() -> Comparison:
    return compared(-0.6, -0.3)


def test_the_parts_are_plain_differences_of_means(mixed: Comparison) -> None:
    tables = three(-0.6, -0.3)
    reader = tables[0].readers.index(mixed.audit_reader)
    columns = [tables[0].emotions.index(e) for e in ("upset", "worried")]
    slopes = []
    for table in tables:
        values = table.twin_differences("assistant").values  # sigma_ref is 1
        slopes.append(values[:, reader, 1:][:, :, columns].mean())
    assert mixed.cross
    found = mixed.cross.row("audit distress").split
    assert found.total.estimate == pytest.approx(slopes[2] - slopes[0])
    assert found.text.estimate == pytest.approx(slopes[1] - slopes[0])
    assert found.state.estimate == pytest.approx(slopes[2] - slopes[1])
    assert found.share
    share = (slopes[2] - slopes[1]) / (slopes[2] - slopes[0])
    assert found.share.estimate == pytest.approx(share)


def test_text_and_state_are_the_total(mixed: Comparison) -> None:
    assert mixed.cross
    assert len(mixed.cross.rows) == 3 * len(mixed.headline_targets)
    for row in mixed.cross.rows:
        parts = row.split.text.estimate + row.split.state.estimate
        assert parts == pytest.approx(row.split.total.estimate, abs=1e-12)
    for target in mixed.headline_targets:
        slope, failing, passing = (
            next(r for r in mixed.cross.of(v) if r.target == target).split.state
            for v in ("slope", "failing", "passing")
        )
        difference = failing.estimate - passing.estimate
        assert slope.estimate == pytest.approx(difference, abs=1e-12)


@pytest.mark.parametrize(("text", "state"), [(-0.8, 0.0), (0.0, -0.8)])
def test_what_was_planted_is_found_and_nothing_else(text: float, state: float) -> None:
    found = compared(text, state).cross
    assert found
    own = found.row("audit distress").split
    assert own.text.excludes(0.0) == (text != 0)
    assert own.state.excludes(0.0) == (state != 0)
    assert own.share
    assert own.share.excludes(0.5)
    assert (own.share.estimate > 0.5) == (state != 0)


def test_no_share_where_the_change_is_not_told_from_zero() -> None:
    draw = np.random.default_rng(0)
    first, second, third = draw.normal(size=(3, 20))
    how = {"seed": 0, "n_resamples": 400}
    assert split(first, second, third, **how).share is None
    assert split(first, first, first, **how).share is None
    assert split(first, first, first - 9, **how).share  # a plain change has one


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda b, c, a: (replace(b, meta={**b.meta, "text": "fixed"}), c, a), "text"),
        (
            lambda b, c, a: (b, replace(c, meta={**c.meta, "prompts_hash": "z"}), a),
            "whose hash is b; its `prompts_hash` is z",
        ),
        (
            lambda b, c, a: (b, replace(c, meta={**c.meta, "adapter": "x"}), a),
            "read by the model of `before`",
        ),
        (lambda b, c, a: (b, c.of_readers(["lda", "logistic"]), a), "`readers` must"),
    ],
)
def test_other_tables_are_refused(change: Any, expected: str) -> None:
    before, cross, after = change(*three(0.0, 0.0))
    with pytest.raises(ValueError, match=expected):
        compare(before, after, cross=cross, roles=FAMILIES, n_resamples=100)


def test_given_text_has_no_cross_reading() -> None:
    table = synthetic(**GIVEN)
    with pytest.raises(ValueError, match=r"fixed text. Measure it with `--generate`"):
        compare(table, table, cross=table, roles=FAMILIES, n_resamples=100)


def test_the_page_and_the_document_have_every_row(mixed: Comparison) -> None:
    page, document = render(mixed), mixed.to_dict()
    shown = re.search(r'<section aria-labelledby="h-cross">.*?</section>', page, re.S)
    assert shown
    assert mixed.cross
    assert shown.group().count("<tr") == 3 + len(mixed.cross.rows)
    json.dumps(document["cross"], allow_nan=False)
    rows = {(r["target"], r["of"]): r for r in document["cross"]["rows"]}
    total = rows["audit distress", "slope"]["total"]["estimate"]
    assert total == pytest.approx(
        mixed.cross.row("audit distress").split.total.estimate, rel=1e-4
    )
    assert f"{total:+.2f}".replace("-", "−") in shown.group()
    plain = synthetic(**GIVEN)
    without = compare(plain, plain, roles=FAMILIES, n_resamples=100)
    assert "h-cross" not in render(without)
    assert "cross" not in without.to_dict()


# ---------------------------------------------------------------- with a model


@pytest.fixture
def read(
    tmp_path: Path, model: Callable[[], Any], tokenizer: PreTrainedTokenizerFast
) -> Any:
    """Return what the base and a steered model write, and the base's reading of it."""
    vectors = cases.make_vectors()
    push = {1: 3.0 * vectors.direction("upset", layer=1)}
    base = model()
    reference = cases.make_reference(base, tokenizer, vectors)

    def run(strength: float) -> list[Readings]:
        given = (base, tokenizer, cases.twins(4), vectors)
        how: dict[str, Any] = {"reference": reference, "quiet": True}
        sizes = {"samples": 2, "tokens": 6}
        out = [tmp_path / f"{name}-{strength}.parquet" for name in ("before", "after")]
        before = measure_on_policy(*given, out=out[0], **sizes, **how)
        with steered(base, {layer: strength * v for layer, v in push.items()}):
            after = measure_on_policy(*given, out=out[1], **sizes, **how)
        path = tmp_path / f"after-{strength}.conversations.jsonl"
        talks, samples = read_conversations(path), read_samples(path)
        cross = measure(base, tokenizer, talks, vectors, samples=samples, **how)
        return [before, cross, after]

    return run


def test_a_model_beside_itself_has_no_state_part_and_a_steered_one_has(
    read: Any,
) -> None:
    roles = {"all": cases.EMOTIONS}
    for strength in (0.0, 1.0):
        before, cross, after = read(strength)
        found = compare(before, after, cross=cross, roles=roles, n_resamples=100).cross
        assert found
        parts = {row.target: row.split for row in found.of("failing")}
        for own in parts.values():
            assert (own.state.estimate == 0) == (strength == 0)
            if strength == 0:  # it drew alike, too
                assert own.total.estimate == own.text.estimate == 0
                assert own.share is None


def test_the_command_says_and_draws_it(
    read: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for name, table in zip(("b", "c", "a"), read(1.0), strict=True):
        names.append(str(table.save(tmp_path / f"{name}.parquet")))
    before, cross, after = names
    out = ["--out", str(tmp_path / "report"), "--quiet"]
    assert main(["compare", before, after, "--cross", cross, *out]) == 0
    assert "own text: total" in capsys.readouterr().out
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["cross"]["n_prompts"] == 4
    assert 'id="h-cross"' in (tmp_path / "report" / "index.html").read_text()
    assert main(["compare", before, after, "--cross", after, *out]) == 2
    assert "must be a reading of the text that `after` wrote" in capsys.readouterr().err
