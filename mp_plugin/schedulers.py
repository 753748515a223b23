"""LR schedulers that hold while steps are skipped."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import lightning.pytorch as pl

from mp_plugin.instance import replace_attribute
from mp_plugin.scaling.guard import StepGuard


def hold_on_skips(module: "pl.LightningModule", guard: StepGuard) -> Callable[[], None]:
    """Keep a step-interval LR scheduler where it is when no optimizer step has happened since its last turn.

    Lightning advances schedulers after every batch, whether the optimizer stepped or not, so that a warm-up can be over
    before the first weight has changed. The scheduler objects are not touched: the module's `lr_scheduler_step` hook,
    a user's own included, is simply not reached. Epoch-interval schedulers go on, once there was a step. In manual
    optimization a user steps the schedulers, and sees `skipped_steps`.

    Args:
        module: whose schedulers Lightning steps.
        guard: whose record knows what was skipped.

    Returns:
        What undoes it.
    """
    return replace_attribute(module, "lr_scheduler_step", _HeldOnSkips(module, guard))


class _HeldOnSkips:
    def __init__(self, module: "pl.LightningModule", guard: StepGuard) -> None:
        self.module, self.guard = module, guard
        self.original = module.lr_scheduler_step
        self.skips_at_turn: dict[int, int] = {}

    def __call__(self, scheduler: Any, metric: Any) -> None:
        record = self.guard.record
        configs = enumerate(self.module.trainer.lr_scheduler_configs)
        places = [(place, config.interval) for place, config in configs if config.scheduler is scheduler]
        # A step of which nobody knows yet counts as taken; if it was not, the next turn makes up for it.
        steps = record.effective_step + (self.guard.outstanding is not None)
        for place, interval in places:
            has_skipped = record.skips_in_a_row > 0 or record.skipped_steps > self.skips_at_turn.get(place, 0)
            only_skips = has_skipped and steps == record.steps_at_turn.get(place, 0)
            record.steps_at_turn[place], self.skips_at_turn[place] = steps, record.skipped_steps
            # Before the first step an epoch has nothing to follow either, and torch would warn of the wrong order.
            if only_skips and (interval == "step" or record.effective_step == 0):
                return
        self.original(scheduler, metric)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy or a pickle of the module, made during the fit, gets its plain method back.
        return _plain_method, (self.module,)


def _plain_method(module: "pl.LightningModule") -> Any:
    return MethodType(type(module).lr_scheduler_step, module)
