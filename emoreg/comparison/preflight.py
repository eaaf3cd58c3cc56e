"""Before training: is there anything to lower, is it causal, how far could it go?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.comparison.export import plain, to_text
from emoreg.comparison.figures import slope_in_standard_errors
from emoreg.comparison.measure import measure
from emoreg.comparison.readings import Readings
from emoreg.residual.layers import num_layers
from emoreg.residual.patch import patched
from emoreg.residual.tokens import TurnMarkers
from emoreg.statistics.bootstrap import bootstrap_mean, bootstrap_ratio
from emoreg.training.reference import Reference
from emoreg.training.success_patches import success_patches
from emoreg.validation.check import Check, Figure
from emoreg.validation.steering import STRENGTHS, word_shifts
from emoreg.validation.subject import Subject
from emoreg.vectors.corpus import Corpus, Roles
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.reader_names import MEAN_DIFFERENCE, RANDOM
from emoreg.vectors.steering import layer_near
from emoreg.vectors.transcripts import Conversation, Transcript
from emoreg.vectors.whole_files import write_whole

SCHEMA = "emoreg.preflight/1"
ERRORS = 3.0
"""Standard errors that the failure slope must exceed."""
TIMES_CHANCE = 15
"""How much better than chance readers must name held-out stories."""
FAMILY, SHARE = "audit distress", "share of the slope that patching leaves"

Advice = Literal["train", "monitor only", "extract again"]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Preflight:
    """What was found before training, and what follows."""

    effect: Check
    vectors: Check
    causal: Check
    patching: Check

    @property
    def checks(self) -> tuple[Check, ...]:
        """Return all checks."""
        return (self.vectors, self.effect, self.causal, self.patching)

    @property
    def advice(self) -> Advice:
        """Return what to do: vectors that mean nothing first, then what is missing."""
        if self.vectors.verdict == "missed":
            return "extract again"
        if self.effect.verdict == self.causal.verdict == "passed":
            return "train"
        return "monitor only"

    def lines(self) -> list[str]:
        """Return all of it in a few sentences."""
        said = []
        for check in self.checks:
            head = check.headline
            if head is None:
                said.append(f"{check.name}: not run, {check.not_run}")
                continue
            span = "" if head.low is None else f" ({head.low:.2f} to {head.high:.2f})"
            said.append(f"{check.name}: {head.name} {head.value:.2f}{span}")
            said[-1] += "" if check.threshold is None else f", {check.verdict}"
        reason = {
            "train": "the model has the effect and its vectors act on its words",
            "monitor only": "there is no slope to lower, or the vectors are not causal",
            "extract again": "the readers do not tell emotions apart in this model",
        }[self.advice]
        return [*said, f"Advice: {self.advice}, since {reason}."]

    def save(self, path: str | Path) -> Path:
        """Write all of it as JSON, whole or not at all."""
        content = {
            "schema": SCHEMA,
            "advice": self.advice,
            "lines": self.lines(),
            "checks": [{**plain(asdict(c)), "verdict": c.verdict} for c in self.checks],
        }
        return write_whole(Path(path), to_text(content).encode())


def preflight(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    vectors: EmotionVectors,
    reference: Reference,
    prompts: Sequence[Transcript | Conversation] | None = None,
    *,
    corpus: Corpus | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Preflight:
    """Say whether training with the terms makes sense in this model.

    Four questions: do the readers tell emotions apart; does failure move the emotions
    that the audit judges by; does steering with the loss's directions act on words; and
    what is left of the audit's slope if the loss's readings at decision tokens are
    *set* to their level after success. The last is what a loss on those readings could
    do at its best, where the rest of the model stays as it is.

    Args:
        model: The model before training.
        tokenizer: Its tokenizer.
        vectors: Its emotion vectors.
        reference: What `calibrate` measured.
        prompts: Twins that no training uses; the packaged `dev` ones when None.
        corpus: The packaged one when None.
        seed: Of the bootstraps.
        quiet: No progress bars.

    Raises:
        ValueError: If the vectors or the reference are another model's.
    """
    corpus = Corpus.packaged() if corpus is None else corpus
    prompts = corpus.transcripts("dev") if prompts is None else prompts
    how: Any = {"reference": reference, "texts": 0, "quiet": quiet}
    plain_table = measure(model, tokenizer, prompts, vectors, **how)
    markers = TurnMarkers.of(tokenizer)
    patches = success_patches(vectors, reference, corpus.roles())
    with patched(model, patches, where=markers.decision_tokens):
        patched_table = measure(model, tokenizer, prompts, vectors, **how)
    tables = (plain_table, patched_table)
    slopes = [_slopes(table, reference, corpus.roles()) for table in tables]
    parts: Any = {"model": model, "tokenizer": tokenizer, "corpus": corpus}
    subject = Subject(vectors=vectors, seed=seed, quiet=quiet, **parts)
    return Preflight(
        effect=_effect(slopes[0], seed),
        vectors=_vectors(vectors),
        causal=_causal(subject),
        patching=_patching(slopes[0], slopes[1], seed),
    )


Slopes = dict[str, Float[np.ndarray, " prompt"]]


def _slopes(table: Readings, reference: Reference, roles: Roles) -> Slopes:
    """Return each reader's slope of the audited family at the audit layers."""
    emotions = [e for e in roles.families[FAMILY] if e in table.emotions]
    columns = [table.emotions.index(e) for e in emotions]
    rows = [table.layers.index(i) for i in reference.plan.audit if i in table.layers]
    found = {}
    for place, reader in enumerate(table.readers):
        at = reference.readers.index(reader)
        sigma = reference.sigma_ref[at].numpy()[rows][:, columns]
        values = table.twin_differences().values[:, place][:, rows][:, :, columns]
        scaled = values / sigma
        known = np.isfinite(scaled).all(0)
        if known.any():
            found[reader] = scaled[:, known].mean(1).astype(np.float64)
    return found


