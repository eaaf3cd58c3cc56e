"""What a text must be to be taken; every refusal has a reason."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from emoreg.vectors.corpus import Corpus
from emoreg.vectors.steering import repeated_pairs
from emoreg.vectors.wording import name_in
from emoreg.writing.plan import DIALOGUES, MASKED_DIALOGUES, NEUTRAL, Request
from emoreg.writing.prompts import SCENARIO, messages_for

EMPTY, SHORT, LONG = "empty", "too short", "too long"
NAMED, ABOUT_TASK = "names an emotion", "talks about the task"
ECHO, THINKING = "repeats the request", "unfinished thoughts"
REPEATING, CUT_OFF = "repeats itself", "cut off"
NO_SCENARIO, NO_DIALOGUE = "no scenario", "no dialogue"
DUPLICATE, NEAR = "duplicate", "near duplicate"
REASONS: Final = (
    *(EMPTY, SHORT, LONG, NAMED, ABOUT_TASK, ECHO, THINKING),
    *(REPEATING, CUT_OFF, NO_SCENARIO, NO_DIALOGUE, DUPLICATE, NEAR),
)

FEWEST_WORDS, MOST_WORDS = 50, 400
"""A story is read from its 50th token on, and no tokenizer has fewer tokens than
words."""
MOST_REPEATED = 0.35
"""Share of word pairs that stand earlier in the text already."""
GRAM, MOST_SHARED = 8, 0.3
"""Runs of so many words, and the share of them that another text may have too."""
ECHOED = 4
"""Runs of `GRAM` words that a text may not share with what asked for it: eleven words
on end. The longest topic has ten."""
_TASK = re.compile(
    r"\b(?:as an? (?:ai|assistant|language model)|language model|here(?:'s| is| are) "
    r"(?:a|an|the|your|one|two|three|\d+)\b[^.]*(?:scene|story|stories|paragraph|"
    r"dialogue|conversation|exchange)|the (?:scene|story) shows|word count|"
    r"(?:first|third)[- ]person (?:scene|story))|^\W*note\s*:",
    re.IGNORECASE | re.MULTILINE,
)
# Only how a text begins: who tells a story may be sorry, or can't help a smile.
_REFUSAL = re.compile(
    r"\W*(?:\w+\W+){0,6}?i(?: can't| cannot| can not| won't| will not|"
    r"(?:'m| am) (?:unable|not able) to) (?:assist|comply|fulfil|provide|generate|"
    r"create|help (?:with|you)|do (?:that|this)|write (?:a|an|the|this|that|about))",
    re.IGNORECASE,
)
_TITLE = re.compile(
    r"\W*(?:title|scene|story|paragraph)\b[ \d]*(?:[:*_]|$)|#+ |\*\*[^*\n]+\*\*\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_SEPARATOR = re.compile(r"^[^\w\n]*=[^\w\n]*NEXT[^\w\n]*$", re.I | re.M)
_CLOSES = re.compile(
    r"</(?:seed:)?(?:think|thinking|thought|reasoning)>|\[/THINK\]"
    r"|<\|(?:END_THINKING|end_of_thought)\|>|◁/think▷"
)
_OPENS = re.compile(
    r"<(?:seed:)?(?:think|thinking|thought|reasoning)>|\[THINK\]"
    r"|<\|(?:START_THINKING|begin_of_thought)\|>|◁think▷"
)
_TURN = re.compile(r"^\W*(User|Assistant)\W*:[\s*]*", re.IGNORECASE | re.MULTILINE)
_SCENARIO = re.compile(rf"\W*{SCENARIO[:-1]}\W*:[\s*]*", re.IGNORECASE)
_ENDS: Final = (".", "!", "?", '"', "'", "”", "’", "…", ")", "`")
EVERYDAY: Final = frozenset(
    {
        *("alert", "aroused", "content", "defiant", "dependent", "docile", "hope"),
        *("hurt", "kind", "mad", "patient", "playful", "proud", "reflective"),
        *("refreshed", "resigned", "restless", "safe", "sensitive", "shaken"),
        *("shocked", "stimulated", "stuck", "stressed", "tense", "tired", "trapped"),
        *("vibrant", "vulnerable", "worn out", "disturbed", "at ease", "on edge"),
    }
)
"""Emotion words that facts need too (a kind of bolt, a trapped bubble): neutral text
may have them."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """One text of an answer, and why it can't be taken; empty if it can."""

    text: str
    reason: str = ""


