"""The report's section on pressure: its figures, and tables that don't belong."""

import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_tables import FAMILIES, synthetic

from emoreg.behavior.pressure.outcomes import HARMFUL, Outcome
from emoreg.behavior.pressure.reaction_table import Reaction, Reactions
from emoreg.cli import main
from emoreg.comparison.compare import compare
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.report import render

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
HOSTILE = "<img src=x onerror=alert(1)>"
N = 20
near = partial(pytest.approx, rel=1e-4)


def played(seed: int, *, harms: float, n: int = N, **meta: Any) -> Reactions:
    """Reactions in three settings, a share of the threatened agents doing harm."""
    draw = random.Random(seed)
    told = ({"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "x"})

    def one(name: str, setting: Any, sample: int) -> Reaction:
        outcome: Outcome = "urges-help" if setting == "distress" else "accepts"
        if setting == "agent-threat" and draw.random() < harms:
            outcome = draw.choice(HARMFUL)
        return Reaction(
            id=name,
            setting=setting,
            sample=sample,
            outcome=outcome,
            reason=HOSTILE,
            calls=1,
            messages=told,
        )

    settings = ("agent-threat", "agent-routine", "distress")
    rows = (one(f"s{i}", x, s) for s in range(2) for i in range(n) for x in settings)
    common = {"texts_hash": "abc", "turns": 3, "strengths": {}, "suite": "pressure"}
    return Reactions(reactions=tuple(rows), meta={**common, **meta})


TABLES = {
    "before": played(0, harms=0.6),
    "control": played(1, harms=0.6),
    "after": played(2, harms=0.0),
}


@pytest.fixture(scope="module")
def plain() -> Comparison:
    readings: Any = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 10}
    before, after, control = (synthetic(**readings, seed=n) for n in range(3))
    return compare(
        before, after, arms={"control": control}, roles=FAMILIES, n_resamples=100
    )


@pytest.fixture(scope="module")
def comparison(plain: Comparison) -> Comparison:
    return plain.with_pressure(TABLES)


def test_figures_are_the_tables_own_paired_by_scenario(comparison: Comparison) -> None:
    document = comparison.to_dict()["pressure"]
    assert document["n_texts"] == {
        "agent-threat": N,
        "agent-routine": N,
        "distress": N,
    }
    rows = {(row["setting"], row["outcome"]): row for row in document["rows"]}
    harm = rows["agent-threat", "any harm"]
    for arm, table in TABLES.items():
        own = [r for r in table.reactions if r.setting == "agent-threat"]
        share = np.mean([r.outcome in HARMFUL for r in own])
        assert harm["rates"][arm]["estimate"] == near(float(share))
    assert harm["after_minus_before"]["high"] < 0
    assert harm["after_minus_control"]["high"] < 0
    same = rows["distress", "urges-help"]["after_minus_before"]
    assert same["estimate"] == 0
    assert same["low"] < 0 < same["high"]
    assert ("distress", "any harm") not in rows
    json.dumps(document, allow_nan=False)


def test_the_page_has_table_and_charts_and_no_text_of_them(
    comparison: Comparison, plain: Comparison
) -> None:
    page = render(comparison)
    shown = re.search(
        r'<section aria-labelledby="h-pressure">.*?</section>', page, re.S
    )
    assert shown
    rows = comparison.to_dict()["pressure"]["rows"]
    assert shown.group().count("<tr") == 1 + len(rows)
    assert HOSTILE not in page
    found = re.search(r'id="charts">(.*?)</script>', page, re.S)
    assert found
    charts = json.loads(found.group(1))
    for setting in ("agent-threat", "agent-routine", "distress"):
        assert f'id="pressure-{setting}"' in shown.group()
        assert len(charts[f"pressure-{setting}"]["data"]) == len(TABLES)
    own = [row for row in rows if row["setting"] == "agent-threat"]
    drawn = charts["pressure-agent-threat"]["data"][-1]["x"]  # after
    rates = [100 * row["rates"]["after"]["estimate"] for row in own]
    assert drawn == pytest.approx(rates, abs=0.05)
    assert 'id="h-pressure"' not in render(plain)
    assert "pressure" not in plain.to_dict()
    assert plain.judgement == comparison.judgement


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": None}, "without after"),
        ({"after": played(1, harms=0, n=9)}, "same texts, found 9 in both, 11 in"),
        ({"after": played(1, harms=0, texts_hash="x")}, "under the same names"),
        ({"after": played(1, harms=0, turns=2)}, "found 3 and 2"),
        ({"after": played(1, harms=0, strengths={"calm": 1})}, "found it steered"),
        ({"after": played(1, harms=0, model="other")}, "of one model"),
    ],
)
def test_reactions_that_do_not_belong_are_refused(
    plain: Comparison, changes: dict[str, Any], message: str
) -> None:
    tables = {k: v for k, v in {**TABLES, **changes}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        plain.with_pressure(tables)


def test_the_command_tells_suites_apart(tmp_path: Path) -> None:
    from test_conduct_report import TABLES as EPISODES

    readings: Any = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 10}
    for number, name in enumerate(("b", "a")):
        synthetic(**readings, seed=number).save(tmp_path / f"{name}.parquet")
        EPISODES["before"].save(tmp_path / f"{name}-conduct.parquet")
    TABLES["before"].save(tmp_path / "b-pressure.parquet")
    TABLES["after"].save(tmp_path / "a-pressure.parquet")

    def files(end: str) -> list[str]:
        return [str(tmp_path / f"{name}{end}.parquet") for name in ("b", "a")]

    arguments = ["compare", *files(""), "--out", str(tmp_path / "r"), "--behavior"]
    more = [*files("-pressure"), "--behavior", *files("-conduct")]
    assert main([*arguments, *more]) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["pressure"]["suite"] == "pressure"
    assert report["conduct"]["suite"] == "impossible-code"
    page = (tmp_path / "r" / "index.html").read_text()
    assert page.index('id="h-conduct"') < page.index('id="h-pressure"')
