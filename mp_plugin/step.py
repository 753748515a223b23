"""One optimizer step: run the closure, look at the gradients, and step, run again or skip."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from mp_plugin.explain import Explainer, repeated
from mp_plugin.layer_fallback import LayerFallback
from mp_plugin.retry import known_at_first, may_run_again, run_again, run_earlier_batches
from mp_plugin.scaling.guard import NOT_EXPLAINED, Explanation, StepGuard
from mp_plugin.scaling.step_plan import SEPARATE, StepPlan
from mp_plugin.scaling.unseen_step import settle, step_unseen
from mp_plugin.scaling.verdict import has_other_ranks
from mp_plugin.scaling.where import Where
from mp_plugin.step_planner import StepPlanner
from mp_plugin.step_start import StepStart
from mp_plugin.telemetry.events import Action, Cause, Incident

SPOILED_BY_A_HOOK: Explanation = {
    "cause": Cause.backward,
    "reason": "finite after the backward pass, and no longer after on_before_optimizer_step or gradient clipping",
}


def take_step(
    guard: StepGuard,
    explainer: Explainer,
    fallback: LayerFallback,
    start: StepStart | None,
    planner: StepPlanner | None,
    optimizer: Optimizer,
    model: "pl.LightningModule",
    closure: Callable[[], Any],
    after_closure: Callable[[StepPlan], None],
    **kwargs: Any,
) -> Any:
    """Step an optimizer if its gradients are finite, if need be those of another run of the batch; else skip the step.

    Args:
        guard: decides, counts and steps.
        explainer: finds out why gradients are not finite.
        fallback: finds layers that cure the step in FP32.
        start: where the step began, to go back to; None outside a fit.
        planner: tells, once there are gradients, how the step is made; None outside a fit.
        optimizer: what steps.
        model: whose step it is.
        closure: the forward and backward pass; in manual optimization it does nothing.
        after_closure: what follows a backward pass with finite gradients: samples, and on the separate route hooks
            and clipping.
        kwargs: for the optimizer's own `step`.

    Returns:
        What the optimizer returned; for a skipped step what the closure returned.

    Raises:
        TrainingDivergedError: when it is hopeless to go on.
    """
    trainer = model.trainer
    places = {id(known): place for place, known in enumerate(trainer.optimizers)}
    where = Where(trainer.fit_loop.batch_idx, trainer.global_rank, places.get(id(optimizer), len(places)))
    forward_passes = start.forward_passes if start is not None else 0
    result = closure()
    # A user's own optimizer_step may have called the closure already, and hands over an empty one.
    is_whole = start is not None and start.forward_passes > forward_passes
    was_unscaled = guard.scaler is not None and guard.scaler.is_unscaled(optimizer)
    settle(guard, model)
    plan = SEPARATE if planner is None else planner.plan(optimizer)
    if not plan.is_exact and start is not None and result is not None:
        after_closure(plan)
        undo = start.buffers.restore_where
        return step_unseen(
            guard, optimizer, plan, known_at_first(result, closure), where=where, on_overflow=undo, **kwargs
        )
    verdict = guard.verdict(optimizer, plan)
    explanation, scale_is_to_blame, is_retried = NOT_EXPLAINED, False, False

    def run_once_more(incident: Incident) -> None:
        nonlocal result, plan, verdict, is_retried
        is_retried = True
        try:
            with run_again(start, counts_anew=incident.action is Action.fallback):
                guard.forget_losses()
                run_earlier_batches(start, optimizer)
                result = closure()
        except BaseException:
            # What ends the run now must not take the incident with it; other ranks would have to be asked.
            if not has_other_ranks():
                guard.conclude(incident, cured=False)
            raise
        plan = SEPARATE if planner is None else planner.plan(optimizer)  # at another loss scale
        verdict = guard.verdict(optimizer, plan)
        guard.conclude(incident, cured=not verdict.overflowed)

    if verdict.overflowed:
        explanation = explainer.explain(optimizer, model, start)
        if is_whole and fallback.may_act and may_run_again(start, in_windows=True):
            cure = fallback.find_cure(start, explanation, guard, explainer.all_ranks)
            if cure is not None:
                run_once_more(guard.fall_back(optimizer, model, where, cure))
                if verdict.overflowed:
                    explanation = explainer.explain(optimizer, model, start)
        scale_is_to_blame = guard.is_scale_to_blame(explanation)
    backed_off = 0
    while (
        scale_is_to_blame
        and verdict.overflowed
        and guard.can_back_off
        and is_whole
        and backed_off < guard.retries
        and may_run_again(start)
    ):
        backed_off += 1
        run_once_more(guard.back_off(optimizer, model, where, explanation))
        explanation = repeated(explanation)

    def spoiled_by_a_hook() -> bool:
        after_closure(plan)
        guard.unscale_and_clip_(verdict)
        # A user who clips by hand may edit what was unscaled for it, in the training step itself.
        return (guard.looks_twice or was_unscaled) and guard.look_again(optimizer)

    if verdict.overflowed or spoiled_by_a_hook():
        if start is not None:
            start.restore_buffers()
        if not verdict.overflowed:
            explanation = SPOILED_BY_A_HOOK
        guard.skip(optimizer, model, where, explanation, scale_is_to_blame=verdict.overflowed and scale_is_to_blame)
        return result
    if result is None and model.automatic_optimization and start is not None:
        # A user who returns no loss for a batch that overflowed: its forward pass has written to the buffers.
        start.buffers.restore_non_finite()

    def again() -> Any:
        # LBFGS and SAM call the closure again, with the weights already moved: too late to skip the step, so gradients
        # that overflow now count as zero.
        nonlocal verdict
        result = closure()
        verdict = guard.verdict(optimizer, plan)
        if verdict.overflowed:
            why = explainer.explain(optimizer, model, start)
            guard.zero_(optimizer, model, where, why)
        elif spoiled_by_a_hook():
            guard.zero_(optimizer, model, where, SPOILED_BY_A_HOOK)
        return result

    step = partial(guard.step, optimizer, verdict, where=where, retried=is_retried)
    return step(known_at_first(result, again), **kwargs)
