"""How the next optimizer step is made: what Lightning, the hooks and the optimizer leave room for."""

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch.optim import Optimizer

from mp_plugin.hooks import may_edit_gradients, may_look_at_gradients
from mp_plugin.scaling.folding import are_plain, can_skip, is_foldable, may_fold
from mp_plugin.scaling.step_plan import SEPARATE, StepPlan, is_exact, plan_step
from mp_plugin.scaling.verdict import gather, gradients, has_other_ranks, meeting_place

if TYPE_CHECKING:
    from mp_plugin.precision import AdaptivePrecision


class StepPlanner:
    """Plan each optimizer step of a fit, on all ranks alike.

    Args:
        plugin: whose steps.
        module: what trains.
    """

    def __init__(self, plugin: "AdaptivePrecision", module: "pl.LightningModule") -> None:
        self._plugin, self._module = plugin, module
        self._is_attended = True
        self._callbacks: list[int] = []
        self._foldable: set[int] = set()

    def start(self) -> None:
        """Find out who looks at gradients, when all callbacks and hooks are there; all ranks together."""
        module, plugin = self._module, self._plugin
        optimizers = module.trainer.optimizers
        edits = may_edit_gradients(module)
        looks = edits or may_look_at_gradients(module) or _clips_its_own_way(plugin)
        answers = gather((edits, looks, [is_foldable(optimizer) for optimizer in optimizers]))
        plugin.guard.looks_twice = any(edits for edits, _, _ in answers)
        self._is_attended = any(looks for _, looks, _ in answers)
        self._callbacks = self._callbacks_now()
        foldable = [all(each) for each in zip(*(each for _, _, each in answers), strict=True)]
        self._foldable = {id(optimizer) for optimizer, folds in zip(optimizers, foldable, strict=True) if folds}

    def plan(self, optimizer: Optimizer) -> StepPlan:
        """Plan a step whose gradients are there. No sync."""
        scaler = self._plugin.scaler
        if not has_other_ranks() and self._callbacks != self._callbacks_now():
            self.start()  # somebody has come since training started
        # What is unscaled already cannot be folded any more.
        is_unscaled = scaler is not None and scaler.is_unscaled(optimizer)
        is_by_hand = is_unscaled or not self._module.automatic_optimization
        self._plugin.step_plan = plan = SEPARATE if is_by_hand else self._plan(optimizer)
        return plan

    def _callbacks_now(self) -> list[int]:
        return [id(callback) for callback in self._module.trainer.callbacks]  # type: ignore[attr-defined]

    def _plan(self, optimizer: Optimizer) -> StepPlan:
        trainer = self._module.trainer
        clips, folds = (trainer.gradient_clip_val or 0) > 0, self._folds(optimizer)
        if self._is_attended or not (clips or folds):
            return SEPARATE  # whatever the gradients are
        grads = gradients(optimizer)
        folds = folds and may_fold(grads, divides=clips or self._plugin.scaler is not None)
        return plan_step(
            # A scale below 1 makes gradients larger, so that they may overflow as they are divided by it.
            is_attended=not are_plain(grads) or self._plugin.loss_scale < 1.0,
            clips_by_value=clips and trainer.gradient_clip_algorithm == "value",
            max_norm=trainer.gradient_clip_val if clips else None,
            is_foldable=folds,
            is_exact=not folds or self._is_exact(optimizer),
        )

    def _folds(self, optimizer: Optimizer) -> bool:
        if id(optimizer) not in self._foldable:
            return False
        # A hook of the optimizer's own may have come since training started. Of several ranks all must go one way, and
        # what they agreed on then stays.
        return has_other_ranks() or is_foldable(optimizer)

    def _is_exact(self, optimizer: Optimizer) -> bool:
        plugin = self._plugin
        must_wait = is_exact(
            plugin.exact,
            is_free=waits_for_nothing(self._module.device),
            # A cure is proved on the batch that needs it.
            needs_batch=plugin.layer_fallback.may_act,
            is_steady=plugin.guard.clean_steps.are_steady(plugin.loss_scale),
        )
        return must_wait or not can_skip(optimizer)


def waits_for_nothing(device: torch.device) -> bool:
    """Whether reading a number on this device costs no time, or costs it at once in any case."""
    if device.type != "cuda":
        return True
    return has_other_ranks() and meeting_place(device, dist.get_backend_config()) != device


def _clips_its_own_way(plugin: "AdaptivePrecision") -> bool:
    """Whether gradients are clipped by other rules than torch's: those of FSDP, or a subclass's own."""
    hooks = ("_after_closure", "_clip_gradients", "clip_gradients", "clip_grad_by_norm", "main_params")
    known = ("mp_plugin", "lightning", "pytorch_lightning")
    is_own = any(getattr(type(plugin), hook).__module__.partition(".")[0] not in known for hook in hooks)
    return is_own or plugin._wrapped is not None
