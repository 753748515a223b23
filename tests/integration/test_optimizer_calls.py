"""How optimizers are called: with closures and without, twice, by several hands, beside averages of the weights."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim import LBFGS, SGD, Adam, AdamW

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import UnsupportedError
from mp_plugin.telemetry.events import Action
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    fit,
    infinite_at,
    overflowing_at,
    quiet_trainer,
    regression_data,
    weights,
)
from tests.integration.test_manual_optimization import SharpnessAware

SCALE = 2.0**10
"""Nothing in these small models overflows at this loss scale."""


def fp16(**options: Any) -> AdaptivePrecision:
    return AdaptivePrecision("fp16", scaling=LossScaling(init_scale=SCALE, **options))


def bf16() -> AdaptivePrecision:
    return AdaptivePrecision("bf16")


def stock(**options: Any) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=SCALE, **options))


class SpoiledCalls(Regression):
    """Gradients are infinite after the given backward passes, counted from 1."""

    def __init__(self, *calls: int) -> None:
        super().__init__(optimizer=SharpnessAware)
        self.spoiled, self.calls = calls, 0

    def on_after_backward(self) -> None:
        self.calls += 1
        if self.calls in self.spoiled:
            self.net[0].weight.grad.fill_(float("inf"))  # type: ignore[union-attr, operator]


# A healthy step of sharpness-aware minimization makes two calls: batch 1 the calls 3 and 4.
@pytest.mark.parametrize(
    ("retries", "spoiled", "actions", "scale", "counts"),
    [
        pytest.param(0, (3,), [Action.backoff], SCALE / 2, (7, 1, 0), id="first call skipped"),
        pytest.param(1, (3,), [Action.retry], SCALE / 2, (8, 0, 1), id="first call retried"),
        pytest.param(1, (3, 4), [Action.retry, Action.backoff], SCALE / 4, (7, 1, 0), id="retried in vain"),
        pytest.param(1, (4,), [Action.zeroed], SCALE / 2, (8, 0, 0), id="second call"),
        pytest.param(1, (3, 5), [Action.retry, Action.zeroed], SCALE / 4, (8, 0, 1), id="retried, then second call"),
    ],
)
def test_an_overflow_in_a_closure_that_is_called_twice(
    retries: int, spoiled: tuple[int, ...], actions: list[Action], scale: float, counts: tuple[int, ...]
) -> None:
    """Trap 11: unscaling is ready again for the second call's gradients."""
    plugin = fp16(retries=retries)
    model = fit(plugin, SpoiledCalls(*spoiled))
    assert [incident.action for incident in plugin.incidents] == actions
    assert {incident.batch_idx for incident in plugin.incidents} == {1}
    assert plugin.loss_scale == scale
    assert (plugin.effective_step, plugin.skipped_steps, plugin.retried_steps) == counts
    assert all(weight.isfinite().all() for weight in weights(model))


def test_two_calls_of_a_closure_are_one_step_to_the_schedule() -> None:
    plugin = fp16(growth_interval=4)
    fit(plugin, SpoiledCalls())
    assert plugin.loss_scale == SCALE * 2**2


def test_lbfgs_is_refused_under_a_loss_scale_and_welcome_without() -> None:
    """Trap 11. The refusal comes before training, with the remedy."""
    model = Regression(optimizer=LBFGS)
    with pytest.raises(UnsupportedError, match=r"LBFGS evaluates .*; accepted: precision 'bf16-mixed' or '32-true'"):
        fit(fp16(), model)
    assert model.losses == []
    theirs = Regression(optimizer=LBFGS)
    quiet_trainer(precision="32-true").fit(theirs, regression_data())
    assert_bitwise_equal(weights(fit(AdaptivePrecision("fp32"), Regression(optimizer=LBFGS))), weights(theirs))


class Plain(SGD):
    """A step that takes no closure, as a few optimizers outside torch have."""

    def step(self) -> None:  # type: ignore[override]
        super().step()


