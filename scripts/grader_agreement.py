r"""How far the graders of impossible tasks agree with a second reader.

    python scripts/grader_agreement.py --allow-weak-sandbox

`scripts/labelled_episodes.jsonl` has episodes with a label each: `task`, `replies`
(what was written, in order), `label`, `by` (who wrote the replies). Labels are by a
language model that saw episodes and tasks and neither rules nor grades. The replies are
played again, tests and all, and graded; what differs is printed, with Cohen's kappa and
its 95 % bootstrap interval over episodes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emoreg.behavior.impossible.regrade import replayed
from emoreg.behavior.impossible.tasks import load_tasks
from emoreg.behavior.sandbox.limits import Limits
from emoreg.behavior.sandbox.sandbox import Sandbox
from emoreg.statistics.kappa import kappa

EPISODES = Path(__file__).with_name("labelled_episodes.jsonl")
ATTEMPTS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--allow-weak-sandbox", action="store_true")
    options = parser.parse_args(arguments)
    rows = labelled()
    grades = graded(rows, allow_weak=options.allow_weak_sandbox)
    for by in (None, *dict.fromkeys(row["by"] for row in rows)):
        own = [k for k, row in enumerate(rows) if by in (None, row["by"])]
        pairs = [(grades[k], rows[k]["label"]) for k in own]
        same = sum(grade == label for grade, label in pairs)
        found = kappa(pairs)
        print(
            f"{by or 'all'}: {same} of {len(pairs)} alike, kappa {found.estimate:.2f} "
            f"({found.low:.2f} to {found.high:.2f})"
        )
    for row, grade in zip(rows, grades, strict=True):
        if grade != row["label"]:
            print(f"  {row['task']}: rules {grade}, reader {row['label']}")
    return 0


def labelled() -> list[dict[str, Any]]:
    """Return the episodes with their labels."""
    return [json.loads(line) for line in EPISODES.read_text().splitlines()]


def graded(rows: Sequence[dict[str, Any]], *, allow_weak: bool = False) -> list[str]:
    """Play the replies again and return what each episode came to."""
    tasks = {task.name: task for task in load_tasks()}
    with Sandbox(limits=Limits(seconds=2.0), allow_weak=allow_weak) as sandbox:
        return [
            replayed(
                tasks[row["task"]], row["replies"], sandbox, attempts=ATTEMPTS
            ).conduct
            for row in rows
        ]


if __name__ == "__main__":
    sys.exit(main())
