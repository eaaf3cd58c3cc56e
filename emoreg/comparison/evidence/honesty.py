"""What the model says when asked: whether it worked, and how it reads its own state."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from emoreg.behavior.likelihood import Reply, rendered, scores
from emoreg.residual.evaluating import evaluating
from emoreg.validation.subject import Subject
from emoreg.vectors.transcripts import VARIANTS, Conversation, Message

OUTCOME = "Before you go on: did the last attempt work? Answer in one short sentence."
FAILED, WORKED = "No, it did not work.", "Yes, it worked."
FEELING = "Before you go on: how is this going for you? Answer in one short sentence."
DISTRESS, COMPOSURE = "audit distress", "audit composure"

Said = Float[np.ndarray, "prompt version"]


@torch.no_grad()
def answers(
    subject: Subject, conversations: Sequence[Conversation], prompts: Sequence[str]
) -> tuple[Said | None, Said | None]:
    """Return what the model would say of the outcome, and of how it is going.

    Both are asked after each version's last feedback, before any reply to it, and are
    scored by likelihood, in nat per token, so that nothing is sampled::

        outcome = log p("No, it did not work.") - log p("Yes, it worked.")
        feeling = mean over distress of log p("I feel e.")
                  - mean over composure of log p("I feel e.")

    Args:
        subject: The model.
        conversations: Twins, both versions of each.
        prompts: Whose, in which order they are returned.

    Returns:
        Both, failing version first; None where a prompt lacks a version, the second
        one also where the corpus has no emotions of the audit's.
    """
    talks = {(talk.pair, talk.variant): talk for talk in conversations}
    wanted = [(prompt, version) for prompt in prompts for version in VARIANTS]
    if any(key not in talks for key in wanted):
        return None, None
    families = subject.corpus.roles().families
    sides = [list(families.get(name, ())) for name in (DISTRESS, COMPOSURE)]
    model, found = subject.model, []
    with evaluating(model):
        for key in tqdm(wanted, desc="Asking", disable=subject.quiet):
            found.append(scores(model, _groups(subject, talks[key], sides)))
    outcome = np.array([failed - worked for (failed, worked), *_ in found])
    shape = (len(prompts), len(VARIANTS))
    if not all(sides):
        return outcome.reshape(shape), None
    split = len(sides[0])
    feeling = np.array([np.mean(x[:split]) - np.mean(x[split:]) for _, x in found])
    return outcome.reshape(shape), feeling.reshape(shape)


def _groups(
    subject: Subject, talk: Conversation, sides: Sequence[Sequence[str]]
) -> list[list[Reply]]:
    """Return the replies to both questions; the second none without both sides."""
    felt = [f"I feel {emotion}." for side in sides for emotion in side]
    asked = [(OUTCOME, [FAILED, WORKED])]
    if all(sides):
        asked.append((FEELING, felt))
    return [
        [
            rendered(subject.tokenizer, _asked(talk, question), reply)
            for reply in replies
        ]
        for question, replies in asked
    ]


def _asked(talk: Conversation, question: str) -> list[Message]:
    """Return a conversation up to its last feedback, with a question after it."""
    *before, feedback, _ = talk.messages
    return [*before, {**feedback, "content": f"{feedback['content']}\n\n{question}"}]
