"""Reads success or failure out of JSON that a tool returned."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from emoreg.training.outcomes.rules import (
    ASKED,
    FINAL_LABELS,
    NEGATIVE,
    any_failure,
    verdict,
)

_EXIT_KEYS: Final = frozenset(
    ("exit code", "exit status", "returncode", "return code", "rc", "exitcode")
)
_HTTP_KEYS: Final = frozenset(("status code", "http status", "statuscode"))
_COUNT_KEYS: Final = frozenset(
    (
        *("fail", "failed", "failing", "failures", "errors"),
        *("error count", "failed count", "num failed", "tests failed"),
    )
)
_TOTAL_KEYS: Final = ("total", "tests", "count", "run")
# What stands under these tells of the call, an example or a wish, not of the outcome.
_ASIDE: Final = re.compile(
    r"\b(?:want|wanted|expect|expected|example|first|last|previous|before|input|args|"
    r"arguments|command|message|level|name|title|id|query|content|stdout|found|got|"
    r"actual|returned)\b"
)
_NESTED: Final = frozenset(
    "data outcome report result results stats summary tests totals".split()
)
# Under a key of any name only words that hardly mean anything else.
_STRONG: Final = frozenset(
    (
        *("accepted", "fail", "failed", "feasible", "infeasible"),
        *("invalid", "pass", "passed", "rejected", "valid"),
    )
)

_OBJECT: Final = re.compile(r"^[ \t]*\{", re.MULTILINE)
_DECODER: Final = json.JSONDecoder()


def _key_words(key: str) -> str:
    """Return a key as lower-case words: `isError`, `exit-code` -> `is error`, ..."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key)
    return re.sub(r"[_\-\s]+", " ", spaced).strip().lower()


def _of_flag(key: str, value: bool) -> bool | None:
    words = re.sub(r"^(?:is|has|was|all|tests)\s+", "", key)
    if words in ("timed out", "timeout", "has errors") or words in NEGATIVE:
        return value
    if words in ASKED or verdict(words) is False:
        return not value
    return None


def _of_number(key: str, value: int | float) -> bool | None:
    if key in _EXIT_KEYS or key in _COUNT_KEYS:
        return value != 0
    if key in _HTTP_KEYS or (key == "status" and 100 <= value < 600):
        return value >= 400
    return None


def _of_text(key: str, value: str) -> bool | None:
    if key == "error":
        return True if value.strip() else None
    if key.split()[-1:] and key.split()[-1] in FINAL_LABELS:
        return verdict(value)
    words = re.sub(r"^(?:now|still|all|not) ", "", value.strip().lower())
    return verdict(value) if words in _STRONG else None


def _votes(content: Mapping[str, Any], depth: int = 0) -> Iterator[bool | None]:
    """Yield what each entry says of the outcome."""
    keys = {_key_words(str(key)): value for key, value in content.items()}
    for key, value in keys.items():
        if _ASIDE.search(key):
            continue
        if isinstance(value, bool):
            yield _of_flag(key, value)
        elif isinstance(value, int | float):
            yield _of_number(key, value)
        elif isinstance(value, str):
            yield _of_text(key, value)
        elif isinstance(value, list) and key in ("errors", "failures"):
            yield bool(value)
        elif isinstance(value, Mapping) and depth < 2:
            if key == "error":
                yield bool(value)
            elif key in _NESTED:
                yield from _votes(value, depth + 1)
    passed = keys.get("passed")
    total = next((keys[key] for key in _TOTAL_KEYS if key in keys), None)
    # Not `isinstance`: a flag is an integer too.
    if type(passed) is int and type(total) is int and total > 0:
        yield passed < total


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects that stand on lines of their own, one line or several.

    Of several lines only where nothing is before it in its first one: else it is a
    part of something that is no object.
    """
    text, end = text.strip(), 0
    for start in _OBJECT.finditer(text):
        at = start.end() - 1
        if at < end:  # inside the one before
            continue
        try:
            value, stop = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        indented = at > start.start() and "\n" in text[at:stop]
        if not indented and not text[stop:].partition("\n")[0].strip():
            end = stop
            yield value


def json_report(text: str) -> bool | None:
    """Read `{"failed": 2, "passed": 3}`, `{"ok": false}`, `{"status": "error"}`."""
    return any_failure(vote for value in _objects(text) for vote in _votes(value))
