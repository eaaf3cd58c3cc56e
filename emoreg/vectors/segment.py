"""What one reading is of: a turn of a conversation, and where in it."""

from dataclasses import dataclass

POSITIONS = ("decision", "assistant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One Assistant turn of one conversation at one kind of position."""

    conversation: int
    turn: int
    failure: float
    position: str
    token_start: int
    token_end: int
