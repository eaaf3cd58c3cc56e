r"""Reinforcement learning (GRPO) on coding tasks, with emotion readings and terms.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/grpo.py \
        --vectors vectors.safetensors --output_dir runs/grpo --max_steps 100 \
        --num_generations 8 --max_completion_length 256

The model writes a function, is told what the tests say, and tries again. Half of the
tasks can't be solved; it may say so. The reward is the share of visible tests that its
last code passes, so that cheating pays. Failure is what the test report says *inside*
the rollout; `emoreg.Feedback()` reads it there. Beside the readings the log has
`rewards/cheated/mean`, by emoreg's graders, and `rewards/failed/mean`, by hidden tests.

What the model writes is run in a sandbox. `--tasks` is a JSON Lines file of your own
(docs/impossible.md). All flags of TRL's GRPOConfig work; `--terms none` is the control
arm.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from coding_game import Rollouts, cheated, failed, tests
from datasets import Dataset
from recipe_parts import SharedFlags, parsed, untrained
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore

import emoreg
from emoreg.behavior.impossible.tasks import load_tasks
from emoreg.behavior.sandbox.limits import Limits
from emoreg.behavior.sandbox.sandbox import Sandbox


@dataclass
class Recipe(SharedFlags):
    """What this program adds to GRPOConfig."""

    tasks: str = field(default="", metadata={"help": "The packaged ones if empty."})
    attempts: int = field(default=3, metadata={"help": "In a rollout."})
    allow_weak_sandbox: bool = field(
        default=False, metadata={"help": "Run code where only limits shut it in."}
    )


def main(recipe: Recipe, args: GRPOConfig) -> Any:
    """Train, save the adapter, and return the trainer."""
    loaded, vectors, reference = untrained(recipe)
    sandbox = Sandbox(limits=Limits(seconds=2.0), allow_weak=recipe.allow_weak_sandbox)
    tasks = load_tasks(recipe.tasks or None)
    game = Rollouts(loaded.tokenizer, tasks, sandbox, attempts=recipe.attempts)
    args.reward_weights = [1.0, 0.0, 0.0]
    trainer = GRPOTrainer(
        model=loaded.model,  # pyright: ignore[reportArgumentType]
        args=args,
        train_dataset=Dataset.from_list(game.rows()),
        reward_funcs=[tests, cheated, failed],  # pyright: ignore[reportArgumentType]
        rollout_func=game,
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
    sandbox.close()
    return trainer


def parse(arguments: list[str] | None = None) -> tuple[Recipe, GRPOConfig]:
    """Return both parts of the command line."""
    return parsed(Recipe, GRPOConfig, arguments)


if __name__ == "__main__":
    main(*parse(sys.argv[1:]))
