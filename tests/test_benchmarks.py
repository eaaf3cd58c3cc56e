"""Benchmarks in files of the user: what counts as right, and that code can't forge it.

The items are written for these tests, in the formats of GSM8K, HumanEval and MBPP.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch

from emoreg.behavior.sandbox.asserts import run_asserts
from emoreg.behavior.sandbox.limits import LEVELS, Limits
from emoreg.behavior.sandbox.sandbox import Sandbox, why_not, working_levels
from emoreg.comparison.benchmarks import run as running
from emoreg.comparison.benchmarks.formats import read_benchmark
from emoreg.comparison.benchmarks.items import Program, code_of
from emoreg.comparison.benchmarks.numbers import last_number
from emoreg.comparison.benchmarks.run import run_benchmark, usable
from emoreg.comparison.rails import RAILS, rail_rows
from emoreg.residual.tokens import render
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.writing.local import LocalWriter
from emoreg.writing.writer import Prompt

LIMITS = Limits(seconds=20.0)
HASTY = Limits(seconds=1.0)

QUESTIONS = [
    {
        "question": f"A shelf holds {n} jars and Ida adds {n}. How many are there?",
        "answer": f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n:,}",
    }
    for n in (3, 40, 700, 1200)
]
HEAD = '''from typing import List


def half(x: int) -> int:
    """Return half of x, rounded down."""
    return x // 2


def halves(xs: List[int]) -> List[int]:
    """Return half of each number, rounded down.
    >>> halves([4, 7])
    [2, 3]
    """
'''
CHECK = """
def check(candidate):
    assert candidate([4, 7]) == [2, 3]
    for n in range(5):
        assert abs(candidate([n])[0] - half(n)) < 1e-6
    assert candidate([]) == []
