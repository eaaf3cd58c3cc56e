"""The logit lens: does a vector speak for its own emotion's word?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from emoreg.validation.check import Check
from emoreg.validation.figures import emotion_figures, layer_curves, mean_figure
from emoreg.validation.ranks import own_places
from emoreg.validation.subject import Subject
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import MEAN_DIFFERENCE
from emoreg.vectors.top_tokens import direct_logits, top_tokens

NAME, PLACE = "logit lens", "place of the own word"
THRESHOLD = 0.9
SHOWN, FEWEST = 12, 4


BLANK = Check(
    name=NAME,
    question="Does a vector make its own emotion's word likelier than others'?",
    method=(
        "The emotion vector through the final norm and the head alone; the place of "
        "the word's first token among those of all emotions, 1 for the highest. Words "
        "that share a first token are left out. Read at the deepest layer of the file, "
        "nearest to the head. An emotion holds at the threshold, which one random "
        "direction in ten reaches."
    ),
)


def logit_lens(subject: Subject) -> Check:
    """Return how high each vector ranks its own word among all emotions' words.

    The direction goes through the final norm and the head by itself; the logit of an
    emotion is that of the first token of its word, with a space before it. Its place
    among all emotions' words of distinct first tokens: 1 for the highest, 0 for the
    lowest, 1/2 by chance.
    """
    vectors = subject.vectors
    reader = (
        MEAN_DIFFERENCE if MEAN_DIFFERENCE in vectors.readers else vectors.readers[0]
    )
    tokens = subject.first_tokens(subject.vectors.emotions)
    if len(tokens) < FEWEST:
        said = f"{len(tokens)} emotions' words have a first token of their own"
        return replace(BLANK, not_run=f"{said}, {FEWEST} are needed")
    by_layer = {i: _at(subject, reader, i, tokens) for i in vectors.layers}
    layer = vectors.layers[-1]  # nearest to the head, where the lens is truest
    order = [layer, *(i for i in vectors.layers if i != layer)]
    figures = [
        mean_figure(
            PLACE, by_layer[i][0], controls=by_layer[i][1], reader=reader, layer=i
        )
        for i in order
    ]
    own = by_layer[layer][0]
    return replace(
        BLANK,
        headline=figures[0],
        threshold=THRESHOLD,
        figures=(
            *figures,
            *emotion_figures(
                PLACE,
                dict(zip(tokens, own.tolist(), strict=True)),
                reader=reader,
                layer=layer,
                chance=0.5,
            ),
        ),
        emotions={e: bool(x >= THRESHOLD) for e, x in zip(tokens, own, strict=True)},
        layers={i: float(by_layer[i][0].mean()) for i in vectors.layers},
        pictures=(
            layer_curves(
                "Place of the own word by layer",
                "mean place, 1 is highest",
                vectors.layers,
                {
                    reader: [by_layer[i][0].mean() for i in vectors.layers],
                    "random": [by_layer[i][1]["random"] for i in vectors.layers],
                },
            ),
        ),
        notes=(
            f"{len(tokens)} of {len(vectors.emotions)} words have a first token of "
            "their own.",
            *_spoken(subject, layer),
        ),
    )


def _at(
    subject: Subject, reader: str, layer: int, tokens: Mapping[str, int]
) -> tuple[Float[np.ndarray, " emotion"], dict[str, float]]:
    """Return each emotion's place at a layer, and the controls' mean places."""
    beside = {
        name: float(_places(subject, control, by, layer, tokens).mean())
        for name, control, by in subject.controls_for(reader)
    }
    own = _places(subject, subject.vectors, reader, layer, tokens)
    return own, {"chance": 0.5, **beside}


def _places(
    subject: Subject,
    vectors: EmotionVectors,
    reader: str,
    layer: int,
    tokens: Mapping[str, int],
) -> Float[np.ndarray, " emotion"]:
    """Return each emotion's place among the words, 1 for the highest."""
    rows = list(vectors.emotion_indices(list(tokens)))
    units = vectors.unit_directions(layer=layer, reader=reader)[rows]
    logits = direct_logits(subject.model, units)[:, list(tokens.values())]
    return own_places(logits.numpy())


def _spoken(subject: Subject, layer: int) -> Sequence[str]:
    """Return top and bottom tokens of some emotions, the core ones first."""
    vectors = subject.vectors
    core = [e for e in subject.corpus.roles().core if e in vectors.emotions]
    chosen = (core or list(vectors.emotions))[:SHOWN]
    found = top_tokens(
        subject.model,
        subject.tokenizer,
        vectors,
        emotions=chosen,
        layers=[layer],
        count=5,
    )
    return [
        f"{x.emotion}: up {', '.join(map(repr, x.top))}; "
        f"down {', '.join(map(repr, x.bottom))}"
        for x in found
    ]
