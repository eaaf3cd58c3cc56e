"""The one trainer seam: a few methods of any `transformers.Trainer`."""

import logging
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emoreg.losses.presets import Terms
from emoreg.losses.targets import Targets
from emoreg.losses.term import AbstractTerm
from emoreg.residual.tokens import tokenizer_of
from emoreg.training.checks import check_launch
from emoreg.training.outcomes.sources import Source
from emoreg.training.reference import Reference, calibrate
from emoreg.training.regularizer import reference_of
from emoreg.training.seam import Seam
from emoreg.training.watching.monitor import Monitor
from emoreg.vectors.corpus import Corpus

_STATE = "emoreg_terms.pt"

logger = logging.getLogger(__name__)


class EmotionTrainerMixin:
    """Put before a trainer class: `class T(EmotionTrainerMixin, SFTTrainer)`.

    Readings come from hooks on the decoder blocks during the trainer's own forward;
    without terms the loss is the trainer's own, bit for bit.
    """

    emotions: Seam

    def __init__(
        self,
        *args: Any,
        monitor: Monitor | None = None,
        terms: Terms | Sequence[AbstractTerm] = (),
        outcome: Source | None = None,
        reference: Reference | None = None,
        targets: Targets | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the trainer, then its seam; see `emoreg.attach` for the arguments."""
        super().__init__(*args, **kwargs)
        self.emotions = make_seam(
            self,
            monitor=monitor,
            terms=terms,
            outcome=outcome,
            reference=reference,
            targets=targets,
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: MutableMapping[str, Any],
        **kwargs: Any,
    ) -> Any:
        """Return the trainer's loss with the terms on readings added."""
        return self.emotions.task_loss(super().compute_loss, model, inputs, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch an optimizer step's batches, whose outcomes are counted together."""
        self.emotions.regularizer.costs.begin()
        samples, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self.emotions.begin_step(samples)
        return samples, items

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Answer the prompts, and keep their outcomes with the answers.

        Of the trainers that generate (GRPO, RLOO); others never call it.
        """
        rollouts = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        self.emotions.carry(inputs, rollouts)
        return rollouts

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        """Score rollouts, and keep the rewards until the outcomes are made of them."""
        rewards = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        self.emotions.rewards = rewards
        return rewards

    def training_step(
        self,
        model: torch.nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the trainer's step, and the auxiliary batches that are due."""
        self.emotions.before_backward(model)
        loss = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        self.emotions.after_backward(model)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict; what an earlier loop read and did not log is dropped."""
        self.emotions.regularizer.forget("eval")
        return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def log(
        self,
        logs: dict[str, float],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Log the trainer's metrics and ours, to wherever `report_to` says."""
        prefix = _evaluation(logs)
        found = self.emotions.metrics("eval" if prefix else "train")
        logs.update({f"{prefix}{key}": value for key, value in found.items()})
        with self.emotions.dashboard.line(found, prefix):
            super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        folder = Path(
            trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}"
        )
        if trainer.is_world_process_zero() and folder.is_dir():
            temporary = folder / f".{_STATE}"
            torch.save(self.emotions.regularizer.state_dict(), temporary)
            os.replace(temporary, folder / _STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        file = Path(checkpoint or "", _STATE)
        if checkpoint and file.is_file():
            self.emotions.regularizer.load_state_dict(
                torch.load(file, weights_only=True)
            )


def _evaluation(logs: dict[str, float]) -> str:
    """Return what all keys of an evaluation begin with; for training nothing.

    It is the caller's choice (`metric_key_prefix`), and holds the name of the data
    set where there are several.
    """
    for key in logs:
        if key.endswith("_runtime") and key != "train_runtime":
            return key.removesuffix("runtime")
    return "eval_" if any(key.startswith("eval_") for key in logs) else ""


def make_seam(
    trainer: Any,
    *,
    monitor: Monitor | None,
    terms: Terms | Sequence[AbstractTerm],
    outcome: Source | None,
    reference: Reference | None,
    targets: Targets | None,
) -> Seam:
    """Return the seam of `trainer`; with a monitor and no reference, calibrate."""
    probed = monitor is not None and monitor.probe_set is not None
    check_launch(trainer, probed=probed)
    with _whole(trainer):
        if reference is None and reference_of(terms) is None and monitor is not None:
            reference = _calibrated(trainer, monitor)
        return Seam(
            trainer,
            monitor=monitor,
            terms=terms,
            outcome=outcome,
            reference=reference,
            targets=targets,
        )


@contextmanager
def _whole(trainer: Any) -> Iterator[None]:
    """Hold the weights whole, where the training will be, while the model is read.

    A model that `train()` is going to shard is on the CPU until then, or was sharded
    as it was loaded (`zero3_init_flag`) and can't run.
    """
    model, parameters = trainer.model, list(trainer.model.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        # DeepSpeed, which is loaded then, has left its mark on the parameters.
        with sys.modules["deepspeed"].zero.GatheredParameters(parameters):
            yield
    elif trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        before = parameters[0].device
        model.to(trainer.accelerator.device)
        try:
            yield
        finally:
            model.to(before)
    else:
        yield


def _calibrated(trainer: Any, monitor: Monitor) -> Reference:
    logger.warning(
        "No `reference` was given: calibrating on the packaged training transcripts. "
        "Keep one with `emoreg calibrate` and pass it to save this time"
    )
    return calibrate(
        trainer.model,
        tokenizer_of(trainer.processing_class),
        Corpus.packaged().transcripts("train"),
        monitor.vectors,
        quiet=bool(trainer.args.disable_tqdm),
    )
