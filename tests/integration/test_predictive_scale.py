"""Real trainings under a predictive scale: it finds its level, resumes bitwise, and is the same on all ranks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.scaling.scaler import LossScaler
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    infinite_at,
    no_fault,
    overflowing_at,
    quiet_trainer,
    regression_data,
    weights,
)


def fp16(**fields: Any) -> AdaptivePrecision:
    return AdaptivePrecision("fp16", scaling=LossScaling(policy="predictive", **fields))  # type: ignore[arg-type]


def train(plugin: AdaptivePrecision, *, epochs: int = 10, fault: Any = no_fault, ckpt: Path | None = None) -> Any:
    trainer = quiet_trainer(plugins=[plugin], max_epochs=epochs)
    module = Regression(optimizer=torch.optim.AdamW, lr=0.01, fault=fault)
    trainer.fit(module, regression_data(), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def best_feasible_scale(module: Any) -> float:
    """The highest power of two at which no batch overflows, by trying."""
    scale = 2.0**40
    for inputs, targets in regression_data():
        with torch.autocast("cpu", dtype=torch.float16):
            loss = torch.nn.functional.mse_loss(module.net(inputs).float(), targets)
        while not all(
            grad.isfinite().all() for grad in torch.autograd.grad(loss * scale, module.parameters(), retain_graph=True)
        ):
            scale /= 2
    return scale


def test_far_too_low_it_finds_its_level_without_an_overflow() -> None:
    plugin = fp16(init_scale=1.0)
    trainer = train(plugin)
    assert plugin.incidents == []
    assert plugin.effective_step == 80
    assert 2**-6 <= plugin.loss_scale / best_feasible_scale(trainer.lightning_module) <= 1


def test_far_too_high_it_finds_its_level_and_loses_no_batch() -> None:
    plugin = fp16(init_scale=2.0**24)
    trainer = train(plugin)
    assert (plugin.skipped_steps, plugin.retried_steps, plugin.effective_step) == (0, 1, 80)
    assert 2**-6 <= plugin.loss_scale / best_feasible_scale(trainer.lightning_module) <= 1


def test_a_first_batch_that_is_bad_does_not_hold_the_scale_down() -> None:
    """It overflows at every scale, and the others at none of these."""
    plugin = fp16()
    trainer = train(plugin, epochs=1, fault=overflowing_at(0))
    assert (plugin.skipped_steps, plugin.retried_steps, plugin.effective_step) == (1, 0, 7)
    assert 2**-6 <= plugin.loss_scale / best_feasible_scale(trainer.lightning_module) <= 1


def test_a_run_saved_between_a_blind_back_off_and_the_first_step_resumes(tmp_path: Path) -> None:
    """The one batch before the checkpoint was lost: the resumed run still goes straight to its level."""
    saving, resumed = fp16(), fp16()
    trainer = quiet_trainer(plugins=[saving], limit_train_batches=1)
    trainer.fit(Regression(optimizer=torch.optim.AdamW, lr=0.01, fault=overflowing_at(0)), regression_data())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert (saving.effective_step, saving.loss_scale) == (0, 1.0)
    train(resumed, epochs=2, ckpt=tmp_path / "run.ckpt")
    assert resumed.effective_step > 0
    assert resumed.loss_scale >= 2.0**9


def test_what_it_observes_are_true_gradients() -> None:
    """Against the gradients of the same step in fp32."""
    plugin = fp16(init_scale=2.0**10)
    trainer = quiet_trainer(plugins=[plugin], limit_train_batches=1)
    trainer.fit(Regression(lr=0.0), regression_data())
    exact = Regression()
    inputs, targets = next(iter(regression_data()))
    torch.nn.functional.mse_loss(exact.net(inputs), targets).backward()
    amax = max(parameter.grad.abs().max().item() for parameter in exact.parameters() if parameter.grad is not None)
    assert plugin.scaler is not None
    assert plugin.scaler.state.model.mean == pytest.approx(math.log2(amax), abs=0.02)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")  # on purpose
@pytest.mark.parametrize("fault", [infinite_at(3), lambda loss, batch: loss * float("nan") if batch == 3 else loss])
def test_a_bad_batch_teaches_nothing(fault: Any) -> None:
    """Batch 3 of 8 is skipped in both runs: once for its loss, once by a step without one."""
    bad, none = fp16(), fp16()
    train(bad, epochs=2, fault=fault)
    train(none, epochs=2, fault=lambda loss, batch: None if batch == 3 else loss)
    assert bad.scaler is not None
    assert none.scaler is not None
    assert bad.skipped_steps == 2
    assert bad.scaler.state == none.scaler.state


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, epochs: int) -> None:
    """Saved in mid-rise and later; batch 5 overflows at every scale, and the first one at the first scale."""
    settings, fault = {"init_scale": 2.0**24}, overflowing_at(5)
    whole, first, second = (fp16(**settings) for _ in range(3))
    uninterrupted = train(whole, epochs=4, fault=fault)
    train(first, epochs=epochs, fault=fault).save_checkpoint(tmp_path / "run.ckpt")
    resumed = train(second, epochs=4, fault=fault, ckpt=tmp_path / "run.ckpt")
    assert_bitwise_equal(weights(resumed.lightning_module), weights(uninterrupted.lightning_module))
    assert whole.scaler is not None
    assert second.scaler is not None
    assert second.scaler.state == whole.scaler.state
    assert second.scaler.state.model.gap > 0
    assert second.summary() == whole.summary()


class _NarrowBackward(torch.autograd.Function):
    """The identity; a gradient above 2**6 overflows here, whatever becomes of it further down."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if gradient > 2.0**6 else gradient


