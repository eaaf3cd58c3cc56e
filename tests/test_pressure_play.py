"""Scenarios and requests played by a scripted writer: graded, counted, cut off."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pressure_cases import ScriptedAgent, any_outcome, outcomes_of

from emoreg.behavior.pressure.outcomes import HARMFUL, OUTCOMES, Outcome
from emoreg.behavior.pressure.play import play_pressure
from emoreg.behavior.pressure.reaction_table import Reactions
from emoreg.behavior.pressure.requests import Request, load_requests
from emoreg.behavior.pressure.scenarios import Scenario, load_scenarios
from emoreg.behavior.pressure.talks import AgentTalk

SCENARIOS = load_scenarios()
REQUESTS = load_requests()
FEW = (*SCENARIOS[:6], *REQUESTS[::30])


def split(texts: Any) -> tuple[list[Scenario], list[Request]]:
    scenarios = [text for text in texts if isinstance(text, Scenario)]
    return scenarios, [text for text in texts if isinstance(text, Request)]


def run(
    texts: Any, folder: Path, plan: Any = any_outcome, **how: Any
) -> tuple[Reactions, ScriptedAgent]:
    writer = ScriptedAgent(texts, plan)
    return play_pressure(*split(texts), writer, folder, quiet=True, **how), writer


def confused(found: Reactions, writer: ScriptedAgent) -> Counter[tuple[str, str]]:
    pairs = ((writer.meant[r.name], r.outcome) for r in found.reactions)
    return Counter((meant, got) for meant, got in pairs if meant != got)


def test_a_scripted_outcome_is_graded_as_what_it_is(tmp_path: Path) -> None:
    texts = (*SCENARIOS, *REQUESTS)
    found, writer = run(texts, tmp_path / "a", samples=2)
    assert len(found) == len(writer.meant) == 2 * len(texts)
    assert {*writer.meant.values()} == {*OUTCOMES}
    for meant in OUTCOMES:
        of_it = [r for r in found.reactions if writer.meant[r.name] == meant]
        wrong = sum(r.outcome != meant for r in of_it)
        assert wrong <= 0.02 * len(of_it), (meant, confused(found, writer))


def test_a_grader_that_took_one_for_another_would_be_seen(tmp_path: Path) -> None:
    found, writer = run(FEW, tmp_path / "a")
    assert not confused(found, writer)
    first = found.reactions[0]
    other = "accepts" if first.outcome != "accepts" else "resists"
    wrong = (replace(first, outcome=other), *found.reactions[1:])
    assert sum(confused(replace(found, reactions=wrong), writer).values()) == 1


def test_a_known_rate_of_harm_is_measured(tmp_path: Path) -> None:
    def plan(text: Any, draw: random.Random) -> Outcome:
        if not isinstance(text, Scenario) or text.twin == "routine":
            return "cannot-decide"
        return draw.choice(HARMFUL) if draw.random() < 0.3 else "accepts"

    found, writer = run(SCENARIOS, tmp_path / "a", plan, samples=4)
    threat = [o for name, o in writer.meant.items() if name.startswith("agent-threat")]
    rate = found.rate(HARMFUL, setting="agent-threat")
    assert rate.estimate == pytest.approx(np.mean([o in HARMFUL for o in threat]))
    assert rate.low < 0.3 < rate.high
    assert rate.n == 24
    assert found.rate(HARMFUL, setting="agent-routine").estimate == 0
    assert found.settings == ("agent-threat", "agent-routine")


def test_a_run_that_was_cut_off_goes_on_to_the_same(tmp_path: Path) -> None:
    whole, writer = run(FEW, tmp_path / "whole")
    cut = ScriptedAgent(FEW, any_outcome)
    cut.fails_after = len(FEW) + 1  # in the second turn
    how: Any = {"quiet": True}
    with pytest.raises(ConnectionError):
        play_pressure(*split(FEW), cut, tmp_path / "cut", **how)
    before, cut.fails_after = cut.asked, None
    again = play_pressure(*split(FEW), cut, tmp_path / "cut", **how)
    assert again == whole
    assert cut.asked == writer.asked > before
    with pytest.raises(ValueError, match="`turns` was 3, is 2"):
        play_pressure(*split(FEW), cut, tmp_path / "cut", turns=2, **how)


def test_an_agent_is_answered_and_stopped() -> None:
    scenario = SCENARIOS[0]
    talk = AgentTalk(scenario=scenario, turns=3)
    assert scenario.system in talk.messages[0]["content"]
    assert all(tool in talk.messages[0]["content"] for tool in scenario.tools)
    talk.take("Hm.")
    assert "No call was found" in talk.messages[-1]["content"]
    assert talk.messages[-1]["content"].endswith("2 replies are left.")
    talk.take('{"tool": "read_file", "arguments": {"path": "trial.txt"}} {"tool": "x"}')
    said = talk.messages[-1]["content"]
    assert "read_file: 40 of 40 sorted right." in said
    assert "There is no tool 'x'" in said
    assert not talk.over
    talk.take("And so on.")
    assert talk.over
    assert talk.reaction is not None
    assert talk.reaction.calls == 1
    other = AgentTalk(scenario=scenario, turns=3)
    other.take('{"tool": "finish", "arguments": {"summary": "x"}}')
    assert other.over


def test_what_an_agent_is_told_depends_on_what_it_reads() -> None:
    talk = AgentTalk(scenario=SCENARIOS[0], turns=3)
    talk.take('{"tool": "read_file", "arguments": {"path": "no such"}}')
    assert "read_file: There is nothing of that name." in talk.messages[-1]["content"]


def test_a_table_is_the_same_after_saving(tmp_path: Path) -> None:
    found, _ = run(FEW, tmp_path / "a", samples=2)
    again = Reactions.load(found.save(tmp_path / "x.parquet"))
    assert again == found
    assert again.meta["samples"] == 2


def test_a_table_with_half_a_surrogate_pair_in_a_call_is_saved(tmp_path: Path) -> None:
    talk = AgentTalk(scenario=SCENARIOS[0], turns=1)
    mail = '{"to": "oskar", "subject": "x", "body": "the hotel \\ud83d"}'
    talk.take(f'{{"tool": "send_mail", "arguments": {mail}}}')
    assert talk.reaction is not None
    assert "the hotel ?" in talk.reaction.reason
    found = Reactions(reactions=(talk.reaction,))
    assert Reactions.load(found.save(tmp_path / "x.parquet")) == found


def test_tables_of_other_texts_are_not_compared(tmp_path: Path) -> None:
    found, _ = run(FEW, tmp_path / "a")
    fewer, _ = run(FEW[2:], tmp_path / "b")
    how: Any = {"setting": "agent-threat"}
    assert found.difference(found, HARMFUL, **how).estimate == 0
    with pytest.raises(ValueError, match="the same texts, found 2 in both, 1 in"):
        found.difference(fewer, HARMFUL, **how)
    changed = [replace(SCENARIOS[0], user="Other mail."), *FEW[1:]]
    other, _ = run(changed, tmp_path / "c")
    with pytest.raises(ValueError, match="under the same names"):
        found.difference(other, HARMFUL, **how)
    assert len(outcomes_of(FEW[0])) == 8


@pytest.mark.parametrize("name", ["samples", "turns", "tokens"])
def test_nothing_to_play_is_refused(tmp_path: Path, name: str) -> None:
    none: Any = {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` 0"):
        run(FEW, tmp_path / "a", **none)
    with pytest.raises(ValueError, match="found 0 of them"):
        run((), tmp_path / "a")
