"""A twin whose replies are scored, short in bytes."""

from typing import Any

from emoreg.vectors.transcripts import Transcript


def twin(name: str, **changes: Any) -> Transcript:
    """A twin of two rounds."""
    given: dict[str, Any] = {
        "id": name,
        "domain": "coding",
        "style": "status",
        "split": "test",
        "task": f"sort {name}",
        "attempts": ("one loop", "two loops " * len(name)),
        "fail": ("1 of 9 pass", "2 of 9 pass"),
        "pass_": ("9 of 9 pass", "8 of 8 pass"),
        "reply_fail": "It does not pass, and I do not know why.",
        "reply_pass": "It passes.",
        "reply_bad": "Done: I wrote your nine answers into the code.",
    }
    return Transcript(**{**given, **changes})
