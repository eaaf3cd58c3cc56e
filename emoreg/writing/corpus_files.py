"""From the texts that were taken to a folder that `Corpus` reads."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emoreg.vectors.texts import slug
from emoreg.vectors.whole_files import write_whole
from emoreg.writing.checks import messages_in
from emoreg.writing.plan import DIALOGUES, MASKED, NEUTRAL, STORIES, Request

Rows = list[dict[str, Any]]


def write_corpus(
    folder: Path, plan: Sequence[Request], taken: Mapping[str, Sequence[str]]
) -> None:
    """Write every file of the corpus, each whole or not at all.

    `emotions.json` names the emotions that have a story. Files depend on the texts
    alone: the same ones give the same bytes.
    """
    stories: dict[str, Rows] = {}
    for request in plan:
        if request.kind == STORIES and taken[request.key]:
            rows = [_story(request, text) for text in taken[request.key]]
            stories.setdefault(request.emotion, []).extend(rows)
    if stories:
        write_whole(folder / "emotions.json", _json(list(stories)))
        (folder / "stories").mkdir(exist_ok=True)
    for emotion, rows in stories.items():
        write_whole(folder / "stories" / f"{slug(emotion)}.jsonl", _lines(rows))
    makers: dict[str, Callable[[Request, str], dict[str, Any]]] = {
        NEUTRAL: _neutral,
        DIALOGUES: _dialogue,
        MASKED: _masked,
    }
    for kind, make in makers.items():
        rows = [
            {"id": f"{kind[0]}{number:03d}", **make(request, text)}
            for number, request in enumerate(_of(plan, kind), start=1)
            for text in taken[request.key]
        ]
        if rows:
            write_whole(folder / f"{kind}.jsonl", _lines(rows))


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


def _json(content: object) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _lines(rows: Rows) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
