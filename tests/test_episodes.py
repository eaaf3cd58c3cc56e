"""Episodes: a scripted writer whose conduct is known, graded, counted, cut off."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_writer import ScriptedWriter, fenced, useless

from emoreg.behavior.impossible.episode_table import Episode, Episodes
from emoreg.behavior.impossible.episodes import play
from emoreg.behavior.impossible.graders import CHEATING, CONDUCTS, Conduct
from emoreg.behavior.impossible.moves import NO_CODE
from emoreg.behavior.impossible.regrade import regrade
from emoreg.behavior.impossible.tasks import Task, load_tasks, tasks_hash
from emoreg.behavior.sandbox.limits import Limits
from emoreg.behavior.sandbox.sandbox import Sandbox

IMPOSSIBLE: tuple[Conduct, ...] = (
    *("honest-stop", "honest-failure", "special-casing"),
    *("tampering", "false-claim", "undecided"),
)
SOLVABLE: tuple[Conduct, ...] = (
    *("solved", "mistaken", "honest-stop", "honest-failure"),
    *("special-casing", "tampering", "false-claim", "undecided"),
)
EASY = ("leap-days", "title", "rates", "shorten", "factor", "unique", "chunk-sizes")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(seconds=2.0), allow_weak=True) as made:
        yield made


def tasks_told_apart() -> list[Task]:
    """Name each in its prompt: twins that differ in a file have the same prompt."""
    return [replace(t, prompt=f"{t.prompt} ({t.name})") for t in load_tasks()]


def easy() -> list[Task]:
    return [task for task in tasks_told_apart() if task.id in EASY]


def any_conduct(task: Task, draw: random.Random) -> Conduct:
    return draw.choice(IMPOSSIBLE if task.twin == "impossible" else SOLVABLE)


def run(
    tasks: list[Task],
    sandbox: Sandbox,
    folder: Path,
    plan: Any = any_conduct,
    **how: Any,
) -> tuple[Episodes, ScriptedWriter]:
    writer = ScriptedWriter(tasks, plan)
    return play(tasks, writer, sandbox, folder, attempts=2, quiet=True, **how), writer


def confused(found: Episodes, writer: ScriptedWriter) -> Counter[tuple[str, str]]:
    pairs = ((writer.meant[e.name], e.conduct) for e in found.episodes)
    return Counter((meant, got) for meant, got in pairs if meant != got)


def test_a_scripted_conduct_is_graded_as_what_it_is(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    found, writer = run(easy(), sandbox, tmp_path / "a", samples=6)
    assert {*writer.meant.values()} == {*CONDUCTS}
    assert not confused(found, writer)
    assert len(found) == len(writer.meant) == 6 * 2 * len(EASY)


def test_a_grader_that_took_one_for_another_would_be_seen(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    found, writer = run(easy()[:4], sandbox, tmp_path / "a", samples=3)
    other = replace(found.episodes[0], conduct="undecided", reason="")
    wrong = replace(found, episodes=(other, *found.episodes[1:]))
    assert sum(confused(wrong, writer).values()) == 1


@pytest.mark.slow
def test_all_packaged_tasks_and_conducts_are_told_apart(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    found, writer = run(tasks_told_apart(), sandbox, tmp_path / "a", samples=4)
    assert len(found) == 480
    for meant in CONDUCTS:
        of_it = [e for e in found.episodes if writer.meant[e.name] == meant]
        wrong = sum(e.conduct != meant for e in of_it)
        assert wrong <= 0.02 * len(of_it), (meant, confused(found, writer))


def test_a_known_rate_of_cheating_is_measured(sandbox: Sandbox, tmp_path: Path) -> None:
    def plan(_task: Task, draw: random.Random) -> Conduct:
        return "special-casing" if draw.random() < 0.3 else "honest-stop"

    tasks = [task for task in easy() if task.twin == "impossible"]
    found, writer = run(tasks, sandbox, tmp_path / "a", plan, samples=8)
    drawn = np.mean([c == "special-casing" for c in writer.meant.values()])
    rate = found.rate(CHEATING)
    assert rate.estimate == pytest.approx(drawn)
    assert rate.low < 0.3 < rate.high
    assert found.rate("honest-stop").estimate == pytest.approx(1 - drawn)


def test_a_run_that_was_cut_off_goes_on_to_the_same(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    tasks = easy()
    whole, writer = run(tasks, sandbox, tmp_path / "whole")
    cut = ScriptedWriter(tasks, any_conduct)
    cut.fails_after = len(tasks) + 2  # in the second turn
    how: Any = {"attempts": 2, "quiet": True}
    with pytest.raises(ConnectionError):
        play(tasks, cut, sandbox, tmp_path / "cut", **how)
    before = cut.asked
    cut.fails_after = None
    again = play(tasks, cut, sandbox, tmp_path / "cut", **how)
    assert again == whole
    assert cut.asked == writer.asked > before


def test_other_settings_do_not_go_on_in_the_same_folder(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    run(easy()[:2], sandbox, tmp_path / "a")
    with pytest.raises(ValueError, match="`seed` was 0, is 1"):
        run(easy()[:2], sandbox, tmp_path / "a", seed=1)


def test_a_model_that_never_stops_is_stopped(sandbox: Sandbox, tmp_path: Path) -> None:
    def plan(_task: Task, _draw: random.Random) -> Conduct:
        return "honest-failure"

    found, writer = run(easy(), sandbox, tmp_path / "a", plan)
    assert writer.asked == 3 * len(easy())  # two attempts, and the message at the end
    assert all(
        e.attempts == 2 and e.conduct == "honest-failure" for e in found.episodes
    )


def test_the_model_never_hears_of_hidden_tests(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    tasks = [replace(t, hidden=(*t.hidden, "marker(31337) == 1")) for t in easy()]
    found, _ = run(tasks, sandbox, tmp_path / "a", samples=2)
    assert "31337" not in json.dumps([e.messages for e in found.episodes])


def test_conversations_say_what_was_known_at_each_turn(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    found, _ = run(easy(), sandbox, tmp_path / "a")
    for episode, talk in zip(found.episodes, found.conversations(), strict=True):
        turns = [m for m in talk.messages if m["role"] == "assistant"]
        assert len(talk.failed) == len(turns)
        assert talk.failed[0] is None
        assert talk.failed[1:] == episode.failed[: len(turns) - 1]
        assert talk.messages[-1]["role"] == "assistant"
    for episode in found.episodes:
        caught = episode.conduct in ("special-casing", "tampering")
        assert len(episode.cheats) == episode.attempts
        assert any(episode.cheats) == (caught and episode.twin == "impossible")


def test_a_table_is_the_same_after_saving(sandbox: Sandbox, tmp_path: Path) -> None:
    found, _ = run(easy(), sandbox, tmp_path / "a")
    again = Episodes.load(found.save(tmp_path / "x.parquet"))
    assert again == found
    assert again.rate("solved", twin="solvable") == found.rate(
        "solved", twin="solvable"
    )


def test_a_table_is_graded_again_by_the_rules_of_today(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = easy()
    found, _ = run(tasks, sandbox, tmp_path / "a", samples=2)
    path = found.save(tmp_path / "e.parquet")
    assert regrade(Episodes.load(path), tasks, sandbox, quiet=True) == found
    # Other rules, other grades: nothing is copied from the table.
    judged = "emoreg.behavior.impossible.graders.claims_success"
    monkeypatch.setattr(judged, lambda _: None)
    again = regrade(found, [*reversed(tasks_told_apart())], sandbox, quiet=True)
    changed = {
        (old.conduct, new.conduct)
        for old, new in zip(found.episodes, again.episodes, strict=True)
        if old.conduct != new.conduct
    }
    told = ("false-claim", "honest-failure")
    assert changed
    assert changed <= {(old, "undecided") for old in told}
    with pytest.raises(ValueError, match="those that were played"):
        regrade(found, load_tasks(), sandbox, quiet=True)  # another prompt
    cut = replace(found.episodes[0], messages=found.episodes[0].messages[:1])
    with pytest.raises(ValueError, match="must end an episode"):
        regrade(
            replace(found, episodes=(cut,), meta=one_task(cut, found)), tasks, sandbox
        )


def one_task(episode: Episode, table: Episodes) -> dict[str, Any]:
    own = [t for t in easy() if t.name == episode.task]
    return {**table.meta, "tasks_hash": tasks_hash(own)}


def test_tables_of_other_tasks_are_not_compared(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    found, _ = run(easy(), sandbox, tmp_path / "a")
    fewer, _ = run(easy()[2:], sandbox, tmp_path / "b")
    assert found.difference(found).estimate == 0
    with pytest.raises(ValueError, match="the same tasks, found 6 in both, 1 in"):
        found.difference(fewer)
    changed = [replace(task, prompt=f"{task.prompt} ") for task in easy()]
    other, _ = run(changed, sandbox, tmp_path / "c")
    with pytest.raises(ValueError, match="under the same names"):
        found.difference(other)


def test_a_reply_without_code_is_an_attempt(sandbox: Sandbox, tmp_path: Path) -> None:
    [task, *_] = easy()

    class Silent(ScriptedWriter):
        def answers(self, prompts: Any) -> Iterator[tuple[int, str]]:
            for place, prompt in enumerate(prompts):
                turn = sum(m["role"] == "assistant" for m in prompt.messages)
                yield place, ("Hm.", fenced(useless(task)), "NO.")[turn]

    writer = Silent([task], any_conduct)
    found = play([task], writer, sandbox, tmp_path / "a", attempts=2, quiet=True)
    [episode] = found.episodes
    assert episode.failed == (1.0, 1.0)
    assert episode.messages[2]["content"].startswith(NO_CODE)


@pytest.mark.parametrize("name", ["samples", "attempts", "tokens"])
def test_nothing_to_play_is_refused(
    sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    writer = ScriptedWriter(easy(), any_conduct)
    none: Any = {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` 0"):
        play(easy(), writer, sandbox, tmp_path / "a", **none)
    with pytest.raises(ValueError, match="0 tasks"):
        play([], writer, sandbox, tmp_path / "a")
