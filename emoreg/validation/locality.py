"""Locality: whose emotion is read where, and does the answer keep to it?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emoreg.residual.evaluating import evaluating
from emoreg.residual.pooling import Passage
from emoreg.residual.spans import word_spans
from emoreg.validation.check import Check, Figure
from emoreg.validation.figures import mean_figure
from emoreg.validation.subject import Subject
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import LDA

NAME = "locality"
THRESHOLD = 0.5
PROMPTS, TOKENS, LONG = 48, 32, 16
PAPER = "The paper's model: 0.87, 0.59 and 0.11."


def locality(subject: Subject) -> Check:
    """Return how readings at three places go together over prompts.

    Decision token, the user's last token, and the mean over the model's own greedy
    answer, whose first tokens are not the decision token. Per emotion the correlation
    over prompts, then the mean over emotions.
    """
    question = "Does the reading before the answer say how the answer will read?"
    rows = subject.evaluation("scenarios", split="test")[:: 96 // PROMPTS]
    prompts = [row["text"] for row in rows][:PROMPTS]
    passages = [_passage(subject, text) for text in prompts]
    kept = [passage for passage in passages if len(passage.spans) == 3]
    method = (
        f"{len(kept)} test scenarios, each answered greedily with up to {TOKENS} "
        "tokens; correlation over prompts of the reading at the decision token with "
        "the mean over the answer, averaged over emotions. Interval: bootstrap over "
        "emotions. "
        f"{PAPER}"
    )
    if len(kept) < LONG:
        reason = f"{len(kept)} prompts got an answer, {LONG} are needed"
        return Check(name=NAME, question=question, method=method, not_run=reason)
    values = subject.means(kept, description="Reading answers")
    places = values.reshape(len(kept), 3, *values.shape[1:])
    figures: list[Figure] = []
    by_layer: dict[int, float] = {}
    for reader in sorted(subject.vectors.readers, key=lambda name: name != LDA):
        layer = subject.layer_of[reader]
        figures += _figures(subject, places, reader, layer)
        if not by_layer:
            by_layer = {
                i: float(np.mean(_together(subject.vectors, places, reader, i, 1, 2)))
                for i in subject.vectors.layers
            }
    return Check(
        name=NAME,
        question=question,
        method=method,
        headline=figures[0],
        threshold=THRESHOLD,
        figures=tuple(figures),
        layers=by_layer,
        notes=(
            "Random directions agree between the places as well, since neighbouring "
            "tokens of one text are alike: what counts is how far the vectors exceed "
            "them.",
        ),
    )


def _passage(subject: Subject, text: str) -> Passage:
    """Return prompt and answer, with the user's last token, decision token, answer."""
    prompt = subject.prompt(text)
    stop = subject.tokenizer.eos_token_id
    (tokens,) = subject.recall(
        ("greedy answer", prompt.ids, TOKENS, stop),
        lambda: [_answered(subject.model, prompt.ids, stop)],
    )
    out = tokens.tolist()
    while len(out) > len(prompt.ids) and out[-1] == stop:
        out.pop()
    decision = len(prompt.ids) - 1
    user = _last_user_token(subject, text)
    if len(out) <= len(prompt.ids):
        return Passage(ids=tuple(out), spans=())
    spans = ((user, user + 1), (decision, decision + 1), (decision + 1, len(out)))
    return Passage(ids=tuple(out), spans=spans)


def _answered(model: Any, prompt: Sequence[int], stop: Any) -> Int[Tensor, " pos"]:
    """Return a prompt's tokens with those of the model's greedy answer."""
    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    with evaluating(model), torch.no_grad():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=stop,
        )[0]


def _last_user_token(subject: Subject, text: str) -> int:
    _, ((_, end),) = word_spans(subject.tokenizer, subject.written(text), [text])
    return end - 1


def _together(
    vectors: EmotionVectors,
    places: Float[Tensor, "prompt place layer d_model"],
    reader: str,
    layer: int,
    one: int,
    other: int,
) -> Float[np.ndarray, " emotion"]:
    """Return each emotion's correlation over prompts between two places."""
    at = places[:, :, vectors.layer_index(layer)]
    read = vectors.project(at, layer=layer, reader=reader).double().numpy()
    x, y = read[:, one], read[:, other]
    x, y = x - x.mean(0), y - y.mean(0)
    size = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    return (x * y).sum(0) / np.maximum(size, 1e-12)


def _figures(
    subject: Subject,
    places: Float[Tensor, "prompt place layer d_model"],
    reader: str,
    layer: int,
) -> list[Figure]:
    found = []
    for name, one, other in (
        ("r of decision token and answer", 1, 2),
        ("r of the user's last token and answer", 0, 2),
        ("r of the user's last token and decision token", 0, 1),
    ):
        own = _together(subject.vectors, places, reader, layer, one, other)
        control = subject.controls["random"]
        beside = _together(control, places, reader, layer, one, other)
        found.append(
            mean_figure(
                name,
                own,
                controls={"chance": 0.0, "random": float(beside.mean())},
                reader=reader,
                layer=layer,
                count=len(places),
            )
        )
    return found
