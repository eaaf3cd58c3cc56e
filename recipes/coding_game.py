"""The game that `grpo.py` plays: write code, read what the tests say, answer.

What the model writes is run, in a process of its own with limits on time and memory.
That is no sandbox: play it in a container without network or secrets.
"""

import json
import re
import resource
import subprocess
import sys
from typing import Any

MEMORY, SECONDS = 2**30, 5
HARNESS = """
import contextlib, io, json, sys
source, tests = json.load(sys.stdin)
space, failed = {}, []
try:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(source, space)
except BaseException as error:
    print(f"{type(error).__name__}: {error}")
for test in tests:
    try:
        assert eval(test, space)
    except BaseException as error:
        failed.append(f"FAILED {test} - {type(error).__name__}")
print(*failed, f"{len(failed)} failed, {len(tests) - len(failed)} passed", sep="\\n")
"""


def run_tests(reply: str, tests: list[str]) -> tuple[float, str]:
    """Return the share of tests that the last code in a reply passes, and a report."""
    blocks = re.findall(r"```(?:python)?\n(.*?)(?:```|$)", reply, re.DOTALL)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", HARNESS],
            input=json.dumps([blocks[-1] if blocks else reply, tests]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        )
        report = done.stdout.strip()[-400:]
    except subprocess.TimeoutExpired:
        report = f"timed out after {SECONDS} s"
    passed = re.search(r"(\d+) passed$", report)
    share = min(1.0, int(passed[1]) / len(tests)) if passed else 0.0
    return share, report if passed else f"{report}\n{len(tests)} failed, 0 passed"


class Game:
    """Two turns with a test report in between; TRL calls it to make rollouts."""

    def __init__(self, tokenizer: Any, tests: dict[str, list[str]]) -> None:
        """Take the tests of each task by the text that the model is given."""
        self.tokenizer, self.tests = tokenizer, tests

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Return the tokens of each rollout, which of them the model wrote, and scores.

        The report's tokens are in the context of the second turn, and masked.
        """
        asked = [self._ids(self._chat(prompt)) for prompt in prompts]
        first, _ = trainer._generate_single_turn(asked, None, {}, 1)
        tests = [self.tests[prompt[-1]["content"]] for prompt in prompts]
        scores, told = [], []
        for written, wanted in zip(first, tests, strict=True):
            share, report = run_tests(self._text(written), wanted)
            scores.append(share)
            told.append(self._told(written, report))
        parts = list(zip(asked, first, told, strict=True))
        second, _ = trainer._generate_single_turn(
            [a + f + t for a, f, t in parts], None, {}, 1
        )
        for k, written in enumerate(second):
            if "```" in self._text(written):
                scores[k] = run_tests(self._text(written), tests[k])[0]
        whole = list(zip(first, told, second, strict=True))
        return {
            "prompt_ids": asked,
            "completion_ids": [f + t + s for f, t, s in whole],
            "logprobs": None,
            "env_mask": [
                [1] * len(f) + [0] * len(t) + [1] * len(s) for f, t, s in whole
            ],
            "score": scores,
        }

    def _told(self, written: list[int], report: str) -> list[int]:
        """Return what stands between two Assistant turns, by the chat template."""
        mark = "vexed walrus"
        turns = [
            {"role": "assistant", "content": mark},
            {"role": "user", "content": report},
        ]
        asked = [{"role": "user", "content": "?"}]
        ids = self._ids(self._chat([*asked, *turns]).split(mark)[1])
        ended = bool(written) and written[-1] == ids[0]  # the model closed its turn
        return ids[1:] if ended else ids

    def _chat(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def tests(completions: list[Any], score: list[float], **_: Any) -> list[float]:
    """Return the reward: the share of tests passed."""
    del completions
    return score
