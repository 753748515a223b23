"""An average of the weights over the steps."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_avg_fn

from {{cookiecutter.package_name}}.checks import require_fraction


class ExponentialMovingAverage(WeightAveraging):
    """Validate, test and keep an exponential moving average of the weights; training goes on with the weights.

    A step that the loss scaling skipped changed nothing, and does not count: the average would otherwise lean towards
    weights that happened to stand still. Checkpoints hold the average as `state_dict`, and the weights beside it.

    Args:
        decay: share of the average that stays at each step, at least 0 and less than 1; 0.999 looks back over about a
            thousand steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        require_fraction(decay=decay)
        super().__init__(avg_fn=get_ema_avg_fn(decay))  # type: ignore[no-untyped-call]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights in, if a step changed them since the last time."""
        steps = steps_taken(trainer)
        if steps > self._latest_update_step:
            assert self._average_model is not None
            with torch.no_grad():
                self._average_model.update_parameters(pl_module)
            self._latest_update_step = steps

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with weights and average; a test keeps the average, where Lightning 2.6 would return to the weights."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def steps_taken(trainer: Trainer) -> int:
    """Optimizer steps that changed the weights."""
    return int(getattr(trainer.precision_plugin, "effective_step", trainer.global_step))
