"""Surface: do vectors follow how a story is written rather than what is felt?"""

import re
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float

from emoreg.validation.check import Check, Figure, Matrix
from emoreg.validation.held_out import ranks
from emoreg.validation.subject import SHRINKAGE, Subject
from emoreg.vectors.corpus import EMOTIONS_FIT_TOPICS, EMOTIONS_TEST_TOPICS
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.pooled import StoryActivations
from emoreg.vectors.reader_names import LDA

NAME = "surface"
THRESHOLD, COMPONENTS = 0.5, 4
FIRST_PERSON = frozenset({"i", "me", "my", "mine", "myself", "we", "us", "our"})


def surface(subject: Subject) -> Check:
    """Return how far the first components of the vectors follow a text's surface.

    Over stories, the correlation of each surface feature with the story's place on the
    principal components of the emotions' means; the largest is the headline. Then what
    accuracy is left when the features are regressed out of the activations, within
    emotions, and how much that moves the vectors.
    """
    stories = subject.corpus.stories(subject.vectors.emotions, split="all")
    features = {
        name: np.array(v)
        for name, v in surface_features([story.text for story in stories]).items()
    }
    reader = LDA if LDA in subject.vectors.readers else subject.vectors.readers[0]
    layer = subject.layer_of[reader]
    column = subject.vectors.layer_index(layer)
    x = subject.stories.values[:, column].double().numpy()
    places = _places(x, subject.stories)
    components = range(places.shape[1])
    table = np.array(
        [[_r(x, places[:, c]) for c in components] for x in features.values()]
    )
    rows = [
        Figure(
            name=f"|r| of {name} and component {c + 1}",
            value=abs(float(table[i, c])),
            count=len(stories),
            layer=layer,
            lower_is_better=True,
        )
        for i, name in enumerate(features)
        for c in components
    ]
    rows.sort(key=lambda figure: -figure.value)
    return Check(
        name=NAME,
        question="Do the vectors follow how a text is written, not what is felt in it?",
        method=(
            "Over all stories, the correlation of surface features with the first "
            f"{COMPONENTS} principal components of the emotions' means, layer {layer}; "
            "the headline is the largest. Removing: the features' slopes within "
            "emotions are taken out of the activations, fitted on the fitting topics."
        ),
        headline=rows[0],
        threshold=THRESHOLD,
        figures=(*rows[:8], *_removed(subject, features, layer, column)),
        pictures=(
            Matrix(
                title="Surface features against components (r)",
                rows=tuple(features),
                columns=tuple(f"component {c + 1}" for c in components),
                values=table,
            ),
        ),
    )


def surface_features(texts: list[str]) -> Mapping[str, list[float]]:
    """Return, per text, what can be counted without understanding it."""
    found: dict[str, list[float]] = {}
    for text in texts:
        words = re.findall(r"[\w'’]+", text.lower())
        sentences = [part for part in re.split(r"[.!?]+", text) if part.strip()]
        quoted = sum(map(len, re.findall(r"[\"“]([^\"”]*)[\"”]", text)))
        for name, value in {
            "quoted speech": quoted / max(len(text), 1),
            "sentence length": len(words) / max(len(sentences), 1),
            "exclamation marks": text.count("!") / max(len(sentences), 1),
            "question marks": text.count("?") / max(len(sentences), 1),
            "first person": sum(w in FIRST_PERSON for w in words) / max(len(words), 1),
            "length": float(len(words)),
        }.items():
            found.setdefault(name, []).append(value)
    return found


def _places(
    x: Float[np.ndarray, "text d_model"], stories: StoryActivations
) -> Float[np.ndarray, "text component"]:
    """Return each story's place on the components of the emotions' means."""
    names = list(dict.fromkeys(stories.labels))
    labels = np.array([names.index(label) for label in stories.labels])
    means = np.stack([x[labels == k].mean(0) for k in range(len(names))])
    axes = np.linalg.svd(means - means.mean(0), full_matrices=False)[2]
    # Differences of n means fill n - 1 dimensions; an axis beyond them is any.
    return (x - x.mean(0)) @ axes[: min(COMPONENTS, len(names) - 1)].T


def _r(a: Float[np.ndarray, " text"], b: Float[np.ndarray, " text"]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def _removed(
    subject: Subject,
    features: Mapping[str, Float[np.ndarray, " text"]],
    layer: int,
    column: int,
) -> list[Figure]:
    """Return held-out accuracy with and without the features' linear part."""
    stories = subject.stories
    z = np.stack(list(features.values()), axis=1)
    z = torch.from_numpy((z - z.mean(0)) / np.maximum(z.std(0), 1e-9)).float()
    names = list(dict.fromkeys(stories.labels))
    labels = torch.tensor([names.index(label) for label in stories.labels])
    fitting = torch.tensor([topic in EMOTIONS_FIT_TOPICS for topic in stories.topics])
    x = stories.values[:, column].float()

    def within(values: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(len(names), values.shape[1])
        sums.index_add_(0, labels[fitting], values[fitting])
        counts = labels[fitting].bincount(minlength=len(names)).unsqueeze(1)
        return values[fitting] - (sums / counts)[labels[fitting]]

    slopes = torch.linalg.lstsq(within(z), within(x)).solution
    found, chance = [], 1 / len(names)
    for name, values in (("as they are", x), ("surface removed", x - z @ slopes)):
        one = StoryActivations(
            values=values.unsqueeze(1),
            labels=stories.labels,
            topics=stories.topics,
            layers=(layer,),
        )
        fitter = VectorFitter(emotions=names, layers=(layer,), d_model=x.shape[1])
        part = one.of_topics(EMOTIONS_FIT_TOPICS)
        fitter.update(part.values, part.labels)
        vectors = fitter.vectors(denoise=0.0, shrinkage=SHRINKAGE)
        test = one.of_topics(EMOTIONS_TEST_TOPICS)
        for reader in vectors.readers:
            own = ranks(vectors, test, reader, layer).own
            found.append(
                Figure(
                    name=f"held-out top-1, {name}",
                    value=float((own == 1).mean()),
                    controls={"chance": chance},
                    count=len(own),
                    reader=reader,
                    layer=layer,
                )
            )
    return found
