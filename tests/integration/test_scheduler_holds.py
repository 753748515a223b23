"""Trap 17: which LR schedulers hold when steps are skipped, and that torch has nothing to warn of.

Warnings are errors in these tests: torch's one about `lr_scheduler.step()` before `optimizer.step()` would fail them.
"""

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import (
    Regression,
    fit,
    infinite_at,
    no_fault,
    overflowing_at,
)

SCHEDULERS: dict[str, Any] = {
    "one-cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=1.0, total_steps=20),
    "chained": lambda optimizer: ChainedScheduler([ExponentialLR(optimizer, 0.9), ConstantLR(optimizer, 0.5, 3)]),
    "sequential": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, total_iters=3), ExponentialLR(optimizer, 0.9)], [3]
    ),
    "warm-up": lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 6)),
    "warm restarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=3),
    "cyclic": lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, step_size_up=2, cycle_momentum=True),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
}
MOVES_MOMENTUM = ("one-cycle", "cyclic")


class Scheduled(Regression):
    """Records learning rate and momentum of each batch; what a plateau scheduler watches never improves."""

    def __init__(self, scheduler: Any, *, interval: str = "step", fused: bool = False, **options: Any) -> None:
        super().__init__(optimizer=torch.optim.SGD, momentum=0.5, fused=fused, **options)
        self.make_scheduler, self.interval = scheduler, interval
        self.seen: list[tuple[float, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("watched", 1.0)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": self.interval, "monitor": "watched"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen.append(self.group(self.trainer.optimizers[0]))

    @staticmethod
    def group(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        (group,) = optimizer.param_groups
        return float(group["lr"]), group["momentum"]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_schedulers_hold_on_skips_from_the_first_batch_on(name: str, precision: str) -> None:
    """Rate and momentum of a batch depend on the steps before it that happened, not on the batches before it."""
    healthy = fit(AdaptivePrecision(precision), Scheduled(SCHEDULERS[name])).seen
    skipped = fit(AdaptivePrecision(precision), Scheduled(SCHEDULERS[name], fault=infinite_at(0, 1, 4))).seen
    assert skipped == [healthy[steps] for steps in (0, 0, 0, 1, 2, 2, 3, 4)]
    assert len(set(healthy)) >= 3  # it moves at all
    assert (len({momentum for _, momentum in healthy}) > 1) is (name in MOVES_MOMENTUM)


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_torch_does_not_warn_when_the_first_steps_are_skipped(retries: int, fused: bool, accumulate: int) -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(retries=retries))
    model = Scheduled(SCHEDULERS["warm-up"], fused=fused, fault=overflowing_at(0, 1, 2, 3))
    fit(plugin, model, accumulate_grad_batches=accumulate)
    assert plugin.skipped_steps == 4 // accumulate
    assert model.seen[4] == model.seen[0]
    assert model.seen[-1] != model.seen[0]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("fused", [False, True])
def test_an_epoch_without_a_single_step_before_any_other_is_not_counted(precision: str, fused: bool) -> None:
    """An epoch scheduler goes on otherwise; but before the first step there is nothing that it could follow."""

    class FirstEpochOverflows(Scheduled):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.fault = overflowing_at(*range(8)) if self.current_epoch == 0 else no_fault
            return super().training_step(batch, batch_idx)

    def halve(optimizer: Any) -> Any:
        return ExponentialLR(optimizer, 0.5)

    model = fit(AdaptivePrecision(precision), FirstEpochOverflows(halve, interval="epoch", fused=fused), max_epochs=3)
    assert [rate for rate, _ in model.seen[::8]] == [0.1, 0.1, 0.05]
    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.warns(UserWarning, match=r"Detected call of `lr_scheduler.step\(\)` before"):
        fit(stock, FirstEpochOverflows(halve, interval="epoch"), max_epochs=2)


@pytest.mark.parametrize("batches", [(0,), (3,), (0, 1)])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")  # what this test is about
def test_a_batch_without_a_loss_moves_schedulers_as_in_stock(precision: str, batches: tuple[int, ...]) -> None:
    """Nothing overflowed, so nothing holds."""

    def seen(plugin: Any) -> list[tuple[float, float]]:
        model = Scheduled(SCHEDULERS["warm-up"], fault=lambda loss, idx: None if idx in batches else loss)
        return fit(plugin, model).seen

    assert seen(AdaptivePrecision(precision)) == seen(MixedPrecision("bf16-mixed", "cpu"))
