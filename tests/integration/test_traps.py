"""Traps of loss scaling that a survey of the project's peers lists, by their number there, where no other file has one.

What is not here: traps of number formats, of layers kept in FP32 and of compiled hooks, which this release has not.
"""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.telemetry.events import Action
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    overflowing_at,
    quiet_trainer,
    regression_data,
    weights,
)

SCALE = 2.0**10


def fit(plugin: Any, model: Any, *, batch_size: int = 4, **options: Any) -> Any:
    quiet_trainer(plugins=[plugin], **options).fit(model, regression_data(batch_size=batch_size))
    return model


def fp16(**options: Any) -> AdaptivePrecision:
    return AdaptivePrecision("fp16", scaling=LossScaling(**{"init_scale": SCALE, **options}))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("fused", [False, True])
def test_trap_2_gradients_are_checked_before_they_are_clipped(value: float, fused: bool) -> None:
    """Clipping by norm spreads one NaN, or one Inf's zeros, over all gradients: nobody could be named any more."""
    gradients = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    gradients[0].grad, gradients[1].grad = torch.tensor([1.0, value]), torch.ones(2)
    torch.nn.utils.clip_grad_norm_(gradients, 1.0)
    assert gradients[1].grad.tolist() != [1.0, 1.0]

    class Spoiled(Regression):
        def on_after_backward(self) -> None:
            if self.trainer.fit_loop.batch_idx == 3:
                self.net[0].bias.grad[0] = value  # type: ignore[union-attr, index, operator]

    for plugin in (fp16(), AdaptivePrecision("bf16")):
        fit(plugin, Spoiled(optimizer=torch.optim.AdamW, fused=fused), gradient_clip_val=0.1)
        assert plugin.skipped_steps == 1
        assert {incident.parameters for incident in plugin.incidents} == {("net.0.bias",)}


class SummedLoss(Regression):
    """A loss that is a sum, straight from an fp16 output: its gradient there is the loss scale itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).sum()


def test_trap_3_a_summed_loss_does_not_overflow_at_once() -> None:
    """The default of torch's GradScaler, 2**16, is beyond the 65504 of fp16, and it loses the first batch."""
    scaler = torch.amp.GradScaler("cpu")
    theirs = fit(MixedPrecision("16-mixed", "cpu", scaler), SummedLoss(lr=1e-3), batch_size=1, limit_train_batches=1)
    assert_bitwise_equal(weights(theirs), weights(Regression()))
    plugin = AdaptivePrecision("fp16")
    fit(plugin, SummedLoss(lr=1e-3), batch_size=1)
    assert (plugin.effective_step, plugin.incidents) == (8, [])


@pytest.mark.parametrize(
    "options",
    [{"policy": "static"}, {"hysteresis": 2}, {"init_scale": 1}],
    ids=["static", "hysteresis", "at the floor"],
)
@pytest.mark.parametrize("fused", [False, True])
def test_trap_6_a_skip_is_known_though_the_scale_did_not_move(options: dict[str, Any], fused: bool) -> None:
    """ "The scale went down" is no sign of a skip, and a fused optimizer's `step` is called whether it steps or not."""
    plugin = fp16(**options)
    scale = plugin.loss_scale
    model = Regression(optimizer=torch.optim.AdamW, fused=fused, fault=overflowing_at(7))
    fit(plugin, model)
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (7, 1, scale)
    # Nor is the batch run again at the scale that it overflowed at.
    assert [incident.action for incident in plugin.incidents] == [Action.skip]
    assert len(model.losses) == 8
    assert {state["step"].item() for state in model.trainer.optimizers[0].state.values()} == {7}
    before = fit(fp16(**options), Regression(optimizer=torch.optim.AdamW, fused=fused), limit_train_batches=7)
    assert_bitwise_equal(weights(model), weights(before))


class Order(Callback):
    """Write down what happens within a step, with the gradient and the scale that are seen there."""

    def __init__(self) -> None:
        self.events: list[tuple[str, float, float]] = []

    def see(self, name: str, module: Any) -> None:
        scale = module.trainer.precision_plugin.loss_scale
        self.events.append((name, round(module.net[2].bias.grad.item() * 1e3), scale))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.see("hook", pl_module)


class Ordered(Regression):
    """The true gradient of its last bias is 2."""

    def __init__(self, order: Order, **options: Any) -> None:
        order_seen = order.see
        module = self

        class Seen(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                result = closure() if closure is not None else None
                order_seen("step", module)
                super().step()
                return result

        super().__init__(optimizer=Seen, **options)
        self.order = order

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return 2.0 * self.net(batch[0]).float().mean()

    def on_after_backward(self) -> None:
        self.order.see("backward", self)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="value")
        self.order.see("clip", self)


def test_trap_9_unscale_then_hooks_then_clip_then_step_then_update() -> None:
    order = Order()
    plugin = fp16(init_scale=4, growth_interval=1)
    fit(plugin, Ordered(order), callbacks=[order], limit_train_batches=1)
    assert order.events == [("backward", 8000, 4), ("hook", 2000, 4), ("clip", 500, 4), ("step", 500, 4)]
    assert plugin.loss_scale == 8


class Scales(Regression):
    """The loss scale of each batch, in its backward pass."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scales: list[float] = []

    def on_after_backward(self) -> None:
        self.scales.append(self.trainer.precision_plugin.loss_scale)  # type: ignore[attr-defined]


def test_trap_16_the_scale_does_not_move_within_a_window() -> None:
    """Gradients of two scales would be added up."""
    model = fit(fp16(init_scale=4, growth_interval=1), Scales(fault=overflowing_at(2)), accumulate_grad_batches=4)
    assert model.scales == [4, 4, 4, 4, 2, 2, 2, 2]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")  # what this test is about
def test_trap_15_a_batch_without_a_loss_counts_for_nothing() -> None:
    plugin = fp16(growth_interval=2)
    model = Scales(fault=lambda loss, batch_idx: None if batch_idx % 2 else loss)
    fit(plugin, model)
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (4, 0, 4 * SCALE)


def test_trap_40_one_plugin_fits_again_after_an_exception_in_mid_window() -> None:
    """Nothing of the broken window is left: neither a verdict nor a scale."""

    class Breaks(Regression):
        breaks = True

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.breaks:
                raise KeyError("planted")

    plugin = fp16()
    model = Breaks(fault=overflowing_at(0))
    with pytest.raises(KeyError, match="planted"):
        fit(plugin, model, accumulate_grad_batches=2)
    fresh = fit(fp16(), Regression(), accumulate_grad_batches=2)
    again = fit(plugin, Regression(), accumulate_grad_batches=2)
    assert_bitwise_equal(weights(again), weights(fresh))
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (4, 0, SCALE)
    assert Action.skip not in {incident.action for incident in plugin.incidents}
