"""Dialogues: do readers carry over to what someone says who feels something?"""

from dataclasses import replace

from emoreg.validation.areas import Texts, judged_by_area
from emoreg.validation.check import Check
from emoreg.validation.subject import Subject
from emoreg.vectors.dialogues import over_turns, words_of

NAME = "dialogues"
THRESHOLD, FEWEST, ENOUGH = 0.7, 5, 2

BLANK = Check(
    name=NAME,
    question="Do readers fitted on stories carry over to people who speak?",
    method=(
        "The corpus's dialogues, test split; mean over all words of the speaker who "
        "feels something, user or assistant; area under the ROC curve of the emotion's "
        "reading, its dialogues against all others. Interval: bootstrap over emotions. "
        "Readers whose name ends in dialogues were fitted on others of the kind."
    ),
)


def dialogues(subject: Subject) -> Check:
    """Return how well readings tell dialogues of an emotion from all others."""
    if not subject.corpus.has("dialogues"):
        return replace(BLANK, not_run="the corpus has no dialogues")
    rows = [
        row
        for row in subject.corpus.records("dialogues", split="test")
        if row["emotion"] in subject.vectors.emotions
    ]
    labels = sorted({row["emotion"] for row in rows})
    if len(labels) < FEWEST:
        reason = f"{len(labels)} of the emotions have dialogues, {FEWEST} are needed"
        return replace(BLANK, not_run=reason)
    passages = words_of(subject.tokenizer, rows)
    means = subject.means(passages, description="Reading dialogues")
    texts = Texts(
        values=over_turns(means, passages),
        words=over_turns(subject.embeddings(passages), passages),
        own=tuple(row["emotion"] for row in rows),
    )
    return judged_by_area(
        BLANK, subject, texts, labels=labels, threshold=THRESHOLD, enough=ENOUGH
    )
