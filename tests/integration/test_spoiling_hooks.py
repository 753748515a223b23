"""Hooks and clippings of a user's own that make finite gradients non-finite, after the plugin has looked at them."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from mp_plugin import AdaptivePrecision
from mp_plugin.numerics.grad_totals import grad_totals
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data, weights

BAD_BATCH = 2


def spoil(module: Any, batch_idx: int) -> None:
    if batch_idx == BAD_BATCH:
        # Through `data`, which leaves no trace in the tensor's version.
        module.net[0].weight.grad.data[0, 0] = math.nan


class InHook(Regression):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        spoil(self, self.trainer.fit_loop.batch_idx)


class InClipping(Regression):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        spoil(self, self.trainer.fit_loop.batch_idx)


class Looking(pl.Callback):
    """Reads gradients and changes nothing."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        assert pl_module.net[0].weight.grad.shape == (16, 8)


class InCallback(pl.Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        spoil(pl_module, trainer.fit_loop.batch_idx)


class AfterClippingByHand(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        spoil(self, batch_idx)
        optimizer.step()


CASES: dict[str, tuple[Callable[[], Regression], list[pl.Callback]]] = {
    "hook": (InHook, []),
    "clipping": (InClipping, []),
    "callback": (Regression, [InCallback()]),
    "by hand": (AfterClippingByHand, []),
    "by hand and looked at": (AfterClippingByHand, [Looking()]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_step_with_spoiled_gradients_is_skipped(case: str, precision: str) -> None:
    make, callbacks = CASES[case]
    plugin = AdaptivePrecision(precision)
    before = plugin.loss_scale
    model = make()
    quiet_trainer(plugins=[plugin], callbacks=list(callbacks)).fit(model, regression_data())
    assert all(weight.isfinite().all() for weight in weights(model))
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (7, 1, before)
    (incident,) = plugin.incidents
    assert (incident.batch_idx, incident.kind, incident.parameters) == (BAD_BATCH, "nan", ("net.0.weight",))


def test_stock_steps_with_them() -> None:
    model = InHook()
    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    quiet_trainer(plugins=[stock]).fit(model, regression_data())
    assert weights(model)[0].isnan().any()


class Halving(pl.Callback):
    """Edits gradients in an honest way."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.grad.mul_(0.5)


def test_an_honest_edit_takes_effect() -> None:
    def train(plugin: Any) -> list[torch.Tensor]:
        model = Regression()
        quiet_trainer(plugins=[plugin], callbacks=[Halving()]).fit(model, regression_data())
        return weights(model)

    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**15))
    assert_bitwise_equal(train(AdaptivePrecision("fp16")), train(stock))


@pytest.mark.parametrize(("callbacks", "looks"), [([], 0), ([Looking()], 8)])
def test_only_who_may_edit_pays_for_another_look(
    monkeypatch: pytest.MonkeyPatch, callbacks: list[pl.Callback], looks: int
) -> None:
    """Clipping by Lightning's own means is no edit: it makes nothing non-finite."""
    looked: list[int] = []

    def watched(grads: Any) -> Any:
        looked.append(len(grads))
        return grad_totals(grads)

    # Under a loss scale nothing else calls it.
    monkeypatch.setattr("mp_plugin.scaling.guard.grad_totals", watched)
    trainer = quiet_trainer(plugins=[AdaptivePrecision("fp16")], callbacks=callbacks, gradient_clip_val=1.0)
    trainer.fit(Regression(), regression_data())
    assert len(looked) == looks


def spoil_on_rank_one(out: Path) -> None:
    class OnRankOne(Regression):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.global_rank == 1:
                spoil(self, self.trainer.fit_loop.batch_idx)

    for kind in ("module", "callback of one rank"):
        plugin = AdaptivePrecision("bf16")
        rank = int(os.environ["RANK"])
        callbacks = [InCallback()] if kind != "module" and rank == 1 else []
        trainer = quiet_trainer(plugins=[plugin], strategy="ddp", devices=2, callbacks=callbacks)
        model = OnRankOne() if kind == "module" else Regression()
        trainer.fit(model, regression_data(batches=8))
        torch.save({"weights": weights(model), "summary": plugin.summary()}, out / f"{kind}{rank}")


@pytest.mark.xdist_group("ranks")
def test_on_one_of_several_ranks_it_makes_all_of_them_skip(tmp_path: Path) -> None:
    run_on_ranks(spoil_on_rank_one, tmp_path)
    for kind in ("module", "callback of one rank"):
        ranks = [torch.load(tmp_path / f"{kind}{rank}", weights_only=True) for rank in range(2)]
        assert_bitwise_equal(ranks[0]["weights"], ranks[1]["weights"])
        assert ranks[0]["summary"] == ranks[1]["summary"]
        assert (ranks[0]["summary"]["effective_steps"], ranks[0]["summary"]["skipped_steps"]) == (3, 1)
