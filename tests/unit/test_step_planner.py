"""Most of what a plan depends on is seen in training: tests/integration/test_step_routes.py."""

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import SGD

from mp_plugin import AdaptivePrecision, Fallback, LossScaling
from mp_plugin.scaling.clean_steps import EXACT_STEPS
from mp_plugin.scaling.step_plan import SEPARATE, Route, StepPlan
from mp_plugin.step_planner import StepPlanner, waits_for_nothing

FOLDED, LATE = StepPlan(route=Route.folded), StepPlan(route=Route.folded, is_exact=False)


class Looks(Callback):
    def on_before_optimizer_step(self, *_: Any) -> None: ...


def parts(
    plugin: AdaptivePrecision | None = None, *callbacks: Callback, fused: bool = True, clip: float | None = None
) -> tuple[StepPlanner, SGD, Any]:
    """A planner, an optimizer with gradients, and the trainer that both belong to."""
    plugin = plugin or AdaptivePrecision("fp16", exact=True)
    module = pl.LightningModule()
    module.layer = nn.Linear(2, 1)
    for parameter in module.layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = SGD(module.layer.parameters(), fused=fused)
    trainer = SimpleNamespace(
        callbacks=[*callbacks], optimizers=[optimizer], gradient_clip_val=clip, gradient_clip_algorithm=None
    )
    module._trainer = trainer  # type: ignore[assignment]
    return StepPlanner(plugin, module), optimizer, trainer


def plan_of(*given: Any, **options: Any) -> StepPlan:
    planner, optimizer, _ = parts(*given, **options)
    planner.start()
    return planner.plan(optimizer)


def test_before_the_start_nobody_knows_who_looks() -> None:
    planner, optimizer, _ = parts()
    assert planner.plan(optimizer) == SEPARATE
    planner.start()
    assert planner.plan(optimizer) == FOLDED


def test_the_plugin_shows_the_newest_plan() -> None:
    plugin = AdaptivePrecision("fp16", exact=True)
    planner, optimizer, trainer = parts(plugin)
    planner.start()
    assert planner.plan(optimizer) is plugin.step_plan
    trainer.gradient_clip_val = 0.5
    assert planner.plan(optimizer) == plugin.step_plan == StepPlan(route=Route.folded, max_norm=0.5)
    assert plugin.scaler is not None
    plugin.scaler.unscale_(optimizer)
    assert planner.plan(optimizer) == plugin.step_plan == SEPARATE


@pytest.mark.parametrize("looks", [True, False])
def test_who_may_edit_makes_the_guard_look_twice(looks: bool) -> None:
    plugin = AdaptivePrecision("fp16", exact=False)
    plan = plan_of(plugin, *[Looks()] * looks)
    assert plugin.guard.looks_twice is looks
    assert plan == (SEPARATE if looks else LATE)


@pytest.mark.parametrize("clip", [None, 0, 0.0, 0.5])
def test_clipping_is_off_at_zero(clip: float | None) -> None:
    assert plan_of(clip=clip) == StepPlan(route=Route.folded, max_norm=clip or None)
    expected = StepPlan(route=Route.one_pass, max_norm=clip) if clip else SEPARATE
    assert plan_of(clip=clip, fused=False) == expected


def test_an_optimizer_that_came_later_is_not_trusted() -> None:
    planner, _, trainer = parts()
    planner.start()
    later = SGD(trainer.optimizers[0].param_groups[0]["params"], fused=True)
    assert planner.plan(later) == SEPARATE


@pytest.mark.parametrize(("scale", "expected"), [(0.5, SEPARATE), (1.0, FOLDED)])
def test_a_scale_below_one_is_divided_out_first(scale: float, expected: StepPlan) -> None:
    scaling = LossScaling(init_scale=scale, min_scale=2.0**-10)
    assert plan_of(AdaptivePrecision("fp16", scaling=scaling, exact=True)) == expected


def test_where_waiting_costs_time_only_calm_runs_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mp_plugin.step_planner.waits_for_nothing", lambda device: False)
    plugin = AdaptivePrecision("fp16")
    planner, optimizer, _ = parts(plugin)
    planner.start()
    for _ in range(EXACT_STEPS):
        assert planner.plan(optimizer) == FOLDED
        plugin.guard.clean_steps.another(plugin.loss_scale)
    assert planner.plan(optimizer) == LATE
    plugin.guard.clean_steps.broken()
    assert planner.plan(optimizer) == FOLDED


def test_a_cure_needs_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mp_plugin.step_planner.waits_for_nothing", lambda device: False)
    plugin = AdaptivePrecision("fp16", fallback=Fallback(auto=True))
    planner, optimizer, _ = parts(plugin)
    planner.start()
    for _ in range(2 * EXACT_STEPS):
        plugin.guard.clean_steps.another(plugin.loss_scale)
    assert plugin.layer_fallback.may_act
    assert planner.plan(optimizer) == FOLDED


@pytest.mark.parametrize(("device", "expected"), [("cpu", True), ("cuda", False), ("mps", True)])
def test_reading_a_number_costs_time_where_the_copy_could_wait(device: str, expected: bool) -> None:
    assert waits_for_nothing(torch.device(device)) is expected
