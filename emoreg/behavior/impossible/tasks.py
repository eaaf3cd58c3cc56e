"""Coding tasks in twins: one that can be solved, and one alike that can not."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

from tqdm.auto import tqdm

from emoreg.behavior.sandbox.cases import Test, parse_test
from emoreg.behavior.sandbox.runner import TestReport, run_tests
from emoreg.behavior.sandbox.sandbox import Sandbox
from emoreg.vectors.records import ANYTHING, TEXT, Record, read_records

Twin = Literal["solvable", "impossible"]
TWINS: tuple[Twin, Twin] = ("solvable", "impossible")
KINDS = {
    "contradiction": "two visible tests ask for different things of one call",
    "wrong-value": "a visible test expects a wrong value",
    "unreachable-limit": "a visible test asks for what no program does in the time",
    "missing-file": "the file that the task speaks of is not there",
    "missing-library": "the library that must be used is not there",
}
"""Why the packaged tasks are impossible; files of one's own may have other kinds."""
PACKAGED = Path(__file__).with_name("tasks.jsonl")
SOLUTION = "solution.py"
"""The file that a task's code is put into."""
_REQUIRED = {
    "id": TEXT,
    "kind": TEXT,
    "prompt": TEXT,
    "visible": ANYTHING,
    "hidden": ANYTHING,
    "solution": TEXT,
}
_OPTIONAL = {"broken", "solvable_only", "impossible_prompt", "files", "only"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task. Its tests are those of `emoreg.behavior.sandbox.runner`."""

    id: str
    """Of the pair: the twin of the same name is the other `twin`."""
    twin: Twin
    kind: str
    """Why the impossible twin is impossible; the solvable one has it too."""
    prompt: str
    """What is asked for: a function by its name, and what it must do."""
    visible: tuple[Test, ...]
    """Tests whose results the model is told."""
    hidden: tuple[Test, ...]
    """What is true of the function, impossible or not; the model never sees them."""
    solution: str
    """Code that does what the prompt says, as far as it can be done."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What lies beside the code while visible tests run, by relative path."""
    hidden_files: Mapping[str, str] = field(default_factory=dict)
    """Likewise while hidden ones do: a file that is missing is there then."""
    broken: tuple[Test, ...] = ()
    """The visible tests that no code can pass which does what the prompt says; none of
    a solvable twin."""

    @property
    def name(self) -> str:
        """Return the task's own name, its pair's and its twin's."""
        return f"{self.id}/{self.twin}"

    def run_visible(self, code: str, sandbox: Sandbox) -> TestReport:
        """Return what the visible tests say of some code."""
        return _run(code, self.visible, self.files, sandbox)

    def run_hidden(self, code: str, sandbox: Sandbox) -> TestReport:
        """Return what the hidden tests say of some code."""
        return _run(code, self.hidden, self.hidden_files, sandbox)


def load_tasks(
    path: str | Path | None = None, *, twins: Sequence[Twin] = TWINS
) -> tuple[Task, ...]:
    """Read tasks from a JSON Lines file, a pair of twins a line.

    A line has `id`, `kind`, `prompt`, `visible` and `hidden` (lists of tests) and
    `solution`; and, as needed, `broken`: visible tests of the impossible twin alone;
    `solvable_only`: likewise of the other; `impossible_prompt`: the prompt of the
    impossible twin, if it differs; `files`: texts by relative path, which the
    impossible twin's visible tests lack; `only`: `solvable` or `impossible`, for a
    line without the other twin.

    Args:
        path: The file; the packaged one when None.
        twins: Which of each pair.

    Raises:
        ValueError: If the file or a line can't be read, a task has no tests, its
            impossible twin differs in nothing, or a name stands twice.
    """
    file = PACKAGED if path is None else Path(path)
    tasks: list[Task] = []
    for record in read_records(file, file.parent, required=_REQUIRED):
        made = [task for task in _pair(record) if task.twin in twins]
        if {task.id for task in made} & {task.id for task in tasks}:
            record.fail(
                "every task must have a name of its own",
                f"`{record.fields['id']}` twice",
                "Rename one",
            )
        tasks += made
    if not tasks:
        raise ValueError(
            f"{file.name}: the file must hold a task of the twins {tuple(twins)}, "
            "found none. Add one"
        )
    return tuple(tasks)


def tasks_hash(tasks: Iterable[Task]) -> str:
    """Return a short hash of all that tasks ask and test, whatever their order."""
    said = sorted(
        json.dumps(asdict(task), sort_keys=True, default=str) for task in tasks
    )
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def check_tasks(
    tasks: Iterable[Task], sandbox: Sandbox, *, quiet: bool = False
) -> None:
    """Run every reference solution: it must do what its task says can be done.

    It must pass all hidden tests, all visible ones of a solvable twin, and miss one
    or more visible ones of an impossible twin.

    Raises:
        ValueError: On the first task of which that is not so.
    """
    for task in tqdm(tuple(tasks), desc="Checking tasks", disable=quiet):
        hidden = task.run_hidden(task.solution, sandbox)
        if not hidden.all_passed:
            raise ValueError(
                f"the solution of `{task.name}` must pass all hidden tests, found "
                f"{_first_miss(hidden)}. Mend the solution or the test"
            )
        visible = task.run_visible(task.solution, sandbox)
        if task.twin == "solvable" and not visible.all_passed:
            raise ValueError(
                f"the solution of `{task.name}` must pass all visible tests, found "
                f"{_first_miss(visible)}. Mend the solution or the test"
            )
        if task.twin == "impossible" and visible.all_passed:
            raise ValueError(
                f"the solution of `{task.name}` must miss a visible test, or the task "
                "is possible; it passed all of them. Break one, or mark it solvable"
            )


def _run(
    code: str, tests: Sequence[Test], files: Mapping[str, str], sandbox: Sandbox
) -> TestReport:
    texts = {**files, SOLUTION: code}
    return run_tests(texts, tests, sandbox=sandbox, main=SOLUTION)


def _first_miss(report: TestReport) -> str:
    return str(next(r for r in report.results if r.status != "passed"))


def _pair(record: Record) -> Iterator[Task]:
    """Yield the twins of a line."""
    unknown = set(record.fields) - set(_REQUIRED) - _OPTIONAL
    if unknown:
        record.fail(
            f"a task must have no other fields than {sorted(_OPTIONAL)} besides the "
            "required ones",
            ", ".join(sorted(unknown)),
            "Delete them",
        )
    known = record.fields
    tests = {
        name: _tests(record, name, needed=name in _REQUIRED)
        for name in ("visible", "hidden", "broken", "solvable_only")
    }
    files = _files(record)
    solvable = Task(
        id=known["id"],
        twin="solvable",
        kind=known["kind"],
        prompt=known["prompt"],
        visible=(*tests["visible"], *tests["solvable_only"]),
        hidden=tests["hidden"],
        solution=known["solution"],
        files=files,
        hidden_files=files,
    )
    impossible = replace(
        solvable,
        twin="impossible",
        prompt=known.get("impossible_prompt", known["prompt"]),
        visible=(*tests["visible"], *tests["broken"]),
        files={},
        broken=tests["broken"] or tests["visible"],  # all of them need the file
    )
    only = known.get("only")
    if only not in (None, *TWINS):
        record.fail(f"`only` must be one of {TWINS}", repr(only), "Choose one")
    if only != "solvable" and not (tests["broken"] or files):
        record.fail(
            "the impossible twin must have `broken` tests, or lack `files`",
            "neither",
            'Add one, or write `"only": "solvable"`',
        )
    yield from (t for t in (solvable, impossible) if only in (None, t.twin))


def _tests(record: Record, name: str, *, needed: bool) -> tuple[Test, ...]:
    found: Any = record.fields.get(name, [])
    if not isinstance(found, list) or (needed and not found):
        record.fail(
            f"`{name}` must be a list of {'one or more ' if needed else ''}tests",
            "none" if found == [] else repr(found),
            "Write them as `f(1) == 2`",
        )
    for test in found:
        try:
            parse_test(test)
        except (ValueError, TypeError) as error:
            found_text = str(error).rstrip(".")
            record.fail(f"`{name}` must hold tests", found_text, "Mend the test")
    return tuple(found)


def _files(record: Record) -> dict[str, str]:
    found: Any = record.fields.get("files", {})
    fine = isinstance(found, dict) and all(isinstance(x, str) for x in found.values())
    inside = fine and all(
        name != SOLUTION
        and not Path(name).is_absolute()
        and ".." not in Path(name).parts
        for name in found
    )
    if not inside:
        record.fail(
            f"`files` must map relative paths, none of them {SOLUTION}, to texts",
            repr(found),
            "Mend them",
        )
    return dict(found)
