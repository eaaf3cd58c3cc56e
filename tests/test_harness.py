"""Tasks of lm-eval as guard rails, held against a plain forward of the same model."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emoreg.comparison.benchmarks.harness import Harness, HarnessTask
from emoreg.comparison.rails import rail_rows

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.slow

SUMS = [
    {"q": f"{a} and {b} is", "choices": [str(a + b + d) for d in (0, 1, 3)], "gold": 0}
    for a in range(1, 5)
    for b in range(1, 4)
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
{rest}
"""
CHOICE = """doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITTEN = """doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
filter_list:
  - name: whole
    filter: [{function: take_first}]
  - name: digits
    filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]
"""
READ = """doc_to_target: "{{choices[gold]}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tasks of every kind, on twelve sums in two files."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, rows in (("low", SUMS[:6]), ("high", SUMS[6:])):
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        task(folder, f"sums_{name}", file, "multiple_choice", CHOICE)
    task(folder, "written", folder / "low.jsonl", "generate_until", WRITTEN)
    task(folder, "read", folder / "low.jsonl", "loglikelihood_rolling", READ)
    (folder / "sums.yaml").write_text("group: sums\ntask: [sums_low, sums_high]\n")
    return folder


def task(folder: Path, name: str, file: Path, kind: str, rest: str) -> None:
    text = TASK.format(name=name, file=file, kind=kind, rest=rest)
    (folder / f"{name}.yaml").write_text(text)


@cache
def harness(folder: Path) -> Harness:
    return Harness(folder)  # reads the names of all of lm-eval's own tasks


def run(folder: Path, model: Any, reads: Any, *names: str, **how: Any) -> Any:
    tasks = [HarnessTask.parse(name) for name in names]
    harness(folder).check(tasks)
    return harness(folder).run(model, reads, tasks, quiet=True, **how)


def likeliest(model: Any, reads: Any, row: dict[str, Any]) -> int:
    """Return the choice that a plain forward finds likeliest."""
    logs = []
    for choice in row["choices"]:
        before = reads(row["q"])["input_ids"]
        ids = torch.tensor([reads(f"{row['q']} {choice}")["input_ids"]])
        with torch.no_grad():
            said = model(ids).logits.float().log_softmax(-1)[0]
        places = range(len(before), ids.shape[1])
        logs.append(sum(float(said[i - 1, ids[0, i]]) for i in places))
    return max(range(len(logs)), key=logs.__getitem__)


def tuned(model: Callable[[], PreTrainedModel], seed: int) -> Any:
    made: Any = get_peft_model(model(), cases.adapter())
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return made.eval()


def test_choices_are_those_of_a_plain_forward(
    folder: Path, model: Callable[[], PreTrainedModel], letters: PreTrainedTokenizerFast
) -> None:
    found = []
    for made in (model().eval(), tuned(model, 0), tuned(model, 1)):
        rail = run(folder, made, letters, "sums")["lm-eval:sums"]
        mine = [likeliest(made, letters, row) == row["gold"] for row in SUMS]
        assert rail["values"] == [int(hit) for hit in mine]  # a group: all items of all
        assert rail["n"] == len(SUMS)
        assert rail["value"] == pytest.approx(sum(mine) / len(SUMS))
        found.append(rail["values"])
    assert found[1:] != [found[0]] * 2  # control: not every model answers alike


def test_a_task_is_held_within_its_margin(
    folder: Path, model: Callable[[], PreTrainedModel], letters: PreTrainedTokenizerFast
) -> None:
    made = model().eval()
    before = run(folder, made, letters, "sums_low", "sums_high")

    def row(after: dict[str, Any], name: str = "lm-eval:sums_low") -> Any:
        guards = {"before": {"guards": before}, "after": {"guards": after}}
        [found] = [row for row in rail_rows(guards) if row.name == name]
        return found

    same = row(run(folder, made, letters, "sums_low"))
    assert same.verdict == "not shown"  # six items, none changed
    assert same.rule.startswith("at least −0.020")
    large = {k: v * 400 if k == "values" else v for k, v in before[same.name].items()}
    before[same.name] = large
    assert row({same.name: large}).verdict == "kept"
    worse = {**large, "values": [0] * len(large["values"])}
    better = {**large, "values": [1] * len(large["values"])}
    before[same.name] = better
    assert row({same.name: worse}).verdict == "not kept"
    # Other items, or another measure, are not the same question.
    (folder / "low.jsonl").write_text("\n".join(map(json.dumps, SUMS[1:7])))
    moved = run(folder, made, letters, "sums_low")
    assert row(moved).verdict == "not paired"
    other = run(folder, made, letters, "sums_high:acc_norm")
    assert row(other, "lm-eval:sums_high").verdict == "not paired"


def test_replies_are_kept_and_asked_once(
    folder: Path,
    model: Callable[[], PreTrainedModel],
    letters: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    made, names = model().eval(), ("sums", "written:exact_match,digits")
    first = run(folder, made, letters, *names, cache=tmp_path / "kept")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("asked again")

    made.forward = fails  # type: ignore[method-assign]
    assert run(folder, made, letters, *names, cache=tmp_path / "kept") == first
    with pytest.raises(RuntimeError, match="asked again"):  # control
        run(folder, made, letters, *names)


def test_what_can_not_be_held_is_refused(
    folder: Path, model: Callable[[], PreTrainedModel], letters: PreTrainedTokenizerFast
) -> None:
    made = model().eval()
    for name, says in {
        "none": "must name a task or group",
        "sums_low:f1": "must have the measure 'f1', found acc,none, acc_norm,none",
        "read": "better where it is higher, found word_perplexity",
        "written:bleu": "a number from 0 to 1 for each item",
    }.items():
        with pytest.raises(ValueError, match=says):
            run(folder, made, letters, name)
    with pytest.raises(ValueError, match="must be a folder"):
        Harness(folder / "none")
    with pytest.raises(ValueError, match="once, found two sums"):
        harness(folder).check([HarnessTask(name="sums")] * 2)
