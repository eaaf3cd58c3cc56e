"""Tests of code that does all it can to have its tests pass."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from emoreg.behavior.sandbox import answers
from emoreg.behavior.sandbox.asserts import run_asserts
from emoreg.behavior.sandbox.cases import equal, parse_test, shown
from emoreg.behavior.sandbox.limits import LEVELS, Limits
from emoreg.behavior.sandbox.runner import TestReport, run_tests
from emoreg.behavior.sandbox.sandbox import Sandbox, why_not, working_levels
from emoreg.training.outcomes.feedback import parse_feedback

LIMITS = Limits(seconds=10.0)
HASTY = Limits(seconds=1.5)


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    with Sandbox(level=request.param, allow_weak=True, limits=LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def strongest() -> Iterator[Sandbox]:
    if not working_levels():
        pytest.skip(f"no level works here: {why_not('limits')}")
    with Sandbox(allow_weak=True, limits=LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def hasty(strongest: Sandbox) -> Iterator[Sandbox]:
    with Sandbox(level=strongest.level, allow_weak=True, limits=HASTY) as made:
        yield made


def statuses(report: TestReport) -> list[str]:
    return [result.status for result in report.results]


# -- honest code -----------------------------------------------------------------------

HONEST = """
import dataclasses

count = 0

@dataclasses.dataclass
class Point:
    x: int

def add(a, b=10):
    return a + b

def counted():
    global count
    count += 1
    return count

def refuse(value):
    raise KeyError(value)

def point():
    print("test_1 PASSED")
    return Point(1)
"""


def test_a_report(sandbox: Sandbox) -> None:
    tests = [
        "add(1, 2) == 3",
        {"call": "add(1)", "expect": 11},
        {"call": "add(0.1, b=0.2)", "expect": 0.3},
        {"call": "add([1], [2])", "expect": [1]},
        {"call": "refuse('x')", "raises": "KeyError"},
        {"call": "refuse('x')", "raises": "LookupError"},
        {"call": "refuse('x')", "raises": "ValueError"},
        {"call": "add(1, None)", "expect": 1},
        {"call": "add(1)", "raises": "TypeError"},
        {"call": "point()", "expect": None},
        {"call": "nothing()", "expect": 1},
    ]
    report = run_tests(HONEST, tests, sandbox=sandbox)
    assert report.level == sandbox.level
    assert report.text().splitlines() == [
        "test_1 PASSED",
        "test_2 PASSED",
        "test_3 PASSED",
        "test_4 FAILED: add([1], [2]) gave [1, 2], expected [1]",
        "test_5 PASSED",
        "test_6 PASSED",
        "test_7 FAILED: refuse('x') raised KeyError: 'x', expected ValueError",
        "test_8 FAILED: add(1, None) raised TypeError: unsupported operand type(s) "
        "for +: 'int' and 'NoneType', expected 1",
        "test_9 FAILED: add(1) gave 11, expected TypeError",
        "test_10 FAILED: point() gave <object 'Point(x=1)'>, expected None",
        "test_11 FAILED: nothing() raised NameError: name 'nothing' is not defined, "
        "expected 1",
        "6 failed, 5 passed",
    ]


def test_calls_leave_nothing_behind(strongest: Sandbox) -> None:
    assert run_tests(HONEST, ["counted() == 1"] * 3, sandbox=strongest).all_passed


def test_several_files(strongest: Sandbox) -> None:
    files = {"a.py": "import b\ndef f(): return b.X", "b.py": "X = 7"}
    report = run_tests(files, ["f() == 7"], sandbox=strongest, main="a.py")
    assert report.all_passed
    with pytest.raises(ValueError, match="`main` must be one of the files"):
        run_tests(files, ["f() == 7"], sandbox=strongest)
    with pytest.raises(ValueError, match="at least one test"):
        run_tests(files, [], sandbox=strongest, main="a.py")


def test_the_text_is_read_as_it_is_meant(strongest: Sandbox) -> None:
    good = run_tests(HONEST, ["add(1, 2) == 3"] * 2, sandbox=strongest)
    bad = run_tests(HONEST, ["add(1, 2) == 3", "add(1, 2) == 4"], sandbox=strongest)
    ended = "import os\ndef f(): os._exit(0)\ndef g(): return 1"
    error = run_tests(ended, ["g() == 1", "f() == 1"], sandbox=strongest)
    assert parse_feedback(good.text()).failure == 0.0
    assert parse_feedback(bad.text()).failure == 1.0
    assert parse_feedback(error.text()).failure == 1.0


def test_what_does_not_end_and_what_ends_too_early(hasty: Sandbox) -> None:
    code = """
