"""What a step may do to its batch, its closure and its window, and what comes of a retry then."""

import logging
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    infinite_at,
    quiet_trainer,
    regression_data,
    weights,
)

TOO_HIGH = 2.0**20
"""Overflows in the backward pass of a regression, with a finite loss."""


def train(model: Any, *, data: Any = None, scale: float = TOO_HIGH, retries: int = 20, **options: Any) -> Any:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=scale, retries=retries))
    quiet_trainer(plugins=[plugin], **options).fit(model, data or regression_data())
    return plugin


class Popping(Regression):
    """Takes its batch apart, as many text models do."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        targets = batch.pop("targets")
        return super().training_step([batch.pop("inputs"), targets], batch_idx)


def dictionaries() -> Any:
    return DataLoader(
        [dict(zip(("inputs", "targets"), batch, strict=True)) for batch in regression_data()], batch_size=None
    )


def test_a_step_that_takes_its_batch_apart_is_run_again() -> None:
    model = Popping()
    plugin = train(model, data=dictionaries())
    assert (plugin.skipped_steps, plugin.effective_step) == (0, 8)
    assert plugin.retried_steps >= 1
    truth = Popping()
    train(truth, data=dictionaries(), scale=plugin.loss_scale)
    assert_bitwise_equal(weights(model), weights(truth))


class Writing(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch[0].mul_(0.5)
        return super().training_step(batch, batch_idx)


def test_a_step_that_writes_to_its_batch_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plugin = train(Writing())
    assert plugin.retried_steps == 0
    assert plugin.skipped_steps > 0
    assert "writes to its batch in place, so that an overflowed batch cannot be run again" in caplog.text


class ClosureAlone(Regression):
    """Steps in every second batch; the others only run the closure."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, torch.nn.BatchNorm1d(16))
        self.drawn: list[tuple[int, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append((batch_idx, torch.rand(1).item()))
        return super().training_step(batch, batch_idx)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        if batch_idx % 2:
            optimizer.step(closure=closure)
        else:
            closure()


def test_a_retry_goes_back_to_its_own_batch_and_no_further() -> None:
    torch.manual_seed(5)
    model = ClosureAlone()
    plugin = train(model)
    assert plugin.retried_steps >= 1
    first: dict[int, float] = {}
    for batch_idx, number in model.drawn:
        assert first.setdefault(batch_idx, number) == number
    assert model.net[1].num_batches_tracked == 8


class ClosureBefore(Regression):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        closure()
        optimizer.step()


def test_an_empty_closure_is_not_run_again() -> None:
    plugin = train(ClosureBefore(), retries=3)
    assert plugin.retried_steps == 0
    assert {incident.action.value for incident in plugin.incidents} == {"backoff"}


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_window_with_an_infinite_loss_leaves_the_scale_alone(bad: int) -> None:
    plugin = train(Regression(fault=infinite_at(bad)), scale=1024, accumulate_grad_batches=3, limit_train_batches=6)
    assert (plugin.skipped_steps, plugin.effective_step, plugin.loss_scale) == (1, 1, 1024)


class GivesUpOnNaN(Regression):
    """Returns no loss where it is not finite, as many do by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, torch.nn.BatchNorm1d(16))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs = batch[0] * float("inf") if batch_idx == 3 else batch[0]
        loss = super().training_step([inputs, batch[1]], batch_idx)
        return loss if loss is not None and loss.isfinite() else None


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")  # what this test is about
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_batch_norm_survives_a_step_that_returns_nothing(precision: str) -> None:
    model = GivesUpOnNaN()
    quiet_trainer(plugins=[AdaptivePrecision(precision)]).fit(model, regression_data())
    assert model.net[1].running_mean.isfinite().all()


class Released(pl.Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        assert trainer.precision_plugin.start.window == []


def test_a_batch_is_not_kept_beyond_its_step() -> None:
    """It would lie in the device's memory beside the next one."""
    train(Regression(), callbacks=[Released()])
