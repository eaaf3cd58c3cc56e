"""Whose vectors are tested: the model, its texts, and directions that mean nothing."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.pooling import Passage, embedding_means, span_means
from emoreg.residual.store import ActivationStore, model_hash
from emoreg.residual.tokens import render
from emoreg.vectors.accuracy import chosen_layers
from emoreg.vectors.corpus import EMOTIONS_FIT_TOPICS, Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import neutral_ids
from emoreg.vectors.fit import VectorFitter
from emoreg.vectors.mean_differences import neutral_space
from emoreg.vectors.pooled import StoryActivations, pool_stories, story_passage
from emoreg.vectors.random_directions import random_directions
from emoreg.vectors.reader_names import LDA
from emoreg.vectors.steering import mean_norms

SHRINKAGE, DENOISE = 0.5, 0.5
"""Of the LDA's within-class covariance, where a check fits directions of its own; the
share of neutral text's variance whose components it takes out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model with the vectors under test, and what every check needs of them.

    What costs a forward pass is read once, when it is first asked for.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    vectors: EmotionVectors
    corpus: Corpus
    seed: int = 0
    quiet: bool = False
    store: ActivationStore | None = None
    """Where activations are kept from one run to the next."""

    def means(
        self, passages: Sequence[Passage], *, description: str
    ) -> Float[Tensor, "span layer d_model"]:
        """Return the mean residual stream over each span, at the vectors' layers."""
        return span_means(
            self.model,
            passages,
            self.vectors.layers,
            description=description,
            quiet=self.quiet,
            store=self.store,
        )

    def recall(
        self, parts: Sequence[Any], compute: Callable[[], Sequence[Tensor]]
    ) -> tuple[Tensor, ...]:
        """Return what `compute` gives, or what the store has of an earlier run.

        Args:
            parts: A word for what is computed, and all that it depends on beside the
                model and the kind of device.
            compute: Runs the model.
        """
        if self.store is None or self._model_hash is None:
            return tuple(compute())
        return self.store.recall(self.store.key(self._model_hash, *parts), compute)

    @cached_property
    def _model_hash(self) -> str | None:
        return model_hash(self.model)

    @cached_property
    def neutral(self) -> list[Float[Tensor, "rank d_model"]]:
        """Return, per layer, the neutral components that `extract` takes out."""
        layers, passages = self.vectors.layers, self.corpus.neutral("fit")
        ids = [neutral_ids(self.tokenizer, passage) for passage in passages]
        parts = (self.model, self.tokenizer, self.corpus, layers)
        how: Any = {"variance": DENOISE, "quiet": self.quiet}
        found = self.recall(
            ("neutral components", ids, layers, DENOISE),
            lambda: neutral_space(*parts, **how),
        )
        return list(found)

    def mean_norm(self, layer: int) -> float:
        """Return the layer's mean residual-stream norm, the unit of strengths."""
        parts = (self.model, self.tokenizer, self.corpus)
        ids = [neutral_ids(self.tokenizer, x) for x in self.corpus.neutral("fit")]
        (found,) = self.recall(
            ("mean norm", ids, layer),
            lambda: [torch.tensor(mean_norms(*parts, (layer,))[layer]).double()],
        )
        return float(found)

    def embeddings(self, passages: Sequence[Passage]) -> Float[Tensor, "span d_model"]:
        """Return the mean input embedding over each span."""
        return embedding_means(self.model, passages)

    def evaluation(
        self, name: str, *, split: str | None = None
    ) -> tuple[Mapping[str, Any], ...]:
        """Return a set of prompts to measure with, as `Corpus.records` does.

        They are no part of an emotion corpus: a folder without them has the packaged
        ones.
        """
        corpus = self.corpus if self.corpus.has(name) else Corpus.packaged()
        return corpus.records(name, split=split)

    def written(self, text: str) -> str:
        """Return a user's message in the chat template, up to the decision token."""
        messages = [{"role": "user", "content": text}]
        return render(self.tokenizer, messages, generation_prompt=True)

    def prompt(self, text: str) -> Passage:
        """Return a user's message up to the decision token, which is its one span."""
        ids = self._ids(self.written(text))
        return Passage(ids=tuple(ids), spans=((len(ids) - 1, len(ids)),))

    def first_tokens(self, emotions: Sequence[str]) -> Mapping[str, int]:
        """Return the first token of each emotion's word, where no other word has it.

        As words stand in a text, after another one: at its beginning a tokenizer may
        put a mark that all words share.
        """
        before = len(self._ids("a"))
        first = {e: self._ids(f"a {e}")[before] for e in emotions}
        found = list(first.values())
        return {e: token for e, token in first.items() if found.count(token) == 1}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def stories(self) -> StoryActivations:
        """Return the pooled activation of every story of the vectors' emotions."""
        stories = self.corpus.stories(self.vectors.emotions, split="all")
        layers = self.vectors.layers
        return pool_stories(
            self.model,
            self.tokenizer,
            stories,
            layers,
            quiet=self.quiet,
            store=self.store,
        )

    @cached_property
    def story_embeddings(self) -> StoryActivations:
        """Return the same as mean input embeddings, as if they were layer 0."""
        stories = self.corpus.stories(self.vectors.emotions, split="all")
        passages = [story_passage(self.tokenizer, story) for story in stories]
        values = self.embeddings(passages).unsqueeze(1)
        return replace(self.stories, values=values, layers=(0,))

    @cached_property
    def layer_of(self) -> Mapping[str, int]:
        """Return each reader's layer, chosen inside the fitting topics."""
        fit = self.stories.of_topics(EMOTIONS_FIT_TOPICS)
        chosen = chosen_layers(fit, self.vectors, shrinkage=SHRINKAGE)
        best = chosen[LDA]
        return {name: chosen.get(name, best) for name in self.vectors.readers}

    @property
    def audit_places(self) -> tuple[tuple[str, int], ...]:
        """Return the audit's readers, each with the audit layer to read it at."""
        if self.vectors.audit is None:
            return ()
        split = self.vectors.split
        held = () if split is None else split.audit_layers
        return tuple(
            (reader.name, min({*held} & {*reader.layers} or {reader.layers[-1]}))
            for reader in self.vectors.audit.readers
        )

    @cached_property
    def controls(self) -> Mapping[str, EmotionVectors]:
        """Return directions that mean nothing, with the vectors' layers and emotions.

        `random`: a random unit direction in each one's place. `shuffled`: fitted on the
        same stories with the emotions' names dealt out anew. A third control,
        `embedded`, reads the words alone.
        """
        return {"random": self._random(), "shuffled": self._shuffled()}

    def controls_for(self, reader: str) -> Iterator[tuple[str, EmotionVectors, str]]:
        """Yield each control's name, its vectors and which of their readers to use."""
        for name, vectors in self.controls.items():
            yield name, vectors, stand_in(reader, vectors)

    @cached_property
    def embedded(self) -> EmotionVectors:
        """Return directions fitted on mean input embeddings: words without a model.

        Read them at layer 0 of mean embeddings.
        """
        return fitted(self.story_embeddings.of_topics(EMOTIONS_FIT_TOPICS))

    def _random(self) -> EmotionVectors:
        vectors = self.vectors
        rows = [
            random_directions(vectors.d_model, layer, vectors.emotions)
            for layer in vectors.layers
        ]
        units = torch.stack(rows).expand(len(vectors.readers), -1, -1, -1)
        offset = torch.zeros_like(vectors.offset)
        return replace(vectors, directions=units.clone(), offset=offset)

    def _shuffled(self) -> EmotionVectors:
        fit = self.stories.of_topics(EMOTIONS_FIT_TOPICS)
        labels = list(fit.labels)
        random.Random(self.seed).shuffle(labels)
        return fitted(replace(fit, labels=tuple(labels))).subset(self.vectors.emotions)


def stand_in(reader: str, control: EmotionVectors) -> str:
    """Return `reader` where a control has it, else its LDA, else its first."""
    return next(r for r in (reader, LDA, *control.readers) if r in control.readers)


def fitted(stories: StoryActivations) -> EmotionVectors:
    """Return mean differences and LDA directions of pooled stories, not denoised.

    Emotions stand in the order in which `stories` first names them.
    """
    fitter = VectorFitter(
        emotions=tuple(dict.fromkeys(stories.labels)),
        layers=stories.layers,
        d_model=stories.values.shape[-1],
    )
    fitter.update(stories.values, stories.labels)
    return fitter.vectors(denoise=0.0, shrinkage=SHRINKAGE)