"""
FUNCTIONS = [
    {
        "task_id": f"Own/{n}",
        "prompt": HEAD,
        "entry_point": "halves",
        "canonical_solution": "    return [half(x) for x in xs]\n",
        "test": CHECK,
    }
    for n in range(2)
]
SMALL = [
    {
        "task_id": n,
        "text": f"Write a function that gives the root of a number plus {n}.",
        "code": f"import math\r\ndef up_{n}(x):\r\n    return math.sqrt(x) + {n}",
        "test_setup_code": "",
        "test_list": [
            f"assert up_{n}(4) == {n + 2}",
            f"assert math.isclose(up_{n}(2), {n + 2**0.5})",
        ],
        "challenge_test_list": [],
    }
    for n in range(2)
]
FILES = {"gsm8k": QUESTIONS, "humaneval": FUNCTIONS, "mbpp": SMALL}


def written(path: Path, rows: Sequence[Any]) -> Path:
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def of(tmp_path: Path, name: str, **options: Any) -> Any:
    return read_benchmark(
        name, written(tmp_path / f"{name}.jsonl", FILES[name]), **options
    )


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    if not working_levels():
        pytest.skip(f"no level works here: {why_not('limits')}")
    with Sandbox(allow_weak=True, limits=LIMITS) as made:
        yield made


# -- numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she has 18.", "18"),
        ("18", "18"),
        ("5 and 6, so 11 jars", "11"),
        ("It costs $1,234.50.", "1234.50"),
        ("a profit of 70,000 euros", "70000"),
        ("1,450,000", "1450000"),
        ("first 1, then 2,3", "3"),  # a list, no thousands
        ("1,2345", "2345"),
        ("**$42**", "42"),
        (r"\boxed{7}", "7"),
        ("#### 12\n", "12"),
        ("x = -3", "-3"),
        ("x = −3", "-3"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("- 5", "-5"),
        ("10-4", "4"),  # a dash, or the minus of a sum
        ("10 - 4 = 6", "6"),
        ("pages 3-8", "8"),
        ("(2)-1", "1"),
        ("20%", "20"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("3.", "3"),
        ("3.14.", "3.14"),
        ("18.00", "18"),
        ("2nd", "2"),
        ("£3,000,000!", "3000000"),
        ("three", None),
        ("", None),
        ("...", None),
        ("٣", None),
        ("3/4", "4"),  # known not to be understood
        ("2,5", "5"),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_the_answer_of_a_question_stands_behind_the_mark(tmp_path: Path) -> None:
    found = of(tmp_path, "gsm8k")
    assert [item.answer for item in found.items] == [6, 80, 1400, 2400]
    assert found.items[3].right("1,200 and 1,200 make $2,400.00.")
    assert not found.items[3].right("2,400 is half of 4800")
    assert not found.items[3].right("Many.")


# -- files -----------------------------------------------------------------------------


def test_a_packed_file_is_the_same(tmp_path: Path) -> None:
    plain = of(tmp_path, "mbpp")
    packed = read_benchmark("mbpp", written(tmp_path / "mbpp.jsonl.gz", SMALL))
    assert packed == plain
    assert len(of(tmp_path, "gsm8k", limit=3).items) == 3


def broken(rows: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return [rows[0], {**rows[1], **fields}, *rows[2:]]


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("gsm8k", broken(QUESTIONS, answer="It is 5."), "gsm8k.jsonl:2: `answer` must"),
        ("gsm8k", broken(QUESTIONS, answer="#### five"), "found 'five'"),
        ("gsm8k", broken(QUESTIONS, answer="#### NaN"), "found 'NaN'"),
        ("gsm8k", FUNCTIONS, "gsm8k.jsonl:1: the record must have a field `question`"),
        ("humaneval", broken(FUNCTIONS, test=" "), "`test` must be a non-empty"),
        ("humaneval", broken(FUNCTIONS, test="assert 1"), "must define `check`"),
        ("humaneval", broken(FUNCTIONS, entry_point="thirds"), "'thirds'"),
        ("humaneval", broken(FUNCTIONS, prompt="def ("), "`prompt` must be Python"),
        ("humaneval", broken(FUNCTIONS, task_id="Own/0"), "Own/0 a second time"),
        (
            "mbpp",
            broken(SMALL, test_list=[]),
            "mbpp.jsonl:2: `test_list` must be a non",
        ),
        ("mbpp", broken(SMALL, test_list=["assert f(1)"]), "that `code` defines"),
        ("mbpp", broken(SMALL, test_list=["assert ("]), "`test_list` must be Python"),
        ("mbpp", broken(SMALL, code="\0"), "`code` must be Python"),
        ("mbpp", [["a", "list"]], "mbpp.jsonl:1: each line must be one JSON object"),
        ("mbpp", [], "must hold at least 2 items"),
        ("mbpp", SMALL[:1], "found 1"),
    ],
)
def test_a_wrong_file_is_refused(
    tmp_path: Path, name: str, rows: list[Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        read_benchmark(name, written(tmp_path / f"{name}.jsonl", rows))


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of `gsm8k`, `humaneval`, `mbpp`"):
        read_benchmark("mmlu", tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match="found none at"):
        read_benchmark("gsm8k", tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match=r"at least 2, .* found 0"):
        of(tmp_path, "gsm8k", limit=0)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b"{}\n" * 99)[:-9])
    with pytest.raises(ValueError, match="whole gzip file"):
        read_benchmark("gsm8k", cut)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("```python\ndef f():\n    pass\n```", "def f():\n    pass\n"),
        ("First\n```\nprint(1)\n```\nthen\n```py\ndef f(): 1\n```", "def f(): 1\n"),
        ("```python\nf = 1\n```\n```\ng\n```", "f = 1\n"),
        ("```python\ndef f(:", "def f(:"),  # cut off
        ("    return x", "    return x"),  # goes on where the head ends
    ],
)
def test_the_code_of_a_reply(reply: str, code: str) -> None:
    assert code_of(reply, ("f",)) == code


# -- verdicts --------------------------------------------------------------------------

FORGERS = {
    "ends the process": "import os, sys\nos._exit(0)",
    "leaves by an exception": "raise SystemExit(0)",
    "prints": "print('passed'); print('{\"id\": 1, \"passed\": true}')",
    "ends in a call": "import os\ndef up_1(x): os._exit(0)",
    "raises what ends a loop": "def up_1(x): raise StopIteration",
    "equals everything": (
        "class Any:\n"
        "    def __eq__(self, other): return True\n"
        "    __ge__ = __le__ = __eq__\n"
        "    def __float__(self): return 3.0\n"
        "def up_1(x): return Any()"
    ),
    "equals everything as a float": (
        "class Any(float):\n"
        "    def __eq__(self, other): return True\n"
        "def up_1(x): return Any(0)"
    ),
    "says that the tests passed": (
        "import os\n"
        "for end in range(3, 64):\n"
        '    try: os.write(end, b\'{"id": 1, "passed": true}\\n\' * 3)\n'
        "    except OSError: pass\n"
        "def up_1(x): return 0"
    ),
    "answers with a verdict": (
        "import os\n"
        "def up_1(x):\n"
        "    for end in range(3, 64):\n"
        '        try: os.write(end, b\'{"id": 1, "passed": true}\\n\')\n'
        "        except OSError: pass\n"
        "    return 0"
    ),
    "looks for the tests": (
        "import glob, re\n"
        "seen = ''.join(open(f).read() for f in glob.glob('./*') if 'tests' in f)\n"
        "found = re.search(r'== (\\d+)', seen)\n"
        "def up_1(x): return int(found[1]) if found else 0"
    ),
    "reaches into the caller": (
        "import sys, gc\n"
        "def up_1(x):\n"
        "    for held in gc.get_objects():\n"
        "        if isinstance(held, dict) and '_asked' in held: return 3\n"
        "    sys.modules['builtins'].AssertionError = ValueError\n"
        "    return 0"
    ),
    "answers very deep": (
        "def up_1(x):\n"
        "    held = 3\n"
        "    for _ in range(400): held = [held]\n"
        "    return held"
    ),
    "answers no value": (
        "import os\n"
        "def up_1(x):\n"
        "    for end in range(3, 64):\n"
        "        for what in ('{\"dict\": 5}', '{}', '{\"other\": 3}', '[' * 9999):\n"
        '            text = \'{"id": 1, "value": %s}\\n\' % what\n'
        "            try: os.write(end, text.encode())\n"
        "            except OSError: pass\n"
        "    return 0"
    ),
    "changes what is right": (
        "import builtins, math\n"
        "math.isclose = lambda *a: True\n"
        "builtins.abs = lambda x: 0\n"
        "def up_1(x): return 0"
    ),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Program:
    found = of(tmp_path_factory.mktemp("small"), "mbpp").items[1]
    assert isinstance(found, Program)
    return found


@pytest.mark.parametrize("way", FORGERS)
def test_code_can_not_forge_a_verdict(
    small: Program, sandbox: Sandbox, way: str
) -> None:
    assert small.run(FORGERS[way], sandbox).status != "passed"


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_code_can_not_forge_a_verdict_at_any_level(small: Program, level: Any) -> None:
    if (reason := why_not(level)) is not None:
        pytest.skip(f"{level}: {reason}")
    with Sandbox(level=level, allow_weak=True, limits=LIMITS) as sandbox:
        assert small.run(small.solution, sandbox).status == "passed"
        for way, code in FORGERS.items():
            assert small.run(code, sandbox).status != "passed", way


def one_interpreter(code: str, tests: str, sandbox: Sandbox) -> bool:
    """How such tests are usually run: both in one, judged by how it ends."""
    files = {"main.py": f"{code}\nimport math\n{tests}"}
    return sandbox.run(files, ["python", "main.py"]).status == "ok"


def test_where_code_shares_the_tests_interpreter_it_forges(sandbox: Sandbox) -> None:
    tests = "\n".join(SMALL[1]["test_list"])
    assert not one_interpreter("def up_1(x): return 0", tests, sandbox)
    for way in ("ends the process", "leaves by an exception", "ends in a call"):
        assert one_interpreter(FORGERS[way], tests, sandbox), way
    first = SMALL[1]["test_list"][0]
    assert one_interpreter(FORGERS["equals everything"], first, sandbox)


def test_right_and_wrong_code(sandbox: Sandbox, small: Program) -> None:
    assert small.run(small.solution, sandbox).status == "passed"
    assert small.right(f"Here:\n```python\n{small.solution}\n```", sandbox)
    wrong = small.run("def up_1(x): return 3", sandbox)
    assert (wrong.status, wrong.message) == (
        "failed",
        "the tests raised AssertionError",
    )
    missing = small.run("def other(x): return 3", sandbox)
    assert missing.status == "failed"
    assert "NameError" in missing.message
    assert small.run("def up_1(x:", sandbox).status == "error"


def test_endless_code_is_an_error(small: Program) -> None:
    with Sandbox(allow_weak=True, limits=HASTY) as hasty:
        for code in ("while True: pass", "def up_1(x):\n    while True: pass"):
            found = small.run(code, hasty)
            assert found.status == "error"
            assert "did not end" in found.message
        endless = run_asserts("f = 1", "while True: pass", sandbox=hasty)
        assert "the tests did not end" in endless.message


def test_tests_may_use_what_the_prompt_brings(tmp_path: Path, sandbox: Sandbox) -> None:
    item = of(tmp_path, "humaneval").items[0]
    assert item.run(item.solution, sandbox).status == "passed"
    assert item.right(
        "```python\ndef halves(xs):\n    return [x // 2 for x in xs]\n```", sandbox
    )
    # Another `half` in the reply is none of the tests' business.
    cheat = "def half(x): return 9\ndef halves(xs): return [9 for _ in xs]"
    assert not item.right(f"```python\n{cheat}\n```", sandbox)


@pytest.mark.parametrize(
    "value",
    [None, True, 2**70, 1.5, 2j, "é\ud800", b"\0", [(1, {2: {3}})], float("inf")],
)
def test_literals_pass_both_ways(value: Any, sandbox: Sandbox) -> None:
    code = "def f(x, *, y): return [x, y]"
    tests = f"inf = float('inf')\ngiven = {value!r}\n"
    tests += "assert _asked('f')(given, y=given) == [given, given]"
    assert run_asserts(code, tests, sandbox=sandbox).status == "passed"
    assert (
        run_asserts(f"inf = 9e999\n{code}[:1]", tests, sandbox=sandbox).status
        == "failed"
    )


def test_items_whose_own_solution_fails_are_left_out(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    object_ = {
        **SMALL[0],
        "task_id": "object",
        "code": "class Node:\n    pass\ndef depth(node):\n    return 1",
        "test_list": ["assert depth(Node()) == 1"],
    }
    path = written(tmp_path / "mbpp.jsonl", [*SMALL, object_])
    kept, left = usable(read_benchmark("mbpp", path), sandbox, quiet=True)
    assert [item.key for item in kept.items] == ["0", "1"]
    assert left == ("object",)
    wrong = [{**row, "code": row["code"].replace("+", "-")} for row in SMALL]
    wrong[0]["code"] = "def up_0(x): return 7"
    bad = read_benchmark("mbpp", written(tmp_path / "bad.jsonl", wrong))
    with pytest.raises(ValueError, match="found 0 of 2"):
        usable(bad, sandbox, quiet=True)


# -- runs ------------------------------------------------------------------------------


class Scripted:
    """Gives the replies it was given, in the order of the items."""

    def __init__(
        self, replies: Sequence[str], *, fails_after: int | None = None
    ) -> None:
        self.replies, self.fails_after, self.asked = replies, fails_after, 0

    def settings(self) -> dict[str, Any]:
        return {"model": "scripted"}

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        for place, prompt in enumerate(prompts):
            if prompt.answered:
                continue
            if self.asked == self.fails_after:
                raise ConnectionError("gone")
            self.asked += 1
            yield place, self.replies[place]


def test_a_writer_of_known_rate_is_measured_right(tmp_path: Path) -> None:
    found = of(tmp_path, "gsm8k")
    replies = ["It is 6.", "81", "1,400 jars", "no idea"]
    rail = run_benchmark(found, Scripted(replies), tmp_path / "parts", quiet=True)
    assert rail["values"] == [1, 0, 1, 0]
    assert (rail["value"], rail["n"]) == (0.5, 4)
    assert rail["low"] < 0.5 < rail["high"]
    assert rail["settings"]["file"] == found.file


def test_code_of_known_rate_is_measured_right(tmp_path: Path, sandbox: Sandbox) -> None:
    replies = [f"```python\n{SMALL[0]['code']}\n```", "I can not."]
    found = of(tmp_path, "mbpp")
    options: dict[str, Any] = {"sandbox": sandbox, "quiet": True}
    rail = run_benchmark(found, Scripted(replies), tmp_path / "parts", **options)
    assert (rail["values"], rail["left_out"]) == ([1, 0], [])
    assert rail["level"] == sandbox.level
    with pytest.raises(ValueError, match="`sandbox` must be given for mbpp"):
        run_benchmark(found, Scripted(replies), tmp_path / "other", quiet=True)


def test_a_run_that_was_cut_off_goes_on_reply_by_reply(tmp_path: Path) -> None:
    found, replies = of(tmp_path, "gsm8k"), ["6", "80", "1", "2"]
    whole = run_benchmark(found, Scripted(replies), tmp_path / "whole", quiet=True)
    cut = Scripted(replies, fails_after=3)
    with pytest.raises(ConnectionError):
        run_benchmark(found, cut, tmp_path / "parts", quiet=True)
    rest = Scripted(replies)
    assert run_benchmark(found, rest, tmp_path / "parts", quiet=True) == whole
    assert rest.asked == 1
    fewer = of(tmp_path, "gsm8k", limit=3)
    with pytest.raises(ValueError, match="`items` was 4, is 3"):
        run_benchmark(fewer, rest, tmp_path / "parts", quiet=True)


# -- rails -----------------------------------------------------------------------------


def verdict(name: str, before: dict[str, Any], after: dict[str, Any]) -> Any:
    arms = {"before": before, "after": after}
    [row] = rail_rows({arm: {"guards": {name: found}} for arm, found in arms.items()})
    return row


def rail(values: Sequence[int], file: str = "a") -> dict[str, Any]:
    share = sum(values) / len(values)
    settings = {"file": file, "items": len(values)}
    return {"value": share, "n": len(values), "values": values, "settings": settings}


@pytest.mark.parametrize(
    ("name", "n", "lost", "expected"),
    [
        ("gsm8k", 1319, 0, "kept"),
        ("gsm8k", 1319, 100, "not kept"),
        ("gsm8k", 1319, 26, "not shown"),
        ("gsm8k", 20, 0, "not shown"),
        ("humaneval", 164, 0, "kept"),
        ("humaneval", 164, 20, "not kept"),
        ("mbpp", 900, 10, "kept"),
        ("mbpp", 900, 27, "not shown"),
    ],
)
def test_a_benchmark_is_held_within_its_margin(
    name: str, n: int, lost: int, expected: str
) -> None:
    before = [int(place % 3 == 0) for place in range(n)]
    hits = [place for place in range(n) if before[place]]
    after = [0 if place in hits[:lost] else hit for place, hit in enumerate(before)]
    assert verdict(name, rail(before), rail(after)).verdict == expected
    assert RAILS[name].margin == {"gsm8k": 0.02}.get(name, 0.03)


def test_other_files_or_settings_are_not_paired() -> None:
    values = [0, 1] * 700
    row = verdict("gsm8k", rail(values, "a"), rail(values, "b"))
    assert (row.verdict, row.change, row.rule) == ("not paired", None, "")
    assert verdict("gsm8k", rail(values), rail(values)).verdict == "kept"
    # Where one arm was not asked, there is nothing to hold against.
    meta = {"before": {}, "after": {"guards": {"gsm8k": rail(values)}}}
    assert rail_rows(meta)[0].verdict is None


def test_the_page_says_that_files_differ() -> None:
    from comparison_tables import FAMILIES, synthetic

    from emoreg.comparison.compare import compare
    from emoreg.comparison.report import render as page_of

    def page(file: str) -> str:
        tables = [
            synthetic(
                emotions=("desperate", "upset", "worried", "calm", "serene", "pleased"),
                layers=(18, 21),
                n_prompts=8,
                guards={"gsm8k": rail([0, 1] * 20, of_file)},
            )
            for of_file in ("a", file)
        ]
        return page_of(compare(*tables, roles=FAMILIES, n_resamples=100))

    other = page("b")
    assert "GSM8K, last number right" in other
    assert "<td>not paired</td>" in other
    assert "<td>not paired</td>" not in page("a")


def test_replies_are_the_likeliest_tokens(
    tiny_model: Callable[[str], Any], tokenizer: Any
) -> None:
    model = tiny_model("llama")
    writer = LocalWriter(model, tokenizer, temperature=running.GREEDY, batch=1)
    said = [{"role": "user", "content": "How many?"}]
    prompts = [Prompt(messages=tuple(said), seed=seed, tokens=20) for seed in (1, 2)]
    replies = [reply for _, reply in writer.answers(prompts)]
    ids = torch.tensor(
        [
            tokenizer(
                render(tokenizer, said, generation_prompt=True),
                add_special_tokens=False,
            )["input_ids"]
        ]
    )
    plain = model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
    assert replies == [tokenizer.decode(plain, skip_special_tokens=True)] * 2
    # The control: at a common temperature they are others, by their seeds.
    warm = LocalWriter(model, tokenizer, temperature=0.9)
    assert len({replies[0], *(reply for _, reply in warm.answers(prompts))}) == 3


# -- the command -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[[str], Any], tokenizer: Any) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vectors = EmotionVectors.from_directions(
        torch.eye(32)[None, :2], emotions=["calm", "desperate"], layers=[2]
    )
    vectors.save(tmp_path / "v.safetensors")
    for name, rows in FILES.items():
        written(tmp_path / f"{name}.jsonl", rows)
    talk = {
        **{"id": "a", "pair": "a", "variant": "fail", "failed": [1.0]},
        "messages": [
            {"role": "user", "content": "Go."},
            {"role": "assistant", "content": "Gone."},
        ],
    }
    written(tmp_path / "talks.jsonl", [talk])
    return tmp_path


def command(folder: Path, *more: str, out: str = "t.parquet") -> list[str]:
    return [
        *("measure", "--quiet", "--model", str(folder / "model")),
        *("--vectors", str(folder / "v.safetensors"), "--allow-weak-sandbox"),
        *("--prompts", str(folder / "talks.jsonl"), "--out", str(folder / out)),
        *(word.replace("@", f"{folder}/") for word in more),
    ]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    from emoreg.cli import main

    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err


ALL = [word for name in FILES for word in ("--benchmark", f"{name}=@{name}.jsonl")]


def test_a_model_is_asked_all_three_greedily(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from emoreg.cli import main
    from emoreg.comparison.readings import Readings

    monkeypatch.setattr(running, "TOKENS", 8)
    assert main(command(folder, *ALL, out="a.parquet")) == 0
    assert main(command(folder, *ALL, out="b.parquet")) == 0
    a, b = (Readings.load(folder / f"{name}.parquet").meta["guards"] for name in "ab")
    assert a == b  # nothing is drawn
    assert {name: found["n"] for name, found in a.items()} == {
        **{"gsm8k": 4, "humaneval": 2, "mbpp": 2},
    }
    assert "gsm8k: 0.000 (0.000 to " in capsys.readouterr().out
    assert not (folder / "a.parquet.benchmarks").exists()
    rows = rail_rows({"before": {"guards": a}, "after": {"guards": b}})
    assert {row.verdict for row in rows} == {"not shown"}


def test_a_command_that_was_cut_off_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emoreg.cli import main

    monkeypatch.setattr(running, "TOKENS", 8)
    asked = command(folder, "--benchmark", "gsm8k=@gsm8k.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr("emoreg.commands.measure.forget_replies", lambda _: None)
        assert main(asked) == 0
    assert main(asked) == 2
    # All replies are there, so none is written again.
    monkeypatch.setattr(LocalWriter, "_sample", None)
    assert main([*asked, "--resume"]) == 0
    assert not (folder / "t.parquet.benchmarks").exists()


def test_the_command_refuses_before_a_model_is_loaded(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(*more: str) -> str:
        return refused(capsys, command(folder, *more))

    monkeypatch.setattr("emoreg.commands.measure.load", None)
    asked = ["--benchmark", "gsm8k=@gsm8k.jsonl"]
    assert "`--benchmark-limit` must be at least" in said(
        *asked, "--benchmark-limit", "0"
    )
    assert "must come with" in said("--benchmark-limit", "5")
    assert "must be NAME=FILE" in said("--benchmark", "gsm8k")
    assert "each name once" in said(*asked, *asked)
    assert "one of `gsm8k`" in said("--benchmark", "mmlu=@gsm8k.jsonl")
    (folder / "t.parquet.benchmarks" / "gsm8k").mkdir(parents=True)
    assert "Go on with --resume" in said(*asked)


def test_where_nothing_shuts_code_in_it_must_be_allowed(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def weak(level: str) -> str | None:
        return None if level == "limits" else "not here"

    monkeypatch.setattr("emoreg.behavior.sandbox.sandbox.why_not", weak)
    monkeypatch.setattr("emoreg.commands.measure.load", None)
    asked = command(folder, "--benchmark", "mbpp=@mbpp.jsonl")
    asked.remove("--allow-weak-sandbox")
    assert "--allow-weak-sandbox" in refused(capsys, asked)