import os, sys, time
def forever(): time.sleep(100)
def leave(): os._exit(0)
def stop(): sys.exit(0)
def crash(): os.kill(os.getpid(), 11)
def flood():
    while True: os.write(1, b"x" * 999)
def long(): return "x" * 10**6
def eat(): return len(bytearray(10**10))
def one(): return 1
"""
    calls = ["forever", "leave", "stop", "crash", "flood", "long", "eat", "one"]
    report = run_tests(code, [f"{call}() == 1" for call in calls], sandbox=hasty)
    assert [str(result) for result in report.results] == [
        "test_1 ERROR: forever() did not end within 1.5 s",
        "test_2 ERROR: leave() ended its process without an answer",
        "test_3 FAILED: stop() raised SystemExit: 0, expected 1",
        "test_4 ERROR: crash() ended its process without an answer",
        "test_5 ERROR: flood() wrote too much",
        "test_6 ERROR: long() wrote too much",
        "test_7 FAILED: eat() raised MemoryError, expected 1",
        "test_8 PASSED",
    ]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:", "loading raised SyntaxError"),
        ("raise ValueError('walrus')", "loading raised ValueError: walrus"),
        ("import sys; sys.exit(0)", "loading raised SystemExit: 0"),
        ("import os; os._exit(0)", "loading ended the process"),
        ("import numpy", "loading raised ModuleNotFoundError"),
        ("while True: pass", "loading did not end within"),
        ("def f(): return 1  # \ud83d", "loading raised UnicodeEncodeError"),
    ],
)
def test_code_that_does_not_load(hasty: Sandbox, code: str, message: str) -> None:
    report = run_tests(code, ["f() == 1"] * 2, sandbox=hasty)
    assert statuses(report) == ["error", "error"]
    assert message in report.results[1].message


def test_files_that_can_not_be_encoded_are_the_codes_own_trouble(
    sandbox: Sandbox,
) -> None:
    done = sandbox.run({"main.py": "print(1)  # \ud83d"}, ["python", "main.py"])
    assert (done.status, done.stdout) == ("error", "")
    assert "SyntaxError" in done.stderr


def test_code_is_watched_while_asserts_compute(strongest: Sandbox) -> None:
    code = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        time.sleep(0.1)  # loading is over, and the tests compute
        held = bytearray(b"x") * (60 * 2**20)
        time.sleep(0.2)
        os._exit(0)
def f(): return 1
"""
    tests = "import time\ntime.sleep(0.7)\nassert _asked('f')() == 1"
    limits = Limits(seconds=10.0, memory=128 * 2**20)
    with Sandbox(level=strongest.level, allow_weak=True, limits=limits) as small:
        result = run_asserts(code, tests, sandbox=small)
    assert result.status == "error"
    assert "took too much memory" in result.message


# -- forging ---------------------------------------------------------------------------

