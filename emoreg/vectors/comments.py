"""Comments that people wrote, from a folder of GoEmotions that the user has.

The set (Demszky et al. 2020, https://arxiv.org/abs/2005.00547) is not in the package.
"""

import random
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.pooling import Passage, span_means
from emoreg.residual.store import ActivationStore
from emoreg.vectors.audit_readers import LabelledTexts

EMOTION_OF = {
    "amusement": "amused",
    "anger": "angry",
    "annoyance": "annoyed",
    "confusion": "perplexed",
    "disgust": "disgusted",
    "embarrassment": "embarrassed",
    "excitement": "excited",
    "fear": "afraid",
    "gratitude": "grateful",
    "grief": "grief-stricken",
    "joy": "joyful",
    "love": "loving",
    "nervousness": "nervous",
    "optimism": "optimistic",
    "pride": "proud",
    "relief": "relieved",
    "remorse": "remorseful",
    "sadness": "sad",
    "surprise": "surprised",
}
"""The emotion that a label of the set is taken for; its other labels have none."""


def read_comments(
    folder: Path,
    split: str,
    *,
    emotions: Collection[str],
    per_emotion: int,
    others: int,
    seed: int,
) -> list[tuple[str, str]]:
    """Return a seeded sample of comments of one label with their emotion, or ''.

    Args:
        folder: It holds `emotions.txt` and the splits as `.tsv`.
        split: `train`, `dev` or `test`.
        emotions: Those that count; a comment of another one counts as of none.
        per_emotion: At most so many of each.
        others: At most so many of none.
        seed: Of the sample.

    Raises:
        ValueError: If the folder lacks a file.
    """
    names = _lines(folder / "emotions.txt")
    rows = []
    for line in _lines(folder / f"{split}.tsv"):
        parts = line.split("\t")
        if len(parts) >= 2 and "," not in parts[1]:
            label = names[int(parts[1])]
            rows.append((parts[0], EMOTION_OF.get(label, "")))
    random.Random(seed).shuffle(rows)
    kept: list[tuple[str, str]] = []
    counts: dict[str, int] = {}
    for text, emotion in rows:
        emotion = emotion if emotion in emotions else ""
        counts[emotion] = counts.get(emotion, 0) + 1
        if counts[emotion] <= (per_emotion if emotion else others):
            kept.append((text, emotion))
    return kept


def comment_passage(tokenizer: PreTrainedTokenizerBase, text: str) -> Passage:
    """Return all tokens but the first, which is an attention sink."""
    ids = tuple(tokenizer(text)["input_ids"])
    return Passage(ids=ids, spans=((1 if len(ids) > 1 else 0, len(ids)),))


def labelled_comments(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    layers: tuple[int, ...],
    *,
    split: str,
    emotions: Collection[str],
    per_emotion: int,
    fewest: int = 2,
    seed: int = 0,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> LabelledTexts:
    """Return activations of comments of emotions that have at least `fewest`."""
    rows = read_comments(
        folder,
        split,
        emotions=emotions,
        per_emotion=per_emotion,
        others=0,
        seed=seed,
    )
    counts = Counter(emotion for _, emotion in rows)
    rows = [row for row in rows if counts[row[1]] >= fewest]
    values = span_means(
        model,
        [comment_passage(tokenizer, text) for text, _ in rows],
        layers,
        description="Reading comments",
        quiet=quiet,
        store=store,
    )
    return LabelledTexts(values=values, labels=tuple(emotion for _, emotion in rows))


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(
            f"the GoEmotions folder must hold {path.name}, found none in "
            f"{str(path.parent)!r}"
        )
    return path.read_text(encoding="utf-8").splitlines()
