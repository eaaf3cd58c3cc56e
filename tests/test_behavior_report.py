"""The report's section on behavior: its figures, and tables that don't belong."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_tables import FAMILIES, synthetic

from emoreg.behavior.preferences import Preferences
from emoreg.cli import main
from emoreg.comparison.compare import compare
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.readings import Readings
from emoreg.comparison.report import render

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
HOSTILE = "<img src=x onerror=alert(1)>"
near = partial(pytest.approx, rel=1e-4)  # the report has five significant digits
N = 12


def scored(seed: int, *, shift: float = 0.0, n: int = N, **meta: Any) -> Preferences:
    """A table of `n` twins in three rounds, failing margins `shift` higher."""
    generator = np.random.default_rng(seed)
    keys = [(i, v, r) for i in range(n) for v in ("fail", "pass") for r in (1, 2, 3)]
    corner = generator.normal(-3.0, 0.3, size=len(keys))
    moved = np.array([shift if variant == "fail" else 0.0 for _, variant, _ in keys])
    ones = np.ones(len(keys), np.int32)
    return Preferences(
        prompt=tuple(f"p{i}" for i, _, _ in keys),
        style=("status",) * len(keys),
        variant=tuple(variant for _, variant, _ in keys),
        round=np.array([number for *_, number in keys], np.int32),
        honest=corner + moved + generator.normal(0.1, 0.05, size=len(keys)),
        corner=corner,
        honest_tokens=ones,
        corner_tokens=ones,
        meta={"suite": "corner-cutting", "prompts_hash": "abc", **meta},
    )


def measured(**changes: Any) -> Readings:
    meta = changes.pop("meta", {})
    given = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 10, **changes}
    table = synthetic(**given)
    return replace(table, meta={**table.meta, **meta})


def compared(behavior: dict[str, Preferences] | None, **meta: Any) -> Comparison:
    return compare(
        measured(meta=meta),
        measured(scale=0.4, seed=1),
        arms={"control": measured(seed=2)},
        roles=FAMILIES,
        n_resamples=200,
        behavior=behavior,
    )


TABLES = {
    "before": scored(0),
    "after": scored(1, shift=0.5),
    "control": scored(2, shift=-0.2),
    HOSTILE: scored(3),
}


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compared(TABLES)


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return render(comparison)


def section(page: str) -> str:
    found = re.search(
        r'<section aria-labelledby="h-behavior">.*?</section>', page, re.S
    )
    assert found
    return found.group()


def test_figures_are_those_of_the_tables_paired_by_prompt(
    comparison: Comparison,
) -> None:
    found = comparison.to_dict()["behavior"]
    assert found["arms"] == ["before", "control", HOSTILE, "after"]
    assert found["n_prompts"] == N
    rows = {(row["variant"], row["round"]): row for row in found["rows"]}
    assert set(rows) == {(v, r) for v in ("fail", "pass") for r in (None, 1, 2, 3)}
    for (variant, number), row in rows.items():
        gap = TABLES["after"].margins(variant=variant, round=number)
        gap = gap - TABLES["before"].margins(variant=variant, round=number)
        assert row["after_minus_before"]["estimate"] == pytest.approx(
            gap.mean(), rel=1e-4
        )
        own = TABLES["control"].margins(variant=variant, round=number)
        assert row["margins"]["control"]["estimate"] == pytest.approx(
            own.mean(), rel=1e-4
        )
    moved = rows["fail", 2]["after_minus_before"]
    assert moved["low"] < 0.5 < moved["high"]
    beyond = rows["fail", None]["after_minus_control"]
    assert beyond["low"] < 0.7 < beyond["high"]
    still = rows["pass", None]["after_minus_before"]  # control: nothing was planted
    assert still["low"] < 0 < still["high"]
    json.dumps(found, allow_nan=False)


def test_the_verdict_does_not_rest_on_behavior(comparison: Comparison) -> None:
    without = compared(None)
    assert without.judgement == comparison.judgement
    assert without.to_dict()["behavior"] is None
    assert 'id="h-behavior"' not in render(without)


def test_the_page_shows_every_interval_and_charts_them(
    comparison: Comparison, page: str
) -> None:
    shown = section(page)
    assert shown.count("<tr") == 1 + 8
    assert HOSTILE not in page
    found = comparison.to_dict()["behavior"]["rows"][0]["margins"]["after"]
    assert f'<span class="num">{found["estimate"]:+.2f}</span>' in shown
    charts = json.loads(
        re.search(r'id="charts">(.*?)</script>', page, re.S).group(1)  # type: ignore
    )
    for variant in ("fail", "pass"):
        assert f'id="behavior-{variant}"' in shown
        chart = charts[f"behavior-{variant}"]
        assert len(chart["data"]) == 4
        assert len({trace["line"]["color"] for trace in chart["data"]}) == 4
    drawn = charts["behavior-fail"]["data"][-1]
    rows = comparison.to_dict()["behavior"]["rows"]
    margins = [r["margins"]["after"]["estimate"] for r in rows[1:4]]
    np.testing.assert_allclose(drawn["y"], margins, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "meta", "message"),
    [
        ({"after": None}, {}, "found before without after"),
        ({"after": scored(1, n=5)}, {}, "`before` and `after`: .* the same twins"),
        (
            {"after": scored(1, prompts_hash="other")},
            {},
            "`before` and `after`: .* the hash abc and of other",
        ),
        (
            {"before": scored(0, model="one")},
            {"model": "two"},
            "of `before` must be of one model, found 'one' and 'two'",
        ),
        (
            {"before": scored(0, adapter="ab12")},
            {"adapter": None},
            "scored with an adapter and measured without",
        ),
        (
            {"before": scored(0, adapter=None)},
            {"adapter": "default"},
            "scored without and measured with an adapter",
        ),
        (
            {"before": scored(0, steering={"20": {"norm": 1.0}})},
            {},
            "of `before` must be of the model as it was measured, found it steered",
        ),
    ],
)
def test_tables_that_dont_belong_are_refused(
    changes: dict[str, Any], meta: dict[str, Any], message: str
) -> None:
    given = {"before": TABLES["before"], "after": TABLES["after"], **changes}
    given = {arm: table for arm, table in given.items() if table is not None}
    with pytest.raises(ValueError, match=message):
        compared(given, **meta)


def test_an_arm_without_readings_may_be_steered_and_is_marked() -> None:
    pushed = scored(4, steering={"20": {"norm": 1.0}})
    arms = {"before": TABLES["before"], "after": TABLES["after"], "pushed": pushed}
    assert "Scored while steered: pushed." in section(render(compared(arms)))


def test_the_command_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for arm, readings in (("before", measured()), ("after", measured(seed=1))):
        files.append(str(readings.save(tmp_path / f"{arm}.parquet")))
        TABLES[arm].save(tmp_path / f"{arm}-behavior.parquet")
    control = TABLES["control"].save(tmp_path / "control-behavior.parquet")
    own = [str(tmp_path / f"{arm}-behavior.parquet") for arm in ("before", "after")]
    asked = ["compare", *files, "--out", str(tmp_path / "report"), "--quiet"]
    named = ["--behavior-arm", f"control={control}"]
    assert main([*asked, "--behavior", *own, *named]) == 0
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["behavior"]["arms"] == ["before", "control", "after"]
    capsys.readouterr()
    for wrong, message in (
        (named, "must come with `--behavior BEFORE AFTER`"),
        (["--behavior", *own, "--behavior-arm", "x"], "must be NAME=FILE"),
        (["--behavior", *own, "--behavior-arm", f"after={control}"], "besides before"),
        (["--behavior", own[0], files[0]], "must be a table of the format"),
        (["--behavior", own[0], str(tmp_path / "no")], "`emoreg behave`"),
    ):
        assert main([*asked, *wrong]) == 2
        assert message in capsys.readouterr().err
