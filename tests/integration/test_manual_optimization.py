"""Several steps, optimizers and closure calls within one training step."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import UnsupportedError
from mp_plugin.telemetry.events import Action
from tests.helpers.training import Regression, assert_bitwise_equal, fit, quiet_trainer, regression_data, weights


def stock(scale: float, **options: Any) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, **options))


class TwoOptimizers(pl.LightningModule):
    """Two manual backwards, then two steps: peers' fault L2."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = (torch.nn.Parameter(torch.zeros(1, 1)) for _ in range(2))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for parameter in (self.a, self.b):
            self.manual_backward(parameter.sum())
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([parameter], lr=1.0) for parameter in (self.a, self.b)]


def test_two_optimizers_step_under_one_scale() -> None:
    """peers' fault L2, trap 12: stock moves the scale between the two steps; the second is half or twice as long."""
    theirs = fit(stock(4.0, growth_interval=1), TwoOptimizers(), limit_train_batches=1)
    assert (theirs.a.item(), theirs.b.item()) == (-1.0, -0.5)
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=4, growth_interval=1))
    ours = fit(plugin, TwoOptimizers(), limit_train_batches=1)
    assert (ours.a.item(), ours.b.item()) == (-1.0, -1.0)
    assert plugin.loss_scale == 8


class ManualClipping(TwoOptimizers):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, _ = self.optimizers()
        self.manual_backward((self.a * 3.0).sum())
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()


def test_manual_clipping_clips_true_gradients() -> None:
    """peers' fault L3, trap 14: stock clips the scaled gradient to 1, and the update is 1 over the scale."""
    theirs = fit(stock(1024.0), ManualClipping(), limit_train_batches=1)
    assert theirs.a.item() == pytest.approx(-1 / 1024, rel=1e-3)
    ours = fit(AdaptivePrecision("fp16", scaling=LossScaling(init_scale=1024)), ManualClipping(), limit_train_batches=1)
    assert ours.a.item() == pytest.approx(-1.0, rel=1e-5)


class BackwardAfterClipping(TwoOptimizers):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        self.manual_backward(self.a.sum())
        self.clip_gradients(first, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        self.manual_backward((self.a if self.again else self.b).sum())
        first.step()
        second.step()

    again = True


def test_gradients_of_two_kinds_are_not_mixed() -> None:
    with pytest.raises(UnsupportedError, match="added scaled gradients to those that clip_gradients"):
        fit(AdaptivePrecision("fp16"), BackwardAfterClipping())


def test_the_other_optimizer_s_backward_may_come_after_clipping() -> None:
    model = BackwardAfterClipping()
    model.again = False
    fit(AdaptivePrecision("fp16"), model, limit_train_batches=1)
    assert (model.a.item(), model.b.item()) == (pytest.approx(-1.0), -1.0)


def test_an_exception_after_clipping_does_not_spoil_the_next_fit() -> None:
    class Interrupted(ManualClipping):
        fails = True

        def training_step(self, batch: Any, batch_idx: int) -> None:
            if self.fails:
                self.optimizer = self.optimizers()[0].optimizer
                self.manual_backward(self.a.sum())
                self.clip_gradients(self.optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
                raise KeyError("planted")
            super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            return [
                getattr(self, "optimizer", None) or super().configure_optimizers()[0],
                super().configure_optimizers()[1],
            ]

    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=1024))
    model = Interrupted()
    with pytest.raises(KeyError, match="planted"):
        fit(plugin, model)
    assert plugin.scaler is not None
    assert not plugin.scaler.is_unscaled(model.optimizer)
    model.fails = False
    model.zero_grad()
    fit(plugin, model, limit_train_batches=1)
    assert model.a.item() == pytest.approx(-1.0, rel=1e-5)


class SeveralSteps(TwoOptimizers):
    """Many steps of one optimizer within a training step, as in PPO."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for _ in range(10):
            optimizer.zero_grad()
            self.manual_backward(self.a.sum())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.a], lr=1.0)


def test_the_scale_moves_between_the_steps_of_one_optimizer() -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=4, growth_interval=2))
    model = fit(plugin, SeveralSteps(), limit_train_batches=1)
    assert (model.a.item(), plugin.loss_scale) == (-10.0, 4 * 2**5)


class TwoForwards(TwoOptimizers):
    """A second forward pass after the weight has changed; the weight is a leaf, which autocast keeps casts of."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, _ = self.optimizers()
        self.outputs = []
        for _ in range(2):
            output = torch.nn.functional.linear(torch.ones(1, 1), self.a)
            self.outputs.append(output.item())
            optimizer.zero_grad()
            self.manual_backward(output.sum())
            if self.edits_in_place:
                with torch.no_grad():
                    self.a.sub_(1.0)
            else:
                optimizer.step()

    edits_in_place = False


@pytest.mark.parametrize("edits_in_place", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_forward_pass_sees_the_weights_of_now(precision: str, edits_in_place: bool) -> None:
    """peers' fault L6, trap 13: casts from before the step are stale."""
    model = TwoForwards()
    model.edits_in_place = edits_in_place
    fit(AdaptivePrecision(precision), model, limit_train_batches=1)
    assert model.outputs == [0.0, -1.0]


class SharpnessAware(torch.optim.SGD):
    """Steps from the gradient at a perturbed point, for which it calls its closure twice."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            result = closure()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.no_grad():
            moves = [0.05 * parameter.grad for parameter in parameters]
            torch._foreach_add_(parameters, moves)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        super().step()
        return result


def test_a_closure_may_be_called_twice() -> None:
    ours = fit(AdaptivePrecision("bf16"), Regression(optimizer=SharpnessAware), gradient_clip_val=0.01)
    theirs = Regression(optimizer=SharpnessAware)
    quiet_trainer(precision="bf16-mixed", gradient_clip_val=0.01).fit(theirs, regression_data())
    assert_bitwise_equal(weights(ours), weights(theirs))
    assert len(ours.losses) == 16


def test_a_closure_may_be_called_twice_under_a_loss_scale() -> None:
    """Trap 11: each call brings gradients that must be unscaled anew."""
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**10))
    scaled = fit(plugin, Regression(optimizer=SharpnessAware), gradient_clip_val=0.5)
    truth = fit(AdaptivePrecision("fp32"), Regression(optimizer=SharpnessAware), gradient_clip_val=0.5)
    torch.testing.assert_close(weights(scaled), weights(truth), rtol=0.02, atol=2e-3)
    assert plugin.effective_step == 8


def test_an_overflow_in_the_second_call_counts_as_zero() -> None:
    class Spoiled(Regression):
        calls = 0

        def on_after_backward(self) -> None:
            self.calls += 1
            if self.calls == 4:  # the second call of the second batch
                self.net[0].weight.grad.fill_(float("inf"))  # type: ignore[union-attr, operator]

    plugin = AdaptivePrecision("bf16")
    model = fit(plugin, Spoiled(optimizer=SharpnessAware))
    assert all(weight.isfinite().all() for weight in weights(model))
    assert [(incident.action, incident.batch_idx) for incident in plugin.incidents] == [(Action.zeroed, 1)]
    assert (plugin.effective_step, plugin.skipped_steps) == (8, 0)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_weights(precision: str) -> None:
    """A training step with half weights has another default dtype, and here the optimizer steps within it."""

    class ByHand(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.zero_grad()
            self.manual_backward(self.net(batch[0]).float().square().mean())
            self.optimizers().step()

    plugin = AdaptivePrecision(precision)
    fit(plugin, ByHand())
    assert (plugin.effective_step, plugin.incidents) == (8, [])
