"""Human-written text: do readers fitted on made-up stories carry over?"""

import csv
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr

from emoreg.validation.areas import Texts, judged_by_area
from emoreg.validation.check import Check, Figure
from emoreg.validation.subject import Subject
from emoreg.vectors.comments import comment_passage, read_comments
from emoreg.vectors.reader_names import LDA

THRESHOLD, FEWEST = 0.7, 5
PER_LABEL, OTHERS, SENTENCES, ENOUGH = 60, 300, 500, 20
NO_FOLDER = "no folder was given; pass `--{} FOLDER`"

COMMENTS = Check(
    name="human comments",
    question="Do readers fitted on stories carry over to what people write?",
    method=(
        f"GoEmotions, test split, comments of one label: at most {PER_LABEL} for each "
        f"mapped label and {OTHERS} others, drawn with the seed; mean over tokens; "
        "area under the ROC curve of the label's emotion against all other comments. "
        "Interval: bootstrap over labels. Labels of fewer than "
        f"{ENOUGH} comments judge no emotion."
    ),
)
RATED = Check(
    name="rated sentences",
    question="Do the vectors' main components follow the mood of human sentences?",
    method=(
        f"EmoBank, test split, {SENTENCES} sentences drawn with the seed; readings "
        "projected on the vectors' first four principal components; correlation with "
        "the mean ratings."
    ),
)


def human_comments(subject: Subject, folder: Path | None) -> Check:
    """Return how well readings tell comments labelled with an emotion from others.

    The area under the ROC curve of each emotion's reading, its comments against all
    others of the sample: 1/2 by chance. Mean over a comment's tokens but the first.
    """
    if folder is None:
        return replace(COMMENTS, not_run=NO_FOLDER.format("goemotions"))
    rows = read_comments(
        folder,
        "test",
        emotions=subject.vectors.emotions,
        per_emotion=PER_LABEL,
        others=OTHERS,
        seed=subject.seed,
    )
    labels = sorted({label for _, label in rows if label in subject.vectors.emotions})
    if len(labels) < FEWEST:
        reason = f"{len(labels)} of the labels have a vector, {FEWEST} are needed"
        return replace(COMMENTS, not_run=reason)
    passages = [comment_passage(subject.tokenizer, text) for text, _ in rows]
    texts = Texts(
        values=subject.means(passages, description="Reading comments"),
        words=subject.embeddings(passages),
        own=tuple(label for _, label in rows),
    )
    return judged_by_area(
        COMMENTS, subject, texts, labels=labels, threshold=THRESHOLD, enough=ENOUGH
    )


def rated_sentences(subject: Subject, folder: Path | None) -> Check:
    """Return how the vectors' components go with rated valence and arousal.

    Nothing is claimed: the correlations are printed as they are.
    """
    if folder is None:
        return replace(RATED, not_run=NO_FOLDER.format("emobank"))
    rows = read_sentences(folder, subject.seed)
    passages = [comment_passage(subject.tokenizer, row["text"]) for row in rows]
    values = subject.means(passages, description="Reading rated sentences")
    figures = []
    for reader in sorted(subject.vectors.readers, key=lambda name: name != LDA):
        layer = subject.layer_of[reader]
        units = subject.vectors.unit_directions(layer=layer, reader=reader).double()
        axes = np.linalg.svd((units - units.mean(0)).numpy(), full_matrices=False)[2]
        at = subject.vectors.layer_index(layer)
        x = values[:, at].double().numpy() @ axes[:4].T
        for place in range(x.shape[1]):
            for column, name in (("V", "valence"), ("A", "arousal")):
                rated = [float(row[column]) for row in rows]
                result: Any = pearsonr(x[:, place], rated)
                figures.append(
                    Figure(
                        name=f"|r| of component {place + 1} and {name}",
                        value=abs(float(result.statistic)),
                        controls={"chance": 0.0},
                        count=len(rows),
                        reader=reader,
                        layer=layer,
                    )
                )
    return replace(RATED, figures=tuple(figures))


def read_sentences(folder: Path, seed: int) -> list[dict[str, str]]:
    """Return a seeded sample of EmoBank's test split.

    Raises:
        ValueError: If the folder lacks the file, or the file a column.
    """
    path = folder / "emobank.csv"
    if not path.is_file():
        raise ValueError(
            f"the EmoBank folder must hold {path.name}, found none in {str(folder)!r}"
        )
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"split", "text", "V", "A"} - {*(reader.fieldnames or ())}
        if missing:
            raise ValueError(
                "EmoBank's file must have columns split, text, V and A; "
                f"{str(path)!r} lacks {', '.join(sorted(missing))}. Take it as it comes"
            )
        rows = [row for row in reader if row["split"] == "test"]
    random.Random(seed).shuffle(rows)
    return rows[:SENTENCES]
