"""Whether a text names an emotion: its word, its stem, or a plain inflection.

A vector fitted on stories that name the emotion would partly be the vector of a word.
"""

import re
from functools import cache
from typing import Final

# Endings that turn a stem into the adjective we call the emotion by, with what takes
# their place. `worried` gives `worry`, `desperate` gives `desperat`.
_ENDINGS: Final = (
    ("ied", "y"),
    ("cked", "c"),
    ("ed", ""),
    ("ed", "e"),
    ("ing", ""),
    ("ing", "e"),
    ("ful", ""),
    ("ious", "y"),
    ("ous", ""),
    ("ate", "at"),
    ("y", ""),
    ("ic", ""),
    ("ive", ""),
)
# Endings under which a word still names the same emotion.
_INFLECTIONS: Final = r"(?:s|d|ed|ing|ly|ness|ion|ely)?"
_SHORTEST_STEM: Final = 4


def _stems(word: str) -> list[str]:
    """Return the word and the stems it may be built on."""
    stems = {word}
    for ending, replacement in _ENDINGS:
        if word.endswith(ending):
            stem = word[: len(word) - len(ending)] + replacement
            if len(stem) >= _SHORTEST_STEM:
                stems.add(stem)
            if len(stem) > _SHORTEST_STEM and stem[-1] == stem[-2]:
                stems.add(stem[:-1])  # upsetting, regretting
    return sorted(stems, key=len, reverse=True)


@cache
def _pattern(emotion: str) -> re.Pattern[str]:
    """Return the pattern that finds the emotion's name as a whole word."""
    words = re.split(r"[\s-]+", emotion.lower())
    if len(words) > 1:
        body = r"[\s-]+".join(re.escape(word) for word in words)
    else:
        stems = "|".join(re.escape(stem) for stem in _stems(words[0]))
        body = f"(?:{stems}){_INFLECTIONS}"
    # An apostrophe belongs to the word only after a letter; else it is a quote.
    return re.compile(rf"(?<!\w)(?<!\w')(?:{body})(?!\w)", re.IGNORECASE)


def name_in(text: str, emotion: str) -> str | None:
    """Return the word in `text` that names `emotion`, or None.

    The emotion's word, its stem and their plain inflections count, as whole words and
    in any case; an emotion of several words counts only as the whole phrase.

        >>> name_in("She hoped for rain.", "hopeful")
        'hoped'
        >>> name_in("It was made of tin.", "mad") is None
        True
    """
    found = _pattern(emotion).search(text)
    return found.group(0) if found else None
