"""Users' own conversations with outcomes, from a JSON Lines file."""

from collections.abc import Sequence
from pathlib import Path

from emoreg.vectors.records import ANYTHING, MESSAGES, TEXT, Record, read_records
from emoreg.vectors.transcripts import Conversation

_FIELDS = {"id": TEXT, "pair": TEXT, "messages": MESSAGES, "failed": ANYTHING}
_VARIANTS = ("fail", "pass", "")


def read_conversations(path: Path) -> list[Conversation]:
    """Return the conversations of a file, one a line.

    A line holds `id`, `pair` (the task; twins share it), `variant` (`fail`, `pass` or
    empty), `messages`, and `failed` with one number in [0, 1] or null per Assistant
    turn; `style` is optional.

    Raises:
        ValueError: With file and line, if one is wrong, or if there is none.
    """
    records = list(read_records(path, path.parent, required=_FIELDS))
    conversations = [_conversation(record) for record in records]
    _check_repeats(records)
    if not conversations:
        raise ValueError(
            f"{path.name} must hold at least one conversation, found none. Write one "
            "JSON object a line"
        )
    return conversations


def _check_repeats(records: Sequence[Record]) -> None:
    """Refuse a conversation that stands twice: it would count twice in every mean."""
    seen: set[str] = set()
    for record in records:
        name = str(record.fields["id"])
        if name in seen:
            record.fail("each `id` must stand once", f"`{name}` again", "Rename it")
        seen.add(name)


def _conversation(record: Record) -> Conversation:
    fields = record.fields
    variant = str(fields.get("variant", ""))
    if variant not in _VARIANTS:
        record.fail(
            "`variant` must be `fail`, `pass` or empty", f"`{variant}`", "Correct it"
        )
    turns = sum(message["role"] == "assistant" for message in fields["messages"])
    failed = fields["failed"]
    if not isinstance(failed, list) or len(failed) != turns:
        record.fail(
            f"`failed` must be a list of {turns}, one entry per Assistant turn",
            repr(failed),
            "Write null for a turn before any feedback",
        )
    for value in failed:
        known = value is None or (isinstance(value, int | float) and 0 <= value <= 1)
        if not known:
            record.fail(
                "each entry of `failed` must be null or in [0, 1]",
                repr(value),
                "Map your scores so that 1 is failed and 0 is passed",
            )
    return Conversation(
        id=fields["id"],
        pair=fields["pair"],
        variant=variant,  # pyright: ignore[reportArgumentType]
        style=str(fields.get("style", "")),
        messages=tuple(fields["messages"]),
        failed=tuple(None if value is None else float(value) for value in failed),
    )