WRITE_EVERYWHERE = """
import os
def write(text):
    for number in range(64):
        try:
            os.write(number, text.encode() + b"\\n")
        except OSError:
            pass
"""
# Each returns something wrong from f(), and should pass by other means.
FORGERIES = {
    "printed lines": "def f():\n print('test_1 PASSED\\n1 passed'); return 0",
    "equal to everything": """
class Anything:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return hash(42)
    def __repr__(self): return "42"
def f(): return Anything()
""",
    "a number that is equal to everything": """
class Anything(int):
    def __eq__(self, other): return True
    def __hash__(self): return hash(42)
def f(): return Anything(7)
""",
    "the exit code": "import os\ndef f(): os._exit(0)",
    "the exit": "import sys\ndef f(): sys.exit(0)",
    "at the exit": """
import atexit, os, sys
atexit.register(lambda: (print("test_1 PASSED"), os._exit(0)))
def f(): sys.exit(0)
""",
    "builtins": """
import builtins, json, operator, types
builtins.eval = lambda *_: (lambda *_: True)
operator.eq = lambda *_: True
def f(): return 0
""",
    "a verdict on every pipe": WRITE_EVERYWHERE
    + """
def f():
    for said in ('{"id": 1, "passed": true}', '{"id": 1, "status": "passed"}'):
        write(said)
    os._exit(0)
""",
    "verdicts before the call": WRITE_EVERYWHERE
    + """
for said in ('{"status": 0}', '{"id": 1, "passed": true}', "test_1 PASSED"):
    write(said)
def f(): return 0
""",
    "the runner's module": """
import sys
for module in list(sys.modules.values()):
    for name in ("equal", "_verdict", "encoded", "raised"):
        if hasattr(module, name):
            setattr(module, name, lambda *_: True)
def f(): return 0
""",
    "other tests": """
import glob, os
for path in glob.glob("**", recursive=True) + glob.glob("/tmp/**", recursive=True):
    try:
        open(path, "w").write("def f(): return 0\\ntests = []")
    except OSError:
        pass
def f(): return 0
""",
    "what can't be read": WRITE_EVERYWHERE + "def f(): write('[' * 99999); return 0",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries(strongest: Sandbox, name: str) -> None:
    report = run_tests(FORGERIES[name], ["f() == 42"], sandbox=strongest)
    assert not report.all_passed, report.text()
    assert report.text().splitlines()[-1] in (
        "1 failed, 0 passed",
        "0 passed, 1 errors",
    )


BELIEVED = ["at the exit", "equal to everything", "the exit"]


@pytest.mark.parametrize("name", BELIEVED)
def test_forgeries_that_a_common_runner_believes(name: str) -> None:
    """The control: run the tests where the code is, and they pass."""
    command = [sys.executable, "-S", "-c", f"{FORGERIES[name]}\nassert f() == 42"]
    assert subprocess.run(command).returncode == 0
    command[-1] = "def f(): return 0\nassert f() == 42"
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 1


def test_a_right_answer_by_any_way_is_an_answer(strongest: Sandbox) -> None:
    """Control of the forgeries: what they write does arrive, and is judged by value."""
    code = (
        WRITE_EVERYWHERE + 'def f():\n write(\'{"id": 1, "value": %s}\'); os._exit(0)'
    )
    assert run_tests(code % 42, ["f() == 42"], sandbox=strongest).all_passed
    assert not run_tests(code % 41, ["f() == 42"], sandbox=strongest).all_passed


# Looks for a text through all objects and frames, in files and arguments.
SEARCH = """
import gc, os, sys
start = "-".join(["vexed", "walrus", ""])
def texts(item, depth=4):
    if isinstance(item, (str, bytes)):
        yield item if isinstance(item, str) else item.decode(errors="replace")
    elif depth and isinstance(item, dict):
        for pair in list(item.items()):
            for part in pair:
                yield from texts(part, depth - 1)
    elif depth and isinstance(item, (list, tuple, set)):
        for part in list(item):
            yield from texts(part, depth - 1)
def search(*_):
    frame, places = sys._getframe(), [sys.argv, dict(os.environ)]
    while frame is not None:
        places.append(dict(frame.f_locals))
        frame = frame.f_back
    for folder, _, names in os.walk("."):
        places += [open(os.path.join(folder, name)).read() for name in names]
    for place in [*places, *gc.get_objects()]:
        for text in texts(place):
            if text.startswith(start) and text != start:
                return text
    return "nothing found"
"""


def test_expected_values_are_nowhere_to_be_found(strongest: Sandbox) -> None:
    secret = "vexed-walrus-17"
    tests = [
        {"call": "search()", "expect": secret},
        {"call": "search()", "expect": "nothing found"},
        {"call": f"search('{secret}')", "expect": secret},
    ]
    report = run_tests(SEARCH, tests, sandbox=strongest)
    # The last is the control: what does come in is found. It comes after the others,
    # which could not see it coming.
    assert statuses(report) == ["failed", "passed", "passed"], report.text()


def test_code_that_does_not_listen_holds_nothing_up(hasty: Sandbox) -> None:
    deaf = WRITE_EVERYWHERE + (
        'import time\nwrite(\'{"id": 0, "ready": true}\')\ntime.sleep(99)\n'
    )
    chatty = WRITE_EVERYWHERE + (
        'import time\nwhile True:\n write(\'{"id": 0, "ready": true}\')\n'
        " time.sleep(0.01)\n"
    )
    test = {"call": f"f({'x' * 300_000!r})", "expect": 1}
    for code in (deaf, chatty):
        report = run_tests(code, [test], sandbox=hasty)
        assert statuses(report) == ["error"]
        assert "did not end within 1.5 s" in report.text()
    echo = "def f(text): return len(text)"
    assert run_tests(echo, [{**test, "expect": 300_000}], sandbox=hasty).all_passed


# -- cases and values ------------------------------------------------------------------

VALUES = [
    *(None, True, 0, -7, 2**63, -(2**900), 10**5000, 1.5, -0.0, math.inf, 2j),
    *("", "ö\n\x00", "\ud800", b"\x00\xff", [], [1, [2, "x"]], (), (1, (2,)), {}),
    *({"a": [1], (1, 2): {3}}, {1, "x"}, frozenset({2.5}), [{"other": 1}]),
]


# Not by how they are written: a set's order differs between the tests' processes.
NAMED = [f"{type(value).__name__}-{place}" for place, value in enumerate(VALUES)]


@pytest.mark.parametrize("value", VALUES, ids=NAMED)
def test_values_come_out_as_they_went_in(value: Any) -> None:
    back = answers.decoded(json.loads(json.dumps(answers.encoded(value))))
    assert back == value
    assert type(back) is type(value)
    assert equal(value, back)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": 1}, {"int": 5}, {"set": [[]]}, {"dict": [[1]]}, {"tuple": 3}, {"x": []}],
)
def test_what_nothing_encodes_to_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        answers.decoded(value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (True, 1, True),
        (0.3, 0.1 + 0.2, True),
        (0.3, 0.3001, False),
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (1.0, 10**400, False),
        (2**60, 2**60 + 1, False),
        ([0.3], [0.1 + 0.2], True),
        ([1], (1,), False),
        ({"a": 0.3}, {"a": 0.1 + 0.2}, True),
        ({"a": 1}, {"b": 1}, False),
        ({1, 2}, frozenset({2, 1}), True),
        (1 + 1j, 1 + 1.0000000000001j, True),
        (1 + 1j, 1 + 1.0001j, False),
        (1, 1 + 0j, True),
        (1j, 10**400, False),
        (1j, complex(1.5e308, 1.5e308), False),
        (complex(math.inf, 0), complex(math.inf, 0), True),
        (complex(math.inf, 0), 1j, False),
        (-math.inf, math.inf, False),
        (1, complex(math.nan, 0), False),
        ("1", 1, False),
        ("a", b"a", False),
        (None, 0, False),
        ([1, 2], [1], False),
        (1, answers.Other("1"), False),
    ],
)
def test_equality(one: Any, other: Any, same: bool) -> None:
    assert equal(one, other) is same


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"call": "f(1)"}, "must have `call` and one of"),
        ({"call": "f(1)", "expect": 1, "raises": "KeyError"}, "must have `call`"),
        ({"call": "f(1)", "expects": 1}, "must have `call`"),
        ({"call": "f(1)", "expect": object()}, "made of literals"),
        ({"call": "f(1)", "raises": "a b"}, "an exception's name"),
        ({"call": "f(g(1))", "expect": 1}, "a function with literals"),
        ({"call": "a.f(1)", "expect": 1}, "by its name"),
        ({"call": "f(**{})", "expect": 1}, "keywords from a dict"),
        ({"call": "f(", "expect": 1}, "a function with literals"),
        ("f(1)", "must read `call == literal`"),
        ("f(1) < 2", "another comparison"),
        ("f(1) == g(1)", "must read"),
    ],
)
def test_tests_that_can_not_be_read(test: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_test(test)


def test_tests_are_read() -> None:
    case = parse_test("f(1, [2], key=(3,)) is None")
    assert (case.function, case.arguments, case.keywords) == (
        *("f", (1, [2])),
        {"key": (3,)},
    )
    assert case.expect is None
    assert case.raises is None
    assert parse_test({"call": "f()", "raises": "E"}).raises == "E"


def test_messages_are_one_short_line() -> None:
    assert len(shown("x" * 1000)) < 120
    assert "\n" not in shown(answers.Other("a\nb"))
    assert "digits" in shown(10**5000)
