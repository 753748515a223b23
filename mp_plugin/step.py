"""One optimizer step: run the closure, look at the gradients, and step, run again or skip."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from mp_plugin.hooks import may_edit_gradients
from mp_plugin.retry import StepStart, can_run_again, known_at_first, run_again
from mp_plugin.scaling.guard import StepGuard, Where


def take_step(
    guard: StepGuard,
    start: StepStart | None,
    optimizer: Optimizer,
    model: "pl.LightningModule",
    closure: Callable[[], Any],
    after_closure: Callable[[], None],
    **kwargs: Any,
) -> Any:
    """Step an optimizer if its gradients are finite, if need be those of another run of the batch; else skip the step.

    Args:
        guard: decides, counts and steps.
        start: where the step began, to go back to; None outside a fit.
        optimizer: what steps.
        model: whose step it is.
        closure: the forward and backward pass; in manual optimization it does nothing.
        after_closure: what follows a backward pass with finite gradients: hooks and clipping.
        kwargs: for the optimizer's own `step`.

    Returns:
        What the optimizer returned; for a skipped step what the closure returned.

    Raises:
        TrainingDivergedError: when it is hopeless to go on.
    """
    trainer = model.trainer
    places = {id(known): place for place, known in enumerate(trainer.optimizers)}
    where = Where(trainer.fit_loop.batch_idx, trainer.global_rank, places.get(id(optimizer), len(places)))
    result = closure()
    verdict = guard.verdict(optimizer)
    retries = 0
    scale_is_to_blame = verdict.overflowed and guard.is_scale_to_blame(optimizer, result)
    while scale_is_to_blame and verdict.overflowed and guard.can_back_off and retries < _retries(guard, model):
        retries += 1
        guard.back_off(optimizer, model, where)
        with run_again(start):
            result = closure()
        verdict = guard.verdict(optimizer)

    def spoiled_by_a_hook() -> bool:
        if may_edit_gradients(model):
            guard.checked.note_unless_known(optimizer)
        after_closure()
        is_spoiled = guard.look_again(optimizer, model, where)
        guard.checked.forget(optimizer)
        return is_spoiled

    if verdict.overflowed or spoiled_by_a_hook():
        if start is not None:
            start.restore_buffers()
        guard.skip(optimizer, model, where, scale_is_to_blame=scale_is_to_blame)
        return result

    def again() -> Any:
        # LBFGS and SAM call the closure again, with the weights already moved: too late to skip the step, so gradients
        # that overflow now count as zero.
        result = closure()
        if guard.verdict(optimizer).overflowed or spoiled_by_a_hook():
            guard.zero_(optimizer, model, where)
        return result

    step = partial(guard.step, optimizer, verdict, where=where, retried=retries > 0)
    return step(known_at_first(result, again), **kwargs)


def _retries(guard: StepGuard, model: "pl.LightningModule") -> int:
    return guard.scaler.config.retries if guard.scaler is not None and can_run_again(model) else 0
