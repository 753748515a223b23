"""A step that the device takes or skips by itself, while the host goes on."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from mp_plugin.scaling.blame import blame_marks
from mp_plugin.scaling.guard import StepGuard
from mp_plugin.scaling.hopeless import stop_if_hopeless
from mp_plugin.scaling.late_verdict import LateVerdict, explain_late
from mp_plugin.scaling.step_plan import StepPlan
from mp_plugin.scaling.unattended import UnattendedGradients
from mp_plugin.scaling.verdict import NOTHING, home_device
from mp_plugin.scaling.where import Where
from mp_plugin.telemetry.record import RunRecord


def step_unseen(
    guard: StepGuard,
    optimizer: Optimizer,
    plan: StepPlan,
    closure: Callable[[], Any],
    *,
    where: Where,
    on_overflow: Callable[[Tensor], None],
    **kwargs: Any,
) -> Any:
    """Step an optimizer on the device's own verdict; `settle` tells how it ended. All ranks together; no sync.

    Args:
        guard: keeps the verdict until then.
        optimizer: a fused one, on the folded route.
        plan: how its step is made.
        closure: gives it what it returns.
        where: it is.
        on_overflow: takes a 0-d tensor, above 0 if the step is skipped, and makes the device undo what it must.
        kwargs: for the optimizer's own `step`.
    """
    unattended = UnattendedGradients(optimizer, plan, guard.scaler)
    answers = unattended.ask(guard.losses)
    found_inf = answers[1].to(home_device(optimizer))
    on_overflow(found_inf)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    guard.outstanding = LateVerdict(answers, parameters, unattended.totals, guard.loss_scale, where)
    with unattended.folding(None, found_inf):
        return optimizer.step(closure=closure, **kwargs)


def settle(guard: StepGuard, model: Module) -> None:
    """Learn how the newest step ended, if that is not known yet; all ranks together. Waits for it to have ended.

    The loss scale follows with the next update: gradients made under the present one may be in use.

    Args:
        guard: counts it.
        model: knows the names of the parameters.

    Raises:
        TrainingDivergedError: when it is hopeless to go on.
    """
    late, guard.outstanding = guard.outstanding, None
    if late is None:
        return
    verdict = late.read()
    to_blame = verdict.loss_is_finite and guard.scaler is not None
    if guard.scaler is not None:
        guard.scaler.learn_late(NOTHING if verdict.overflowed and not to_blame else verdict, scale=late.loss_scale)
    if verdict.overflowed:
        blame = blame_marks(late.parameters, late.totals.marks, model, rank=late.where.rank)
        explanation = explain_late(verdict, late)
        incident = guard.count_skip(blame, late.where, explanation, scale_is_to_blame=to_blame)
        stop_if_hopeless(incident, guard.scaler, patience=guard.patience, scale_is_to_blame=to_blame)
        return
    guard.record.skips_by_optimizer.pop(late.where.optimizer_idx, None)
    if verdict.has_gradients:
        guard.record.took_step(late.loss_scale)
    guard.clean_steps.another(late.loss_scale)


def foresee(guard: StepGuard) -> tuple[RunRecord, dict[str, Any]]:
    """Return the counters and the scaler's state as `settle` will leave them, without a word to other ranks.

    For a checkpoint, which one rank may write alone. Waits for the newest step to have ended.
    """
    late, record, scaler = guard.outstanding, guard.record, guard.scaler
    if late is None:
        return record, {} if scaler is None else scaler.state_dict()
    verdict = late.read()
    record = deepcopy(record)
    if verdict.overflowed:
        record.skipped_step(late.loss_scale)
    elif verdict.has_gradients:
        record.took_step(late.loss_scale)
    if scaler is None:
        return record, {}
    known = NOTHING if verdict.overflowed and not verdict.loss_is_finite else verdict
    return record, scaler.state_dict(late=known, late_scale=late.loss_scale)
