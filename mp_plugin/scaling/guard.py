"""Nothing steps with a gradient that is not finite: check, skip, count, and give up when it is hopeless."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from mp_plugin.config import AtMinScale
from mp_plugin.numerics.grad_totals import grad_totals
from mp_plugin.scaling.blame import Blame, blame_gradients
from mp_plugin.scaling.clean_steps import CleanSteps
from mp_plugin.scaling.hopeless import stop_if_hopeless
from mp_plugin.scaling.late_verdict import LateVerdict
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.skip_action import choose_action
from mp_plugin.scaling.skip_words import consequence
from mp_plugin.scaling.step_plan import SEPARATE, StepPlan
from mp_plugin.scaling.unattended import UnattendedGradients
from mp_plugin.scaling.verdict import Verdict, agree, gradients, home_device
from mp_plugin.scaling.where import Where
from mp_plugin.telemetry.cause import is_beyond_any_scale
from mp_plugin.telemetry.events import Action, Cause, Incident
from mp_plugin.telemetry.record import RunRecord

log = logging.getLogger(__name__)

UNSCALED_PATIENCE = 10
"""Skipped steps in a row before a run without loss scaling is given up: the default `LossScaling.patience`."""


Explanation = dict[str, Any]
"""Fields of an `Incident` that tell why it happened, from its cause to its evidence."""
NOT_EXPLAINED: Explanation = {}


class StepGuard:
    """Decide for each optimizer step whether it may happen, and keep the record of those that did not.

    Args:
        scaler: the loss scaler of a 16-mixed run; None where gradients come unscaled.
        dtype: number format of the forward pass, for the record.
    """

    def __init__(self, scaler: LossScaler | None, *, dtype: str) -> None:
        self.scaler = scaler
        self.dtype = dtype
        self.record = RunRecord()
        self._unattended: UnattendedGradients | None = None
        self.looks_twice = False
        """Whether somebody on some rank may edit gradients between the verdict and the step."""
        self.outstanding: LateVerdict | None = None
        """Of the newest step, if nobody knows yet whether it was taken."""
        self.clean_steps = CleanSteps()
        self.losses: list[Tensor] = []
        """Of the gradients that nobody has stepped with yet, before scaling."""
        self.report: Callable[[Incident], None] = _ignore
        """Tells the world of an incident, once it is known how it ended."""

    @property
    def loss_scale(self) -> float:
        """What the next loss is multiplied by; 1.0 without loss scaling. No sync."""
        return self.scaler.get_scale() if self.scaler is not None else 1.0

    @property
    def step_index(self) -> int:
        """How many optimizer steps were tried before the next one."""
        return self.record.steps + (self.outstanding is not None)

    def start_afresh(self) -> None:
        """Forget everything that happened."""
        self.record = RunRecord()
        self.outstanding, self.clean_steps = None, CleanSteps()
        if self.scaler is not None:
            self.scaler.restart()

    def verdict(self, optimizer: Optimizer, plan: StepPlan = SEPARATE) -> Verdict:
        """Tell whether the gradients are finite; unscale them, unless somebody has since the last step or need not.

        One pass over the gradients, one host sync (none on the CPU); all ranks together.
        """
        if plan.is_unattended:
            self._unattended = UnattendedGradients(optimizer, plan, self.scaler)
            verdict = self._unattended.agree()
            if self.scaler is not None:
                self.scaler.take(optimizer, verdict)
            return verdict
        self._unattended = None
        if self.scaler is not None:
            return self.scaler.verdict(optimizer)
        return agree(_found_inf(optimizer), has_gradients=bool(gradients(optimizer)))

    def look_again(self, optimizer: Optimizer) -> bool:
        """Whether gradients that were found to be finite are so no longer.

        One read, one host sync; all ranks together.
        """
        return agree(_found_inf(optimizer), has_gradients=True).overflowed

    def unscale_and_clip_(self, verdict: Verdict) -> None:
        """Unscale and clip gradients that are finite in one pass, where the plan of their verdict says so."""
        if self._unattended is not None:
            self._unattended.unscale_and_clip_(verdict)

    def step(
        self,
        optimizer: Optimizer,
        verdict: Verdict,
        closure: Callable[[], Any],
        *,
        where: Where,
        retried: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Step an optimizer whose gradients are finite, and count the step."""
        scale = self.loss_scale
        step = optimizer.step if self.scaler is None else partial(self.scaler.step, optimizer)
        if _takes_closure(type(optimizer).step):
            kwargs["closure"] = closure
        with nullcontext() if self._unattended is None else self._unattended.folding(verdict):
            output = step(**kwargs)
        self.record.skips_by_optimizer.pop(where.optimizer_idx, None)
        if verdict.has_gradients:
            self.record.took_step(scale, retried=retried)
        self.clean_steps.another(self.loss_scale)
        return output

    @property
    def can_back_off(self) -> bool:
        """Whether an overflow would lower the loss scale."""
        return self.scaler is not None and self.scaler.state_if_overflowed().scale < self.scaler.get_scale()

    @property
    def retries(self) -> int:
        """Times a batch may be run again, each time at a lower loss scale."""
        return self.scaler.config.retries if self.scaler is not None else 0

    @property
    def falls_back_at_floor(self) -> bool:
        """Whether this overflow is the one at the lowest loss scale that `at_min_scale=fallback` waits for."""
        if self.scaler is None or self.scaler.config.at_min_scale is not AtMinScale.fallback:
            return False
        return self.scaler.state_if_overflowed().overflows_at_floor >= self.patience

    def saw_loss(self, loss: Tensor) -> None:
        """Remember a loss, before it is scaled, until its gradients are used. No sync."""
        self.losses.append(loss.detach())

    def forget_losses(self) -> None:
        """Note that all gradients were used."""
        self.losses.clear()

    def is_scale_to_blame(self, explanation: Explanation) -> bool:
        """Whether a lower loss scale could cure what was explained so."""
        is_curable = explanation.get("cause") in (Cause.loss, Cause.backward, Cause.unknown)
        return self.scaler is not None and is_curable and not is_beyond_any_scale(explanation.get("reason"))

    def back_off(self, optimizer: Optimizer, model: Module, where: Where, explanation: Explanation) -> Incident:
        """Record the overflow and lower the scale at once, so that the batch can be run again."""
        assert self.scaler is not None, "only a loss scale can be lowered"
        incident = self.note(
            blame_gradients(optimizer, model, rank=where.rank), where, explanation, action=Action.retry
        )
        self.scaler.step(optimizer)  # which skips it, and is ready for the gradients of the next run
        self.scaler.update(run_again=True)
        return incident

    def fall_back(self, optimizer: Optimizer, model: Module, where: Where, explanation: Explanation) -> Incident:
        """Record the overflow, whose culprits run in FP32 now, so that the batch can be run again at the same scale."""
        incident = self.note(
            blame_gradients(optimizer, model, rank=where.rank), where, explanation, action=Action.fallback
        )
        if self.scaler is not None:
            self.scaler.discard(optimizer)
        return incident

    def conclude(self, incident: Incident, *, cured: bool) -> None:
        """Note how the run of the same batch ended that followed an incident."""
        incident = replace(incident, cured=cured)
        self.record.incidents[-1] = incident
        self.report(incident)

    def skip(
        self,
        optimizer: Optimizer,
        model: Module,
        where: Where,
        explanation: Explanation,
        *,
        scale_is_to_blame: bool,
    ) -> None:
        """Leave the weights alone, count the skipped step, and say which parameters are to blame.

        The loss scale moves only when it is to blame: a batch that holds a NaN says nothing about it.

        Raises:
            TrainingDivergedError: when the weights are not finite already, or too many steps in a row were skipped.
        """
        blame = blame_gradients(optimizer, model, rank=where.rank)
        incident = self.count_skip(blame, where, explanation, scale_is_to_blame=scale_is_to_blame)
        if self.scaler is not None and scale_is_to_blame:
            self.scaler.step(optimizer)  # which skips it, and is ready for this optimizer's next gradients
        elif self.scaler is not None:
            self.scaler.discard(optimizer)
        stop_if_hopeless(incident, self.scaler, patience=self.patience, scale_is_to_blame=scale_is_to_blame)

    def count_skip(self, blame: Blame, where: Where, explanation: Explanation, *, scale_is_to_blame: bool) -> Incident:
        """Count a step that was not taken, and tell of it; all ranks together."""
        if not scale_is_to_blame:
            self.record.skips_by_optimizer[where.optimizer_idx] += 1
        stays = "" if scale_is_to_blame or self.scaler is None else "not the scale's fault, which stays; "
        action = self._action(where, scale_is_to_blame, explanation)
        incident = self.note(blame, where, explanation, action=action, remark=stays)
        self.report(incident)
        self.record.skipped_step(incident.loss_scale)
        return incident

    def zero_(self, optimizer: Optimizer, model: Module, where: Where, explanation: Explanation) -> None:
        """Count overflowed gradients as zero, where the weights have moved already and a skip comes too late."""
        self.report(
            self.note(blame_gradients(optimizer, model, rank=where.rank), where, explanation, action=Action.zeroed)
        )
        torch._foreach_zero_(gradients(optimizer))

    def note(
        self,
        blame: Blame,
        where: Where,
        explanation: Explanation,
        *,
        action: Action,
        remark: str = "",
    ) -> Incident:
        """Record gradients that are not finite; the first incidents, then ever fewer, also go to the log.

        Args:
            blame: whose they are.
            where: they are.
            explanation: of them.
            action: what follows.
            remark: for the log.
        """
        self.clean_steps.broken()
        found = {
            "step": self.record.steps,
            "batch_idx": where.batch_idx,
            "kind": blame.kind,
            "parameters": blame.parameters,
            "rank": blame.rank,
            "loss_scale": self.loss_scale,
            "dtype": self.dtype,
            "action": action,
        }
        incident = Incident(**{**found, **explanation})
        self.record.add(incident)
        self.record.saw(incident.loss_scale)
        is_power_of_two = self.record.total_incidents.bit_count() == 1
        if where.rank == 0 and is_power_of_two:
            log.warning("%s; %s%s.", incident, remark, consequence(incident, self.scaler))
        return incident

    @property
    def patience(self) -> int:
        """Skipped steps in a row before a run is given up."""
        return UNSCALED_PATIENCE if self.scaler is None else self.scaler.config.patience

    def _action(self, where: Where, scale_is_to_blame: bool, explanation: Explanation) -> Action:
        in_a_row, goes_on = self.record.skips_by_optimizer[where.optimizer_idx], False
        if self.scaler is not None:
            goes_on = self.scaler.config.at_min_scale is AtMinScale.skip
            if scale_is_to_blame:
                in_a_row = self.scaler.state_if_overflowed().overflows_at_floor
        return choose_action(
            weights_are_lost=explanation.get("cause") is Cause.weights,
            backs_off=scale_is_to_blame and self.can_back_off,
            is_hopeless=in_a_row >= self.patience and not goes_on,
        )


def _ignore(_: Incident) -> None:
    pass


def _found_inf(optimizer: Optimizer) -> Tensor:
    return grad_totals(gradients(optimizer)).found_inf.to(home_device(optimizer))


@lru_cache
def _takes_closure(step: Callable[..., Any]) -> bool:
    """Whether an optimizer class's `step` can be given a closure; a few outside torch cannot."""
    parameters = signature(step).parameters.values()
    return any(parameter.name == "closure" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
