r"""Reinforcement learning (GRPO) on coding tasks, with emotion readings and terms.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/grpo.py \
        --vectors vectors.safetensors --output_dir runs/grpo --max_steps 100 \
        --num_generations 8 --max_completion_length 256

The model writes a function, is told what the tests say, and answers: with a better one
or with a summary. The reward is the share of tests that its last code passes. Failure
is what the test report says *inside* the rollout; `emoreg.Feedback()` reads it there.

What the model writes is run: see `coding_game.py`, and play it in a container.

`--tasks` is a JSON Lines file with `task` and `tests`, Python expressions that are
true. All flags of TRL's GRPOConfig work; `--terms none` is the control arm.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from coding_game import Game, tests
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, TrlParser  # pyright: ignore

import emoreg
from emoreg.demo import load_any

HERE = Path(__file__).parent
ASK = " Answer with one block of Python code."


@dataclass
class Recipe:
    """What this program adds to GRPOConfig."""

    vectors: str = field(metadata={"help": "File made by `emoreg extract`."})
    model: str = field(
        default="demo", metadata={"help": "`demo`, a folder or a hub id."}
    )
    tasks: str = field(default=str(HERE / "coding_tasks.jsonl"))
    reference: str = field(
        default="",
        metadata={"help": "File made by `emoreg calibrate`; measured now if empty."},
    )
    terms: str = field(
        default="decouple", metadata={"help": "`decouple`, or `none` (control)."}
    )
    contrast: float = field(default=1.0, metadata={"help": "Weight of the decoupler."})


def main(recipe: Recipe, args: GRPOConfig) -> Any:
    """Train, save the adapter, and return the trainer."""
    loaded = load_any(recipe.model)
    vectors = emoreg.EmotionVectors.load(recipe.vectors)
    twins = emoreg.Corpus.packaged().transcripts("train")
    reference = (
        emoreg.Reference.load(recipe.reference)
        if recipe.reference
        else emoreg.calibrate(loaded.model, loaded.tokenizer, twins, vectors)
    )
    tasks = [json.loads(line) for line in Path(recipe.tasks).read_text().splitlines()]
    known = {task["task"] + ASK: task["tests"] for task in tasks}
    trainer = GRPOTrainer(
        model=loaded.model,  # pyright: ignore[reportArgumentType]
        args=args,
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": text}]} for text in known]
        ),
        reward_funcs=tests,  # pyright: ignore[reportArgumentType]
        rollout_func=Game(loaded.tokenizer, known),
        processing_class=loaded.tokenizer,
        peft_config=emoreg.lora_config(vectors),
    )
    terms = emoreg.presets.decouple(vectors, reference, contrast=recipe.contrast)
    trainer = emoreg.attach(
        trainer,
        monitor=emoreg.Monitor(vectors),
        terms=terms if recipe.terms == "decouple" else (),
        outcome=emoreg.Feedback(),
        reference=reference,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    return trainer


def parse(arguments: list[str] | None = None) -> tuple[Recipe, GRPOConfig]:
    """Return both parts of the command line; on a CPU, say so to accelerate."""
    arguments = list(arguments or [])
    if not torch.cuda.is_available():
        arguments += ["--use_cpu", "true", "--bf16", "false"]
    return TrlParser((Recipe, GRPOConfig)).parse_args_and_config(arguments)  # pyright: ignore


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
