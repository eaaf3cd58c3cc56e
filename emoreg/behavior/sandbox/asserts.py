"""Tests written as code, whose verdicts the code under test can't forge either.

`runner` takes calls and literals. The tests of HumanEval and MBPP are programs, which
usually run in one interpreter with what they test: there a line that ends the process
with exit code 0, an `==` that is always true or a function that reads the asserts pass.
A secret word that the tests print at their end does not help, for code that shares the
process can read it, or jump to the print. So the two never share one:

    tests, in a sandbox          here               code, in another sandbox
    assert f(2) == 4     --->  f, [2]       --->    runs f(2)
    goes on, or raises   <---  4            <---    {"value": 4}

The tests' process says whether it came to its end. No line of the code runs in it, and
nothing of the code gets into it but literals that were built here. Expected values stay
there. What stays open is what stays open in `runner`.
"""

import itertools
import json
import time
from typing import Any, Literal, final

from emoreg.behavior.sandbox import answers
from emoreg.behavior.sandbox.cases import is_literal, one_line
from emoreg.behavior.sandbox.process import Process
from emoreg.behavior.sandbox.runner import TestResult, answer_to, exception_of
from emoreg.behavior.sandbox.sandbox import Sandbox

_CODE, _TESTS = "solution.py", "tests.py"


@final
class _Ended(Exception):
    """The tests need not go on: what came of them is known."""

    def __init__(self, status: Literal["failed", "error"], why: str) -> None:
        super().__init__(why)
        self.status: Literal["failed", "error"] = status


def run_asserts(code: str, tests: str, *, sandbox: Sandbox) -> TestResult:
    """Run tests that are code against code, each in a sandbox of its own.

    A function `f` of the code is `_asked("f")` in the tests. Arguments and results are
    literals, as in `run_tests`; each call is answered by a fork of the loaded code. A
    call that raises, or gives what is no literal, ends the tests as failed, so tests
    of exceptions can't pass.

    Args:
        code: What is tested.
        tests: A program that raises where the code is wrong.
        sandbox: Where both run. Loading, calls and asserts together may take its
            `limits.seconds`.

    Raises:
        SandboxError: If the walls could not be built.

    Example:
        `run_asserts("def f(x): return x", "assert _asked('f')(1) == 1", sandbox=box)`
    """
    until = time.monotonic() + sandbox.limits.seconds
    try:
        # The code last: until both are there, the first is not looked at.
        with (
            sandbox.start({_TESTS: tests}, main=_TESTS, asks=True) as asking,
            sandbox.start({_CODE: code}, main=_CODE) as process,
        ):
            asking.beside, process.beside = process, asking
            loaded = _told(process, 0, until, "loading")
            if "ready" not in loaded:
                raise _Ended("error", f"loading raised {exception_of(loaded)}")
            _talk(asking, process, until)
    except _Ended as end:
        return TestResult(name="tests", status=end.status, message=str(end))
    return TestResult(name="tests", status="passed", message="")


def _talk(asking: Process, process: Process, until: float) -> None:
    """Carry calls and results to and fro until the tests came to their end."""
    for number in itertools.count(1):
        told = _told(asking, number, until, "the tests")
        if "passed" in told:
            return
        if "raised" in told:
            raise _Ended("failed", f"the tests raised {exception_of(told)}")
        asking.send(json.dumps({"value": _value(process, told, until)}).encode())


def _value(process: Process, call: dict[str, Any], until: float) -> Any:
    """Return what the code gives for a call, encoded."""
    name = one_line(str(call["function"]))
    _literal({"tuple": call["arguments"]}, f"an argument of {name}")
    _literal({"tuple": [*call["keywords"].values()]}, f"an argument of {name}")
    process.send(json.dumps(call).encode())
    given = _told(process, call["id"], until, name)
    if "raised" in given:
        raise _Ended("failed", f"{name} raised {exception_of(given)}")
    if "value" not in given:
        raise _Ended("error", f"{name} ended its process without an answer")
    return _literal(given["value"], f"what {name} gave")


def _told(process: Process, number: int, until: float, who: str) -> dict[str, Any]:
    found = answer_to(process, number, max(0.0, until - time.monotonic()))
    if isinstance(found, str):
        raise _Ended("error", f"{who} {found}")
    return found


def _literal(value: Any, what: str) -> Any:
    """Return an encoded value, encoded anew from the literal that it stands for."""
    try:
        found = answers.decoded(value)
        if is_literal(found):
            return answers.encoded(found)
    except (ValueError, TypeError, RecursionError, OverflowError):
        pass
    raise _Ended("failed", f"{what} must be made of literals, and is not")
