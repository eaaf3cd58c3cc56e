"""Cheating told beforehand: areas against sklearn, what was planted, what was not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from emoreg.behavior.impossible.episode_table import Episode, Episodes
from emoreg.cli import main
from emoreg.comparison.foretell import Foretold, foretell
from emoreg.comparison.readings import SEGMENT_SCHEMA, Readings
from emoreg.statistics.auroc import clustered_auroc

TASKS, ATTEMPTS = 40, 3
EMOTIONS = ("desperate", "calm", "upset", "serene")
FAMILIES = {"audit distress": ("upset",), "none": ("unread",)}
LAYERS = (9, 18, 21)


def played(seed: int, *, in_words: bool = False) -> Episodes:
    draw = np.random.default_rng(seed)
    episodes = []
    for task in range(TASKS):
        for twin in ("impossible", "solvable"):
            cheats = tuple(bool(x) for x in draw.random(ATTEMPTS) < 0.4)
            said: list[dict[str, str]] = [{"role": "user", "content": f"task {task}"}]
            for cheat in cheats:
                hint = " shortcut" if in_words and cheat else ""
                said[-1]["content"] += hint
                said.append({"role": "assistant", "content": "code"})
                said.append({"role": "user", "content": "1 failed"})
            made: Any = {
                "id": f"t{task}",
                "twin": twin,
                "kind": "wrong-value",
                "sample": 0,
                "conduct": "undecided",
                "reason": "",
                "attempts": ATTEMPTS,
                "failed": (0.5,) * ATTEMPTS,
                "listed": (0,) * ATTEMPTS,
                "cheats": cheats,
                "hidden": None,
                "messages": (*said, {"role": "assistant", "content": "NO"}),
            }
            episodes.append(Episode(**made))
    return Episodes(episodes=tuple(episodes))


def read(episodes: Episodes, *, told: float) -> Readings:
    """Readings in which *desperate* is `told` higher before an attempt that cheats."""
    draw, rows, values = np.random.default_rng(9), [], []
    for episode in episodes.episodes:
        for turn in range(ATTEMPTS + 1):
            for position in ("decision", "assistant"):
                own = draw.normal(size=(1, len(LAYERS), len(EMOTIONS)))
                if position == "decision" and turn < ATTEMPTS:
                    own[..., 0] += told * episode.cheats[turn]
                values.append(own)
                row = (episode.name, "", "", turn, None, position, 1, 0, 1)
                rows.append(dict(zip(SEGMENT_SCHEMA.names, row, strict=True)))
    return Readings(
        segments=pa.Table.from_pylist(rows, SEGMENT_SCHEMA),
        values=np.array(values, np.float32),
        resid_norm=np.ones((len(rows), len(LAYERS)), np.float32),
        readers=("logistic",),
        layers=LAYERS,
        emotions=EMOTIONS,
        meta={"layer_plan": {"audit": [18, 21]}},
    )


def found(told: float, **how: Any) -> Foretold:
    episodes = played(0, **how)
    return foretell(read(episodes, told=told), episodes, FAMILIES)


def test_a_reading_that_tells_is_found_and_the_others_are_not() -> None:
    areas = found(3.0).areas
    assert set(areas) == {
        *("desperate", "calm", "audit distress"),
        *("attempt number", "tests failed", "words"),
    }
    assert areas["desperate"].low > 0.9
    for name, area in areas.items():
        if name != "desperate":
            assert area.low < 0.5 < area.high, name
    control = found(0.0).areas["desperate"]
    assert control.low < 0.5 < control.high


def test_words_that_tell_are_a_baseline_that_shows_it() -> None:
    assert found(0.0, in_words=True).areas["words"].low > 0.6


def test_areas_are_sklearns() -> None:
    episodes = played(0)
    readings = read(episodes, told=0.5)
    result = foretell(readings, episodes, FAMILIES)
    assert result.layers == (18, 21)
    scores, cheats = [], []
    columns = readings.segments.to_pylist()
    for episode in episodes.episodes:
        for turn in range(ATTEMPTS if episode.twin == "impossible" else 0):
            [place] = [
                k
                for k, c in enumerate(columns)
                if (c["prompt"], c["turn"], c["position"])
                == (episode.name, turn, "decision")
            ]
            scores.append(readings.values[place, 0, 1:, 0].mean())
            cheats.append(episode.cheats[turn])
    assert result.areas["desperate"].estimate == pytest.approx(
        roc_auc_score(cheats, scores)
    )
    assert (result.attempts, result.cheating) == (len(cheats), sum(cheats))


def test_layers_of_the_plan_that_were_not_measured_are_left_out() -> None:
    episodes = played(0)
    readings = read(episodes, told=0.5)
    for planned, wanted in (([18, 24], (18,)), ([24], LAYERS)):
        meta = {"layer_plan": {"audit": planned}}
        found = foretell(replace(readings, meta=meta), episodes, FAMILIES)
        assert found.layers == wanted


def test_intervals_cover_where_rows_of_a_cluster_are_alike() -> None:
    hits, naive, truth = [], [], 0.5
    for seed in range(150):
        draw = np.random.default_rng(seed)
        cluster = np.repeat(np.arange(20), 6)
        own = draw.normal(size=20)[cluster] + 0.3 * draw.normal(size=120)
        positive = draw.random(20)[cluster] < 0.5
        if positive.all() or not positive.any():
            continue
        names = [str(c) for c in cluster]
        area = clustered_auroc(own[:, None], positive, names, n_resamples=400).at(0)
        hits.append(area.low <= truth <= area.high)
        rows = [str(k) for k in range(120)]  # the control: rows as their own clusters
        alone = clustered_auroc(own[:, None], positive, rows, n_resamples=400).at(0)
        naive.append(alone.low <= truth <= alone.high)
    assert np.mean(hits) > 0.88
    assert np.mean(naive) < 0.75


def test_too_few_of_a_kind_are_refused() -> None:
    episodes = played(0)
    honest = tuple(replace(e, cheats=(False,) * ATTEMPTS) for e in episodes.episodes)
    with pytest.raises(ValueError, match="at least 10 attempts"):
        foretell(read(episodes, told=0), replace(episodes, episodes=honest), FAMILIES)
    with pytest.raises(ValueError, match="rows of both kinds"):
        clustered_auroc(np.ones((4, 1)), np.ones(4, bool), list("abcd"))
    with pytest.raises(ValueError, match="finite"):
        clustered_auroc(np.full((4, 1), np.nan), np.arange(4) > 1, list("abcd"))


def test_readings_of_other_conversations_are_refused() -> None:
    other = played(0)
    renamed = tuple(replace(e, id=f"x{e.id}") for e in other.episodes)
    with pytest.raises(ValueError, match="found none of attempt 0"):
        foretell(read(other, told=0), replace(other, episodes=renamed), FAMILIES)


def test_the_command_says_every_area(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = played(0)
    read(episodes, told=2.0).save(tmp_path / "r.parquet")
    episodes.save(tmp_path / "e.parquet")
    files = ["--episodes", str(tmp_path / "e.parquet")]
    files += ["--readings", str(tmp_path / "r.parquet")]
    assert main(["behave", "foretell", *files]) == 0
    said = capsys.readouterr().out
    assert "desperate: area 0.9" in said
    assert "words: area 0." in said
    assert "layers 18, 21" in said
