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
    a user's own included, is simply not reached. Epoch-interval schedulers go on. In manual optimization a user steps
    the schedulers, and sees `skipped_steps`.

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
        # Steps that had happened at each scheduler's last turn, by its id.
        self.steps_at_turn: dict[int, int] = {}

    def __call__(self, scheduler: Any, metric: Any) -> None:
        configs = [config for config in self.module.trainer.lr_scheduler_configs if config.scheduler is scheduler]
        if not (configs and configs[0].interval == "step" and self._nothing_happened(scheduler, configs[0].frequency)):
            self.original(scheduler, metric)
        self.steps_at_turn[id(scheduler)] = self.guard.record.effective_step

    def _nothing_happened(self, scheduler: Any, frequency: int) -> bool:
        record = self.guard.record
        at_turn = self.steps_at_turn.get(id(scheduler))
        if at_turn is None:
            # The first turn of this process: after a resume the turn before it is not known, but for a scheduler that
            # moves with every step it was the step before.
            return record.skips_in_a_row > 0 and (frequency == 1 or record.effective_step == 0)
        return record.effective_step == at_turn

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy or a pickle of the module, made during the fit, gets its plain method back.
        return _plain_method, (self.module,)


def _plain_method(module: "pl.LightningModule") -> Any:
    return MethodType(type(module).lr_scheduler_step, module)
