"""What the documents say exists, parses and runs."""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from transformers import PreTrainedTokenizerBase

import emoreg
from emoreg.cli import parsed
from emoreg.vectors.corpus import Corpus

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# The log tells of what once was; the other pages tell of what is.
LASTING = [page for page in PAGES if page.name != "log.md"]
FOLDERS = "emoreg|recipes|scripts|tests|docs"

# A block that uses one of these needs trained weights or a trainer.
NEED_A_MODEL = {
    *("model", "tokenizer", "trainer", "vectors", "reference"),
    *("before", "after", "SFTTrainer", "Trainer"),
}


def identifier(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{identifier(self.page)}:{self.line}"


def blocks(text: str, page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a text; one that is never closed is an error."""
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and opened is None:
            opened, lines = (number, fence.group(1)), []
        elif fence and opened is not None:
            body = "\n".join(lines) + "\n"
            yield Block(page=page, line=opened[0], language=opened[1], text=body)
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page.name}:{opened} is never closed"


def of_language(*languages: str) -> list[Block]:
    return [
        block
        for page in LASTING
        for block in blocks(page.read_text(encoding="utf-8"), page)
        if block.language in languages
    ]


PYTHON = of_language("python")


def names_of(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def without_model(block: Block) -> bool:
    return not names_of(ast.parse(block.text)) & NEED_A_MODEL


# -- python ----------------------------------------------------------------------------


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_compile(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [b for b in PYTHON if without_model(b)], ids=str)
def test_blocks_that_need_no_model_run(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), {"emoreg": emoreg})


def test_some_blocks_run_and_some_need_a_model() -> None:
    assert {without_model(block) for block in PYTHON} == {True, False}


def resolve(path: str) -> Any:
    """Return what a dotted path names: a public name, a module, or within one."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(path)


def calls(block: Block) -> Iterator[tuple[str, ast.Call]]:
    """Yield calls of `emoreg...` by dotted path."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Call):
            path = ast.unparse(node.func)
            if re.fullmatch(r"emoreg(\.\w+)+", path):
                yield path, node


def check_call(path: str, call: ast.Call) -> None:
    """Raise a TypeError unless the call's arguments fit the signature."""
    given = {word.arg: None for word in call.keywords if word.arg}
    inspect.signature(resolve(path)).bind(*call.args, **given)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_calls_fit_the_signatures(block: Block) -> None:
    for path, call in calls(block):
        check_call(path, call)


@pytest.mark.parametrize(
    "text", ["emoreg.Monitor()", "emoreg.attach(1, monitors=2)", "emoreg.nothing()"]
)
def test_a_call_that_does_not_fit_is_caught(text: str) -> None:
    block = Block(page=PAGES[0], line=1, language="python", text=text)
    ((path, call),) = calls(block)
    with pytest.raises((TypeError, AttributeError)):
        check_call(path, call)


# -- names and paths -------------------------------------------------------------------


def without_urls(text: str) -> str:
    return re.sub(r"https?://\S+", "", text)


def dotted_names(text: str) -> set[str]:
    """Return `emoreg.X` names; `emoreg.report/1` is a format and no name."""
    found = re.findall(r"(?<![\w/.-])emoreg(?:\.[A-Za-z_]\w*)+(?!/)\b", text)
    return {name for name in found if not name.endswith((".py", ".safetensors"))}


def paths(text: str) -> set[str]:
    """Return the paths below the repository's folders that a text names."""
    found = re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./*-]*", without_urls(text))
    return {path.rstrip(".") for path in found}


def exists(path: str) -> bool:
    return bool(list(ROOT.glob(path))) if "*" in path else (ROOT / path).exists()


@pytest.mark.parametrize("page", LASTING, ids=identifier)
def test_paths_and_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [path for path in sorted(paths(text)) if not exists(path)] == []
    for name in sorted(dotted_names(text)):
        resolve(name)


def test_missing_paths_and_names_are_caught() -> None:
    text = (
        "`emoreg/losses/nowhere.py`, `tests/*.rs`, https://x.org/docs/a, emoreg.gone."
    )
    assert {path for path in paths(text) if not exists(path)} == {
        "emoreg/losses/nowhere.py",
        "tests/*.rs",
    }
    (name,) = dotted_names(text)
    with pytest.raises(AttributeError):
        resolve(name)


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        assert aim.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", aim.read_text(), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], target


def slug(heading: str) -> str:
    """Return a heading's anchor as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def named_tests(text: str) -> Iterator[tuple[str, str]]:
    """Yield the file named last and the function, for each test that is named."""
    file = ""
    for word in re.findall(r"`(tests/test_\w+\.py|test_\w+)`", text):
        if word.startswith("tests/"):
            file = word
        else:
            yield file, word


def test_the_tests_that_numerics_names_exist() -> None:
    text = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
    named = list(named_tests(text))
    assert len(named) > 20
    known = {file: functions(ROOT / file) for file, _ in named}
    assert [(file, name) for file, name in named if name not in known[file]] == []


# -- the tree --------------------------------------------------------------------------


def tree_of(text: str) -> dict[str, str]:
    """Return the paths of an annotated tree with what it says of each."""
    body = text.split("<!-- tree -->", 1)[1]
    block = next(blocks(body, ROOT / "docs" / "index.md"))
    folders: list[tuple[int, str]] = []
    found = {}
    for line in block.text.splitlines():
        indent = len(line) - len(line.lstrip())
        name, _, words = line.strip().partition(" ")
        folders = [folder for folder in folders if folder[0] < indent]
        path = "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((indent, name))
        found[path] = words.strip()
    return found


def test_the_tree_shows_what_is_there() -> None:
    shown = tree_of((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert [path for path in shown if not (ROOT / path).exists()] == []
    silent = [path for path, words in shown.items() if not words]
    assert all(path.endswith("/") for path in silent)
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("emoreg", "recipes", "scripts")
        for suffix in ("py", "j2", "sh", "yaml")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
    }
    unseen = {path for path in there - shown.keys() if "__init__" not in path}
    assert sorted(unseen) == []


# -- the command line ------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """Return the commands of a shell block, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def shown(program: str) -> list[list[str]]:
    """Return the arguments with which `program` is shown, wherever it stands."""
    return [
        words[words.index(program) + 1 :]
        for block in of_language("bash", "sh", "console")
        for words in commands(block.text)
        if program in words
    ]


@pytest.mark.parametrize("arguments", shown("emoreg"), ids=" ".join)
def test_commands_parse(arguments: list[str]) -> None:
    assert callable(parsed(arguments).run)


def test_a_wrong_command_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        "emoreg measure --model demo",
        "emoreg audit",
        "emoreg compare a b c",
    ):
        ((_, *arguments),) = commands(wrong)
        with pytest.raises(SystemExit):
            parsed(arguments)
    assert "usage" in capsys.readouterr().err


def test_recipe_flags_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emoreg.quickstart.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    recipe, found = load_recipe("sft"), shown("recipes/sft.py")
    assert found
    for arguments in found:
        own, config = recipe.parse(arguments)
        assert own.vectors
        assert config.output_dir
    with pytest.raises((ValueError, SystemExit)):
        recipe.parse(["--vectors", "v", "--no_such_flag", "1"])


# -- the example -----------------------------------------------------------------------


def few_twins(folder: Path, count: int = 2) -> Corpus:
    """The packaged corpus with the shortest twins of each file alone."""
    packaged = Corpus.packaged().root
    for path in packaged.rglob("*.json*"):
        target = folder / path.relative_to(packaged)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        if path.parent.name == "transcripts":
            text = "\n".join(sorted(text.splitlines(), key=len)[:count])
        target.write_text(text, encoding="utf-8")
    return Corpus(folder)


@pytest.mark.slow
def test_the_example_runs(
    tiny_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The example of index.md as it stands, on an untrained model and a CPU."""
    page = ROOT / "docs" / "index.md"
    (block,) = (b for b in PYTHON if b.page == page and not without_model(b))
    corpus = few_twins(tmp_path / "corpus")
    model = cases.lively(tiny_model("llama"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Corpus, "packaged", classmethod(lambda _: corpus))
    monkeypatch.setattr(emoreg.demo, "load", lambda: (model, tokenizer))
    cases.make_vectors().save("vectors.safetensors")
    asked = 'max_steps=40, learning_rate=1e-3, max_length=None, report_to="wandb"'
    small = (
        "max_steps=2, learning_rate=1e-3, max_length=None, report_to='none', "
        "use_cpu=True, bf16=False, "
        "per_device_train_batch_size=1, logging_steps=1, save_strategy='no'"
    )
    assert asked in block.text
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found: dict[str, Any] = {}
    exec(compile(block.text.replace(asked, small), str(block), "exec"), found)
    assert (tmp_path / "report" / "index.html").is_file()
    assert cases.logged(found["trainer"], "emotion/")
    assert cases.logged(found["trainer"], "emotion_loss/")
    assert abs(found["after"].values - found["before"].values).max() > 0
    for name, parameter in model.named_parameters():
        if "lora_" not in name:  # what moved the readings is the adapter
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])
