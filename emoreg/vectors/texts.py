"""What a corpus is made of, and how each piece is checked when it is read."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from emoreg.vectors.records import (
    MESSAGES,
    TEXT,
    TEXTS,
    Record,
    check_field,
    did_you_mean,
)
from emoreg.vectors.transcripts import Message, Transcript
from emoreg.vectors.wording import name_in

EMOTIONS_FIT_TOPICS: Final = tuple(f"t{number:02d}" for number in range(1, 9))
"""Topics of the stories that vectors are fitted on."""
EMOTIONS_TEST_TOPICS: Final = tuple(f"t{number:02d}" for number in range(9, 13))
"""Topics of the stories that only test a fitted vector."""

STORY_FIELDS: Final[dict[str, str]] = dict.fromkeys(
    ("emotion", "topic", "perspective", "text"), TEXT
)
NEUTRAL_FIELDS: Final[dict[str, str]] = dict.fromkeys(
    ("id", "kind", "topic", "split"), TEXT
)
RETAIN_FIELDS: Final[dict[str, str]] = dict.fromkeys(("id", "prompt", "answer"), TEXT)
TWIN_FIELDS: Final[dict[str, str]] = {
    **dict.fromkeys(("id", "domain", "style", "split", "task"), TEXT),
    **dict.fromkeys(("attempts", "fail", "pass"), TEXTS),
    **dict.fromkeys(("reply_fail", "reply_pass", "reply_bad"), TEXT),
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """A short scene in which a character feels one emotion that is never named."""

    emotion: str
    topic: str
    perspective: str
    text: str
    source: str
    """File and line, for example `stories/desperate.jsonl:3`."""


def check_splits(stories: Sequence[Story]) -> None:
    """Check that there is enough to fit, to choose layers and to test.

    Raises:
        ValueError: If there is one emotion alone, one has fewer than two stories to fit
            on, or a part of the split has none.
    """
    fit = Counter(s.emotion for s in stories if s.topic in EMOTIONS_FIT_TOPICS[:6])
    emotions = dict.fromkeys(story.emotion for story in stories)
    if len(emotions) < 2:
        raise ValueError(
            "there must be stories of two emotions or more, since a vector is a "
            f"difference from their mean, found `{'`, `'.join(emotions)}` alone. Add "
            "another"
        )
    for emotion in emotions:
        if fit[emotion] < 2:
            raise ValueError(
                f"each emotion must have at least 2 stories on topics "
                f"{', '.join(EMOTIONS_FIT_TOPICS[:6])} to fit on, found {fit[emotion]} "
                f"of `{emotion}`. Add some, or leave it out with `--emotions`"
            )
    parts = (EMOTIONS_FIT_TOPICS[6:], "layers"), (EMOTIONS_TEST_TOPICS, "accuracy")
    for topics, what in parts:
        if not any(story.topic in topics for story in stories):
            raise ValueError(
                f"there must be stories on topics {', '.join(topics)}, by which "
                f"{what} can be judged, found none. Add one or more for each emotion"
            )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Neutral:
    """A text without emotion: a dialogue or prose; the other field is None."""

    id: str
    kind: str
    topic: str
    split: str
    messages: tuple[Message, ...] | None
    text: str | None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Retain:
    """An ordinary exchange, to check that answers stay as they were."""

    id: str
    prompt: str
    answer: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Which emotions a loss may use and which only an audit may."""

    core: tuple[str, ...]
    lower: tuple[str, ...]
    """Emotions a loss may lower."""
    raise_: tuple[str, ...]
    """Emotions a loss may raise."""
    audit_lower: tuple[str, ...]
    """Kin of `lower` that no loss may see."""
    audit_raise: tuple[str, ...]
    """Kin of `raise_` that no loss may see."""

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """The four families, by the names that reports use."""
        return {
            "loss distress": self.lower,
            "loss composure": self.raise_,
            "audit distress": self.audit_lower,
            "audit composure": self.audit_raise,
        }


def slug(emotion: str) -> str:
    """Return the emotion's name as file names write it, hyphens for spaces."""
    return emotion.replace(" ", "-")


