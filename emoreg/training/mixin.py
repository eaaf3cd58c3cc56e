"""The one trainer seam: three methods of any `transformers.Trainer`."""

import os
from pathlib import Path
from typing import Any

import torch

from emoreg.losses.presets import Terms
from emoreg.losses.term import AbstractTerm
from emoreg.training.monitor import Monitor
from emoreg.training.reference import Reference
from emoreg.training.seam import Seam

_STATE = "emoreg_terms.pt"


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
        terms: Terms | list[AbstractTerm] | tuple[AbstractTerm, ...] = (),
        outcome: str | None = None,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the trainer, then its seam; see `emoreg.attach` for the arguments."""
        super().__init__(*args, **kwargs)
        self.emotions = make_seam(
            self, monitor=monitor, terms=terms, outcome=outcome, reference=reference
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        """Return the trainer's loss with the terms on readings added."""
        return self.emotions.task_loss(super().compute_loss, model, inputs, **kwargs)  # type: ignore[misc]

    def training_step(
        self,
        model: torch.nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the trainer's step, then the auxiliary batches that are due."""
        loss = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        self.emotions.after_backward(model)
        return loss

    def log(
        self,
        logs: dict[str, float],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Log the trainer's metrics and ours, to wherever `report_to` says."""
        mode = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        prefix = "eval_" if mode == "eval" else ""
        for key, value in self.emotions.metrics(mode).items():
            logs[f"{prefix}{key}"] = value
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        folder = Path(
            trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}"
        )
        if trainer.is_world_process_zero() and folder.is_dir():
            temporary = folder / f".{_STATE}"
            torch.save(self.emotions.state_dict(), temporary)
            os.replace(temporary, folder / _STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        file = Path(checkpoint or "", _STATE)
        if checkpoint and file.is_file():
            self.emotions.load_state_dict(torch.load(file, weights_only=True))


def make_seam(
    trainer: Any,
    *,
    monitor: Monitor | None,
    terms: Terms | list[AbstractTerm] | tuple[AbstractTerm, ...],
    outcome: str | None,
    reference: Reference | None,
) -> Seam:
    """Return the seam of `trainer`, with the reference that its terms came with."""
    given = tuple(terms)
    if reference is None and isinstance(terms, Terms):
        found = terms.reference
        reference = found if isinstance(found, Reference) else None
    return Seam(
        trainer,
        monitor=monitor,
        terms=given,
        outcome=outcome,
        reference=reference,
        quiet=bool(trainer.args.disable_tqdm),
    )
