"""What is asked for: every request of a corpus, in a fixed order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from emoreg.vectors.corpus import Corpus
from emoreg.vectors.records import choose
from emoreg.vectors.texts import EMOTIONS_TEST_TOPICS, slug

STORIES, NEUTRAL, DIALOGUES, MASKED = "stories", "neutral", "dialogues", "masked"
MASKED_DIALOGUES = "masked_dialogues"
KINDS: Final = (STORIES, NEUTRAL, DIALOGUES, MASKED, MASKED_DIALOGUES)
SPEAKERS: Final = ("user", "assistant")
SETTINGS: Final = {
    "t01": "a letter or message arrives at home",
    "t02": "the last hour of a shift at work",
    "t03": "results are posted",
    "t04": "something is repaired",
    "t05": "a family meal",
    "t06": "a journey",
    "t07": "a match or contest",
    "t08": "a garden, a field or an orchard",
    "t09": "someone moves house",
    "t10": "a rehearsal, a lesson or a performance",
    "t11": "a program or a machine must work by a deadline",
    "t12": "a walk at night or by water",
}
"""The topics of stories; they decide between fit and test."""
_DIALOGUE_TOPICS = ("t01", "t04", "t09")
_MASKED_TOPICS = ("t02", "t05", "t07", "t10")
# An emotion's name is a file's name too: no dot and no slash.
_NAME = re.compile(r"[^\W\d_][\w' -]*")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One thing to be written, which may be several texts at once."""

    key: str
    """Stable: the same wish has the same key in every run."""
    kind: str
    topic: str
    """A topic's number, or for neutral text what it is about."""
    split: str
    emotion: str = ""
    shown: str = ""
    """What is shown where something else is felt."""
    speaker: str = ""
    perspective: str = ""
    form: str = ""
    """`dialogue` or `prose`, for neutral text."""
    texts: int = 1


def plan(
    emotions: Sequence[str], kinds: Sequence[str], per_topic: int
) -> tuple[Request, ...]:
    """Return all requests.

    Stories: every emotion on twelve topics, odd ones in the third person and even ones
    in the first, as in the packaged corpus. Neutral text: the packaged corpus's
    subjects, as dialogue or prose. Dialogues: every emotion felt by the user and by the
    assistant, on three topics. Masked: every emotion felt behind up to four others, on
    four topics, as scenes or as dialogues in which the speakers take turns to hide it.

    Args:
        emotions: Emotion concepts.
        kinds: Of `KINDS`.
        per_topic: Stories of each emotion and topic.

    Raises:
        ValueError: On an unknown kind or none, emotions that can't be told apart or
            make no file name, or fewer than one story per topic.
    """
    if per_topic < 1:
        raise ValueError(f"`per_topic` must be 1 or more, got {per_topic}")
    if not kinds:
        raise ValueError(f"`kinds` must name one or more of {KINDS}, found none")
    _check_emotions(emotions)
    made = {
        STORIES: lambda: _stories(emotions, per_topic),
        NEUTRAL: _neutral,
        DIALOGUES: lambda: _dialogues(emotions),
        MASKED: lambda: _masked(emotions),
        MASKED_DIALOGUES: lambda: _masked_dialogues(emotions),
    }
    chosen = {choose(kind, KINDS, parameter="kinds") for kind in kinds}
    for kind in sorted(chosen & {MASKED, MASKED_DIALOGUES}):
        if len(emotions) < 2:
            raise ValueError(
                f"`{kind}` needs two emotions or more, one to be felt and one to be "
                f"shown, found {len(emotions)}. Name another, or leave the kind out"
            )
    return tuple(r for kind in KINDS if kind in chosen for r in made[kind]())


def _check_emotions(emotions: Sequence[str]) -> None:
    if isinstance(emotions, str) or not emotions:
        raise ValueError(
            f"`emotions` must be a list of one or more names, found {emotions!r}. "
            "Write the names as a list"
        )
    files: dict[str, str] = {}
    for name in emotions:
        if not _NAME.fullmatch(name):
            raise ValueError(
                "`emotions` must be words of letters, digits, spaces, hyphens and "
                f"apostrophes, found {name!r}, which makes no file name. Rename it"
            )
        file = slug(name).casefold()
        if file in files:
            raise ValueError(
                f"`emotions` must differ in their files' names, found {files[file]!r} "
                f"and {name!r}, both of `{slug(name)}.jsonl`. Leave one of them out"
            )
        files[file] = name


def _stories(emotions: Sequence[str], per_topic: int) -> list[Request]:
    return [
        Request(
            key=f"story/{emotion}/{topic}",
            kind=STORIES,
            topic=topic,
            split=_split(topic),
            emotion=emotion,
            perspective="third" if int(topic[1:]) % 2 else "first",
            texts=per_topic,
        )
        for emotion in emotions
        for topic in SETTINGS
    ]


def _neutral() -> list[Request]:
    return [
        Request(
            key=f"neutral/{passage.id}",
            kind=NEUTRAL,
            topic=passage.topic,
            split=passage.split,
            form="prose" if passage.messages is None else "dialogue",
        )
        for passage in Corpus.packaged().neutral("all")
    ]


def _dialogues(emotions: Sequence[str]) -> list[Request]:
    return [
        Request(
            key=f"dialogue/{emotion}/{speaker}/{topic}",
            kind=DIALOGUES,
            topic=topic,
            split=_split(topic),
            emotion=emotion,
            speaker=speaker,
        )
        for emotion in emotions
        for speaker in SPEAKERS
        for topic in _DIALOGUE_TOPICS
    ]


def _masked(emotions: Sequence[str]) -> list[Request]:
    requests = []
    for place, felt in enumerate(emotions):
        # The others in turn, from the next one on: every emotion is shown as often.
        others = [*emotions[place + 1 :], *emotions[:place]]
        step = max(1, len(others) // len(_MASKED_TOPICS))
        for number, topic in enumerate(_MASKED_TOPICS):
            # Of few others some are shown twice, so that every split has a scene.
            shown = others[number * step % len(others)]
            requests.append(
                Request(
                    key=f"masked/{felt}/{shown}/{topic}",
                    kind=MASKED,
                    topic=topic,
                    split=_split(topic),
                    emotion=felt,
                    shown=shown,
                )
            )
    return requests


def _masked_dialogues(emotions: Sequence[str]) -> list[Request]:
    requests = []
    for place, request in enumerate(_masked(emotions)):
        # Each emotion's four scenes begin with the other speaker than those before.
        speaker = SPEAKERS[(place + place // len(_MASKED_TOPICS)) % 2]
        key = f"{MASKED_DIALOGUES}/{request.key.removeprefix('masked/')}/{speaker}"
        kind = MASKED_DIALOGUES
        requests.append(replace(request, key=key, kind=kind, speaker=speaker))
    return requests


def _split(topic: str) -> str:
    return "test" if topic in EMOTIONS_TEST_TOPICS else "fit"
