"""Gradients that nobody looks at between the backward pass and the step: read once, unscaled and clipped in passing."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.optim import Optimizer

from mp_plugin.config import Policy
from mp_plugin.numerics.grad_totals import GradTotals, grad_totals
from mp_plugin.numerics.one_pass import grad_scale, unscale_and_clip_
from mp_plugin.scaling.folding import folding
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.step_plan import Route, StepPlan
from mp_plugin.scaling.verdict import Verdict, agree, ask, gradients, home_device


class UnattendedGradients:
    """The gradients of one step on a route that is not separate.

    Args:
        optimizer: whose gradients; plain and dense ones.
        plan: how its step is made.
        scaler: of the loss; None without loss scaling.
        scale: on the device, where it is not the scaler's; fp32 and 0-d.
    """

    def __init__(
        self, optimizer: Optimizer, plan: StepPlan, scaler: LossScaler | None, *, scale: Tensor | None = None
    ) -> None:
        self._optimizer, self._plan = optimizer, plan
        self._scale: float | Tensor = 1.0 if scaler is None else scaler.get_scale()
        if scale is not None:
            self._scale = scale
        # Not the gradients themselves: they would live on beside those of the next backward pass.
        grads = gradients(optimizer)
        self._has_gradients = bool(grads)
        wants_amax = scaler is not None and scaler.config.policy is Policy.predictive
        self.totals: GradTotals = grad_totals(grads, norm=plan.max_norm is not None, amax=wants_amax)

    def agree(self) -> Verdict:
        """Return what all ranks know of them; one host sync, none on the CPU."""
        found_inf, amax, norm = self._found()
        return agree(found_inf, has_gradients=self._has_gradients, amax=amax, norm=norm)

    def ask(self, losses: Sequence[Tensor] = ()) -> Tensor:
        """Ask all ranks, also whether these losses are finite, without a sync."""
        found_inf, amax, norm = self._found()
        return ask(found_inf, has_gradients=self._has_gradients, amax=amax, norm=norm, losses=losses)

    def _found(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # A rank without gradients has its answer where the others have theirs.
        home = home_device(self._optimizer)
        amax, norm = self.totals.amax, self.totals.norm
        return (
            self.totals.found_inf.to(home),
            None if amax is None else (amax / self._scale).to(home),
            None if norm is None else norm.to(home),
        )

    def unscale_and_clip_(self, verdict: Verdict) -> None:
        """Do both in one pass, on the route of that name; in none if there is nothing to do. No sync."""
        max_norm, norm = self._plan.max_norm, self.totals.norm
        if self._plan.route is not Route.one_pass or max_norm is None or norm is None:
            return
        assert isinstance(self._scale, float), "a scale on the device is for the folded route"
        if self._changes_anything(verdict):
            unscale_and_clip_(gradients(self._optimizer), self._scale, norm, max_norm)

    def folding(self, verdict: Verdict | None, found_inf: Tensor | None = None) -> AbstractContextManager[None]:
        """Return the context of the optimizer's step, which does both by itself on the folded route.

        Args:
            verdict: what is known of them; None if nobody waited for it.
            found_inf: 0-d; lets the device skip the step if it is above 0.
        """
        if self._plan.route is not Route.folded:
            return nullcontext()
        divisor = None
        if self._has_gradients and self._changes_anything(verdict):
            norm = self.totals.norm if self.totals.norm is not None else self.totals.found_inf.reshape(())
            divisor = grad_scale(self._scale, norm, self._plan.max_norm)
        return folding(self._optimizer, grad_scale=divisor, found_inf=found_inf)

    def _changes_anything(self, verdict: Verdict | None) -> bool:
        """Whether gradients are scaled, or too large as far as is known: dividing by 1 costs a write."""
        if isinstance(self._scale, Tensor) or self._scale != 1.0:
            return True
        max_norm = self._plan.max_norm
        return max_norm is not None and (verdict is None or verdict.norm + 1e-6 >= max_norm)
