"""peers' fault L1, trap 17: stock advances the learning rate on steps that never happened."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from mp_plugin import AdaptivePrecision
from tests.helpers.training import Regression, infinite_at, no_fault, quiet_trainer, regression_data

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "warm-up": lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 6)),
    "one-cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=1.0, total_steps=20),
    "chained": lambda optimizer: ChainedScheduler([ExponentialLR(optimizer, 0.9), ConstantLR(optimizer, 0.5, 3)]),
    "sequential": lambda optimizer: SequentialLR(
        optimizer, [ConstantLR(optimizer, 0.1, 3), ExponentialLR(optimizer, 0.9)], [3]
    ),
}


class Scheduled(Regression):
    """Records the learning rate of every batch."""

    def __init__(
        self, make: Callable[[Any], Any], *, frequency: int = 1, interval: str = "step", **options: Any
    ) -> None:
        super().__init__(**options)
        self.make, self.how = make, {"interval": interval, "frequency": frequency}
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make(optimizer), "monitor": "loss", **self.how},
        }

    def on_train_batch_end(self, *_: Any) -> None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])


def rates(make: Callable[[Any], Any], plugin: Any, *, skipped: tuple[int, ...] = (), **options: Any) -> list[float]:
    """Learning rates after each batch, the given batches overflowing."""
    how = {key: options.pop(key) for key in ("frequency", "interval") if key in options}
    data = regression_data(batches=options.pop("batches", 8))
    model = Scheduled(make, fault=infinite_at(*skipped) if skipped else no_fault, **how)
    quiet_trainer(plugins=[plugin], **options).fit(model, data)
    assert "lr_scheduler_step" not in vars(model)
    return model.rates


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_rate_is_a_function_of_the_steps_that_happened(name: str, precision: str) -> None:
    healthy = rates(SCHEDULERS[name], AdaptivePrecision("bf16"))
    with_skips = rates(SCHEDULERS[name], AdaptivePrecision(precision), skipped=(0, 1, 4))
    start = Scheduled(SCHEDULERS[name]).configure_optimizers()["optimizer"].param_groups[0]["lr"]
    assert with_skips == [start, start, healthy[0], healthy[1], healthy[1], healthy[2], healthy[3], healthy[4]]


@pytest.mark.filterwarnings(
    "ignore:Detected call of `lr_scheduler.step\\(\\)` before:UserWarning"
)  # the fault shown here
def test_stock_moves_the_rate_without_a_step() -> None:
    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    moving = rates(SCHEDULERS["warm-up"], stock, skipped=(0, 1, 2, 3, 4, 5))
    assert moving[5] == pytest.approx(0.1)  # the warm-up is over, and no weight has changed
    holding = rates(SCHEDULERS["warm-up"], AdaptivePrecision("fp16"), skipped=(0, 1, 2, 3, 4, 5))
    assert holding[5] == pytest.approx(0.1 / 6)


def test_a_frequency_above_one_holds_when_every_step_since_was_skipped() -> None:
    def halve(optimizer: Any) -> Any:
        return ExponentialLR(optimizer, 0.5)

    seen = rates(halve, AdaptivePrecision("bf16"), skipped=(1, 2, 3), frequency=2)
    assert seen == [0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.0125]


def test_a_window_of_accumulated_batches_is_one_step() -> None:
    def halve(optimizer: Any) -> Any:
        return ExponentialLR(optimizer, 0.5)

    seen = rates(halve, AdaptivePrecision("bf16"), skipped=(3,), accumulate_grad_batches=2)
    assert seen == [0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.0125]


def test_an_epoch_scheduler_goes_on() -> None:
    def halve(optimizer: Any) -> Any:
        return ExponentialLR(optimizer, 0.5)

    epochs = {"interval": "epoch", "max_epochs": 2}
    healthy = rates(halve, AdaptivePrecision("bf16"), **epochs)
    assert rates(halve, AdaptivePrecision("bf16"), skipped=(7,), **epochs) == healthy
    assert healthy[8] == 0.05


class WithPlateau(Scheduled):
    """A user's own hook, which steps a plateau scheduler with the loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", 1.0)
        return super().training_step(batch, batch_idx)


def test_a_plateau_scheduler_loses_no_patience_to_steps_that_were_skipped() -> None:
    def rates_of(*skipped: int) -> list[float]:
        fault = infinite_at(*skipped) if skipped else no_fault
        model = WithPlateau(lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=1), fault=fault)
        quiet_trainer(plugins=[AdaptivePrecision("bf16")]).fit(model, regression_data())
        return model.rates

    healthy = rates_of()
    assert healthy[-1] < 0.1
    assert rates_of(1, 2) == [healthy[0], *healthy[0:1] * 2, *healthy[1:6]]


def test_a_users_own_hook_is_held_too() -> None:
    class Own(Scheduled):
        calls = 0

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.calls += 1
            scheduler.step()

    model = Own(SCHEDULERS["warm-up"], fault=infinite_at(2, 3))
    quiet_trainer(plugins=[AdaptivePrecision("bf16")]).fit(model, regression_data())
    assert model.calls == 6


def test_a_turn_that_comes_after_a_good_and_a_skipped_step_is_taken() -> None:
    def halve(optimizer: Any) -> Any:
        return ExponentialLR(optimizer, 0.5)

    # Turns come where both 2 and 3 divide the count of batches: after the 6th and the 12th, which end skipped steps.
    options = {"accumulate_grad_batches": 2, "frequency": 3, "batches": 12}
    seen = rates(halve, AdaptivePrecision("bf16"), skipped=(4, 10), **options)
    assert (seen[4], seen[5], seen[10], seen[11]) == (0.1, 0.05, 0.05, 0.025)


def test_each_of_two_schedulers_is_held_by_its_own_rule() -> None:
    class Two(Scheduled):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            every_epoch = {"scheduler": ExponentialLR(optimizer, 1.0), "interval": "epoch"}
            return [optimizer], [every_epoch, {"scheduler": ExponentialLR(optimizer, 0.5), "interval": "step"}]

    model = Two(SCHEDULERS["warm-up"], fault=infinite_at(1, 2))
    quiet_trainer(plugins=[AdaptivePrecision("bf16")], limit_train_batches=4).fit(model, regression_data())
    assert model.rates == [0.05, 0.05, 0.05, 0.025]


class Copied(Regression):
    def on_train_end(self) -> None:
        self.copies = [pickle.loads(pickle.dumps(self)), copy.deepcopy(self)]


def test_the_module_can_be_pickled_and_copied_during_a_fit() -> None:
    model = Copied()
    quiet_trainer(plugins=[AdaptivePrecision("bf16")]).fit(model, regression_data())
    for twin in model.copies:
        assert twin.lr_scheduler_step.__func__ is pl.LightningModule.lr_scheduler_step
        assert twin.lr_scheduler_step.__self__ is twin


def test_a_hook_of_the_instance_is_put_back() -> None:
    def mine(scheduler: Any, metric: Any) -> None:
        calls.append(scheduler)
        scheduler.step()

    calls: list[Any] = []
    model = Scheduled(SCHEDULERS["warm-up"], fault=infinite_at(2, 3))
    model.lr_scheduler_step = mine  # type: ignore[method-assign]
    quiet_trainer(plugins=[AdaptivePrecision("bf16")]).fit(model, regression_data())
    assert len(calls) == 6
    assert model.lr_scheduler_step is mine