class Doubled(Adam):
    """A step of one's own, which edits the gradients."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            torch._foreach_mul_([parameter.grad for parameter in group["params"]], 2.0)
        return super().step(closure)


class Options(AdamW):
    """A step that takes options beside the closure."""

    def step(self, closure: Any = None, **options: Any) -> Any:
        assert options == {}
        return super().step(closure)


@pytest.mark.parametrize("optimizer", [Plain, Doubled, Options])
def test_optimizers_with_a_step_of_their_own(optimizer: Any) -> None:
    ours, theirs = (fit(plugin, Regression(optimizer=optimizer)) for plugin in (fp16(), stock()))
    assert_bitwise_equal(weights(ours), weights(theirs))
    plugin = fp16(retries=0)
    skipped = fit(plugin, Regression(optimizer=optimizer, fault=overflowing_at(7)))
    assert plugin.skipped_steps == 1
    before = fit(fp16(), Regression(optimizer=optimizer), limit_train_batches=7)
    assert_bitwise_equal(weights(skipped), weights(before))


class Alternating(pl.LightningModule):
    """Two optimizers, toggled in turn, as a GAN does it."""

    def __init__(self, *spoiled: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.automatic_optimization = False
        self.spoiled = spoiled
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = (self.second(self.first(batch[0])) - batch[1]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            if batch_idx in self.spoiled and self.first.weight.requires_grad:
                self.first.weight.grad.fill_(float("inf"))  # type: ignore[union-attr]
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [SGD(self.first.parameters(), lr=0.1), AdamW(self.second.parameters(), lr=0.1, eps=0.01, fused=True)]


def test_toggled_optimizers() -> None:
    """Trap 12: gradients of the other optimizer, left from its own turn, neither block nor blame anybody."""
    plugin = fp16()
    truth = fit(AdaptivePrecision("fp32"), Alternating())
    torch.testing.assert_close(weights(fit(plugin, Alternating())), weights(truth), rtol=0, atol=2e-3)
    assert (plugin.effective_step, plugin.skipped_steps) == (16, 0)


def test_an_overflow_of_one_toggled_optimizer_skips_that_one_alone() -> None:
    plugin = fp16()
    model = fit(plugin, Alternating(3))
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (15, 1, SCALE / 2)
    assert set(plugin.guard.record.by_parameter) == {"first.weight"}
    assert all(weight.isfinite().all() for weight in weights(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


class Shared(pl.LightningModule):
    """Two optimizers that step with the same gradient, as one with an extra rate for some layers might."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.clips = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.zero_grad()
        self.manual_backward(self.weight.sum())
        for optimizer in self.optimizers():
            if self.clips:
                self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="value")
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [SGD([self.weight], lr=1.0), SGD([self.weight], lr=1.0)]


def test_a_gradient_that_two_optimizers_share_is_unscaled_twice_by_stock() -> None:
    theirs = fit(stock(), Shared(), limit_train_batches=1)
    assert theirs.weight.tolist() == [-1 - 1 / SCALE] * 2


@pytest.mark.parametrize(("clips", "step"), [(False, 1.0), (True, 0.5)])
def test_a_gradient_that_two_optimizers_share_is_unscaled_once(clips: bool, step: float) -> None:
    model = Shared()
    model.clips = clips
    plugin = fp16(growth_interval=1)
    fit(plugin, model, limit_train_batches=3)
    assert model.weight.tolist() == [-6 * step] * 2
    assert plugin.loss_scale > SCALE


class InTurn(Shared):
    """Two optimizers of the same weight, each with a gradient of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.weight.sum())
            optimizer.step()


def test_two_optimizers_of_the_same_weights_in_turn() -> None:
    plugin = fp16(growth_interval=1)
    model = fit(plugin, InTurn(), limit_train_batches=3)
    assert model.weight.tolist() == [-6.0] * 2
    assert plugin.loss_scale > SCALE


class Unfreeze(BaseFinetuning):
    """Train the last layer first; the rest joins the optimizer as a parameter group of its own in the second epoch."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.01)


class Joining(Regression):
    def configure_optimizers(self) -> Any:
        return AdamW([parameter for parameter in self.parameters() if parameter.requires_grad], lr=0.01, eps=0.01)


CALLBACKS: dict[str, Any] = {
    "parameters that join": Unfreeze,
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1),
    "ema": EMAWeightAveraging,
    "accumulation": lambda: GradientAccumulationScheduler({0: 1, 1: 2}),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_that_average_weights_or_change_what_a_step_is(name: str) -> None:
    ours, theirs = (fit(plugin, Joining(), callbacks=[CALLBACKS[name]()], max_epochs=3) for plugin in (fp16(), stock()))
    assert_bitwise_equal(weights(ours), weights(theirs))
    for plugin in (fp16(retries=0), bf16()):
        model = fit(plugin, Joining(fault=infinite_at(3)), callbacks=[CALLBACKS[name]()], max_epochs=3)
        assert plugin.skipped_steps == 3
        assert all(weight.isfinite().all() for weight in weights(model))
