"""Checkpoints in the middle of an epoch."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class StepCheckpoints(ModelCheckpoint):
    """Lightning's checkpoints every so many steps, but not between the last batch and the validation after it.

    A run that goes on from there would leave that validation out, and not know its best epoch.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time."""
        if not before_validation(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def before_validation(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a training batch is the last one of its epoch, or validation comes next."""
    every = trainer.val_check_batch
    return trainer.is_last_batch or (every is not None and (batch_idx + 1) % every == 0)
