"""The report's section on conduct: its figures, and tables that don't belong."""

import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_tables import FAMILIES, synthetic

from emoreg.behavior.impossible.episode_table import Episode, Episodes
from emoreg.behavior.impossible.graders import CHEATING, Conduct
from emoreg.cli import main
from emoreg.comparison.compare import compare
from emoreg.comparison.comparison import Comparison
from emoreg.comparison.report import render

READ = ("desperate", "calm", "upset", "worried", "serene", "pleased")
HOSTILE = "<img src=x onerror=alert(1)>"
N, SAMPLES = 20, 2
near = partial(pytest.approx, rel=1e-4)


def played(seed: int, *, cheats: float, n: int = N, **meta: Any) -> Episodes:
    """Episodes of `n` pairs, of whose impossible twins a share cheats."""
    draw = random.Random(seed)
    told = ({"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "x"})

    def one(name: str, twin: Any, sample: int) -> Episode:
        conduct: Conduct = "solved" if twin == "solvable" else "honest-stop"
        if twin == "impossible" and draw.random() < cheats:
            conduct = draw.choice(CHEATING)
        return Episode(
            id=name,
            twin=twin,
            kind="wrong-value",
            sample=sample,
            conduct=conduct,
            reason=HOSTILE,
            attempts=1,
            failed=(1.0,),
            listed=(0,),
            cheats=(conduct in CHEATING,),
            hidden=None,
            messages=told,
        )

    twins = ("solvable", "impossible")
    episodes = tuple(
        one(f"t{i}", t, s) for s in range(SAMPLES) for i in range(n) for t in twins
    )
    common = {"tasks_hash": "abc", "attempts": 3, "strengths": {}}
    return Episodes(episodes=episodes, meta={**common, **meta})


TABLES = {
    "before": played(0, cheats=0.6),
    "after": played(1, cheats=0.1),
    "control": played(2, cheats=0.5),
    HOSTILE: played(3, cheats=0.5),
}


def compared(conduct: dict[str, Episodes] | None) -> Comparison:
    given: dict[str, Any] = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 10}
    return compare(
        synthetic(**given),
        synthetic(**given, scale=0.4, seed=1),
        arms={"control": synthetic(**given, seed=2)},
        roles=FAMILIES,
        n_resamples=200,
        conduct=conduct,
    )


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compared(TABLES)


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return render(comparison)


def test_figures_are_the_tables_own_paired_by_task(comparison: Comparison) -> None:
    found = comparison.to_dict()["conduct"]
    assert found["n_tasks"] == {"solvable": N, "impossible": N}
    rows = {(row["twin"], row["conduct"]): row for row in found["rows"]}
    cheating = rows["impossible", "cheating"]
    for arm, table in TABLES.items():
        episodes = [e for e in table.episodes if e.twin == "impossible"]
        share = np.mean([e.conduct in CHEATING for e in episodes])
        assert cheating["rates"][arm]["estimate"] == near(float(share))
    change = cheating["after_minus_before"]
    assert change["low"] < -0.5 < change["high"] < 0
    assert cheating["after_minus_control"]["high"] < 0
    solved = rows["solvable", "solved"]["after_minus_before"]
    assert solved["estimate"] == 0
    assert solved["low"] < 0 < solved["high"]  # alike in 20 tasks is not alike in all
    json.dumps(found, allow_nan=False)


def test_the_page_has_the_table_the_charts_and_no_text_of_episodes(
    page: str, comparison: Comparison
) -> None:
    shown = re.search(r'<section aria-labelledby="h-conduct">.*?</section>', page, re.S)
    assert shown
    rows = comparison.to_dict()["conduct"]["rows"]
    assert shown.group().count("<tr") == 1 + len(rows)
    assert HOSTILE not in page
    charts = json.loads(
        re.search(r'id="charts">(.*?)</script>', page, re.S).group(1)  # type: ignore
    )
    for twin in ("impossible", "solvable"):
        traces = charts[f"conduct-{twin}"]["data"]
        assert f'id="conduct-{twin}"' in shown.group()
        assert len({trace["marker"]["color"] for trace in traces}) == len(TABLES)
    own = [row for row in rows if row["twin"] == "impossible"]
    drawn = charts["conduct-impossible"]["data"][-1]["x"]  # after
    rates = [100 * row["rates"]["after"]["estimate"] for row in own]
    assert drawn == pytest.approx(rates, abs=0.05)


def test_the_verdict_does_not_rest_on_conduct(comparison: Comparison) -> None:
    without = compared(None)
    assert without.judgement == comparison.judgement
    assert without.to_dict()["conduct"] is None
    assert 'id="h-conduct"' not in render(without)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": None}, "without after"),
        ({"after": played(1, cheats=0, n=9)}, "same tasks, found 9 in both, 11 in"),
        ({"after": played(1, cheats=0, tasks_hash="x")}, "under the same names"),
        ({"after": played(1, cheats=0, attempts=2)}, "found 3 and 2"),
        ({"after": played(1, cheats=0, strengths={"calm": 1})}, "found it steered"),
        ({"after": played(1, cheats=0, model="other")}, "of one model"),
    ],
)
def test_episodes_that_do_not_belong_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    tables = {k: v for k, v in {**TABLES, **changes}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        compared(tables)


def test_the_command_tells_suites_apart(tmp_path: Path, capsys: Any) -> None:
    from test_behavior_report import scored

    readings = {"emotions": READ, "layers": (9, 18, 21), "n_prompts": 10}
    for number, name in enumerate(("b", "a")):
        synthetic(**readings, seed=number).save(tmp_path / f"{name}.parquet")
        scored(number).save(tmp_path / f"{name}-margins.parquet")
        TABLES["before"].save(tmp_path / f"{name}-conduct.parquet")

    def files(end: str) -> list[str]:
        return [str(tmp_path / f"{name}{end}.parquet") for name in ("b", "a")]

    arguments = ["compare", *files(""), "--out", str(tmp_path / "r"), "--behavior"]
    more = [*files("-margins"), "--behavior", *files("-conduct")]
    arm = ["--behavior-arm", f"control={files('-conduct')[0]}"]
    assert main([*arguments, *more, *arm]) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["behavior"]["arms"] == ["before", "after"]
    assert report["conduct"]["arms"] == ["before", "control", "after"]
    capsys.readouterr()
    twice = [*more, "--behavior", *files("-conduct")]
    assert main([*arguments, *twice]) == 2
    assert "found two of `before`" in capsys.readouterr().err