def test_what_the_gradients_of_parameters_do_not_show_is_learned_from_one_retry() -> None:
    """The gradient of the scaled loss is the scale: above 2**6 it overflows, however small those of parameters are."""
    plugin = fp16(init_scale=1.0)
    train(plugin, epochs=40, fault=lambda loss, _: _NarrowBackward.apply(loss))  # type: ignore[no-untyped-call]
    assert (plugin.skipped_steps, plugin.retried_steps) == (0, 1)
    assert plugin.scaler is not None
    assert plugin.scaler.state.model.gap > 2
    assert plugin.loss_scale <= 2.0**6


def test_under_another_policy_the_forecast_is_dropped() -> None:
    """It would be out of date when a predictive run goes on."""
    predictive, dynamic = fp16().scaler, AdaptivePrecision("fp16").scaler
    assert predictive is not None
    assert dynamic is not None
    _steps(predictive, [1.0] * 3)
    dynamic.load_state_dict(predictive.state_dict())
    assert dynamic.get_scale() == predictive.get_scale()
    assert (predictive.state.model.observed, dynamic.state.model.observed) == (3, 0)


def test_a_run_may_change_its_policy(tmp_path: Path) -> None:
    """The scale goes along; a count of clean steps towards a dynamic growth is no evidence of room."""
    dynamic = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2.0**6))
    train(dynamic, epochs=3).save_checkpoint(tmp_path / "run.ckpt")
    plugin = fp16()
    trainer = quiet_trainer(plugins=[plugin], max_epochs=4)
    module = Regression(optimizer=torch.optim.AdamW, lr=0.01)
    trainer.fit(module, regression_data(), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert plugin.loss_scale == 2.0**6
    assert plugin.scaler is not None
    assert (plugin.scaler.state.model.observed, plugin.scaler.state.growth_tracker) == (8, 8)


@pytest.mark.xdist_group("ranks")
def test_ranks_with_gradients_of_different_size_have_one_scale(tmp_path: Path) -> None:
    run_on_ranks(_scale_on_rank, tmp_path)
    states = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    alone = LossScaler(LossScaling(policy="predictive"))  # type: ignore[arg-type]
    # The larger gradient of both, and none where no rank has one.
    _steps(alone, [_size(0, step) if step % 2 else _size(1, step) for step in range(40)])
    assert states == [repr(alone.state)] * 2


def _size(rank: int, step: int) -> float:
    larger = step % 2 != rank
    return 2.0 ** (-3 + (step % 5) / 2 if larger else -9)


def _scale_on_rank(out: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    scaler = LossScaler(LossScaling(policy="predictive"))  # type: ignore[arg-type]
    _steps(scaler, [_size(rank, step) for step in range(40)])
    (out / f"rank{rank}.txt").write_text(repr(scaler.state))
    dist.destroy_process_group()


def _steps(scaler: LossScaler, sizes: list[float]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for size in sizes:
        parameter.grad = torch.tensor([0.5, -1.0]) * size * scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()


def test_with_several_optimizers_the_largest_gradient_counts() -> None:
    scaler = LossScaler(LossScaling(policy="predictive", init_scale=2.0))  # type: ignore[arg-type]
    optimizers = []
    for gradient in (1.0, -64.0, 4.0):
        parameter = torch.nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([gradient])
        optimizers.append(torch.optim.SGD([parameter], lr=0.1))
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert (scaler.state.model.observed, scaler.state.model.mean) == (1, 5.0)
