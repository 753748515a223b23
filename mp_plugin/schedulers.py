"""LR schedulers that hold while steps are skipped."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from mp_plugin.scaling.guard import StepGuard


def hold_on_skips(module: "pl.LightningModule", guard: StepGuard) -> Callable[[], None]:
    """Keep step-interval LR schedulers where they are when the optimizer step before them was skipped.

    Lightning advances them after every batch, whether the optimizer stepped or not, so that a warm-up can be over
    before the first weight has changed. The scheduler objects are not touched: the module's `lr_scheduler_step` hook,
    a user's own included, is simply not reached. A scheduler with a `frequency` above 1 holds when all steps since its
    last turn were skipped. Epoch-interval schedulers go on. In manual optimization a user steps the schedulers, and
    sees `skipped_steps`.

    Args:
        module: whose schedulers Lightning steps.
        guard: whose record knows what was skipped.

    Returns:
        What undoes it.
    """
    original = module.lr_scheduler_step

    def lr_scheduler_step(scheduler: Any, metric: Any) -> None:
        if not _is_held(scheduler, module.trainer, guard.record.skips_in_a_row):
            original(scheduler, metric)

    # An attribute of the instance, found before the class's method; Module.__setattr__ would do no more.
    object.__setattr__(module, "lr_scheduler_step", lr_scheduler_step)
    return lambda: object.__delattr__(module, "lr_scheduler_step")


def _is_held(scheduler: Any, trainer: "pl.Trainer", skips_in_a_row: int) -> bool:
    for config in trainer.lr_scheduler_configs:
        if config.scheduler is scheduler and config.interval == "step":
            # A frequency counts batches, and several of them can share one optimizer step.
            steps_between_turns = max(1, config.frequency // trainer.accumulate_grad_batches)
            return skips_in_a_row >= steps_between_turns
    return False
