"""What all tasks share: the optimizer and the checkpoint's name tag."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from {{cookiecutter.package_name}}.checks import require_fraction, require_positive
from {{cookiecutter.package_name}}.shard import shard


class Task(LightningModule):
    """A Lightning module trained by AdamW, with a linear warmup and a cosine decay of the learning rate.

    Subclasses call `save_hyperparameters` with plain values, so that their checkpoints load with `weights_only=True`.

    Args:
        lr: highest learning rate.
        weight_decay: of the weight matrices; biases and normalisation gains do not decay.
        warmup_fraction: share of the steps, at least 0 and less than 1, in which the learning rate rises.
    """

    def __init__(self, lr: float, weight_decay: float, warmup_fraction: float) -> None:
        super().__init__()
        require_positive(lr=lr)
        require_fraction(weight_decay=weight_decay, warmup_fraction=warmup_fraction)
        self.lr, self.weight_decay, self.warmup_fraction = lr, weight_decay, warmup_fraction

    def configure_model(self) -> None:
        """Spread the weights over the devices, under `trainer=fsdp2`."""
        shard(self)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and the schedule over all steps of the run."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.lr,
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))
        # To count them Lightning has made the training loader, and that before it restores where a resumed run goes on:
        # without this, it would begin the epoch anew. It makes another one when training starts.
        self.trainer.fit_loop._combined_loader = None
        warmup = round(self.warmup_fraction * total)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down which class the weights belong to."""
        checkpoint["task"] = type(self).__name__


def lr_factor(step: int, warmup: int, total: int) -> float:
    """The learning rate at a step, as a share of the highest one.

    Args:
        step: optimizer steps taken so far.
        warmup: steps in which the rate rises linearly.
        total: steps of the whole run; from there on the rate is zero.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def num_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
