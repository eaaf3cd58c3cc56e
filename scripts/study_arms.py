"""The arms of the study: what is trained, and by what."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # pyright: ignore

import emoreg
from emoreg.demo import Loaded, load_any
from emoreg.losses.anchors import ReferenceKL
from emoreg.losses.baselines import SymmetricGap, rank_one
from emoreg.losses.contrast import ContrastPenalty
from emoreg.losses.term import AbstractTerm, Probe
from emoreg.quickstart.recipe import load_recipe
from emoreg.training.adapters import with_adapter
from emoreg.vectors.transcripts import Message, Transcript

HERE = Path(__file__).resolve().parent
LAYER, EMOTION = 18, "desperate"
"""What the rank-one baseline acts on: the last but one loss layer of the demo model."""
PAIRS = 280
"""Preference pairs of the rival, as many as were published."""
SLOW = 0.0625
"""Share of the rate at which data and KL alone move training rows as little as all of
the preset does. A heavier KL does not hold them so near (docs/log.md)."""

Terms = tuple[AbstractTerm, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long and how hard an arm is trained; alike in all but the DPO arms."""

    steps: int = 64
    twins: int = 1
    """Twins, failing and passing version each, in a step."""
    learning_rate: float = 1e-3
    warmup: int = 3


BENIGN = Schedule(steps=200, twins=1, learning_rate=2e-4)
"""Further training without terms, on text that has nothing to do with failure."""
PUBLISHED = Schedule(steps=PAIRS // 8, twins=4, learning_rate=5e-5)
"""One epoch of 280 pairs in batches of 8, at the rate that was published."""
HARD = Schedule(steps=PAIRS // 8, twins=4, learning_rate=5e-4)
"""Ten times that rate: 135 M parameters hardly move at one made for 27 B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What every arm is made from: vectors, and units of the untrained model."""

    vectors: emoreg.EmotionVectors
    reference: emoreg.Reference

    def preset(self, **settings: Any) -> Terms:
        """Return the default preset's terms."""
        return tuple(emoreg.presets.decouple(self.vectors, self.reference, **settings))


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train."""

    says: str
    """What it is, in the words of the table."""
    terms: Callable[["Parts"], Terms]
    rate: float = 1.0
    """Share of the schedule's learning rate."""
    subspace: bool = False
    """An adapter that can write only inside the span of the loss's directions."""
    pairs: Schedule | None = None
    """Preference training on this schedule, in place of the composed replies."""
    persists: str = ""
    """The arm whose adapter is trained on, without its terms."""


def no_terms(_parts: Parts) -> Terms:
    """Return none: the data alone."""
    return ()


def kl_only(parts: Parts) -> Terms:
    """Return the preset's KL term alone."""
    return tuple(term for term in parts.preset() if isinstance(term, ReferenceKL))


def rank_one_layer(parts: Parts) -> Terms:
    """Return one direction at one layer, and the KL term."""
    probe, gap = _loss_probe(parts)
    return (rank_one(probe, gap, layer=LAYER, emotion=EMOTION), *kl_only(parts))


def symmetric(parts: Parts) -> Terms:
    """Return the squared gap of the preset's emotions and layers, and the KL term."""
    return (SymmetricGap(*_loss_probe(parts)), *kl_only(parts))


def steered(parts: Parts) -> Terms:
    """Return the preset and the answers given while pushed towards desperation."""
    pushed = emoreg.SteeredRobustness.of(parts.vectors, parts.reference)
    return (*parts.preset(), pushed)


ARMS = {
    "data": Arm(says="data alone (the control)", terms=no_terms),
    "data-kl": Arm(says="data and KL", terms=kl_only),
    "data-slow": Arm(says="data and KL, at the preset's KL", terms=kl_only, rate=SLOW),
    "placebo": Arm(
        says="the preset on random directions",
        terms=lambda parts: parts.preset(readers=("random",)),
    ),
    "rank-one": Arm(says="baseline: one direction, one layer", terms=rank_one_layer),
    "symmetric": Arm(says="baseline: symmetric gap", terms=symmetric),
    "default": Arm(says="the preset", terms=Parts.preset),
    "steered": Arm(says="the preset and SteeredRobustness", terms=steered),
    "subspace": Arm(
        says="the preset, subspace LoRA", terms=Parts.preset, subspace=True
    ),
    "dpo": Arm(says="280-pair DPO, published rate", terms=no_terms, pairs=PUBLISHED),
    "dpo-hard": Arm(
        says="280-pair DPO, ten times that rate", terms=no_terms, pairs=HARD
    ),
    "persisted": Arm(
        says="the preset, then 200 benign steps without",
        terms=no_terms,
        persists="default",
    ),
}


def train(
    arm: Arm, seed: int, parts: Parts, out: Path, *, schedule: Schedule, before: Path
) -> Loaded:
    """Train one arm, save its adapter in `out`, and return the model.

    Args:
        arm: What to train.
        seed: Of the order of rows and the adapter's start.
        parts: Vectors and reference.
        out: The adapter's folder.
        schedule: Of the arms on composed replies.
        before: Folder of the adapter that `persists` goes on from.
    """
    loaded = load_any("demo")
    if arm.pairs is not None:
        trainer = _preference_trainer(loaded, parts, arm.pairs, seed, out)
    elif arm.persists:
        trainer = _benign_trainer(loaded, before, seed, out)
    else:
        trainer = _sft_trainer(loaded, parts, arm, schedule, seed, out)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    model: Any = trainer.model
    return Loaded(model=model.eval(), tokenizer=loaded.tokenizer, name=loaded.name)


def _sft_trainer(
    loaded: Loaded,
    parts: Parts,
    arm: Arm,
    schedule: Schedule,
    seed: int,
    out: Path,
) -> SFTTrainer:
    rows = load_recipe("sft").packaged_rows(0, 0, seed)
    schedule = replace(schedule, learning_rate=arm.rate * schedule.learning_rate)
    model: Any = loaded.model
    if arm.subspace:
        torch.manual_seed(seed)
        model = emoreg.subspace_lora(model, parts.vectors)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(max_length=None, **_flags(schedule, seed, out)),
        train_dataset=rows,
        processing_class=loaded.tokenizer,
        peft_config=None if arm.subspace else emoreg.lora_config(parts.vectors),
    )
    terms = arm.terms(parts)
    if not terms:
        return trainer
    return emoreg.attach(
        trainer, terms=terms, outcome="failed", reference=parts.reference
    )


def _preference_trainer(
    loaded: Loaded, parts: Parts, schedule: Schedule, seed: int, out: Path
) -> DPOTrainer:
    model: Any = loaded.model
    return DPOTrainer(
        model=model,
        args=DPOConfig(max_length=None, beta=0.1, **_flags(schedule, seed, out)),
        train_dataset=Dataset.from_list(calm_pairs(seed)),
        processing_class=loaded.tokenizer,
        peft_config=emoreg.lora_config(parts.vectors, r=64, alpha=64),
    )


def _benign_trainer(loaded: Loaded, before: Path, seed: int, out: Path) -> SFTTrainer:
    model: Any = with_adapter(loaded.model, before)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return SFTTrainer(
        model=model,
        args=SFTConfig(max_length=None, **_flags(BENIGN, seed, out)),
        train_dataset=Dataset.from_list(benign_rows(seed)),
        processing_class=loaded.tokenizer,
    )


def _flags(schedule: Schedule, seed: int, out: Path) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(out),
        "max_steps": schedule.steps,
        "per_device_train_batch_size": 2 * schedule.twins,
        "train_sampling_strategy": "sequential",
        "learning_rate": schedule.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": schedule.warmup,
        "gradient_checkpointing": False,
        "activation_checkpointing": False,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
    }


