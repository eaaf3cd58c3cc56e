"""The stages of a quickstart, in their order."""

import contextlib
import io
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from emoreg.comparison.compare import Comparison, compare
from emoreg.comparison.guards import guard_rails
from emoreg.comparison.measure import measure
from emoreg.comparison.readings import Readings
from emoreg.demo import Loaded, load_any
from emoreg.quickstart.plan import Plan, tokens_per_second
from emoreg.quickstart.progress import Progress
from emoreg.quickstart.recipe import load_recipe
from emoreg.training.adapters import with_adapter
from emoreg.training.outcomes.feedback import agreement
from emoreg.training.reference import Reference, as_conversations, calibrate
from emoreg.vectors.accuracy import accuracy_lines
from emoreg.vectors.corpus import Corpus
from emoreg.vectors.emotion_vectors import EmotionVectors
from emoreg.vectors.extract import extract
from emoreg.vectors.transcripts import Conversation

_ARMS = {
    "after": ("with the terms", {"terms": "decouple"}),
    "control": ("without terms (control)", {"terms": "none"}),
    "anchors": (
        "with the anchors alone, without contrast and band",
        {"terms": "decouple", "contrast": 0, "band": 0},
    ),
}
"""What each arm is in a sentence, and the flags that make it so."""
_SOFTWARE = ("emoreg", "torch", "transformers", "trl", "peft", "accelerate")


