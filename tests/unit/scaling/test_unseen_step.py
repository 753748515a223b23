import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from mp_plugin.config import LossScaling
from mp_plugin.errors import TrainingDivergedError
from mp_plugin.scaling.guard import StepGuard
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.step_plan import Route, StepPlan
from mp_plugin.scaling.unseen_step import foresee, settle, step_unseen
from mp_plugin.scaling.where import Where
from mp_plugin.telemetry.events import Action, Cause

SCALE = 8.0


class Training:
    """One weight, whose gradients are set by hand."""

    def __init__(self, *, max_norm: float | None = None, is_scaled: bool = True, **options: Any) -> None:
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.optimizer = SGD(self.layer.parameters(), lr=1.0, fused=True)
        scaler = LossScaler(LossScaling(**{"init_scale": SCALE, **options})) if is_scaled else None
        self.guard = StepGuard(scaler, dtype="fp16")
        self.plan = StepPlan(route=Route.folded, max_norm=max_norm, is_exact=False)
        self.told: list[float] = []
        self.batch_idx = 0

    def step(self, gradient: float | None, *, loss: float = 1.0) -> Any:
        scale = self.guard.loss_scale
        self.layer.weight.grad = None if gradient is None else torch.full((1, 1), gradient * scale)
        self.guard.saw_loss(torch.tensor(loss))
        settle(self.guard, self.layer)

        def note(found_inf: Tensor) -> None:
            self.told.append(found_inf.item())

        where = Where(batch_idx=self.batch_idx, rank=0)
        output = step_unseen(self.guard, self.optimizer, self.plan, lambda: "result", where=where, on_overflow=note)
        self.guard.forget_losses()
        if self.guard.scaler is not None:
            self.guard.scaler.update()
        self.batch_idx += 1
        return output

    def settle(self) -> None:
        settle(self.guard, self.layer)

    @property
    def weight(self) -> float:
        return self.layer.weight.item()

    @property
    def counted(self) -> tuple[int, int]:
        return self.guard.record.effective_step, self.guard.record.skipped_steps


def test_a_step_is_taken_at_once_and_counted_later() -> None:
    training = Training()
    assert training.step(0.5) == "result"
    assert training.weight == -0.5
    assert training.counted == (0, 0)
    assert training.guard.step_index == 1
    training.settle()
    assert training.counted == (1, 0)
    assert training.guard.step_index == 1
    assert training.guard.outstanding is None
    training.settle()
    assert training.counted == (1, 0), "once is enough"


def test_it_is_clipped() -> None:
    training = Training(max_norm=0.25)
    training.step(3.0)
    assert training.weight == pytest.approx(-0.25, rel=1e-5)


def test_the_device_skips_and_the_host_learns_of_it_with_the_next_step() -> None:
    training = Training(growth_interval=2)
    for gradient in (0.5, math.inf, 0.25):
        training.step(gradient)
    assert training.weight == -0.75
    assert training.told == [0.0, 1.0, 0.0]
    assert training.counted == (1, 1)
    training.settle()
    assert training.counted == (2, 1)
    (incident,) = training.guard.record.incidents
    assert (incident.step, incident.batch_idx, incident.parameters) == (1, 1, ("weight",))
    assert (incident.cause, incident.action, incident.loss_scale) == (Cause.backward, Action.backoff, SCALE)


def test_the_scale_follows_with_the_update_of_the_next_step() -> None:
    training, scales = Training(growth_interval=2), []
    for gradient in (0.5, 0.5, 0.5, math.inf, 0.5, 0.5):
        training.step(gradient)
        scales.append(training.guard.loss_scale)
    # GradScaler doubles after the second step and halves after the fourth; here each comes one step later.
    assert scales == [SCALE, SCALE, 2 * SCALE, 2 * SCALE, SCALE, SCALE]


def test_what_the_scale_is_not_to_blame_for_leaves_it_alone() -> None:
    training = Training()
    training.step(math.nan, loss=math.inf)
    training.step(0.5)
    assert training.guard.loss_scale == SCALE
    assert training.guard.record.skips_by_optimizer[0] == 1
    training.settle()
    assert training.guard.record.skips_by_optimizer[0] == 0
    assert training.guard.record.incidents[0].action is Action.skip


def test_it_is_hopeless_after_so_many_in_a_row() -> None:
    training = Training(init_scale=1.0, patience=2)
    training.step(math.inf)
    training.step(math.inf)
    with pytest.raises(TrainingDivergedError, match="step 1 .* 2 such steps in a row, at a loss scale of 1 "):
        training.settle()
    assert training.guard.outstanding is None
    assert training.weight == 0.0


def test_a_clean_step_begins_the_row_anew() -> None:
    training = Training(is_scaled=False)
    for _ in range(2):
        for _ in range(9):
            training.step(math.inf)
        training.step(0.5)
    training.settle()
    assert training.counted == (2, 18)


def test_a_step_without_gradients_is_no_step() -> None:
    training = Training()
    training.step(None)
    training.settle()
    assert training.counted == (0, 0)
    assert training.guard.loss_scale == SCALE


def test_clean_steps_are_counted_until_an_incident() -> None:
    training = Training()
    for _ in range(17):
        training.step(0.5)
    assert training.guard.clean_steps.are_steady(SCALE)
    training.step(math.inf)
    assert training.guard.clean_steps.are_steady(SCALE), "nobody knows yet"
    training.settle()
    assert not training.guard.clean_steps.are_steady(SCALE)


def test_nothing_outstanding_is_nothing_to_settle() -> None:
    training = Training()
    training.settle()
    assert training.counted == (0, 0)


@pytest.mark.parametrize("is_scaled", [True, False])
@pytest.mark.parametrize("loss", [1.0, math.nan])
@pytest.mark.parametrize("gradient", [None, 0.5, math.inf])
def test_what_is_foreseen_comes_true(gradient: float | None, loss: float, is_scaled: bool) -> None:
    """And to foresee it changes nothing."""
    training = Training(is_scaled=is_scaled, growth_interval=2)
    training.step(0.5)
    training.step(gradient, loss=loss)
    before = (training.counted, training.guard.loss_scale, training.guard.outstanding)
    (record, state), again = foresee(training.guard), foresee(training.guard)
    assert (record.effective_step, record.skipped_steps) == (again[0].effective_step, again[0].skipped_steps)
    assert (training.counted, training.guard.loss_scale, training.guard.outstanding) == before
    training.settle()
    assert (record.effective_step, record.skipped_steps) == training.counted
    scaler = training.guard.scaler
    assert state == ({} if scaler is None else scaler.state_dict())
    assert foresee(training.guard) == (training.guard.record, state)
    if scaler is not None:
        backs_off = gradient == math.inf and math.isfinite(loss)
        assert state["scale"] == (SCALE / 2 if backs_off else SCALE if gradient != 0.5 else 2 * SCALE)
