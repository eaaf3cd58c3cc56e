"""Tests of code: a call of a function, and the literal or exception it must give."""

import ast
import cmath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

TOLERANCE: Final = 1e-9
"""Relative and absolute; where one of two numbers is a float or complex."""
SHOWN: Final = 100
"""Characters of a value that a message shows."""

_Number = int | float | complex
Test = str | Mapping[str, Any]
"""`{"call": "f(1)", "expect": 2}`, `{"call": "f(1)", "raises": "ValueError"}`, or
`"f(1) == 2"`."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One test."""

    call: str
    """As it was written."""
    function: str
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    expect: Any = None
    raises: str | None = None
    """Name of the exception that must come instead of a value, or of one of its
    bases."""


def parse_test(test: Test) -> Case:
    """Read a test.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(test, str):
        return _from_text(test)
    known = {"call", "expect", "raises"}
    if "call" not in test or not {*test} <= known or len(test) != 2:
        raise ValueError(
            "A test must have `call` and one of `expect` and `raises`, found "
            f"{sorted(map(str, test))}. Write it as "
            '{"call": "f(1)", "expect": 2}.'
        )
    raises = test.get("raises")
    if "raises" in test and not (isinstance(raises, str) and raises.isidentifier()):
        raise ValueError(
            f"`raises` must be an exception's name, found {raises!r}. Write "
            '"ValueError".'
        )
    if not is_literal(test.get("expect")):
        raise ValueError(
            f"`expect` must be made of literals, found {test['expect']!r}. Use "
            "numbers, texts, bytes, lists, tuples, dicts, sets, booleans and None."
        )
    return _case(str(test["call"]), expect=test.get("expect"), raises=raises)


def _from_text(text: str) -> Case:
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.Compare) or len(tree.ops) != 1:
            raise ValueError("no comparison")
        if not isinstance(tree.ops[0], ast.Eq | ast.Is):
            raise ValueError("another comparison than == or is")
        expect = ast.literal_eval(tree.comparators[0])
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"A test must read `call == literal`, found {text!r} ({error}). Write it "
            "as `f(1, [2]) == 3`."
        ) from None
    return _case(ast.unparse(tree.left), expect=expect)


def _case(call: str, expect: Any = None, raises: str | None = None) -> Case:
    try:
        tree = ast.parse(call, mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError("no call of a function by its name")
        arguments = tuple(ast.literal_eval(node) for node in tree.args)
        keywords = {}
        for word in tree.keywords:
            if word.arg is None:
                raise ValueError("keywords from a dict")
            keywords[word.arg] = ast.literal_eval(word.value)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"`call` must call a function with literals, found {call!r} ({error}). "
            "Write it as `f(1, [2], key='x')`."
        ) from None
    return Case(
        call=call,
        function=tree.func.id,
        arguments=arguments,
        keywords=keywords,
        expect=expect,
        raises=raises,
    )


def is_literal(value: Any) -> bool:
    """Return whether a value is made of builtin types alone."""
    if type(value) in (list, tuple, set, frozenset):
        return all(map(is_literal, value))
    if type(value) is dict:
        return all(is_literal(key) and is_literal(value[key]) for key in value)
    return type(value) in (type(None), bool, int, float, complex, str, bytes)


def equal(expected: Any, given: Any) -> bool:
    """Return whether two literals are equal as by `==`, or `TOLERANCE` apart.

    Inside sets and as keys of dicts, floats must be the same. Not a number equals
    itself. Both are literals that were built here, so nothing of the code's own takes
    part.
    """
    if isinstance(expected, _Number) and isinstance(given, _Number):
        return _close(expected, given)
    if isinstance(expected, set | frozenset) and isinstance(given, set | frozenset):
        return expected == given
    if type(expected) is not type(given):
        return False
    if isinstance(expected, list | tuple):
        return len(expected) == len(given) and all(map(equal, expected, given))
    if isinstance(expected, dict):
        return expected.keys() == given.keys() and all(
            equal(value, given[key]) for key, value in expected.items()
        )
    return expected == given


def _close(expected: _Number, given: _Number) -> bool:
    if expected == given:
        return True
    if isinstance(expected, int) and isinstance(given, int):
        return False
    try:
        if cmath.isnan(expected) or cmath.isnan(given):
            return cmath.isnan(expected) and cmath.isnan(given)
        # Not `cmath.isclose`: it takes complex numbers beyond every float as close to
        # all others, which would be an answer to every test.
        size = max(1.0, abs(expected), abs(given))
        return abs(expected - given) <= TOLERANCE * size < cmath.inf
    except OverflowError:  # a number beyond every float
        return False


def shown(value: Any) -> str:
    """Return a value as one short line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "<an integer of very many digits>"
    return one_line(text)


def one_line(text: str) -> str:
    """Return a text as one short line that prints anywhere."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    half = SHOWN // 2
    return text if len(text) <= SHOWN else f"{text[:half]}...{text[-half:]}"