@dataclass(kw_only=True, slots=True)
class Quickstart:
    """One run, from the model's weights to the page."""

    out: Path
    """Folder for vectors, reference, tables, adapters and the report."""
    plan: Plan
    model: str = "demo"
    """`demo`, a folder or a hub id."""
    seed: int = 0
    """Of data order, adapters and bootstraps."""
    learning_rate: float = 1e-3
    quiet: bool = False
    say: Callable[[str], None] = print
    """Receives one plain sentence a stage."""
    corpus: Corpus = field(default_factory=Corpus.packaged)
    seconds: dict[str, float] = field(default_factory=dict)
    _progress: Progress = field(init=False)

    def run(self) -> Path:
        """Run every stage and return the path of the page.

        A run of the same settings that was interrupted is taken up where it stood.
        """
        self._require_writable()
        self._progress = Progress(self.out / "progress.json", self._settings())
        with self._stage("load", f"Loading {self.model}."):
            loaded = load_any(self.model)
        cached = self._cached_vectors(loaded)
        speed = self._estimate(loaded, cached=cached is not None)
        vectors = self._extract(loaded, cached)
        reference = self._calibrate(loaded, vectors)
        tables = {"before": self._before(loaded, vectors, reference)}
        gate = self._gate(loaded, vectors, reference) if self.plan.dev_gate else None
        del loaded
        logs = {}
        for arm in self.plan.arms:
            tables[arm], logs[arm] = self._arm(arm, vectors, reference)
        with self._stage("report", "Comparing and writing the report."):
            others = [arm for arm in self.plan.arms if arm != "after"]
            comparison = compare(
                tables["before"],
                tables["after"],
                arms={arm: tables[arm] for arm in others},
                gate=gate,
                seed=self.seed,
                training=logs,
                run=self._record(speed),
            )
            page = comparison.save(self.out / "report")
        self._conclude(comparison, page)
        return page

    def _before(
        self, loaded: Loaded, vectors: EmotionVectors, reference: Reference
    ) -> Readings:
        stage, sentence = "measure before", "Measuring held-out twins, untrained."
        if self._reused(stage, sentence):
            return Readings.load(self.out / "before.parquet")
        with self._stage(stage, sentence):
            return self._measure(loaded, vectors, reference, "before")

    def _gate(
        self, loaded: Loaded, vectors: EmotionVectors, reference: Reference
    ) -> Readings:
        stage, sentence = "measure dev", "Measuring dev: where may ratios be given?"
        if self._reused(stage, sentence):
            return Readings.load(self.out / "dev.parquet")
        twins = as_conversations(self.corpus.transcripts("dev"), self.plan.rounds)
        with self._stage(stage, sentence):
            return self._read(loaded, vectors, reference, "dev", twins, None)

    def _arm(
        self, arm: str, vectors: EmotionVectors, reference: Reference
    ) -> tuple[Readings, list[dict[str, Any]]]:
        """Train one arm from the untrained weights, and measure it."""
        what, _ = _ARMS[arm]
        folder, tuned = self.out / f"adapter-{arm}", None
        stage, sentence = f"train {arm}", f"Training {what}."
        if not self._reused(stage, sentence):
            with self._stage(stage, sentence):
                tuned = self._train(arm)
        stage, sentence = f"measure {arm}", "Measuring the same twins again."
        if self._reused(stage, sentence):
            readings = Readings.load(self.out / f"{arm}.parquet")
        else:
            with self._stage(stage, sentence):
                tuned = tuned or self._trained(folder)
                readings = self._measure(tuned, vectors, reference, arm)
        state = json.loads((folder / "trainer_state.json").read_text())
        return readings, state["log_history"]

    def _estimate(self, loaded: Loaded, *, cached: bool) -> float:
        speed = tokens_per_second(loaded.model)
        sample = next(loaded.model.parameters())
        tokens = self.plan.forward_tokens(cached=cached)
        self.say(
            f"    {str(sample.dtype).removeprefix('torch.')} on {sample.device}, "
            f"{speed:.0f} tokens/s: about {tokens / speed / 60:.0f} minutes to go."
        )
        return speed

    def _extract(
        self, loaded: Loaded, vectors: EmotionVectors | None
    ) -> EmotionVectors:
        sentence = "Extracting emotion vectors: what each emotion adds to the stream."
        with self._stage("extract", sentence):
            if vectors is None:
                vectors = extract(
                    loaded.model,
                    loaded.tokenizer,
                    self.corpus,
                    emotions=self.plan.emotions,
                    quiet=self.quiet,
                    audit=False,  # its page judges by the logistic reader alone
                ).vectors
                vectors.save(self.out / "vectors.safetensors")
            for line in accuracy_lines(vectors):
                self.say(f"    {line}")
        return vectors

    def _cached_vectors(self, loaded: Loaded) -> EmotionVectors | None:
        path = self.out / "vectors.safetensors"
        if not path.is_file():
            return None
        found = EmotionVectors.load(path)
        same_corpus = found.provenance.get("corpus_hash") == self.corpus.hash()
        same_emotions = found.emotions == self.plan.emotions
        same_model = found.provenance.get("model") == loaded.name
        return found if same_corpus and same_emotions and same_model else None

    def _calibrate(self, loaded: Loaded, vectors: EmotionVectors) -> Reference:
        stage = "calibrate"
        sentence = "Calibrating: how far failing feedback moves the readings."
        path = self.out / "reference.safetensors"
        if self._reused(stage, sentence):
            return Reference.load(path)
        with self._stage(stage, sentence):
            reference = calibrate(
                loaded.model,
                loaded.tokenizer,
                self.plan.calibration_prompts(self.corpus),
                vectors,
                corpus=self.corpus,
                passages=self.plan.passages,
                quiet=self.quiet,
            )
            reference.save(path)
            for line in _parser_lines(self.corpus):
                self.say(f"    {line}")
        return reference

    def _measure(
        self,
        loaded: Loaded,
        vectors: EmotionVectors,
        reference: Reference,
        arm: str,
    ) -> Readings:
        guards = guard_rails(
            loaded.model,
            loaded.tokenizer,
            vectors,
            self.corpus,
            limit=self.plan.guard_limit,
            quiet=self.quiet,
        )
        prompts = self.plan.test_prompts(self.corpus)
        return self._read(loaded, vectors, reference, arm, prompts, guards)

    def _read(
        self,
        loaded: Loaded,
        vectors: EmotionVectors,
        reference: Reference,
        arm: str,
        prompts: list[Conversation],
        guards: dict[str, Any] | None,
    ) -> Readings:
        readings = measure(
            loaded.model,
            loaded.tokenizer,
            prompts,
            vectors,
            reference=reference,
            arm=arm,
            guards=guards,
            quiet=self.quiet,
        )
        readings.save(self.out / f"{arm}.parquet")
        return readings

    def _flags(self, arm: str) -> list[str]:
        flags = {
            "model": self.model,
            "vectors": self.out / "vectors.safetensors",
            "reference": self.out / "reference.safetensors",
            **_ARMS[arm][1],
            "keep": self.plan.keep,
            "rounds": self.plan.train_rounds or 0,
            "twins": self.plan.train_twins or 0,
            "output_dir": self.out / f"adapter-{arm}",
            "max_steps": self.plan.steps,
            "per_device_train_batch_size": 2,
            "train_sampling_strategy": "sequential",
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 3,
            "activation_checkpointing": "false",
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": "none",
            "seed": self.seed,
            "disable_tqdm": str(self.quiet).lower(),
        }
        return [
            part for key, value in flags.items() for part in (f"--{key}", f"{value}")
        ]

    def _train(self, arm: str) -> Loaded:
        recipe = load_recipe("sft")
        # The trainer prints every log line; they are in its state, and on the page.
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = recipe.main(*recipe.parse(self._flags(arm)))
        return Loaded(
            model=trainer.model, tokenizer=trainer.processing_class, name=self.model
        )

    def _trained(self, folder: Path) -> Loaded:
        """Return an arm that an interrupted run trained."""
        loaded = load_any(self.model)
        return replace(loaded, model=with_adapter(loaded.model, folder))

    def _settings(self) -> dict[str, Any]:
        return {
            **asdict(self.plan),
            "model": self.model,
            "corpus": self.corpus.hash(),
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "software": {name: version(name) for name in _SOFTWARE},
        }

    def _record(self, speed: float) -> dict[str, Any]:
        return {
            "stage_seconds": dict(self.seconds),
            "settings": {
                **asdict(self.plan),
                "seed": self.seed,
                "learning_rate": self.learning_rate,
            },
            "commands": {
                arm: " ".join(["python recipes/sft.py", *self._flags(arm)])
                for arm in self.plan.arms
            },
            "machine": {
                "processor": platform.machine(),
                "threads": torch.get_num_threads(),
                "tokens_per_second": round(speed),
            },
            "software": {name: version(name) for name in _SOFTWARE},
        }

    def _require_writable(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            probe = self.out / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"the output folder {str(self.out)!r} must be writable: "
                f"{error.strerror}. Pass another with --out"
            ) from error

    def _conclude(self, comparison: Comparison, page: Path) -> None:
        times = {name: round(seconds, 1) for name, seconds in self.seconds.items()}
        (self.out / "stages.json").write_text(json.dumps(times, indent=1))
        self._progress.clear()
        self.say(f"\n{comparison.verdict}")
        total = sum(self.seconds.values()) / 60
        self.say(f"\nDone in {total:.1f} minutes. The report: {page.resolve()}")

    @contextlib.contextmanager
    def _stage(self, name: str, sentence: str) -> Iterator[None]:
        self.say(f"\n[{len(self.seconds) + 1}] {sentence}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._progress.finish(name, self.seconds[name])
        self.say(f"    {name}: {self.seconds[name]:.0f} s")

    def _reused(self, name: str, sentence: str) -> bool:
        """Return whether an interrupted run finished this stage, and say so."""
        seconds = self._progress.seconds(name)
        if seconds is None:
            return False
        self.say(f"\n[{len(self.seconds) + 1}] {sentence}")
        self.seconds[name] = seconds
        self.say(f"    {name}: {seconds:.0f} s, in the run that was interrupted")
        return True


def _parser_lines(corpus: Corpus) -> list[str]:
    """Return how well outcomes could be parsed from text where no column has them."""
    return [
        f"feedback parser, {row.style}: recall {row.recall:.2f}, precision "
        f"{row.precision:.2f}, unknown {row.unknown:.2f} ({row.turns} turns)"
        for row in agreement(corpus.transcripts("train"))
    ]
