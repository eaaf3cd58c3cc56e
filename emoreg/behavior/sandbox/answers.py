"""Inside the sandbox: loads the code under test and answers calls of its functions.

Nothing here is trusted, for the code runs in this process and can change all of it. It
can make up answers, and an answer is all that it can make: what is right is known
outside alone, where answers are compared. Expected values never come in here.

Each call is answered by a process of its own, forked after the code was loaded, so
calls leave nothing behind for one another.
"""

import json
import os
import sys
import types
from typing import Any

SHOWN = 300
"""Characters of a text that are sent along for people to read."""


def serve(ask: int, answer: int, source: str, name: str) -> None:
    """Load a source, say how that went, then answer calls until there are no more."""
    module = types.ModuleType(name.removesuffix(".py").replace("/", "."))
    module.__file__ = name
    sys.modules[module.__name__] = module
    sys.argv = [name]
    try:
        exec(compile(source, name, "exec"), module.__dict__)
    except BaseException as error:
        send(answer, {"id": 0, **raised(error)})
        return
    send(answer, {"id": 0, "ready": True})
    with os.fdopen(ask, "rb") as calls:
        for line in calls:
            call = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _answer(answer, call, module.__dict__)
            status = os.waitpid(pid, 0)[1]
            send(answer, {"id": call["id"], "ended": status})


def _answer(answer: int, call: dict[str, Any], names: dict[str, Any]) -> None:
    try:
        try:
            arguments = [decoded(value) for value in call["arguments"]]
            keywords = {key: decoded(value) for key, value in call["keywords"].items()}
            value = eval(call["function"], names)(*arguments, **keywords)
            said = {"id": call["id"], "value": encoded(value)}
        except BaseException as error:
            said = {"id": call["id"], **raised(error)}
        send(answer, said)
        sys.stdout.flush()
    finally:
        os._exit(0)


def send(answer: int, words: dict[str, Any]) -> None:
    """Write one line of JSON to a pipe, whole."""
    left = json.dumps(words).encode() + b"\n"
    while left:
        left = left[os.write(answer, left) :]


def raised(error: BaseException) -> dict[str, Any]:
    """Return an exception's names, most special first, and its message."""
    names = [kind.__name__ for kind in type(error).__mro__ if kind is not object]
    try:
        message = str(error)[:SHOWN]
    except BaseException:
        message = ""
    return {"raised": names, "message": message}


# -- values as JSON --------------------------------------------------------------------


def encoded(value: Any) -> Any:
    """Return a literal as JSON; what is no literal comes out as its text."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return {"int": hex(value)}  # decimal digits cost quadratic time
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": bytes.hex(value)}
    if isinstance(value, list):
        return [encoded(item) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encoded(item) for item in value]}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encoded(key), encoded(held)] for key, held in pairs]}
    try:
        shown = repr(value)[:SHOWN]
    except BaseException:
        shown = f"<{type(value).__name__}>"
    return {"other": shown}


class Other:
    """What a call gave that is no literal. It equals nothing but itself."""

    __slots__ = ("shown",)

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __repr__(self) -> str:
        return f"<object {self.shown!r}>"


def decoded(value: Any) -> Any:
    """Return what was encoded.

    Raises:
        ValueError: If nothing encodes to that.
    """
    if not isinstance(value, dict):
        return [decoded(item) for item in value] if isinstance(value, list) else value
    ((kind, held),) = value.items()
    if kind == "int":
        return int(held, 16)
    if kind == "bytes":
        return bytes.fromhex(held)
    if kind == "complex":
        return complex(*map(float, held))
    if kind == "other":
        return Other(str(held))
    if kind == "dict":
        return {decoded(key): decoded(item) for key, item in held}
    kinds = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if kind not in kinds:
        raise ValueError(f"no value is written as {kind!r}")
    return kinds[kind](decoded(item) for item in held)
