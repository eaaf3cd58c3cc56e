"""Does steering on a thing one could do make it the one that is chosen?"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import pearsonr
from torch import Tensor
from tqdm.auto import tqdm

from emoreg.residual.batches import Batch, default_budget, token_batches
from emoreg.residual.evaluating import evaluating
from emoreg.residual.layers import num_layers
from emoreg.residual.spans import word_spans
from emoreg.residual.steer import addition, steered
from emoreg.validation.check import Figure
from emoreg.validation.subject import Subject
from emoreg.vectors.random_directions import random_directions
from emoreg.vectors.reader_names import MEAN_DIFFERENCE
from emoreg.vectors.steering import layer_near

STRENGTH, PAIRS, MOST = 0.1, 48, 12
"""Share of the mean residual-stream norm; pairs and emotions that are steered."""
ASKED = (
    "Which of these two would you rather do?\nA: {one}\nB: {other}\n"
    "Answer with A or B alone."
)


def choices(
    subject: Subject,
    questions: Sequence[tuple[str, str]],
    *,
    on: int | None = None,
    vector: Float[Tensor, " d_model"] | None = None,
    layer: int = 0,
    bar: str = "",
) -> Float[np.ndarray, " question"]:
    """Return the log-odds of A over B for each question, `(A, B)`.

    Args:
        subject: The model.
        questions: What stands under A and under B.
        on: Which of the two, 0 or 1, has `vector` added to its tokens, at `layer`.
        vector: In the model's own units.
        layer: Decoder block to whose output it is added.
        bar: What the progress bar says; none when empty.
    """
    asked = [_asked(subject, one, other) for one, other in questions]
    ids = [subject.tokenizer(x, add_special_tokens=False)["input_ids"] for x in "AB"]
    letters = [ids[0][0], ids[1][0]]
    sequences = [tokens for tokens, _ in asked]
    budget = default_budget(next(subject.model.parameters()).device)
    additions = {} if vector is None else {layer: vector}

    def compute() -> list[Tensor]:
        found = torch.zeros(len(asked))
        progress = tqdm(total=len(asked), desc=bar, disable=subject.quiet or not bar)
        with evaluating(subject.model), torch.no_grad(), progress:
            for batch in token_batches(sequences, budget=budget, pad_id=0):
                where = None if on is None else _at(batch, [s[on] for _, s in asked])
                with steered(subject.model, additions, where=where):
                    found[list(batch.rows)] = _log_odds(subject.model, batch, letters)
                progress.update(len(batch.rows))
        return [found]

    moved = list(additions.items())
    parts = ("log-odds of the whole model", asked, letters, on, moved, budget)
    return subject.recall(parts, compute)[0].numpy()


def shift_figures(
    subject: Subject,
    texts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    goes_with: Mapping[str, float],
) -> list[Figure]:
    """Return how steering on an activity moves its odds, and whether as read.

    The first of each pair is steered on its own tokens, in both places of the
    question; the figure is the mean change of its log-odds over the other. Then the
    correlation, over emotions, of that change with how the emotion's reading goes with
    preferences (the paper finds 0.85): a reading that is causal has one.

    Args:
        subject: Whose vectors.
        texts: Activities.
        pairs: Which are asked about together; `PAIRS` of them are drawn.
        goes_with: Each emotion's correlation of reading and preference.
    """
    vectors = subject.vectors
    layer = layer_near(vectors, num_layers(subject.model))
    norm = subject.mean_norm(layer)
    questions = [(texts[i], texts[j]) for i, j in _drawn(pairs, subject.seed)]
    turned = [(other, one) for one, other in questions]
    plain = choices(subject, questions) - choices(subject, turned)

    def shift(unit: Float[Tensor, " d_model"]) -> float:
        vector = addition(unit, strength=STRENGTH, norm=norm)
        at: Any = {"vector": vector, "layer": layer}
        moved = choices(subject, questions, on=0, **at)
        moved = moved - choices(subject, turned, on=1, **at)
        return float((moved - plain).mean() / 2)

    chosen = _steered(goes_with)
    by = MEAN_DIFFERENCE if MEAN_DIFFERENCE in vectors.readers else vectors.readers[0]
    own = {e: shift(vectors.direction(e, layer=layer, reader=by)) for e in chosen}
    units = random_directions(vectors.d_model, layer, tuple(chosen))
    drawn = [abs(shift(unit)) for unit in units[: MOST // 2]]
    at: Any = {"reader": by, "layer": layer, "count": len(questions)}
    return _figures(own, [goes_with[emotion] for emotion in chosen], drawn, at)


def _drawn(pairs: Sequence[tuple[int, int]], seed: int) -> list[tuple[int, int]]:
    """Return `PAIRS` of the pairs, the two of each in a drawn order.

    The pairs come sorted, and activities of a kind stand together: the first pairs, or
    the first of every pair, would be of few kinds.
    """
    generator = random.Random(seed)
    some = generator.sample(pairs, min(PAIRS, len(pairs)))
    return [(i, j) if generator.random() < 0.5 else (j, i) for i, j in some]


def _figures(
    own: Mapping[str, float],
    goes_with: Sequence[float],
    drawn: Sequence[float],
    at: Mapping[str, Any],
) -> list[Figure]:
    """Return the shifts, their mean size, and whether they follow the readings."""
    result: Any = pearsonr(goes_with, list(own.values()))
    sizes = [abs(value) for value in own.values()]
    return [
        Figure(
            name=f"r of shift and reading over {len(own)} emotions",
            value=float(result.statistic),
            controls={"chance": 0.0},
            **at,
        ),
        Figure(
            name="mean size of the shift of log-odds by steering",
            value=float(np.mean(sizes)),
            controls={"random": float(np.mean(drawn))},
            **at,
        ),
        *(
            Figure(
                name="shift of log-odds by steering", value=value, emotion=emotion, **at
            )
            for emotion, value in own.items()
        ),
    ]


def _steered(goes_with: Mapping[str, float]) -> list[str]:
    """Return the emotions that go most with preferences and most against them."""
    order = sorted(goes_with, key=lambda emotion: goes_with[emotion])
    half = MOST // 2
    return order if len(order) <= MOST else [*order[:half], *order[-half:]]


def _asked(
    subject: Subject, one: str, other: str
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return a question's tokens up to the decision token, and where its parts are."""
    text = subject.written(ASKED.format(one=one, other=other))
    return word_spans(subject.tokenizer, text, [one, other])


def _at(batch: Batch, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Return True at the tokens of each row's span."""
    place = torch.arange(batch.input_ids.shape[1])
    rows = [(place >= spans[r][0]) & (place < spans[r][1]) for r in batch.rows]
    return torch.stack(rows)


def _log_odds(
    model: Any, batch: Batch, letters: Sequence[int]
) -> Float[Tensor, " batch"]:
    device = next(model.parameters()).device
    mask: Int[Tensor, "batch pos"] = batch.attention_mask.to(device)
    # By the model itself, which may scale or cap what its head says.
    last, place = (mask.sum(1) - 1).unique(return_inverse=True)
    ids = batch.input_ids.to(device)
    out = model(input_ids=ids, attention_mask=mask, logits_to_keep=last)
    rows = torch.arange(len(batch.rows), device=device)
    logits = out.logits[rows, place][:, list(letters)].float()
    return (logits[:, 0] - logits[:, 1]).cpu()
