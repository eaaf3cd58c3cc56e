"""Tests whose verdicts the code under test can't forge.

Code that shares an interpreter with its test can do anything to the verdict: replace
`==`, end the process with exit code 0, print a result line, rewrite the test's file,
read a secret word out of the runner's frames. So here nothing that decides is where the
code is. It gets one call at a time, by a pipe, and writes what the call gave as JSON;
the answer is made into plain literals and compared with what was expected out here.

    here                                        in the sandbox
    call `f(1, [2])`            --->            the code runs f(1, [2])
    compare, decide             <---            {"value": 3}

Expected values never go in, nor do later calls. The code can take over the process that
it is in and answer anything; an answer that is right is then one that it knew how to
give, which is all that a test by examples ever shows. What this can not tell apart is a
function that works from one that lists the examples which its author was shown.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from emoreg.behavior.sandbox import answers
from emoreg.behavior.sandbox.cases import (
    Case,
    Test,
    equal,
    one_line,
    parse_test,
    shown,
)
from emoreg.behavior.sandbox.limits import Level
from emoreg.behavior.sandbox.process import Process
from emoreg.behavior.sandbox.sandbox import Sandbox

_Status = Literal["passed", "failed", "error"]
_Verdict = tuple[_Status, str]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TestResult:
    """What came of one test."""

    __test__: ClassVar[bool] = False

    name: str
    """`test_1` for the first, and so on."""
    status: _Status
    """`error` if there was neither value nor exception to judge."""
    message: str
    """Why it did not pass; empty if it did."""

    def __str__(self) -> str:
        """Return the line that stands for it."""
        told = f": {self.message}" if self.message else ""
        return f"{self.name} {self.status.upper()}{told}"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TestReport:
    """What came of all tests of one piece of code."""

    __test__: ClassVar[bool] = False

    results: tuple[TestResult, ...]
    level: Level
    """How the code was shut in."""

    def count(self, status: str) -> int:
        """Return how many tests have a status."""
        return sum(result.status == status for result in self.results)

    @property
    def all_passed(self) -> bool:
        """Whether every test passed."""
        return self.count("passed") == len(self.results)

    def text(self) -> str:
        """Return a line for each test and a last one that counts."""
        kinds = {"failed": "failed", "passed": "passed", "error": "errors"}
        counts = [
            f"{self.count(status)} {word}"
            for status, word in kinds.items()
            if self.count(status) or status == "passed"
        ]
        return "\n".join([*map(str, self.results), ", ".join(counts)])


def run_tests(
    files: str | Mapping[str, str],
    tests: Sequence[Test],
    *,
    sandbox: Sandbox,
    main: str | None = None,
) -> TestReport:
    """Run tests of code in a sandbox and judge them outside of it.

    Each test is a call of a function of the file `main` with literal arguments, and
    what it must give:

        {"call": "add(1, 2)", "expect": 3}
        {"call": "add(1, None)", "raises": "TypeError"}
        "add(1, 2) == 3"

    The file is loaded once and each call is answered by a fork of that, so calls leave
    nothing in memory for one another; what one writes to disk, later ones can read.
    Loading and each call may take `limits.seconds`.

    Args:
        files: The code, or texts by relative path.
        tests: What to test.
        sandbox: Where the code runs.
        main: The file that is tested, if there are several.

    Raises:
        ValueError: If there is no test, one can't be read, or `main` is no file.
        SandboxError: If the walls could not be built.
    """
    cases = [parse_test(test) for test in tests]
    if not cases:
        raise ValueError("`tests` must hold at least one test, found none.")
    texts = {"solution.py": files} if isinstance(files, str) else {**files}
    name = main if main is not None or len(texts) != 1 else next(iter(texts))
    if name is None or name not in texts:
        raise ValueError(
            f"`main` must be one of the files {sorted(texts)}, found {name!r}. Name "
            "the file whose functions are called."
        )
    judged: list[_Verdict] = []
    while len(judged) < len(cases):
        with sandbox.start(texts, main=name) as process:
            judged += _judged_by_one(process, cases, len(judged), sandbox)
    results = [
        TestResult(name=f"test_{number}", status=status, message=message)
        for number, (status, message) in enumerate(judged, start=1)
    ]
    return TestReport(results=tuple(results), level=sandbox.level)


def _judged_by_one(
    process: Process, cases: list[Case], first: int, sandbox: Sandbox
) -> list[_Verdict]:
    """Judge cases from `first` on until the process can go on no more."""
    seconds = sandbox.limits.seconds
    loaded = answer_to(process, 0, seconds)
    if isinstance(loaded, str) or "ready" not in loaded:
        if isinstance(loaded, str):
            why = f"loading {loaded}"
        else:
            why = f"loading raised {exception_of(loaded)}"
        return [("error", why)] * (len(cases) - first)
    judged: list[_Verdict] = []
    for number, case in enumerate(cases[first:], start=1):
        call = {
            "id": number,
            "function": case.function,
            "arguments": [answers.encoded(value) for value in case.arguments],
            "keywords": {
                word: answers.encoded(value) for word, value in case.keywords.items()
            },
        }
        process.send(json.dumps(call).encode())
        said = answer_to(process, number, seconds)
        if isinstance(said, str):
            return [*judged, ("error", f"{one_line(case.call)} {said}")]
        judged.append(_verdict(case, said))
    return judged


def answer_to(process: Process, number: int, seconds: float) -> dict[str, Any] | str:
    """Return what the code answered to a call, or what happened instead.

    Args:
        process: The code's.
        number: The call's; answers to earlier ones are skipped.
        seconds: How long it may take before the code is killed.
    """
    until = time.monotonic() + seconds
    while (line := process.receive(until)) is not None:
        try:
            said = json.loads(line)
            if said["id"] < number:
                continue  # how an earlier call's process ended
            if said["id"] == number:
                return dict(said)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        return "gave an answer that can't be read"
    ends = {
        "timeout": f"did not end within {seconds:g} s",
        "memory": "took too much memory",
        "output": "wrote too much",
        None: "ended the process",
    }
    return ends.get(process.killed, "ended the process")


def _verdict(case: Case, said: dict[str, Any]) -> _Verdict:
    call = one_line(case.call)
    wanted = case.raises if case.raises else shown(case.expect)
    if "value" in said:
        try:
            given = answers.decoded(said["value"])
        except (ValueError, TypeError, RecursionError, OverflowError):
            return "error", f"{call} gave an answer that can't be read"
        if case.raises is None and equal(case.expect, given):
            return "passed", ""
        return "failed", f"{call} gave {shown(given)}, expected {wanted}"
    if "raised" in said:
        if case.raises is not None and case.raises in _names(said):
            return "passed", ""
        return "failed", f"{call} raised {exception_of(said)}, expected {wanted}"
    return "error", f"{call} ended its process without an answer"


def _names(said: dict[str, Any]) -> list[str]:
    names = said["raised"]
    return [str(name) for name in names] if isinstance(names, list) else []


def exception_of(said: dict[str, Any]) -> str:
    """Return an exception that came for an answer, as one short line."""
    names, message = _names(said), str(said.get("message", ""))
    return one_line(f"{(names or ['an exception'])[0]}: {message}".rstrip(": "))
