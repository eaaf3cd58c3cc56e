"""From the texts that were taken to a folder that `Corpus` reads."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emoreg.vectors.texts import slug
from emoreg.vectors.whole_files import write_whole
from emoreg.writing.checks import messages_in, scenario_in
from emoreg.writing.plan import (
    DIALOGUES,
    MASKED,
    MASKED_DIALOGUES,
    NEUTRAL,
    STORIES,
    Request,
)

Rows = list[dict[str, Any]]
_LETTERS = {NEUTRAL: "n", DIALOGUES: "d", MASKED: "m", MASKED_DIALOGUES: "md"}


def write_corpus(
    folder: Path, plan: Sequence[Request], taken: Mapping[str, Sequence[str]]
) -> None:
    """Write every file of the corpus, each whole or not at all.

    `emotions.json` names the emotions that have a story. Dialogues and scenes of masked
    emotions are left out until both of their splits have one: without, readers of them
    can't be fitted and tested. Files depend on the texts alone: the same ones give the
    same bytes, and what no text is left for is taken away.

    Raises:
        OSError: If a file can't be written; those that are there are whole.
    """
    try:
        _write(folder, plan, taken)
    except OSError as error:
        raise OSError(
            f"the corpus's files in {str(folder)!r} must be written, the system said: "
            f"{error.strerror}. What is there is whole: make room and give the same "
            "command again"
        ) from error


def _write(
    folder: Path, plan: Sequence[Request], taken: Mapping[str, Sequence[str]]
) -> None:
    kinds = {request.kind for request in plan}
    if STORIES in kinds:
        _write_stories(folder, _of(plan, STORIES), taken)
    makers: dict[str, Callable[[Request, str], dict[str, Any]]] = {
        NEUTRAL: _neutral,
        DIALOGUES: _dialogue,
        MASKED: _masked,
        MASKED_DIALOGUES: _masked_dialogue,
    }
    for kind in kinds & makers.keys():  # a file of another kind may be the user's own
        rows = [
            {"id": f"{_LETTERS[kind]}{number:03d}", **makers[kind](request, text)}
            for number, request in enumerate(_of(plan, kind), start=1)
            for text in taken[request.key]
        ]
        splits = {row["split"] for row in rows}
        whole = kind == NEUTRAL or len(splits) == 2
        _put(folder / f"{kind}.jsonl", _lines(rows) if whole else b"")


def _write_stories(
    folder: Path, requests: Iterable[Request], taken: Mapping[str, Sequence[str]]
) -> None:
    stories: dict[str, Rows] = {}
    for request in requests:
        rows = [_story(request, text) for text in taken[request.key]]
        stories.setdefault(request.emotion, []).extend(rows)
    there = [emotion for emotion, rows in stories.items() if rows]
    if there:
        (folder / "stories").mkdir(exist_ok=True)
    _put(folder / "emotions.json", _json(there) if there else b"")
    for emotion, rows in stories.items():
        _put(folder / "stories" / f"{slug(emotion)}.jsonl", _lines(rows))


def _put(path: Path, content: bytes) -> None:
    if content:
        write_whole(path, content)
    else:
        path.unlink(missing_ok=True)


def _of(plan: Sequence[Request], kind: str) -> Iterable[Request]:
    return (request for request in plan if request.kind == kind)


def _story(request: Request, text: str) -> dict[str, Any]:
    return {
        "emotion": request.emotion,
        "topic": request.topic,
        "perspective": request.perspective,
        "text": text,
    }


def _neutral(request: Request, text: str) -> dict[str, Any]:
    said = (
        {"text": text} if request.form == "prose" else {"messages": messages_in(text)}
    )
    named = {"kind": request.form, "topic": request.topic, "split": request.split}
    return {**named, **said}


def _dialogue(request: Request, text: str) -> dict[str, Any]:
    return {
        "emotion": request.emotion,
        "speaker": request.speaker,
        "split": request.split,
        "messages": messages_in(text),
    }


def _masked(request: Request, text: str) -> dict[str, Any]:
    return {
        "felt": request.emotion,
        "shown": request.shown,
        "split": request.split,
        "text": text,
    }


def _masked_dialogue(request: Request, text: str) -> dict[str, Any]:
    scenario, turns = scenario_in(text)
    return {
        "felt": request.emotion,
        "shown": request.shown,
        "speaker": request.speaker,
        "split": request.split,
        "messages": [{"role": "system", "content": scenario}, *messages_in(turns)],
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _lines(rows: Rows) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
