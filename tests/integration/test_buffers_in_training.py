"""Buffers that are not BatchNorm's, over a skipped and a retried step."""

import math
from typing import Any

import pytest
import torch

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import Regression, quiet_trainer, regression_data

TOO_HIGH = 2.0**20
"""A loss scale that overflows fp16 in the backward pass, with a finite loss."""


class Assigning(Regression):
    """Replaces its statistics in each forward pass, from the first one on."""

    poisoned = 3

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(8))
            self.register_buffer("steps", torch.tensor(0))
        inputs, targets = batch
        if batch_idx == self.poisoned:
            inputs = inputs * math.nan
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
        self.steps = self.steps + 1
        return super().training_step([inputs, targets], batch_idx)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_statistics_that_are_replaced_survive_a_poisoned_batch(precision: str) -> None:
    model, plugin = Assigning(), AdaptivePrecision(precision)
    quiet_trainer(plugins=[plugin]).fit(model, regression_data())
    assert plugin.skipped_steps == 1
    assert model.steps == 7
    means = [inputs.mean(0) for index, (inputs, _) in enumerate(regression_data()) if index != model.poisoned]
    expected = sum(0.1 * 0.9**age * mean.double() for age, mean in enumerate(reversed(means)))
    torch.testing.assert_close(model.mean.double(), expected, rtol=1e-5, atol=1e-6)


class Counting(Regression):
    """Counts its steps in a buffer that `on_fit_start` brings."""

    def on_fit_start(self) -> None:
        self.register_buffer("steps", torch.zeros(2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps.add_(1)
        return super().training_step(batch, batch_idx)


def test_a_retried_batch_counts_once_in_a_late_buffer() -> None:
    model = Counting()
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=TOO_HIGH, retries=20))
    quiet_trainer(plugins=[plugin]).fit(model, regression_data())
    assert plugin.retried_steps >= 1
    assert model.steps.tolist() == [8, 8]


def test_an_expanded_buffer_does_not_stop_the_run() -> None:
    model = Regression()
    model.register_buffer("weights", torch.ones(1).expand(10))
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=TOO_HIGH, retries=20))
    quiet_trainer(plugins=[plugin]).fit(model, regression_data())
    assert plugin.retried_steps >= 1
