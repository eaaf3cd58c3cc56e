r"""How the benchmarks' graders take each file's own solutions, without any model.

    python scripts/benchmark_solutions.py gsm8k=PATH humaneval=PATH mbpp=PATH

For each file: how many items pass their tests with the file's own solution, and of
those how many replies with it are graded right; as a control, how many replies are
graded right whose functions return `None`, or whose number is another.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

from emoreg.behavior.sandbox.sandbox import Sandbox
from emoreg.commands.shared import named_files
from emoreg.comparison.benchmarks.formats import read_benchmark
from emoreg.comparison.benchmarks.items import Item, Program
from emoreg.comparison.benchmarks.run import code_sandbox, runs_code, usable

SAID = "Here it is.\n\n```python\n{}\n```\nDone."


def replies(item: Item) -> tuple[str, str]:
    """Return a right and a wrong reply to an item, with words around."""
    if isinstance(item, Program):
        nothing = [f"def {f}(*_, **__):\n    return None\n" for f in item.functions]
        right = item.before + item.solution
        return SAID.format(right), SAID.format("".join(nothing))
    answer = item.answer
    return f"So 3 more make {answer}.", f"So {answer} less 1 is {answer - 1}."


def graded(item: Item, sandbox: Sandbox | None) -> tuple[bool, bool]:
    """Return whether the right reply is graded right, and whether the wrong one is."""
    right, wrong = replies(item)
    if isinstance(item, Program):
        assert sandbox is not None
        return item.right(right, sandbox), item.right(wrong, sandbox)
    return item.right(right), item.right(wrong)


def report(name: str, path: Path) -> None:
    whole = benchmark = read_benchmark(name, path)
    with code_sandbox() if runs_code(whole) else nullcontext() as sandbox:
        if sandbox is not None:
            benchmark, left = usable(whole, sandbox)
            print(f"{name}: left out {', '.join(left) or 'none'}")
        found = [graded(item, sandbox) for item in benchmark.items]
    right, wrong = (sum(column) for column in zip(*found, strict=True))
    print(
        f"{name}: {len(found)} of {len(whole.items)} can be used; own solutions graded "
        f"right {right}, wrong replies {wrong}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="NAME=PATH")
    for name, path in named_files(parser.parse_args(arguments).files).items():
        report(name, path)


if __name__ == "__main__":
    main()
