"""`validate`: all checks of a model's emotion vectors, and what they say together."""

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from emoreg.comparison.export import (
    plain,
    require_writable,
    to_text,
)
from emoreg.residual.layers import d_model, model_name, num_layers
from emoreg.residual.store import ActivationStore
from emoreg.validation.battery import REQUIRED, Sources, battery
from emoreg.validation.check import Check
from emoreg.validation.judgement import (
    LayerStanding,
    Standing,
    layer_standings,
    recommended,
    standings,
)
from emoreg.validation.side_by_side import side_by_side
from emoreg.validation.subject import Subject
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.whole_files import write_whole

SCHEMA = "emoreg.validation/1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Validation:
    """What every check found, and what follows for emotions and layers."""

    checks: tuple[Check, ...]
    emotions: tuple[Standing, ...]
    layers: tuple[LayerStanding, ...]
    facts: Mapping[str, str]
    """What was tested, with hashes, counts and the command."""

    @property
    def usable(self) -> tuple[str, ...]:
        """Emotions whose directions may be used."""
        return tuple(s.emotion for s in self.emotions if s.use)

    @property
    def recommended_layers(self) -> tuple[int, ...]:
        """Layers to read at."""
        return recommended(self.layers)

    @property
    def headline(self) -> str:
        """Return the verdict in a few sentences, misses by name."""
        counted = [c for c in self.checks if c.threshold is not None and not c.not_run]
        passed = self._named("passed")
        said = (
            f"{len(self.usable)} of {len(self.emotions)} emotions may be used in this "
            f"model; {len(passed)} of {len(counted)} checks that claim something "
            "passed."
        )
        if missed := self._named("missed"):
            said += f" Missed: {', '.join(missed)}."
        if blind := self._named("not evidence"):
            said += f" No evidence, since controls pass too: {', '.join(blind)}."
        layers = ", ".join(map(str, self.recommended_layers))
        return f"{said} Read at layers {layers}." if layers else said

    def _named(self, verdict: str) -> list[str]:
        return [check.name for check in self.checks if check.verdict == verdict]

    def summary(self) -> dict[str, Any]:
        """Return what a vectors file carries of it."""
        return {
            "schema": SCHEMA,
            "checks": {check.name: check.verdict for check in self.checks},
            "emotions": {s.emotion: s.use for s in self.emotions},
            "layers": list(self.recommended_layers),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values, schema "emoreg.validation/1"."""
        return {
            **self.summary(),
            "headline": self.headline,
            "checks": [{**plain(asdict(c)), "verdict": c.verdict} for c in self.checks],
            "emotions": [
                {**plain(asdict(s)), "use": s.use, "reason": s.reason}
                for s in self.emotions
            ],
            "layers": [plain(asdict(standing)) for standing in self.layers],
            "recommended_layers": list(self.recommended_layers),
            "facts": plain(self.facts),
        }

    def save(self, folder: str | Path) -> Path:
        """Write index.html and validation.json into a folder; return the page.

        Raises:
            ValueError: If the folder can't be written.
        """
        from emoreg.comparison.validation_page import render_validation

        folder = Path(folder)
        require_writable(folder)
        page = render_validation(self)
        text = to_text(self.to_dict())
        write_whole(folder / "validation.json", text.encode())
        return write_whole(folder / "index.html", page.encode())


def validate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    vectors: EmotionVectors,
    corpus: Corpus | None = None,
    *,
    sources: Sources | None = None,
    seed: int = 0,
    quiet: bool = False,
    store: ActivationStore | None = None,
) -> Validation:
    """Test emotion vectors in the model they are of, each check beside its controls.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        vectors: What is tested.
        corpus: Stories and prompts; the packaged ones when None.
        sources: Other people's texts and norms, where there are any: what needs them is
            not run otherwise, and says so.
        seed: Of resampling, and of what is drawn.
        quiet: No progress bars.
        store: Where activations are kept, so that a second run reads none again.

    Raises:
        ValueError: If the vectors are another model's.
    """
    vectors.check_model(
        d_model=d_model(model), num_layers=num_layers(model), name=model_name(model)
    )
    corpus = Corpus.packaged() if corpus is None else corpus
    subject = Subject(
        model=model,
        tokenizer=tokenizer,
        vectors=vectors,
        corpus=corpus,
        seed=seed,
        quiet=quiet,
        store=store,
    )
    checks = []
    for run in battery(sources or Sources()):
        checks.append(run(subject))
        logger.info("%s: %s", checks[-1].name, checks[-1].verdict)
    checks.append(side_by_side(checks, vectors))
    return judged(checks, vectors, facts=_facts(subject))


def judged(
    checks: Sequence[Check], vectors: EmotionVectors, *, facts: Mapping[str, str]
) -> Validation:
    """Return what `checks` say together."""
    return Validation(
        checks=tuple(checks),
        emotions=standings(checks, vectors.emotions, required=REQUIRED),
        layers=layer_standings(checks, vectors.layers),
        facts=facts,
    )


def _facts(subject: Subject) -> dict[str, str]:
    vectors, made = subject.vectors, subject.vectors.provenance
    own, there = made.get("corpus_hash"), subject.corpus.hash()
    corpus = there if own in (None, there) else f"{there}; the vectors' own is {own}"
    return {
        "Model": model_name(subject.model) or "unnamed",
        "Vectors": vectors.hash,
        "Readers": ", ".join(vectors.readers),
        "Layers": ", ".join(map(str, vectors.layers)),
        "Emotions": str(len(vectors.emotions)),
        "Corpus": corpus,
        "Weights in": str(next(subject.model.parameters()).dtype),
        "Seed": str(subject.seed),
        "Command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
    }
