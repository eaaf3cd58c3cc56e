r"""Supervised fine-tuning with emotion readings and loss terms.

One process:
    python recipes/sft.py --vectors vectors.safetensors --output_dir runs/sft

Two:
    accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/sft.py \
        --model Qwen/Qwen3-0.6B --data transcripts.jsonl \
        --vectors qwen3.safetensors --output_dir runs/sft --max_steps 200

`--data` is `packaged` (the corpus's training transcripts), a JSON Lines file or a hub
data set. A row is a conversation in TRL's `prompt`/`completion` or `messages` format
with a column `failed`: one number per Assistant turn, 1 where the feedback before it
reported failure, 0 where it reported success, null where there was none yet.

All flags of TRL's SFTConfig work, `--report_to wandb` among them. `--terms none` is
the control arm: the same data, order, seed and steps without the terms. `--terms
paired` compares each failing row with its passing twin, by a column `pair`.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from recipe_parts import SharedFlags, parsed, untrained
from trl import SFTConfig, SFTTrainer  # pyright: ignore

import emoreg
from emoreg.vectors.transcripts import shortest


@dataclass
class Recipe(SharedFlags):
    """What this program adds to SFTConfig."""

    data: str = field(
        default="packaged",
        metadata={"help": "`packaged`, a .jsonl file or a hub data set."},
    )
    terms: str = field(
        default="decouple",
        metadata={
            "help": "`none` is the control.",
            "choices": ["decouple", "paired", "none"],
        },
    )
    outcome: str = field(
        default="failed", metadata={"help": "Column with one failure per turn."}
    )
    rounds: int = field(
        default=0, metadata={"help": "Rounds of the packaged transcripts; 0 is all."}
    )
    twins: int = field(
        default=0, metadata={"help": "Use the shortest so many twins; 0 is all."}
    )
    band: float = field(default=0.1, metadata={"help": "Weight of the calm band."})
    meaning: float = field(default=1.0, metadata={"help": "Weight of MeaningAnchor."})
    kl: float = field(default=0.1, metadata={"help": "Weight of ReferenceKL."})
    keep: float | None = field(default=None, metadata={"help": "Share that may stay."})


def packaged_rows(rounds: int, twins: int, seed: int) -> Dataset:
    """Return the packaged training twins, shuffled as pairs, one dialogue a row."""
    transcripts = emoreg.Corpus.packaged().transcripts("train")
    chosen = shortest(transcripts, twins) if twins else transcripts
    pairs = [twin.conversations(rounds or None) for twin in chosen]
    random.Random(seed).shuffle(pairs)
    rows = [
        {
            "prompt": list(conversation.messages[:-1]),
            "completion": list(conversation.messages[-1:]),
            "failed": list(conversation.failed),
            "pair": conversation.pair,
        }
        for pair in pairs
        for conversation in pair
    ]
    return Dataset.from_list(rows)


def load_rows(recipe: Recipe, seed: int) -> Dataset:
    """Return the training data that `--data` names."""
    if recipe.data == "packaged":
        return packaged_rows(recipe.rounds, recipe.twins, seed)
    if Path(recipe.data).suffix in (".json", ".jsonl"):
        return load_dataset("json", data_files=recipe.data, split="train")
    return load_dataset(recipe.data, split="train")


def main(recipe: Recipe, args: SFTConfig) -> Any:
    """Train, save the adapter, and return the trainer."""
    loaded, vectors, reference = untrained(recipe)
    args.max_length = None  # a cut transcript would lose its last decision token
    trainer = SFTTrainer(
        model=loaded.model,  # pyright: ignore[reportArgumentType]
        args=args,
        train_dataset=load_rows(recipe, args.seed),
        processing_class=loaded.tokenizer,
        peft_config=emoreg.lora_config(vectors),
    )
    terms = emoreg.presets.decouple(
        vectors,
        reference,
        contrast=recipe.contrast,
        band=recipe.band,
        meaning=recipe.meaning,
        kl=recipe.kl,
        keep=recipe.keep,
        paired=recipe.terms == "paired",
    )
    trainer = emoreg.attach(
        trainer,
        monitor=emoreg.Monitor(vectors),
        terms=() if recipe.terms == "none" else terms,
        outcome=recipe.outcome,
        reference=reference,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    return trainer


def parse(arguments: list[str] | None = None) -> tuple[Recipe, SFTConfig]:
    """Return both parts of the command line."""
    return parsed(Recipe, SFTConfig, arguments)


if __name__ == "__main__":
    import sys

    main(*parse(sys.argv[1:]))
