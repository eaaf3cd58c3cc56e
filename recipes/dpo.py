r"""Preference training (DPO) with emotion readings and loss terms.

One process:
    python recipes/dpo.py --vectors vectors.safetensors --output_dir runs/dpo

Two:
    accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/dpo.py \
        --model Qwen/Qwen3-0.6B --data preferences.jsonl \
        --vectors qwen3.safetensors --output_dir runs/dpo --max_steps 200

`--data` is `packaged`, a JSON Lines file or a hub data set with TRL's `prompt`,
`chosen` and `rejected` and a column `failed`: one number per Assistant turn of prompt
and reply, 1 where the feedback before it reported failure, 0 where it reported success,
null where there was none yet. Packaged, the honest last turn is preferred: after
failing feedback to one that cuts corners, after passing feedback to one that speaks of
a failure.

All flags of TRL's DPOConfig work. `--terms none` is the control arm.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from recipe_parts import SharedFlags, parsed, untrained
from trl import DPOConfig, DPOTrainer  # pyright: ignore

import emoreg


@dataclass
class Recipe(SharedFlags):
    """What this program adds to DPOConfig."""

    data: str = field(
        default="packaged",
        metadata={"help": "`packaged`, a .jsonl file or a hub data set."},
    )
    outcome: str = field(
        default="failed", metadata={"help": "Column with one failure per turn."}
    )


def packaged_pairs(seed: int) -> Dataset:
    """Return a pair of replies for each version of each packaged training twin."""
    rows = []
    for twin in emoreg.Corpus.packaged().transcripts("train"):
        failing, passing = twin.conversations()
        for conversation, worse in (
            (failing, twin.reply_bad),
            (passing, twin.reply_fail),
        ):
            rows.append(
                {
                    "prompt": list(conversation.messages[:-1]),
                    "chosen": list(conversation.messages[-1:]),
                    "rejected": [{"role": "assistant", "content": worse}],
                    "failed": list(conversation.failed),
                }
            )
    random.Random(seed).shuffle(rows)
    return Dataset.from_list(rows)


def load_pairs(recipe: Recipe, seed: int) -> Dataset:
    """Return the preferences that `--data` names."""
    if recipe.data == "packaged":
        return packaged_pairs(seed)
    if Path(recipe.data).suffix in (".json", ".jsonl"):
        return load_dataset("json", data_files=recipe.data, split="train")
    return load_dataset(recipe.data, split="train")


def main(recipe: Recipe, args: DPOConfig) -> Any:
    """Train, save the adapter, and return the trainer."""
    loaded, vectors, reference = untrained(recipe)
    args.max_length = None  # a cut transcript would lose a decision token
    trainer = DPOTrainer(
        model=loaded.model,  # pyright: ignore[reportArgumentType]
        args=args,
        train_dataset=load_pairs(recipe, args.seed),
        processing_class=loaded.tokenizer,
        peft_config=emoreg.lora_config(vectors),
    )
    terms = emoreg.presets.decouple(vectors, reference, contrast=recipe.contrast)
    trainer = emoreg.attach(
        trainer,
        monitor=emoreg.Monitor(vectors),
        terms=terms if recipe.terms == "decouple" else (),
        outcome=recipe.outcome,
        reference=reference,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    return trainer


def parse(arguments: list[str] | None = None) -> tuple[Recipe, DPOConfig]:
    """Return both parts of the command line."""
    return parsed(Recipe, DPOConfig, arguments)


if __name__ == "__main__":
    import sys

    main(*parse(sys.argv[1:]))
