"""The house rules: what may import what, how long things are, what is documented."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "emoreg"

# In the order in which data flows. A file imports from its own floor and those above.
FLOORS = (
    "residual",
    "statistics",
    "vectors",
    "writing",
    "validation",
    "losses",
    "training",
    "behavior",
    "comparison",
)
# Beside the floors above and the standard library. What all may use: the arrays and
# their annotations, progress bars.
EVERYWHERE = {"numpy", "jaxtyping", "tqdm", "emoreg"}
MAY_IMPORT = {
    "residual": {"torch", "transformers"},
    "statistics": {"scipy", "threadpoolctl"},
    "vectors": {"torch", "transformers", "safetensors", "huggingface_hub", "gguf"},
    "writing": {"torch", "transformers", "openai"},
    "validation": {"torch", "transformers", "safetensors", "scipy"},
    "losses": {"torch"},
    "training": {
        *("torch", "transformers", "safetensors", "accelerate", "datasets"),
        *("peft", "wandb", "trackio", "tensorboard"),
    },
    "behavior": {"torch", "transformers", "pyarrow"},
    "comparison": {
        *("torch", "transformers", "safetensors", "scipy"),
        *("pyarrow", "plotly", "matplotlib", "jinja2", "markupsafe", "lm_eval"),
    },
    "quickstart": {"torch", "transformers"},
    "commands": {"transformers"},
    "data": set(),
}
# Each in one file of the package.
IN_ONE_FILE = ("peft", "openai", "wandb", "trackio", "matplotlib", "plotly", "lm_eval")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
BAD_NAMES = {"utils.py", "helpers.py", "common.py"}


def floor_of(module: str) -> int:
    """Return how deep a module lies; the top level imports from anywhere."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in FLOORS:
        return FLOORS.index(parts[1])
    return len(FLOORS)


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def functions(
    tree: ast.Module,
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yield functions and whether they are public: no underscore, not nested."""

    def walk(body: list[ast.stmt], public: bool) -> Iterator:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node, public and not node.name.startswith("_")
                yield from walk(node.body, False)
            elif isinstance(node, ast.ClassDef):
                yield from walk(node.body, public and not node.name.startswith("_"))

    yield from walk(tree.body, True)


def import_faults(path: Path, package: Path, tree: ast.Module) -> Iterator[str]:
    """Yield imports that the floors do not allow."""
    name = path.relative_to(package.parent)
    module = ".".join(name.with_suffix("").parts)
    folder = name.parts[1] if len(name.parts) > 2 else ""
    for line, target in imported(tree):
        where = f"{name.as_posix()}:{line}"
        top = target.split(".")[0]
        if target.startswith("."):
            yield f"{where}: relative import"
        elif top == "trl":
            yield f"{where}: imports trl"
        elif top == "emoreg":
            if target != "emoreg" and floor_of(target) > floor_of(module):
                yield f"{where}: imports {target} from a floor below"
            if target == "emoreg" and folder:
                yield f"{where}: imports the package, not a defining module"
        elif folder and top not in sys.stdlib_module_names:
            if top not in EVERYWHERE | MAY_IMPORT.get(folder, set()):
                yield f"{where}: {folder}/ may not import {top}"


def size_faults(path: Path, package: Path, tree: ast.Module) -> Iterator[str]:
    """Yield files and functions that are too long, and names that say nothing."""
    name = path.relative_to(package.parent).as_posix()
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{name}: {lines} lines"
    if path.name in BAD_NAMES:
        yield f"{name}: a name that says nothing"
    for node, _ in functions(tree):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {length} lines"


def wording_faults(path: Path, package: Path, tree: ast.Module) -> Iterator[str]:
    """Yield what lacks a docstring or an annotation."""
    name = path.relative_to(package.parent).as_posix()
    if not ast.get_docstring(tree):
        yield f"{name}:1: no module docstring"
    for line, target in imported(tree):
        if target == "__future__":
            yield f"{name}:{line}: imports from __future__"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{name}:{node.lineno}: {node.name} has no docstring"
    for node, public in functions(tree):
        where = f"{name}:{node.lineno}: {node.name}"
        if public and not ast.get_docstring(node):
            yield f"{where} has no docstring"
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [arg for arg in (arguments.vararg, arguments.kwarg) if arg]
        for arg in named:
            if arg.annotation is None and arg.arg not in ("self", "cls"):
                yield f"{where} has `{arg.arg}` without annotation"
        if node.returns is None and node.name != "__init__":
            yield f"{where} has no return annotation"


def print_faults(path: Path, package: Path, tree: ast.Module) -> Iterator[str]:
    """Yield calls of `print` in the folders, which speak by logging."""
    name = path.relative_to(package.parent)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            quiet = len(name.parts) > 2 and name.parts[1] != "commands"
            if node.func.id == "print" and quiet:
                yield f"{name.as_posix()}:{node.lineno}: prints"


CHECKS = (import_faults, size_faults, wording_faults, print_faults)


def faults(check, package: Path) -> list[str]:
    """Return the faults that one check finds in a package."""
    found = []
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += check(path, package, tree)
    return found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_the_rules(check) -> None:
    assert faults(check, PACKAGE) == []


@pytest.mark.parametrize("library", IN_ONE_FILE)
def test_optional_libraries_are_imported_in_one_file(library: str) -> None:
    files = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for _, target in imported(ast.parse(path.read_text(encoding="utf-8")))
        if target.split(".")[0] == library
    }
    assert len(files) <= 1, files


def test_subpackages_hold_a_docstring_alone() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        assert len(tree.body) == 1, path


LONG = "\n".join(f"    x = {number}" for number in range(MAX_FUNCTION_LINES))
VIOLATIONS = {
    "trl in a function": (
        "training/a.py",
        'def go() -> None:\n    """Go."""\n    from trl import SFTTrainer\n',
        "emoreg/training/a.py:4: imports trl",
    ),
    "a floor below": (
        "residual/a.py",
        "from emoreg.vectors.fit import VectorFitter\n",
        "emoreg/residual/a.py:2: imports emoreg.vectors.fit from a floor below",
    ),
    "the top level": (
        "losses/a.py",
        "from emoreg.cli import main\n",
        "emoreg/losses/a.py:2: imports emoreg.cli from a floor below",
    ),
    "the package": (
        "losses/a.py",
        "import emoreg\n",
        "emoreg/losses/a.py:2: imports the package, not a defining module",
    ),
    "a relative import": (
        "losses/a.py",
        "from .band import BandPenalty\n",
        "emoreg/losses/a.py:2: relative import",
    ),
    "torch in statistics": (
        "statistics/a.py",
        "import torch.nn\n",
        "emoreg/statistics/a.py:2: statistics/ may not import torch",
    ),
    "a long file": ("losses/a.py", "x = 1\n" * MAX_FILE_LINES, ": 401 lines"),
    "a long function": (
        "losses/a.py",
        f"def go() -> None:\n{LONG}\n",
        f"emoreg/losses/a.py:2: go has {MAX_FUNCTION_LINES + 1} lines",
    ),
    "an empty name": ("losses/utils.py", "", "a name that says nothing"),
    "no docstring": (
        "losses/a.py",
        "def go() -> None:\n    pass\n",
        "go has no docstring",
    ),
    "no class docstring": ("losses/a.py", "class A:\n    pass\n", "A has no docstring"),
    "no annotation": (
        "losses/a.py",
        'def go(x) -> None:\n    """Go."""\n',
        "go has `x` without annotation",
    ),
    "no return annotation": (
        "losses/a.py",
        'class A:\n    """A."""\n\n    def _go(self):\n        pass\n',
        "_go has no return annotation",
    ),
    "future": (
        "losses/a.py",
        "from __future__ import annotations\n",
        "imports from __future__",
    ),
    "print": ("losses/a.py", "print(1)\n", "emoreg/losses/a.py:2: prints"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_caught(tmp_path: Path, name: str) -> None:
    file, body, message = VIOLATIONS[name]
    path = tmp_path / "emoreg" / file
    path.parent.mkdir(parents=True)
    path.write_text('"""Made up."""\n' + body)
    found = [fault for check in CHECKS for fault in faults(check, tmp_path / "emoreg")]
    assert any(message in fault for fault in found), found


def test_a_clean_file_is_not_caught(tmp_path: Path) -> None:
    path = tmp_path / "emoreg" / "training" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        '"""Made up."""\n\nimport torch\n\n'
        "from emoreg.vectors.fit import VectorFitter\n"
        '\n\ndef go(x: torch.Tensor) -> VectorFitter:\n    """Go."""\n    return x\n'
    )
    for check in CHECKS:
        assert faults(check, tmp_path / "emoreg") == []
