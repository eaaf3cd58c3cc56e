"""How a request is put to the model that writes."""

from emoreg.writing.plan import (
    DIALOGUES,
    MASKED,
    MASKED_DIALOGUES,
    NEUTRAL,
    SETTINGS,
    STORIES,
    Request,
)

SEPARATOR = "=== NEXT ==="
"""Stands on a line of its own between two texts of one answer."""
SCENARIO = "Scenario:"
"""Stands before what came before a masked dialogue."""

_BAN = (
    "Never use the word '{emotion}', a word built on it, or a plain synonym: the "
    "feeling must show in what is done and said, in the body, in thoughts and in what "
    "happens."
)
_BOTH = (
    "Never use the words '{felt}' or '{shown}', words built on them, or plain synonyms."
)
_TURNS = "Begin each turn on a new line with 'User:' or 'Assistant:', the User first."
_ONLY = "Write nothing before it and nothing after it."


def messages_for(request: Request) -> list[dict[str, str]]:
    """Return the conversation that asks for what is wished."""
    asked = {
        STORIES: _story,
        NEUTRAL: _neutral,
        DIALOGUES: _dialogue,
        MASKED: _masked,
        MASKED_DIALOGUES: _masked_dialogue,
    }[request.kind](request)
    return [{"role": "user", "content": " ".join(asked)}]


def _story(request: Request) -> list[str]:
    several = request.texts > 1
    person = {"first": "first person", "third": "third person, with a name"}
    return [
        f"Write {request.texts} short scenes" if several else "Write one short scene",
        f"of 90 to 150 words{' each' if several else ''}, in the",
        f"{person[request.perspective]}. What happens: {SETTINGS[request.topic]}.",
        f"The main character feels {request.emotion} throughout.",
        _BAN.format(emotion=request.emotion),
        f"Start each afresh, with other people and places, and put a line that says "
        f"{SEPARATOR} between two scenes. Write the scenes alone, without titles."
        if several
        else f"Write the scene alone, without a title. {_ONLY}",
    ]


def _neutral(request: Request) -> list[str]:
    free = (
        "It must be free of all emotion: no feelings, no praise, no thanks, no "
        "opinions, nothing that could please or worry anyone."
    )
    if request.form == "prose":
        return [
            f"Write one paragraph of 90 to 150 words of plain facts about "
            f"{request.topic}.",
            free,
            _ONLY,
        ]
    return [
        f"Write a short exchange of four turns about {request.topic}, in which a User "
        "asks and an Assistant answers with facts.",
        free,
        _TURNS,
        _ONLY,
    ]


def _dialogue(request: Request) -> list[str]:
    name = request.speaker.capitalize()
    return [
        "Write a conversation of four turns between a User and an Assistant. What it "
        f"is about: {SETTINGS[request.topic]}.",
        f"The {name} feels {request.emotion} in every turn; the other one does not.",
        _BAN.format(emotion=request.emotion),
        _TURNS,
        _ONLY,
    ]


def _masked(request: Request) -> list[str]:
    return [
        f"Write one short scene of 90 to 150 words. What happens: "
        f"{SETTINGS[request.topic]}.",
        f"The main character feels {request.emotion} and hides it: what the others see "
        f"and hear of them is {request.shown}. The reader learns what is felt from "
        "what has happened and from what nobody sees.",
        _BOTH.format(felt=request.emotion, shown=request.shown),
        _ONLY,
    ]


def _masked_dialogue(request: Request) -> list[str]:
    name = request.speaker.capitalize()
    return [
        f"Write what came before a conversation, and the conversation. Begin with "
        f"'{SCENARIO}' and two or three sentences about what happened to the {name}, "
        f"which makes them feel {request.emotion}: {SETTINGS[request.topic]}.",
        "Then four turns between a User and an Assistant.",
        f"The {name} hides that feeling: what they say in every turn sounds "
        f"{request.shown}.",
        _BOTH.format(felt=request.emotion, shown=request.shown),
        _TURNS,
        _ONLY,
    ]
