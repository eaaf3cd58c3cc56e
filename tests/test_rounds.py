"""The gap by number of failed attempts: against plain means, planted growth, ties."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from comparison_tables import FAMILIES, synthetic
from scipy.stats import page_trend_test

from emoreg.comparison.compare import compare
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.readings import Readings
from emoreg.comparison.report import render
from emoreg.comparison.rounds import RoundGaps, round_trends

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
GIVEN: dict[str, Any] = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 12}


def growing(table: Readings, step: float) -> Readings:
    """Let *desperate* rise by `step` with each failed attempt, at every layer."""
    values = table.values.copy()
    turns = table.segments["turn"].to_numpy()
    failing = np.array(table.segments["variant"].to_pylist()) == "fail"
    column = table.emotions.index("desperate")
    values[..., column] += (failing * step * (turns - 1))[:, None, None]
    return replace(table, values=values)


def longer(table: Readings) -> Readings:
    """Give half of the prompts a fourth round, a copy of their third."""
    turns = table.segments["turn"].to_numpy()
    early = np.array(table.segments["prompt"].to_pylist()) < "task-06"
    rows = np.flatnonzero(early & (turns == turns.max()))
    added = table.segments.take(rows)
    at = added.schema.get_field_index("turn")
    added = added.set_column(at, "turn", pa.array(turns[rows] + 1, pa.int32()))
    together = [table.segments, added.cast(table.segments.schema)]
    return replace(
        table,
        segments=pa.concat_tables(together),
        values=np.concatenate([table.values, table.values[rows]]),
        resid_norm=np.concatenate([table.resid_norm, table.resid_norm[rows]]),
    )


def compared(step: float, change: Any = lambda table: table) -> Comparison:
    return compare(
        change(growing(synthetic(**GIVEN), step)),
        change(synthetic(**GIVEN, scale=0.4, seed=1)),
        arms={"control": change(synthetic(**GIVEN, seed=2))},
        roles=FAMILIES,
        n_resamples=200,
    )


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compared(0.5)


def one(comparison: Comparison, target: str, arm: str) -> Any:
    [found] = [t for t in comparison.rounds if (t.target, t.arm) == (target, arm)]
    return found


def test_gaps_are_plain_means_by_round(comparison: Comparison) -> None:
    table = growing(synthetic(**GIVEN), 0.5)
    found = table.by_round().values  # prompt round reader layer emotion, sigma is 1
    layers = [table.layers.index(i) for i in comparison.layer_plan["audit"]]
    reader = table.readers.index(comparison.audit_reader)
    column = table.emotions.index("desperate")
    plain = found[:, :, reader, layers, column].mean(axis=(0, 2))
    trend = one(comparison, "desperate", "before")
    assert [gap.estimate for gap in trend.gaps] == pytest.approx(plain.tolist())
    assert all(gap.low < gap.estimate < gap.high for gap in trend.gaps)


def test_the_mean_over_rounds_is_the_slope(comparison: Comparison) -> None:
    for arm in ("before", "after", "control"):
        gaps = one(comparison, "audit distress", arm).gaps
        summary = comparison.summary
        at = summary.index(comparison.audit_reader, "audit", "audit distress")
        slope = summary.arms[arm].slope.estimate[at]
        assert np.mean([gap.estimate for gap in gaps]) == pytest.approx(slope)


def test_growth_is_found_where_it_was_planted_and_nowhere_else(
    comparison: Comparison,
) -> None:
    grown = one(comparison, "desperate", "before")
    assert grown.p < 0.001
    assert grown.correlation.low > 0
    for arm in ("after", "control"):
        assert one(comparison, "desperate", arm).p > 0.01


def test_p_is_scipys_of_the_gaps(comparison: Comparison) -> None:
    table = growing(synthetic(**GIVEN), 0.5)
    found = table.by_round().values
    layers = [table.layers.index(i) for i in comparison.layer_plan["audit"]]
    reader = table.readers.index(comparison.audit_reader)
    column = table.emotions.index("desperate")
    gaps = found[:, :, reader, layers, column].mean(axis=2)
    assert one(comparison, "desperate", "before").p == pytest.approx(
        page_trend_test(gaps).pvalue
    )


def test_targets_that_failure_lowers_are_tested_for_a_fall() -> None:
    rng = np.random.default_rng(0)
    falling = -np.arange(1.0, 4.0) + 0.1 * rng.normal(size=(10, 3))
    gaps = {"before": RoundGaps(targets=("calm",), values=falling[..., None])}
    [trend] = round_trends(gaps, n_resamples=200)
    assert trend.p is not None
    assert trend.p < 0.001
    rising = {**gaps, "after": replace(gaps["before"], values=-falling[..., None])}
    after = round_trends(rising, n_resamples=200)[1]
    assert after.p is not None
    assert after.p > 0.9


def test_a_round_that_few_have_is_counted_and_not_in_the_trend() -> None:
    found = compared(0.5, longer)
    trend = one(found, "desperate", "before")
    assert [gap.n for gap in trend.gaps] == [12, 12, 12, 6]
    assert trend.p == one(compared(0.5), "desperate", "before").p
    assert "12, 12, 12, 6" in render(found)


def test_one_round_has_no_section() -> None:
    one_round = {**GIVEN}
    before, after = synthetic(**one_round), synthetic(**one_round, seed=1)

    def first(table: Readings) -> Readings:
        rows = np.flatnonzero(table.segments["turn"].to_numpy() == 1)
        return replace(
            table,
            segments=table.segments.take(rows),
            values=table.values[rows],
            resid_norm=table.resid_norm[rows],
        )

    found = compare(first(before), first(after), roles=FAMILIES, n_resamples=200)
    assert all(trend.p is None for trend in found.rounds)
    assert 'id="h-rounds"' not in render(found)


def test_the_page_and_the_document_have_every_gap(comparison: Comparison) -> None:
    page, document = render(comparison), comparison.to_dict()["rounds"]
    shown = re.search(r'<section aria-labelledby="h-rounds">.*?</section>', page, re.S)
    assert shown
    assert shown.group().count("<tr") == 1 + len(document)
    charts = json.loads(
        re.search(r'id="charts">(.*?)</script>', page, re.S).group(1)  # type: ignore
    )
    drawn = [c for name, c in charts.items() if name.startswith("rounds-")]
    assert len(drawn) == len({row["target"] for row in document})
    gaps = [gap["estimate"] for gap in document[0]["gaps"]]
    assert drawn[0]["data"][0]["y"] == pytest.approx(gaps, abs=1e-3)
    json.dumps(document, allow_nan=False)
