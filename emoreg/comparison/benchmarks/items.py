"""What a model is asked in a benchmark, and when its reply is right."""

import ast
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import final

from emoreg.behavior.impossible.moves import fenced_blocks
from emoreg.behavior.sandbox.asserts import run_asserts
from emoreg.behavior.sandbox.runner import TestResult
from emoreg.behavior.sandbox.sandbox import Sandbox
from emoreg.comparison.benchmarks.numbers import last_number


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question whose answer is a number."""

    key: str
    """Its name in the file, or its line."""
    asked: str
    """What the model is told."""
    answer: Decimal

    def right(self, reply: str) -> bool:
        """Return whether the last number of a reply is the answer."""
        return last_number(reply) == self.answer


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A function to be written, with tests that are code."""

    key: str
    """Its name in the file."""
    asked: str
    """What the model is told."""
    functions: tuple[str, ...]
    """What the tests call, the function that is asked for among them."""
    before: str = ""
    """Stands before the code of a reply: imports, and the function's head."""
    tests: str
    """What `run_asserts` runs."""
    solution: str
    """The file's own, as the code of a reply."""

    def right(self, reply: str, sandbox: Sandbox) -> bool:
        """Return whether the code of a reply passes the tests.

        Raises:
            SandboxError: If the code could not be shut in.
        """
        return self.run(code_of(reply, self.functions), sandbox).status == "passed"

    def run(self, code: str, sandbox: Sandbox) -> TestResult:
        """Run the tests on code.

        Raises:
            SandboxError: If the code could not be shut in.
        """
        return run_asserts(self.before + code, self.tests, sandbox=sandbox)


Item = Question | Program


def code_of(reply: str, functions: tuple[str, ...]) -> str:
    """Return the code of a reply.

    That is the first fenced block that defines one of the functions, or else the first
    block, or the whole reply where there is none. A block that was cut off counts as
    far as it goes.

    Args:
        reply: What the model wrote.
        functions: What the tests call.
    """
    blocks = fenced_blocks(reply)
    heads = re.compile(rf"^(?:def|class)\s+(?:{'|'.join(functions)})\b", re.MULTILINE)
    defining = [block for block in blocks if heads.search(block)]
    return next(iter([*defining, *blocks]), reply)


def names_in(text: str) -> set[str]:
    """Return the names that a program uses.

    Raises:
        SyntaxError: If it is none.
    """
    return {node.id for node in ast.walk(parsed(text)) if isinstance(node, ast.Name)}


def parsed(text: str) -> ast.Module:
    """Return a program's tree.

    Raises:
        SyntaxError: If it is none.
    """
    try:
        return ast.parse(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error) or type(error).__name__) from None