def story_from(record: Record, emotions: Collection[str]) -> Story:
    """Return the story of a record.

    Raises:
        ValueError: If its emotion is unknown or is not the file's, its topic is in no
            split, or the text names the emotion.
    """
    story = Story(
        **{field: record.fields[field] for field in STORY_FIELDS}, source=record.where
    )
    if story.emotion not in emotions:
        record.fail(
            "`emotion` must be in emotions.json",
            f"`{story.emotion}`",
            did_you_mean(story.emotion, emotions).removesuffix("."),
        )
    file = record.where.rpartition("/")[2].partition(".")[0]
    if file != slug(story.emotion) and file in map(slug, emotions):
        record.fail(
            "`emotion` must be the one its file is named after",
            f"`{story.emotion}` in {file}.jsonl",
            "Move the story or mend its `emotion`",
        )
    topics = EMOTIONS_FIT_TOPICS + EMOTIONS_TEST_TOPICS
    if story.topic not in topics:
        record.fail(
            f"`topic` must be one of {topics[0]} to {topics[-1]}",
            f"`{story.topic}`",
            "Give it a topic, which decides between fit and test",
        )
    named = name_in(story.text, story.emotion)
    if named:
        record.fail(
            f"a story must not name its emotion `{story.emotion}`",
            f"the word `{named}`",
            "Rewrite the sentence or delete the story",
        )
    return story


def check_speaker(record: Record) -> None:
    """Check that the one who feels something in a dialogue says something.

    Raises:
        ValueError: If no message has the role that `speaker` names.
    """
    speaker = record.fields["speaker"]
    roles = dict.fromkeys(message["role"] for message in record.fields["messages"])
    if speaker not in roles:
        record.fail(
            "`speaker` must be the role of a message, whose words are read",
            f"`{speaker}` where the roles are `{'`, `'.join(roles)}`",
            "Write the role of who feels something",
        )


def neutral_from(record: Record) -> Neutral:
    """Return the neutral text of a record, which has `messages` or `text`."""
    fields = record.fields
    if "messages" in fields and "text" in fields:
        record.fail(
            "a neutral text must have `messages` or `text`", "both", "Keep one of them"
        )
    if "messages" in fields:
        check_field(record, "messages", MESSAGES)
    else:
        check_field(record, "text", TEXT)
    messages = fields.get("messages")
    return Neutral(
        **{field: fields[field] for field in NEUTRAL_FIELDS},
        messages=None if messages is None else tuple(messages),
        text=fields.get("text"),
    )


def transcript_from(record: Record) -> Transcript:
    """Return the twin of a record.

    Raises:
        ValueError: If attempts and feedback are not of one length, or a failing
            feedback equals the passing one.
    """
    fields = record.fields
    lengths = {name: len(fields[name]) for name in ("attempts", "fail", "pass")}
    if len(set(lengths.values())) > 1:
        record.fail(
            "`attempts`, `fail` and `pass` must have one entry per round each",
            ", ".join(f"{count} in `{name}`" for name, count in lengths.items()),
            "Add what is missing or delete what is over",
        )
    for index, pair in enumerate(zip(fields["fail"], fields["pass"], strict=True)):
        if pair[0] == pair[1]:
            record.fail(
                "failing and passing feedback of a round must differ",
                f"the same text in round {index + 1}",
                "Rewrite one of them",
            )
    texts = ("id", "domain", "style", "split", "task")
    replies = ("reply_fail", "reply_pass", "reply_bad")
    return Transcript(
        **{name: fields[name] for name in (*texts, *replies)},
        attempts=tuple(fields["attempts"]),
        fail=tuple(fields["fail"]),
        pass_=tuple(fields["pass"]),
    )


def roles_from(content: object, emotions: Collection[str]) -> Roles:
    """Return the roles written in `roles.json`.

    Raises:
        ValueError: If a list is missing, names an unknown emotion, or an audit emotion
            is also one of a loss.
    """
    if not isinstance(content, Mapping):
        raise ValueError(
            "roles.json: the file must hold one object with `core`, `loss` and "
            f"`audit`, found a {type(content).__name__}. Write that object."
        )
    roles = Roles(
        core=_names(content, ("core",), emotions),
        lower=_names(content, ("loss", "lower"), emotions),
        raise_=_names(content, ("loss", "raise"), emotions),
        audit_lower=_names(content, ("audit", "lower"), emotions),
        audit_raise=_names(content, ("audit", "raise"), emotions),
    )
    both = {*roles.lower, *roles.raise_} & {*roles.audit_lower, *roles.audit_raise}
    if both:
        raise ValueError(
            "roles.json: an audit emotion must not be one of a loss, found "
            f"`{'`, `'.join(sorted(both))}` in both. Take it out of one list."
        )
    return roles


def _names(
    content: Mapping[str, Any], path: tuple[str, ...], emotions: Collection[str]
) -> tuple[str, ...]:
    """Return the list of emotions found at `path` in the roles."""
    value: Any = content
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    where = ".".join(path)
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"roles.json: `{where}` must be a non-empty list of emotions, found "
            f"{value!r}. Add the list."
        )
    for name in value:
        if name not in emotions:
            raise ValueError(
                f"roles.json: `{where}` must name emotions of emotions.json, found "
                f"`{name}`. {did_you_mean(str(name), emotions)}"
            )
    return tuple(value)