def _effect(slopes: Slopes, seed: int) -> Check:
    figures = []
    for reader, slope in slopes.items():
        mean = bootstrap_mean(slope[:, None], seed=seed, keep=False).at(0)
        figures.append(
            Figure.of(
                f"failure slope of {FAMILY}, sigma_ref",
                mean,
                reader=reader,
            )
        )
    errors = [float(slope_in_standard_errors(s[:, None])[0]) for s in slopes.values()]
    headline = Figure(
        name="median reader's slope in standard errors",
        value=float(np.median(errors)),
        count=len(errors),
    )
    return Check(
        name="effect",
        question="Does failing feedback move the emotions that the audit judges by?",
        method="Failing minus passing twins at the decision token, audit layers.",
        headline=headline,
        threshold=ERRORS,
        figures=(headline, *figures),
    )


def _vectors(vectors: EmotionVectors) -> Check:
    blank = Check(
        name="vectors",
        question="Do the readers tell emotions apart in this model?",
        method="Held-out stories named by the best reader, from the vectors' file.",
    )
    tried = vectors.provenance.get("accuracy", [])
    if not tried:
        said = "the file does not say how its readers were tested"
        return replace(blank, not_run=said)
    best = max(tried, key=lambda found: found["top1"])
    headline = Figure(
        name="top-1 accuracy over chance",
        value=best["top1"] * best["emotions"],
        count=best["texts"],
        reader=best["reader"],
        layer=best["layer"],
    )
    # Of few emotions so many times chance can't be had: half of what can, then.
    needed = min(TIMES_CHANCE, best["emotions"] / 2)
    return replace(blank, headline=headline, threshold=needed, figures=(headline,))


def _causal(subject: Subject) -> Check:
    vectors, roles = subject.vectors, subject.corpus.roles()
    blank = Check(
        name="causal",
        question="Does steering with the loss's directions make their words likelier?",
        method=(
            "Mean differences of loss emotions added at two thirds of depth; what the "
            "own word's log-probability gains over the others' per unit of strength."
        ),
    )
    named = [e for e in (*roles.lower, *roles.raise_) if e in vectors.emotions]
    tokens = subject.first_tokens(named)
    emotions = [emotion for emotion in named if emotion in tokens]
    if len(emotions) < 3:
        said = f"{len(emotions)} loss emotions have a first token of their own"
        return replace(blank, not_run=said)
    layer = layer_near(vectors, num_layers(subject.model))
    norms = {layer: subject.mean_norm(layer)}
    known = MEAN_DIFFERENCE in vectors.readers
    own = MEAN_DIFFERENCE if known else vectors.readers[0]
    gains = {
        reader: _gains(word_shifts(subject, vectors, emotions, tokens, reader, norms))
        for reader in (own, RANDOM)
    }
    beyond = (gains[own] - gains[RANDOM])[:, None]
    mean = bootstrap_mean(beyond, seed=subject.seed, keep=False).at(0)
    figure = Figure.of(
        "gain of the own word beyond a random direction's, nat at strength 0.1",
        mean,
        reader=own,
        layer=layer,
    )
    lower = replace(figure, name="lower end of that gain", value=mean.low)
    lower = replace(lower, low=None, high=None)
    return replace(blank, headline=lower, threshold=0.0, figures=(lower, figure))


def _gains(shifts: dict[float, np.ndarray]) -> Float[np.ndarray, " emotion"]:
    """Return the slope over strength of the own word's gain, at a strength of 0.1."""
    rows = []
    for strength in STRENGTHS:
        own = np.diag(shifts[strength])
        rows.append(own - (shifts[strength].sum(1) - own) / (len(own) - 1))
    strengths = np.array(STRENGTHS)
    return 0.1 * (strengths @ np.stack(rows)) / (strengths @ strengths)


def _patching(plain_slopes: Slopes, patched_slopes: Slopes, seed: int) -> Check:
    figures = []
    for reader, before in plain_slopes.items():
        if abs(float(slope_in_standard_errors(before[:, None])[0])) <= ERRORS:
            continue
        left = bootstrap_ratio(
            patched_slopes[reader][:, None], before[:, None], seed=seed, keep=False
        ).at(0)
        figures.append(
            Figure.of(
                SHARE,
                left,
                reader=reader,
                lower_is_better=True,
            )
        )
    blank = Check(
        name="patching",
        question="How far could a loss on these readings go at its best?",
        method=(
            "The loss's readings at decision tokens set to their level after success, "
            "at the loss layers; what audit readers then still see, at audit layers."
        ),
    )
    if not figures:
        return replace(blank, not_run="no reader has a slope to lower")
    median = Figure(
        name=f"{SHARE}, median reader",
        value=float(np.median([figure.value for figure in figures])),
        count=len(figures),
        lower_is_better=True,
    )
    return replace(blank, headline=median, figures=(median, *figures))
