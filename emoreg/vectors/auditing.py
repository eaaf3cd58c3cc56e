"""Fitting all readers of an audit, and declaring what is the audit's."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.residual.layers import LayerPlan, num_layers
from emoreg.residual.store import ActivationStore
from emoreg.vectors.audit_readers import (
    DIALOGUES,
    FEWEST,
    HUMAN,
    LINEAR_ALREADY,
    STORIES,
    AuditReaders,
    LabelledTexts,
    fit_audit_readers,
)
from emoreg.vectors.audit_split import AuditSplit
from emoreg.vectors.comments import labelled_comments, read_comments
from emoreg.vectors.corpus import EMOTIONS_FIT_TOPICS, EMOTIONS_TEST_TOPICS, Corpus
from emoreg.vectors.dialogues import dialogues_of, labelled_dialogues, words_of
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.pooled import StoryActivations
from emoreg.vectors.reader_fits import METHODS
from emoreg.vectors.readers import AUDIT_READERS

logger = logging.getLogger(__name__)

COMMENTS_EACH = 120
"""At most so many comments of each emotion are read."""
COMMENTS = ("train", "dev")
"""Splits of comments that readers are fitted on and tested on."""
FEWEST_COMMENTS = 20
"""An emotion with fewer has no reader fitted on comments."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AuditTexts:
    """Where the texts of an audit's readers come from, and who reads them."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus
    goemotions: Path | None = None
    """The GoEmotions folder; no reader of human text without it."""
    quiet: bool = False
    store: ActivationStore | None = None

    @property
    def have_dialogues(self) -> bool:
        """Whether there are dialogues, and a template to write them by."""
        template = getattr(self.tokenizer, "chat_template", None)
        return self.corpus.has("dialogues") and bool(template)

    def check(self, emotions: Sequence[str]) -> None:
        """Go through them without the model, so that it reads none in vain.

        Raises:
            ValueError: If a dialogue is wrong, the template changes what one says, or
                the GoEmotions folder lacks a file.
        """
        if self.have_dialogues:
            words_of(self.tokenizer, dialogues_of(self.corpus, emotions, "all"))
        if self.goemotions is not None:
            none = {"emotions": (), "per_emotion": 0, "others": 0, "seed": 0}
            for split in COMMENTS:
                read_comments(self.goemotions, split, **none)

    def dialogues(self, vectors: EmotionVectors, split: str) -> LabelledTexts:
        """Return the corpus's dialogues of a split."""
        return labelled_dialogues(
            self.model,
            self.tokenizer,
            self.corpus,
            vectors.layers,
            emotions=vectors.emotions,
            split=split,
            quiet=self.quiet,
            store=self.store,
        )

    def comments(
        self, vectors: EmotionVectors, folder: Path, split: str, fewest: int
    ) -> LabelledTexts:
        """Return comments of a split, of emotions that have at least `fewest`."""
        return labelled_comments(
            self.model,
            self.tokenizer,
            folder,
            vectors.layers,
            split=split,
            emotions=vectors.emotions,
            per_emotion=COMMENTS_EACH,
            fewest=fewest,
            quiet=self.quiet,
            store=self.store,
        )

    def beside_stories(
        self, vectors: EmotionVectors
    ) -> Iterator[tuple[str, LabelledTexts, LabelledTexts]]:
        """Yield what else there is to fit on, each with its held-out texts."""
        if self.have_dialogues:
            fit, test = (self.dialogues(vectors, split) for split in ("fit", "test"))
            yield DIALOGUES, fit, test
        if self.goemotions is not None:
            train, dev = COMMENTS
            fit = self.comments(vectors, self.goemotions, train, FEWEST_COMMENTS)
            yield HUMAN, fit, self.comments(vectors, self.goemotions, dev, 1)


def with_audit(
    vectors: EmotionVectors, pooled: StoryActivations, texts: AuditTexts
) -> EmotionVectors:
    """Return `vectors` with the audit's readers, and with the split declared.

    Readers are fitted at the audit layers and at those between loss layers: on stories
    (PCA contrast and MLP, beside the logistic reader that vectors have anyway), on the
    corpus's dialogues and, where the user has them, on comments of GoEmotions (LDA,
    logistic, PCA contrast, MLP each). Texts of test splits only test them.

    Args:
        vectors: Vectors that were made of `pooled`.
        pooled: Activations of all stories.
        texts: The other texts.
    """
    plan = LayerPlan.for_depth(num_layers(texts.model))
    held = sorted({*plan.audit, *plan.near} & {*vectors.layers})
    at, layers = tuple(held) or vectors.layers, vectors.layers
    fitted = fit_audit_readers(
        STORIES,
        _labelled(pooled.of_topics(EMOTIONS_FIT_TOPICS)),
        _labelled(pooled.of_topics(EMOTIONS_TEST_TOPICS)),
        at=at,
        layers=layers,
        methods=[name for name in METHODS if name not in LINEAR_ALREADY],
    )
    for source, fit, test in texts.beside_stories(vectors):
        if enough := _with_enough(source, fit, test):
            kept = fit.of(enough)
            fitted += fit_audit_readers(source, kept, test, at=at, layers=layers)
    audit = AuditReaders(readers=tuple(fitted))
    return replace(vectors, audit=audit, split=declared_split(vectors, plan, audit))


def declared_split(
    vectors: EmotionVectors, plan: LayerPlan, audit: AuditReaders
) -> AuditSplit:
    """Return the split by a plan of layers and the packaged roles."""
    own = tuple(reader for reader in vectors.readers if reader in AUDIT_READERS)
    return AuditSplit.declared(
        plan=plan,
        roles=Corpus.packaged().roles(),
        layers=vectors.layers,
        emotions=vectors.emotions,
        loss_readers=[reader for reader in vectors.readers if reader not in own],
        audit_readers=(*own, *audit.names),
    )


def _with_enough(source: str, fit: LabelledTexts, test: LabelledTexts) -> set[str]:
    """Return the emotions that a reader can be fitted on; none where it can't be."""
    counts = Counter(fit.labels)
    enough = {emotion for emotion, count in counts.items() if count >= FEWEST}
    for emotion in counts:
        if emotion not in enough:
            logger.info("No reader of %s for %s, which has one", source, emotion)
    if len(enough) < FEWEST:
        logger.info("No reader of %s: fewer than two emotions have two", source)
        return set()
    if enough.isdisjoint(test.labels):
        logger.info("No reader of %s: there are none to test it on", source)
        return set()
    return enough


def _labelled(stories: StoryActivations) -> LabelledTexts:
    return LabelledTexts(values=stories.values, labels=stories.labels)
