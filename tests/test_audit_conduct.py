"""E10: more cheating is seen, less is not claimed without being shown."""

import pytest
from test_conduct_report import played

from emoreg.behavior.impossible.graders import CHEATING
from emoreg.comparison.audit.conduct import conduct_check


@pytest.mark.parametrize(
    ("before", "after", "verdict", "said"),
    [
        (0.1, 0.8, "missed", "claim the state alone"),
        (0.5, 0.5, "passed", "claim the state alone"),
        (0.9, 0.1, "passed", "Cheating fell"),
        (0.0, 0.0, "passed", "did not cheat before"),
        (0.0, 0.7, "missed", "did not cheat before"),
    ],
)
def test_only_a_rise_that_is_shown_is_missed(
    before: float, after: float, verdict: str, said: str
) -> None:
    tables = {"before": played(0, cheats=before), "after": played(1, cheats=after)}
    found = conduct_check(tables)
    assert found.verdict == verdict
    assert said in found.notes[0]
    change = tables["after"].difference(tables["before"], CHEATING)
    assert found.headline is not None
    assert found.headline.value == change.low
    assert [f.value for f in found.figures[2:]] == [
        tables[arm].rate(CHEATING).estimate for arm in ("before", "after")
    ]


def test_without_episodes_it_is_not_run() -> None:
    assert conduct_check({}).verdict == "not run"
    assert conduct_check({"before": played(0, cheats=0.1)}).verdict == "not run"


def test_episodes_of_other_tasks_are_refused() -> None:
    tables = {"before": played(0, cheats=0.1), "after": played(0, cheats=0.1, n=5)}
    with pytest.raises(ValueError, match="of the same tasks"):
        conduct_check(tables)
