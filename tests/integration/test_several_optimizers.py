"""Several optimizers that share one loss scale, in manual optimization."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import UnsupportedError
from tests.helpers.training import quiet_trainer, regression_data


class Manual(pl.LightningModule):
    """Two weights, each with an optimizer of its own; every true gradient is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        self.scales: list[float] = []

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([parameter], lr=1.0) for parameter in (self.a, self.b)]

    def on_train_batch_end(self, *_: Any) -> None:
        plugin: Any = self.trainer.precision_plugin
        self.scales.append(plugin.scaler.get_scale())


def fit(model: Manual, *, batches: int, plugin: Any = None, **scaling: Any) -> Any:
    scaling = {"init_scale": 4.0, "growth_interval": 1, **scaling}
    plugin = plugin or AdaptivePrecision("fp16", scaling=LossScaling(**scaling))
    quiet_trainer(plugins=[plugin], limit_train_batches=batches).fit(model, regression_data())
    return plugin


class OneAccumulates(Manual):
    """The second optimizer steps every second batch with the gradients of both."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        first.zero_grad()
        self.manual_backward(self.a.sum() + self.b.sum())
        first.step()
        if batch_idx % 2:
            second.step()
            second.zero_grad()


def test_the_scale_waits_for_an_optimizer_that_accumulates() -> None:
    """Stock adds gradients of two scales: of 4 in one batch and of 8 in the next, unscaled as if all were of 8."""
    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1))
    theirs = OneAccumulates()
    fit(theirs, batches=2, plugin=stock)
    assert (theirs.a.item(), theirs.b.item()) == (-2.0, -0.75)
    ours = OneAccumulates()
    fit(ours, batches=6)
    assert (ours.a.item(), ours.b.item()) == (-6.0, -6.0)
    assert ours.scales == [4, 8, 8, 16, 16, 32]


class Adversarial(Manual):
    """The second optimizer's loss also reaches the first one's weights, as a generator's reaches the discriminator."""

    set_to_none = True

    def training_step(self, batch: Any, batch_idx: int) -> None:
        discriminator, generator = self.optimizers()
        discriminator.zero_grad(set_to_none=self.set_to_none)
        self.manual_backward(self.a.sum())
        discriminator.step()
        generator.zero_grad(set_to_none=self.set_to_none)
        self.manual_backward(self.b.sum() + 100 * self.a.sum())
        generator.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_only_zeroed_do_not_hold_the_scale_for_ever(set_to_none: bool) -> None:
    model = Adversarial()
    model.set_to_none = set_to_none
    plugin = fit(model, batches=3)
    assert (model.a.item(), model.b.item()) == (-3.0, -3.0)
    # It moves after each step, but from the end of a batch to the start of the next: there the discriminator's useless
    # gradients wait. A checkpoint of that moment already knows.
    assert model.scales == [8, 32, 128]
    assert plugin.state_dict()["scale"] == 256


class Toggled(Manual):
    """The two take turns by batch; each turns off the other's gradients."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[batch_idx % 2]
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(self.a.sum() + self.b.sum())
        optimizer.step()
        self.untoggle_optimizer(optimizer)


def test_toggled_optimizers_move_the_scale_with_each_step() -> None:
    model = Toggled()
    fit(model, batches=4)
    assert (model.a.item(), model.b.item()) == (-2.0, -2.0)
    assert model.scales == [8, 16, 32, 64]


class OneOverflows(Manual):
    """The first optimizer overflows above a scale of 1; the second collects gradients for long."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        first.zero_grad()
        self.manual_backward(self.a.sum() + self.b.sum())
        if self.scales_of_now() > 1:
            self.a.grad.fill_(float("inf"))  # type: ignore[union-attr]
        first.step()
        if batch_idx == 7:
            second.step()

    def scales_of_now(self) -> float:
        plugin: Any = self.trainer.precision_plugin
        return float(plugin.loss_scale)


def test_an_optimizer_that_holds_gradients_does_not_stop_the_others_for_ever() -> None:
    model = OneOverflows()
    plugin = fit(model, batches=8, growth_interval=100)
    assert model.scales == [2, 1, 1, 1, 1, 1, 1, 1]
    assert (model.a.item(), model.b.item()) == (-6.0, -8.0)
    assert (plugin.skipped_steps, plugin.effective_step) == (2, 7)


class ClipsAndThinksBetter(Manual):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[0]
        self.manual_backward(self.a.sum())
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="value")
        if batch_idx % 2:
            optimizer.step()
        optimizer.zero_grad()


def test_clipped_gradients_may_be_zeroed_instead_of_used() -> None:
    model = ClipsAndThinksBetter()
    fit(model, batches=4)
    assert model.a.item() == -1.0


class ClipsEachBatch(ClipsAndThinksBetter):
    """Clips what it goes on collecting."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.a.sum())
        self.clip_gradients(self.optimizers()[0], gradient_clip_val=0.5, gradient_clip_algorithm="value")


def test_clipping_what_is_still_being_collected_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="all backward passes of a step first, then clip_gradients"):
        fit(ClipsEachBatch(), batches=2)


class NaNNowAndThen(Manual):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[0]
        optimizer.zero_grad()
        self.manual_backward(self.a.sum() * (float("nan") if batch_idx % 2 else 1.0))
        optimizer.step()


def test_a_loss_that_was_not_finite_leaves_the_scale_alone() -> None:
    """The plugin sees each loss when it is scaled, in manual optimization too."""
    model = NaNNowAndThen()
    plugin = fit(model, batches=8, growth_interval=100)
    assert (model.a.item(), plugin.skipped_steps, model.scales) == (-4.0, 4, [4] * 8)


class NaNThenOverflow(Manual):
    """A loss that is not finite in the first batch, an overflow with a finite loss in the second."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[0]
        optimizer.zero_grad()
        self.manual_backward(self.a.sum() * (float("nan") if batch_idx == 0 else 1.0))
        if batch_idx == 1:
            self.a.grad.fill_(float("inf"))  # type: ignore[union-attr]
        optimizer.step()


def test_a_loss_speaks_for_its_own_gradients_only() -> None:
    model = NaNThenOverflow()
    fit(model, batches=3, growth_interval=100)
    assert model.scales == [4, 2, 2]
