"""A trainer of each kind on the same conversations, whose settings a test varies."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import seam_cases as cases
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

MATRIX = (pytest.mark.slow, pytest.mark.matrix)
"""Too many for every run: scripts/test_matrix.sh has them."""
CLASSES: dict[str, tuple[Any, Any]] = {
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "reward": (RewardTrainer, RewardConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
}
PREFERENCE = ("dpo", "kto", "reward")
ROLLOUT = ("grpo", "rloo")
KINDS = ("sft", "plain", *PREFERENCE, *ROLLOUT)

Model = Callable[[], PreTrainedModel]


def preference_rows(kind: str, count: int = 8) -> Dataset:
    """The rows of the other seam tests, with a worse reply beside each."""
    rows = []
    for k, row in enumerate(map(dict, cases.make_rows(count))):
        worse = [{"role": "assistant", "content": f"whatever {'w' * (k % 4)}"}]
        prompt, good = row["prompt"], row["completion"]
        made = {
            "dpo": {"prompt": prompt, "chosen": good, "rejected": worse},
            "kto": {
                "prompt": prompt,
                "completion": good if k % 2 else worse,
                "label": bool(k % 2),
            },
            "reward": {"chosen": prompt + good, "rejected": prompt + worse},
        }
        rows.append({**made[kind], "failed": row["failed"]})
    return Dataset.from_list(rows)


def prompts(count: int = 4) -> Dataset:
    """Conversations that end before an Assistant turn, each with its own outcome."""
    rows = []
    for k, row in enumerate(map(dict, cases.make_rows(count))):
        turns = list(row["failed"])
        turns[-1] = k / count  # tells the rows apart
        rows.append({"prompt": row["prompt"], "failed": turns})
    return Dataset.from_list(rows)


def shortness(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between completions."""
    said = [completion[0]["content"] for completion in completions]
    return [-float(sum(map(ord, text))) / 1e4 for text in said]


def scored(model: PreTrainedModel, pad_token_id: Any) -> PreTrainedModel:
    """A reward model with the body of `model`."""
    config = model.config
    config.num_labels, config.pad_token_id = 1, pad_token_id
    torch.manual_seed(5)
    made = AutoModelForSequenceClassification.from_config(config)
    made.model.load_state_dict(model.model.state_dict())
    return made.to(model.dtype)


def make_trainer(
    kind: str,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    peft: LoraConfig | None = None,
    rows: Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> Any:
    """A real trainer of this kind; equal calls make equal trainers."""
    if kind == "sft":
        return cases.make_sft(
            model(),
            tokenizer,
            folder,
            peft=peft,
            rows=rows,
            eval_rows=rows,
            callbacks=callbacks,
            **changes,
        )
    if kind == "plain":
        torch.manual_seed(11)
        made: Any = model() if peft is None else get_peft_model(model(), peft)
        return cases.make_plain(made, tokenizer, folder, callbacks=callbacks, **changes)
    settings: dict[str, Any] = {"args": _arguments(kind, folder, changes)}
    base = model()
    if kind in ROLLOUT:
        settings["reward_funcs"] = shortness
        data = prompts() if rows is None else rows
    else:
        data = preference_rows(kind) if rows is None else rows
    if kind == "reward":
        base = scored(base, tokenizer.pad_token_id)
        if peft is not None:
            peft.task_type = "SEQ_CLS"
    elif kind in PREFERENCE and peft is None:
        settings["ref_model"] = model()
    torch.manual_seed(11)  # an adapter's first weights
    return CLASSES[kind][0](
        model=base,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        peft_config=peft,
        callbacks=list(callbacks),
        **settings,
    )


def _arguments(kind: str, folder: Path, changes: dict[str, Any]) -> Any:
    settings: dict[str, Any] = {"max_length": None}
    if kind in ROLLOUT:
        settings = {
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 6,
        }
    return CLASSES[kind][1](**cases.quiet(folder, **{**settings, **changes}))
