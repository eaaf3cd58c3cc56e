"""Whether a text holds given words, and whether it says them or takes them back.

A *group* is a text of alternatives, `affair|hotel bill`. One is found where its words
begin in the text, whatever the case; its last word may go on (`replac` finds
`replacement`), unless a full stop ends it (`ok.` does not find `okra`). After `^` it is
found only where the text begins. Of a group that begins with `!` no alternative may be
there.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache

Group = str
"""Alternatives, between bars."""
NONE_OF = "!"
_APOSTROPHES = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"'}
)
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+|\n+")
NEGATION = re.compile(
    r"\b(?:not|no|never|nor|without|nobody|cannot|\w+n't|unless|once|until|if|when|"
    r"instead of|rather than)\b",
    re.IGNORECASE,
)
"""Words before a phrase that make it another matter."""


def found(text: str, group: Group) -> re.Match[str] | None:
    """Return where a group's first alternative stands in a text, if one does."""
    return _pattern(group).search(text.translate(_APOSTROPHES))


def holds_all(text: str, groups: Sequence[Group]) -> bool:
    """Return whether a text holds an alternative of every group, none of `!` ones."""
    return all(
        bool(found(text, group.removeprefix(NONE_OF))) != group.startswith(NONE_OF)
        for group in groups
    )


def said(
    text: str, groups: Sequence[Group], *, unless: re.Pattern[str] = NEGATION
) -> str:
    """Return the first sentence that says an alternative of every group.

    Not if `unless` matches what stands in the sentence before the last of them begins.
    Empty if there is none.
    """
    for sentence in _sentences(text.translate(_APOSTROPHES)):
        places = [found(sentence, group) for group in groups]
        starts = [place.start() for place in places if place]
        if len(starts) == len(groups) and not unless.search(sentence[: max(starts)]):
            return sentence
    return ""


def _sentences(text: str) -> Iterator[str]:
    return (part.strip() for part in _SENTENCE.split(text) if part.strip())


@cache
def _pattern(group: Group) -> re.Pattern[str]:
    alternatives = (_escaped(words) for words in group.split("|"))
    return re.compile(rf"(?<!\w)(?:{'|'.join(alternatives)})", re.IGNORECASE)


def _escaped(words: str) -> str:
    bare = words.removeprefix("^").removesuffix(".")
    begin = r"\A\W*" if words.startswith("^") else ""
    end = r"(?!\w)" if words.endswith(".") else ""
    return begin + r"\s+".join(re.escape(part) for part in bare.split()) + end
