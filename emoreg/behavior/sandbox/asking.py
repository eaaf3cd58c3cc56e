"""Inside the sandbox: runs tests that were written as code, and asks for each call.

The tests of a data set are programs: asserts, loops, tolerances, their own arithmetic.
They run here, in a process of their own behind the same walls, and the code that they
test is not here. A function of it is a stand-in that sends its arguments out and gives
back what comes in, which is plain literals. So what decides stands where the code under
test can't reach.
"""

import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from emoreg.behavior.sandbox.answers import decoded, encoded, raised, send

ASKED = "_asked"
"""`_asked("f")` in the tests is the stand-in of the function `f`."""


def serve(ask: int, answer: int, source: str, name: str) -> None:
    """Run tests, and say at the end whether they came through."""
    number = 1
    with os.fdopen(ask, "rb") as given:

        def asked(function: str) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                nonlocal number
                words = {
                    "id": number,
                    "function": function,
                    "arguments": [encoded(value) for value in arguments],
                    "keywords": {key: encoded(held) for key, held in keywords.items()},
                }
                number += 1
                send(answer, words)
                return decoded(json.loads(given.readline())["value"])

            return call

        module = types.ModuleType("tests")
        module.__dict__[ASKED] = asked
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, name, "exec"), module.__dict__)
            said: dict[str, Any] = {"passed": True}
        except BaseException as error:
            said = raised(error)
        send(answer, {"id": number, **said})
