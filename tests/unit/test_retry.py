"""An overflowed batch is run again and equals a run that never overflowed.

The oracle of most tests: a run that starts at the scale which the retries found. Scales are powers of two, so that its
steps are the same bit by bit.
"""

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torchmetrics import MeanMetric

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.telemetry.events import Action
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data, weights

FEASIBLE = 2.0**10
TOO_HIGH = 2.0**20
"""Overflows fp16 in the backward pass of the model below, with a finite loss."""


class Eventful(Regression):
    """Everything that a second run of a step could disturb."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net.insert(1, torch.nn.BatchNorm1d(16))
        self.net.insert(2, torch.nn.Dropout(0.5))
        self.mean = MeanMetric()
        self.poison: tuple[int, ...] = ()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        if batch_idx in self.poison:
            inputs = inputs * math.nan
        loss = super().training_step([inputs, targets], batch_idx)
        self.mean.update(loss.detach().nan_to_num())
        self.log("mean", self.mean, on_epoch=True, on_step=False)
        self.log("loss", loss, on_epoch=True, on_step=True)
        return loss


def fit(scale: float, *, retries: int = 20, poison: tuple[int, ...] = (), **options: Any) -> tuple[Any, Any, Any]:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=scale, retries=retries))
    model = Eventful(optimizer=torch.optim.AdamW, lr=0.01)
    model.poison = poison
    trainer = quiet_trainer(plugins=[plugin], **{"max_epochs": 2, **options})
    pl.seed_everything(7, verbose=False)
    trainer.fit(model, regression_data())
    return plugin, model, trainer


def test_a_retried_batch_leaves_the_run_as_if_the_scale_had_been_right_at_once() -> None:
    plugin, model, trainer = fit(TOO_HIGH)
    assert (plugin.effective_step, plugin.skipped_steps) == (16, 0)
    assert plugin.retried_steps >= 1
    assert {incident.action for incident in plugin.incidents} == {Action.retry}
    assert trainer.callback_metrics["precision/retried_steps"] == plugin.retried_steps
    assert plugin.summary()["loss_scale"]["max"] == TOO_HIGH
    oracle, truth, truth_trainer = fit(plugin.loss_scale)
    assert oracle.incidents == []
    assert_bitwise_equal(weights(model), weights(truth))
    assert_bitwise_equal(list(model.buffers()), list(truth.buffers()))
    for name in ("mean", "loss_epoch", "loss_step"):
        assert trainer.callback_metrics[name] == truth_trainer.callback_metrics[name], name


def test_what_a_retried_step_logs_and_measures_counts_once() -> None:
    plugin, _, trainer = fit(TOO_HIGH, max_epochs=1)
    assert plugin.retried_steps >= 1
    _, _, truth = fit(plugin.loss_scale, max_epochs=1)
    for name in ("mean", "loss_epoch", "loss_step"):
        assert trainer.callback_metrics[name] == truth.callback_metrics[name], name


def test_without_retries_the_batches_are_lost() -> None:
    plugin, _, _ = fit(TOO_HIGH, retries=0)
    assert plugin.skipped_steps > 1
    assert plugin.retried_steps == 0


def test_retries_are_bounded() -> None:
    plugin, _, _ = fit(TOO_HIGH, retries=1)
    assert [incident.action for incident in plugin.incidents[:3]] == [Action.retry, Action.backoff, Action.retry]
    assert plugin.incidents[0].step == plugin.incidents[1].step == 0


def test_a_loss_that_is_not_finite_is_not_the_scale_s_fault_and_not_retried() -> None:
    plugin, _, _ = fit(FEASIBLE, poison=(3,))
    assert [incident.action for incident in plugin.incidents] == [Action.skip] * 2
    assert (plugin.skipped_steps, plugin.retried_steps, plugin.loss_scale) == (2, 0, FEASIBLE)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_poisoned_batch_norm_does_not_survive_the_skip(precision: str) -> None:
    """The running statistics of stock Lightning are NaN from this batch on."""
    model = Eventful()
    model.poison = (3,)
    plugin = AdaptivePrecision(precision)
    quiet_trainer(plugins=[plugin]).fit(model, regression_data())
    assert plugin.skipped_steps == 1
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    assert model.net[1].num_batches_tracked == 7
    stock = Eventful()
    stock.poison = (3,)
    quiet_trainer(precision="32-true").fit(stock, regression_data())
    assert stock.net[1].running_mean.isnan().all()


def test_a_window_of_accumulated_batches_is_skipped_whole_and_its_buffers_go_back() -> None:
    plugin, model, _ = fit(FEASIBLE, poison=(2,), accumulate_grad_batches=4)
    assert (plugin.effective_step, plugin.skipped_steps, plugin.retried_steps) == (2, 2, 0)
    assert model.net[1].num_batches_tracked == 8
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_an_overflow_of_the_scale_alone_in_a_window_is_skipped_too() -> None:
    plugin, _, _ = fit(TOO_HIGH, accumulate_grad_batches=4)
    assert plugin.retried_steps == 0
    assert Action.retry not in {incident.action for incident in plugin.incidents}
    assert plugin.skipped_steps >= 1


class TakesTheIterator(Regression):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`:UserWarning")  # experimental, and what this test is about
def test_a_step_that_takes_the_iterator_is_not_run_again() -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=TOO_HIGH, retries=20))
    quiet_trainer(plugins=[plugin]).fit(TakesTheIterator(), regression_data())
    assert plugin.retried_steps == 0
    assert plugin.skipped_steps >= 1


class Manual(Eventful):
    """Two optimizers in one step; the first one's gradients are spoiled in batch 3."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        loss = (self.net(inputs * (math.nan if batch_idx == 3 else 1.0)) - targets).square().mean()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[index].parameters(), lr=0.1) for index in (0, 4)]


def test_manual_optimization_skips_and_restores_what_was_poisoned() -> None:
    plugin = AdaptivePrecision("fp16")
    model = Manual()
    quiet_trainer(plugins=[plugin]).fit(model, regression_data())
    assert (plugin.effective_step, plugin.skipped_steps, plugin.retried_steps) == (14, 2, 0)
    assert plugin.loss_scale == 2.0**15  # the losses themselves were not finite
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    # Only what was poisoned goes back: another optimizer of the same step may have made good use of the rest.
    assert model.net[1].num_batches_tracked == 8


def test_nothing_of_a_retry_is_left_on_the_module() -> None:
    _, model, _ = fit(TOO_HIGH)
    assert "log" not in vars(model)