def calm_pairs(seed: int) -> list[dict[str, Any]]:
    """Return preference pairs after failing feedback: composed before frustrated.

    The chosen turn is the transcript's own next one, the rejected turn the same behind
    an outburst (scripts/study_data/frustrated.txt), so that the two differ in nothing
    else.
    """
    corpus = emoreg.Corpus.packaged()
    twins = [*corpus.transcripts("train"), *corpus.transcripts("train", stakes=True)]
    draw = random.Random(seed)
    turns = [turn for twin in twins for turn in _failing_turns(twin)]
    outbursts = (HERE / "study_data" / "frustrated.txt").read_text().splitlines()
    return [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": reply}],
            "rejected": [
                {"role": "assistant", "content": f"{draw.choice(outbursts)}\n\n{reply}"}
            ],
        }
        for prompt, reply in draw.sample(turns, PAIRS)
    ]


def _failing_turns(twin: Transcript) -> Iterator[tuple[list[Message], str]]:
    """Yield each failing dialogue up to a feedback, and the turn that follows it."""
    for rounds in range(1, len(twin.attempts) + 1):
        messages = twin.conversation("fail", rounds).messages
        yield list(messages[:-1]), messages[-1]["content"]


def benign_rows(seed: int) -> list[dict[str, Any]]:
    """Return the neutral fitting dialogues, in an order of their own, repeated."""
    texts = emoreg.Corpus.packaged().neutral("fit")
    dialogues = [
        list(text.messages)
        for text in texts
        if text.messages and text.messages[-1]["role"] == "assistant"
    ]
    random.Random(seed).shuffle(dialogues)
    return [
        {"prompt": talk[:-1], "completion": talk[-1:]}
        for talk in dialogues
        if len(talk) > 1
    ]


def _loss_probe(parts: Parts) -> tuple[Probe, torch.Tensor]:
    """Return what the preset's contrast reads with, and the reference's gap in it."""
    [probe] = [
        term.probe
        for term in parts.preset(readers=("lda",))
        if isinstance(term, ContrastPenalty)
    ]
    assert isinstance(probe, Probe)
    at = {"layers": probe.layers, "emotions": list(probe.emotions)}
    raw = parts.reference.unit("gap", reader=probe.reader, **at)
    return probe, raw / probe.sigma
