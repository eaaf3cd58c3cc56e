"""The files of GSM8K, HumanEval and MBPP, as their makers publish them."""

import ast
import gzip
import hashlib
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NoReturn, final

from emoreg.behavior.sandbox.asking import ASKED
from emoreg.comparison.benchmarks.items import (
    Item,
    Program,
    Question,
    names_in,
    parsed,
)
from emoreg.vectors.records import ANYTHING, TEXT, TEXTS, Record, choose, read_records

FEWEST: Final = 2
"""Items that an interval needs."""
MARK: Final = "####"
"""Stands before the answer in GSM8K."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """The items of one file."""

    name: str
    items: tuple[Item, ...]
    file: str
    """Short hash of the file's content, unpacked."""


def read_benchmark(name: str, path: Path, *, limit: int | None = None) -> Benchmark:
    """Read a file of a benchmark, `.jsonl` or `.jsonl.gz`.

    Args:
        name: One of `FORMATS`.
        path: The file.
        limit: The first items only, this many.

    Raises:
        ValueError: If there is no such benchmark or file, a line has another format,
            or fewer items are left than an interval needs.
    """
    form = FORMATS[choose(name, [*FORMATS], parameter="--benchmark")]
    if limit is not None and limit < FEWEST:
        raise ValueError(
            f"`--benchmark-limit` must be at least {FEWEST}, as intervals are over "
            f"items, found {limit}. Leave it out for all"
        )
    content = _unpacked(path)
    with tempfile.TemporaryDirectory() as folder:
        # Under its own name, which stands in messages.
        plain = Path(folder, path.name.removesuffix(".gz"))
        plain.write_bytes(content)
        records = read_records(plain, plain.parent, required=form.required)
        items = tuple(_named_once(form.item, records))
    if len(items) < FEWEST:
        raise ValueError(
            f"{path} must hold at least {FEWEST} items, as intervals are over items, "
            f"found {len(items)}. Pass the whole file"
        )
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Benchmark(name=name, items=items[:limit], file=digest)


def _unpacked(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(
            f"`--benchmark` must name a file, found none at {path}. Download it from "
            "its makers, and pass where it lies"
        )
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} must be a whole gzip file, found one that can't be unpacked "
            f"({error}). Copy it anew"
        ) from error


def _named_once(
    item_of: Callable[[Record], Item], records: Iterator[Record]
) -> Iterator[Item]:
    seen = set()
    for record in records:
        item = item_of(record)
        if item.key in seen:
            record.fail(
                "every item must have a name of its own",
                f"{item.key} a second time",
                "Remove one of the two",
            )
        seen.add(item.key)
        yield item


def _gsm8k(record: Record) -> Question:
    _, mark, answer = str(record.fields["answer"]).rpartition(MARK)
    try:
        number = Decimal(answer.strip().replace(",", "")) if mark else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite():
        record.fail(
            f"`answer` must end with {MARK} and a number",
            repr(answer.strip()[-40:]),
            f"Write for example `{MARK} 18`",
        )
    return Question(
        key=record.where.rpartition(":")[2],
        asked=f"{record.fields['question']}\n\nWork it out step by step. End with the "
        "answer as a number.",
        answer=number,
    )


def _humaneval(record: Record) -> Program:
    fields = record.fields
    prompt, function = f"{fields['prompt'].rstrip()}\n", fields["entry_point"]
    heads = _functions(record, "prompt", prompt)
    if function not in heads:
        record.fail(
            "`prompt` must begin the function that `entry_point` names",
            f"{function!r} and {sorted(heads)}",
            "Mend one of the two",
        )
    if "check" not in _functions(record, "test", fields["test"]):
        record.fail("`test` must define `check`", "no such function", "Add the tests")
    # The tests may use other functions that the prompt brings, so it stands first.
    tests = f"{_stands_in(function)}{fields['test']}\ncheck({function})\n"
    return Program(
        key=fields["task_id"],
        asked="Complete this Python function. Reply with one code block that holds "
        f"the whole function.\n\n```python\n{prompt}```",
        functions=(function,),
        before=prompt,
        tests=f"{prompt}{tests}",
        solution=fields["canonical_solution"],
    )


def _mbpp(record: Record) -> Program:
    fields = record.fields
    shown, code = "\n".join(fields["test_list"]), fields["code"]
    tests = f"{fields.get('test_setup_code') or ''}\n{shown}\n"
    used = _names(record, "test_list", tests)
    called = [name for name in _functions(record, "code", code) if name in used]
    if not called:
        record.fail(
            "`test_list` must call a function that `code` defines",
            f"no such call in {fields['test_list'][0][:40]!r}",
            "Mend one of the two",
        )
    imports = [
        f"{ast.unparse(node)}\n"
        for node in parsed(code).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    stand_ins = "".join(map(_stands_in, called))
    return Program(
        key=str(fields["task_id"]),
        asked=f"{fields['text']}\n\nReply with one Python code block. These tests will "
        f"be run:\n\n```python\n{shown}\n```",
        functions=tuple(called),
        tests=f"{''.join(imports)}{stand_ins}{tests}",
        solution=code,
    )


def _stands_in(function: str) -> str:
    return f"{function} = {ASKED}({function!r})\n"


def _functions(record: Record, field: str, text: str) -> list[str]:
    """Return the functions and classes that a field of code defines."""
    try:
        body = parsed(text).body
    except SyntaxError as error:
        _no_code(record, field, error)
    made = (n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef))
    return list(dict.fromkeys(made))


def _names(record: Record, field: str, text: str) -> set[str]:
    try:
        return names_in(text)
    except SyntaxError as error:
        _no_code(record, field, error)


def _no_code(record: Record, field: str, error: SyntaxError) -> NoReturn:
    record.fail(f"`{field}` must be Python code", str(error), "Mend it")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How the lines of a file become items."""

    required: Mapping[str, str]
    """Kind of each field that a line must have."""
    item: Callable[[Record], Item]


FORMATS: Final[dict[str, Format]] = {
    "gsm8k": Format(required={"question": TEXT, "answer": TEXT}, item=_gsm8k),
    "humaneval": Format(
        required={
            **{"task_id": TEXT, "prompt": TEXT, "entry_point": TEXT},
            **{"canonical_solution": TEXT, "test": TEXT},
        },
        item=_humaneval,
    ),
    "mbpp": Format(
        required={"task_id": ANYTHING, "text": TEXT, "code": TEXT, "test_list": TEXTS},
        item=_mbpp,
    ),
}
"""By the benchmark's name."""
