"""A window of accumulated batches is run again with its cure, as if the layer had been in FP32 when it began.

The oracle: the same training without a fallback, whose layer is put into FP32 by hand where the window begins.
"""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torchmetrics import MeanMetric, SumMetric

from mp_plugin import AdaptivePrecision, Fallback, LossScaling
from mp_plugin.fallback.islands import Islands
from tests.helpers.faults.fp32 import LARGE, Inner, Layer, plant
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import assert_bitwise_equal, quiet_trainer, regression_data, weights

CULPRIT = "net.3"
SCALING = LossScaling(init_scale=2.0**8)


class Eventful(pl.LightningModule):
    """Everything that a second run of a window could disturb; layer 3 overflows in some batches, on one rank."""

    def __init__(self, *faulty: int, rank: int = 0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
        )
        plant(self.net[3], Inner)  # type: ignore[arg-type]
        self.faulty, self.faulty_rank = faulty, rank
        self.batches, self.mean = SumMetric(), MeanMetric(nan_strategy="ignore")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        is_faulty = batch_idx in self.faulty and self.global_rank == self.faulty_rank
        planted: Any = self.net[3]
        assert isinstance(planted, Layer)
        planted.gain = torch.tensor(LARGE if is_faulty else 1.0)
        outputs = self.net(inputs)
        self.batches.update(1.0)
        loss = nn.functional.mse_loss(outputs.float(), targets)
        self.mean.update(loss.detach())
        self.log("batches", self.batches, on_step=False, on_epoch=True)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("count", 1.0, reduce_fx="sum", on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}


class Hooks(Callback):
    """Lists what is called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(("batch", batch_idx))
        torch.rand(1)  # as augmentations may, between two batches

    def on_before_zero_grad(self, *_: Any) -> None:
        self.calls.append("zero_grad")

    def on_before_backward(self, *_: Any) -> None:
        self.calls.append("before backward")

    def on_after_backward(self, *_: Any) -> None:
        self.calls.append("after backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.calls.append("step")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(("end", batch_idx))


class ByHand(Callback):
    """Puts the layer into FP32 before a batch, and takes it out before another."""

    def __init__(self, first: int, last: int | None) -> None:
        self.first, self.last = first, last

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.islands = Islands(pl_module, device_type="cpu")
            self.islands.set([CULPRIT])
        elif batch_idx == self.last:
            self.islands.set([])

    def on_train_end(self, *_: Any) -> None:
        self.islands.set([])


def train(
    model: Eventful, *callbacks: Callback, fallback: Fallback | None = None, batches: int = 10, **options: Any
) -> Any:
    plugin = AdaptivePrecision("fp16", scaling=SCALING, fallback=fallback)
    trainer = quiet_trainer(
        plugins=[plugin], callbacks=[*callbacks], gradient_clip_val=0.1, log_every_n_steps=1, **options
    )
    pl.seed_everything(7, verbose=False)
    trainer.fit(model, regression_data(batches=batches))
    return plugin, trainer


def compare(*faulty: int, first: int, last: int | None = None, patience: int = 1, **options: Any) -> Any:
    """Train with a fallback, and by hand; whatever can be compared has to be equal."""
    rank = options.pop("rank", 0)
    model, hooks = Eventful(*faulty, rank=rank), Hooks()
    plugin, trainer = train(model, hooks, fallback=Fallback(auto=True, patience=patience), **options)
    truth, truth_hooks = Eventful(*faulty, rank=rank), Hooks()
    oracle, truth_trainer = train(truth, truth_hooks, ByHand(first, last), **options)
    assert oracle.incidents == []
    assert_bitwise_equal(weights(model), weights(truth))
    assert_bitwise_equal(list(model.buffers()), list(truth.buffers()))
    assert hooks.calls == truth_hooks.calls
    for name in ("batches", "mean", "loss_step", "loss_epoch", "count"):
        assert trainer.callback_metrics[name] == truth_trainer.callback_metrics[name], name
    assert plugin.effective_step == oracle.effective_step
    assert (plugin.skipped_steps, plugin.loss_scale) == (0, oracle.loss_scale)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 1
    return plugin


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("faulty", [0, 5, 9])
def test_a_window_is_run_again_with_its_cure(accumulate: int, faulty: int) -> None:
    """10 batches: with windows of 4, the last one has 2."""
    plugin = compare(faulty, first=faulty - faulty % accumulate, accumulate_grad_batches=accumulate)
    assert plugin.fp32_layers == [CULPRIT]
    assert plugin.retried_steps == 1
    assert [(each.batch_idx, each.cured) for each in plugin.incidents] == [(faulty, True)]


def test_several_batches_of_a_window_are_cured_together() -> None:
    plugin = compare(4, 6, 7, first=4, accumulate_grad_batches=4)
    assert plugin.fp32_layers == [CULPRIT]
    assert len(plugin.incidents) == 1


def test_before_patience_is_over_a_cure_is_for_one_window() -> None:
    plugin = compare(5, first=4, last=8, patience=2, accumulate_grad_batches=4)
    assert plugin.fp32_layers == []
    assert [(each.action.value, each.cured) for each in plugin.incidents] == [("fallback", True)]
    assert plugin.incidents[0].evidence["proof"]["stays"] is False


def test_weights_equal_those_of_a_run_with_the_rule_from_the_start() -> None:
    model, truth = Eventful(2), Eventful(2)
    train(model, fallback=Fallback(auto=True), accumulate_grad_batches=4)
    ruled, _ = train(truth, fallback=Fallback(layers=[CULPRIT]), accumulate_grad_batches=4)
    assert ruled.incidents == []
    assert_bitwise_equal(weights(model), weights(truth))


def _on_each_rank(faulty: int, accumulate: int) -> None:
    first = faulty - faulty % accumulate
    options = {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": accumulate}
    # Each rank sees half of the 20 batches, and one of them alone goes wrong.
    plugin = compare(faulty, first=first, rank=1, batches=20, **options)
    assert plugin.fp32_layers == [CULPRIT]
    assert [(each.rank, each.batch_idx, each.cured) for each in plugin.incidents] == [(1, faulty, True)]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("faulty", "accumulate"), [(3, 1), (9, 4)])
def test_all_ranks_run_a_window_again_together(faulty: int, accumulate: int) -> None:
    run_on_ranks(_on_each_rank, faulty, accumulate)