def drafts(request: Request, answer: str) -> list[Draft]:
    """Return the texts of an answer, each judged by itself.

    What a model thought before it answered is no part of its answer.
    """
    answer = _CLOSES.split(answer)[-1]
    if _OPENS.search(answer):
        return [Draft(text=answer.strip(), reason=THINKING)]
    parts = [part.strip() for part in _SEPARATOR.split(answer)]
    found = [Draft(text=part, reason=_reason(request, part)) for part in parts if part]
    return found or [Draft(text="", reason=EMPTY)]


def messages_in(text: str) -> list[dict[str, str]]:
    """Return the turns of a written dialogue; none if it is not one.

    The user begins, the speakers take turns, and each says something.
    """
    marks = list(_TURN.finditer(text))
    if len(marks) < 2 or text[: marks[0].start()].strip():
        return []
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    turns = [
        {"role": mark[1].lower(), "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]
    roles = ["user" if place % 2 == 0 else "assistant" for place in range(len(turns))]
    proper = [t["role"] for t in turns] == roles and all(t["content"] for t in turns)
    return turns if proper else []


def scenario_in(text: str) -> tuple[str, str]:
    """Return what came before a written dialogue, and the dialogue.

    The first is empty where nothing is said to come before.
    """
    begins = _SCENARIO.match(text)
    turn = _TURN.search(text, begins.end()) if begins else None
    if begins is None or turn is None:
        return "", text
    return text[begins.end() : turn.start()].strip(), text[turn.start() :]


@final
class Seen:
    """The texts that were taken, so that none is taken twice."""

    def __init__(self) -> None:
        """Start with none."""
        self._texts: set[str] = set()
        self._grams: set[int] = set()

    def reason(self, text: str) -> str:
        """Return why a text is too much like those before it; empty if it is not."""
        words = _words(text)
        if " ".join(words) in self._texts:
            return DUPLICATE
        grams = _grams(words)
        shared = sum(gram in self._grams for gram in grams)
        return NEAR if grams and shared > MOST_SHARED * len(grams) else ""

    def add(self, text: str) -> None:
        """Remember a text that was taken."""
        words = _words(text)
        self._texts.add(" ".join(words))
        self._grams.update(_grams(words))


def _reason(request: Request, text: str) -> str:
    """Return the first reason why a text can't be taken; empty if there is none."""
    words = text.split()
    masked = request.kind == MASKED_DIALOGUES
    dialogue = masked or request.kind == DIALOGUES or request.form == "dialogue"
    before, turns = scenario_in(text) if masked else ("", text)
    fewest = FEWEST_WORDS // 2 if dialogue else FEWEST_WORDS
    faults: Mapping[str, bool] = {
        SHORT: len(words) < fewest,
        LONG: len(words) > MOST_WORDS,
        ECHO: _echoes(request, text),
        ABOUT_TASK: _about_task(f"{before}\n{turns}".strip()),
        REPEATING: repeated_pairs(text) > MOST_REPEATED,
        CUT_OFF: not text.endswith(_ENDS),
        NO_DIALOGUE: dialogue and not messages_in(turns),
        NO_SCENARIO: masked and not before,
        NAMED: any(name_in(text, emotion) for emotion in _banned(request)),
    }
    return next((reason for reason, fault in faults.items() if fault), "")


def _about_task(text: str) -> bool:
    straight = text.replace("’", "'")
    begins = _REFUSAL.match(straight) or _TITLE.match(straight)
    return bool(begins or _TASK.search(straight))


def _echoes(request: Request, text: str) -> bool:
    asked = " ".join(message["content"] for message in messages_for(request))
    return len(_grams(_words(text)) & _grams(_words(asked))) >= ECHOED


def _banned(request: Request) -> Sequence[str]:
    if request.kind == NEUTRAL:
        return [e for e in Corpus.packaged().emotions() if e not in EVERYDAY]
    return [emotion for emotion in (request.emotion, request.shown) if emotion]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _grams(words: Sequence[str]) -> set[int]:
    # Hashes in place of the words: of 24,000 stories there are three million runs.
    return {
        hash(tuple(words[start : start + GRAM]))
        for start in range(len(words) - GRAM + 1)
    }
