"""The texts that vectors are fitted on and readings are taken from.

`Corpus.packaged()` holds original texts under CC0-1.0; `Corpus(path)` reads a folder of
the same layout. A file is checked in full when it is first asked for.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, final

from emoreg.vectors.records import (
    ANYTHING,
    MESSAGES,
    TEXT,
    TEXTS,
    Record,
    choose,
    did_you_mean,
    read_json,
    read_records,
)
from emoreg.vectors.texts import (
    EMOTIONS_FIT_TOPICS,
    EMOTIONS_TEST_TOPICS,
    NEUTRAL_FIELDS,
    RETAIN_FIELDS,
    STORY_FIELDS,
    TWIN_FIELDS,
    Neutral,
    Retain,
    Roles,
    Story,
    check_speaker,
    neutral_from,
    roles_from,
    slug,
    story_from,
    transcript_from,
)
from emoreg.vectors.transcripts import Conversation, Message, Transcript, Variant

__all__ = [
    "EMOTIONS_FIT_TOPICS",
    "EMOTIONS_TEST_TOPICS",
    "Conversation",
    "Corpus",
    "Message",
    "Neutral",
    "Retain",
    "Roles",
    "Story",
    "Transcript",
    "Variant",
    "slug",
]

_STORY_SPLITS: Final = {
    "fit": EMOTIONS_FIT_TOPICS,
    "inner_fit": EMOTIONS_FIT_TOPICS[:6],
    "inner_test": EMOTIONS_FIT_TOPICS[6:],
    "test": EMOTIONS_TEST_TOPICS,
    "all": EMOTIONS_FIT_TOPICS + EMOTIONS_TEST_TOPICS,
}
_FIT_TEST: Final = ("fit", "test")
_DEV_TEST: Final = ("dev", "test")
_TRAIN_DEV_TEST: Final = ("train", "dev", "test")

_SAID: Final = {"messages": MESSAGES}

# File, splits (none: it is one set) and fields of the sets read as plain records.
_SETS: Final[dict[str, tuple[str, tuple[str, ...], dict[str, str]]]] = {
    "dialogues": (
        "dialogues.jsonl",
        _FIT_TEST,
        {"id": TEXT, "emotion": TEXT, "speaker": TEXT, **_SAID},
    ),
    "masked": (
        "masked.jsonl",
        _FIT_TEST,
        {"id": TEXT, "felt": TEXT, "shown": TEXT, "text": TEXT},
    ),
    "masked_dialogues": (
        "masked_dialogues.jsonl",
        _FIT_TEST,
        {**dict.fromkeys(("id", "felt", "shown", "speaker"), TEXT), **_SAID},
    ),
    "scenarios": (
        "evaluation/scenarios.jsonl",
        _DEV_TEST,
        {"id": TEXT, "emotion": TEXT, "text": TEXT},
    ),
    "prompts": (
        "evaluation/prompts.jsonl",
        _DEV_TEST,
        {"id": TEXT, "kind": TEXT, "text": TEXT},
    ),
    "dose": (
        "evaluation/dose.jsonl",
        (),
        {"id": TEXT, "template": TEXT, "values": ANYTHING, "expect": ANYTHING},
    ),
    "activities": (
        "evaluation/activities.jsonl",
        (),
        {"id": TEXT, "category": TEXT, "text": TEXT},
    ),
    "capability": (
        "evaluation/capability.jsonl",
        (),
        {**dict.fromkeys(("id", "kind", "prompt", "answer"), TEXT), "wrong": TEXTS},
    ),
}

_Item = TypeVar("_Item", Neutral, Transcript)


@final
class Corpus:
    """A folder of texts, read and checked part by part.

    >>> len(Corpus.packaged().emotions())
    171
    """

    def __init__(self, path: str | Path) -> None:
        """Point at a folder; nothing is read yet.

        Raises:
            ValueError: If `path` is not a folder.
        """
        self.root: Final = Path(path)
        if not self.root.is_dir():
            raise ValueError(
                f"`path` must be a folder that holds a corpus, found `{path}`. Use "
                "`Corpus.packaged()` for the texts that come with emoreg."
            )

    @classmethod
    def packaged(cls) -> "Corpus":
        """Return the corpus that comes with emoreg."""
        return cls(Path(__file__).resolve().parent.parent / "data")

    def emotions(self) -> tuple[str, ...]:
        """Return the emotion concepts in the order of `emotions.json`."""
        return self._emotions

    def roles(self) -> Roles:
        """Return which emotions a loss may use and which only an audit may.

        A folder without `roles.json` has those of the packaged corpus.
        """
        if not (self.root / "roles.json").is_file():
            return Corpus.packaged().roles()
        return roles_from(
            read_json(self.root / "roles.json", self.root), set(self._emotions)
        )

    def stories(
        self, emotions: Iterable[str] | None = None, split: str = "fit"
    ) -> tuple[Story, ...]:
        """Return stories in the order of their files.

        Args:
            emotions: Emotions to include; None for all.
            split: `fit` (t01-t08) or `test` (t09-t12); for choices made on the way
                `inner_fit` (t01-t06) and `inner_test` (t07-t08); or `all`.

        Raises:
            ValueError: If a name is unknown, an emotion has no story in the split, or
                a file is wrong.
        """
        topics = _STORY_SPLITS[choose(split, tuple(_STORY_SPLITS))]
        wanted = set(self._emotions if emotions is None else emotions)
        for emotion in sorted(wanted - set(self._emotions)):
            raise ValueError(
                f"`emotions` must name emotions of this corpus, found `{emotion}`. "
                f"{did_you_mean(emotion, self._emotions)}"
            )
        stories = tuple(
            story
            for story in self._stories
            if story.topic in topics and story.emotion in wanted
        )
        without = sorted(wanted - {story.emotion for story in stories})
        if without or not wanted:
            names = ", ".join(f"`{name}`" for name in without[:5]) or "none asked for"
            self._refuse_empty(f"stories of each emotion ({names})", split)
        return stories

    def neutral(self, split: str = "fit") -> tuple[Neutral, ...]:
        """Return texts without emotion of split `fit`, `test` or `all`."""
        return self._of_split("neutral texts", self._neutral, split, _FIT_TEST)

    def transcripts(
        self, split: str = "train", *, stakes: bool = False
    ) -> tuple[Transcript, ...]:
        """Return twins of split `train`, `dev`, `test` or `all`.

        Args:
            split: The split.
            stakes: True for the twins that state what is at stake and run out of time
                or tries over five rounds; False for those of three rounds without.
        """
        twins = self._stakes if stakes else self._plain
        return self._of_split("transcripts", twins, split, _TRAIN_DEV_TEST)

    def retain(self) -> tuple[Retain, ...]:
        """Return ordinary exchanges, for guard rails only."""
        records = self._read("evaluation/retain.jsonl", RETAIN_FIELDS)
        return tuple(
            Retain(**{field: record.fields[field] for field in RETAIN_FIELDS})
            for record in records
        )

    def records(
        self, name: str, *, split: str | None = None
    ) -> tuple[Mapping[str, Any], ...]:
        """Return another set as it stands in its file, checked for its fields.

        Args:
            name: `dialogues`, `masked`, `masked_dialogues`, `scenarios`, `prompts`,
                `dose`, `activities` or `capability`.
            split: A split of that set or `all`; None for the last three, which are for
                evaluation only.
        """
        file, splits, fields = _SETS[choose(name, tuple(_SETS), parameter="name")]
        if not splits:
            if split is not None:
                raise ValueError(
                    f"`split` must be left out for `{name}`, which is one set, found "
                    f"`{split}`. Leave it out."
                )
            return tuple(record.fields for record in self._read(file, fields))
        chosen = choose(str(split), (*splits, "all"))
        records = self._read(file, {**fields, "split": TEXT}, splits)
        kept = tuple(
            record.fields
            for record in records
            if chosen in ("all", record.fields["split"])
        )
        if not kept:
            self._refuse_empty(name, chosen)
        return kept

    def has(self, name: str) -> bool:
        """Return whether there is a set of this name, as `records` takes it."""
        file, _, _ = _SETS[choose(name, tuple(_SETS), parameter="name")]
        return (self.root / file).is_file()

    def hash(self) -> str:
        """Return the sha256 over names and bytes of all data files, as hex."""
        digest = hashlib.sha256()
        files = {
            path.relative_to(self.root).as_posix(): path
            for pattern in ("*.json", "*.jsonl")
            for path in self.root.rglob(pattern)
        }
        for name in sorted(files):
            content = files[name].read_bytes()
            # Lengths keep a byte from moving between one file and the next unseen.
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    @cached_property
    def _emotions(self) -> tuple[str, ...]:
        names = read_json(self.root / "emotions.json", self.root)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ValueError(
                "emotions.json: the file must hold one list of texts, found a "
                f"{type(names).__name__}. Write the emotions' names as a list."
            )
        if not names or len(set(names)) != len(names):
            raise ValueError(
                "emotions.json: the names must be there and differ, found "
                f"{len(names)} of which {len(set(names))} differ. Delete the repeats."
            )
        return tuple(names)

    @cached_property
    def _stories(self) -> tuple[Story, ...]:
        known = set(self._emotions)
        first: dict[str, str] = {}
        stories = []
        for path in self._files("stories", "*.jsonl"):
            for record in read_records(path, self.root, required=STORY_FIELDS):
                story = story_from(record, known)
                text = " ".join(story.text.split()).casefold()
                if text in first:
                    record.fail(
                        "a story must occur once",
                        f"the text of {first[text]} again",
                        "Delete one of the two",
                    )
                first[text] = record.where
                stories.append(story)
        return tuple(stories)

    @cached_property
    def _neutral(self) -> tuple[Neutral, ...]:
        records = self._read("neutral.jsonl", NEUTRAL_FIELDS, _FIT_TEST)
        return tuple(neutral_from(record) for record in records)

    @cached_property
    def _plain(self) -> tuple[Transcript, ...]:
        return self._twins(stakes=False)

    @cached_property
    def _stakes(self) -> tuple[Transcript, ...]:
        return self._twins(stakes=True)

    def _twins(self, *, stakes: bool) -> tuple[Transcript, ...]:
        return tuple(
            transcript_from(record)
            for path in self._files("transcripts", "*.jsonl")
            if path.name.startswith("stakes_") == stakes
            for record in self._read(
                f"transcripts/{path.name}", TWIN_FIELDS, _TRAIN_DEV_TEST
            )
        )

    def _files(self, folder: str, pattern: str) -> list[Path]:
        files = sorted((self.root / folder).glob(pattern))
        if not files:
            raise ValueError(
                f"{folder}/: the corpus must have files `{pattern}` there, found none "
                f"in `{self.root}`. Add them, or use `Corpus.packaged()`."
            )
        return files

    def _read(
        self, file: str, required: Mapping[str, str], splits: Sequence[str] = ()
    ) -> tuple[Record, ...]:
        """Return a file's records, whose ids must differ and whose splits be legal."""
        first: dict[str, str] = {}
        records = tuple(read_records(self.root / file, self.root, required=required))
        for record in records:
            name = str(record.fields["id"])
            if name in first:
                record.fail(
                    "`id` must occur once in a file",
                    f"`{name}`, which {first[name]} has too",
                    "Rename one of the two",
                )
            first[name] = record.where
            if splits and record.fields["split"] not in splits:
                record.fail(
                    "`split` must be one of " + ", ".join(f"`{s}`" for s in splits),
                    f"`{record.fields['split']}`",
                    "Mend the field",
                )
            if "speaker" in required:
                check_speaker(record)
        return records

    def _of_split(
        self, what: str, items: tuple[_Item, ...], split: str, splits: tuple[str, ...]
    ) -> tuple[_Item, ...]:
        chosen = choose(split, (*splits, "all"))
        kept = tuple(item for item in items if chosen in ("all", item.split))
        if not kept:
            self._refuse_empty(what, chosen)
        return kept

    def _refuse_empty(self, what: str, split: str) -> NoReturn:
        raise ValueError(
            f"split `{split}` must have {what}, found none in `{self.root}`. Add some, "
            "or choose another split."
        )
