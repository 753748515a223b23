"""Checkpoints: resumed runs equal uninterrupted ones, and stock Lightning's are understood both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import CheckpointError
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    overflowing_at,
    quiet_trainer,
    regression_data,
    weights,
)

SCALING = LossScaling(init_scale=2**12, growth_interval=3, hysteresis=2, retries=0)


def fp16() -> AdaptivePrecision:
    return AdaptivePrecision("fp16", scaling=SCALING)


def model() -> Regression:
    return Regression(optimizer=torch.optim.AdamW, lr=0.01, fault=overflowing_at(2, 5, 6))


def train(plugin: Any, path: Path | None = None, *, epochs: int, resume: Path | None = None) -> Any:
    """Fit up to a number of epochs, from a checkpoint if there is one, and save one if asked."""
    trainer = quiet_trainer(plugins=[plugin], max_epochs=epochs)
    module = model()
    trainer.fit(module, regression_data(), ckpt_path=resume, weights_only=True if resume else None)
    if path is not None:
        trainer.save_checkpoint(path)
    return module


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Trap 37: hysteresis and counters included."""
    whole, first, second = fp16(), fp16(), fp16()
    uninterrupted = train(whole, epochs=4)
    train(first, tmp_path / "half.ckpt", epochs=2)
    resumed = train(second, epochs=4, resume=tmp_path / "half.ckpt")
    assert_bitwise_equal(weights(resumed), weights(uninterrupted))
    assert second.scaler is not None
    assert whole.scaler is not None
    assert second.scaler.state == whole.scaler.state
    assert second.summary() == whole.summary()
    assert second.skipped_steps == 12


def test_a_checkpoint_holds_plain_types_only(tmp_path: Path) -> None:
    """Trap 38: a safe loader takes it."""
    train(fp16(), tmp_path / "run.ckpt", epochs=1)
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert checkpoint["AdaptivePrecision"]["precision"] == "16-mixed"


def test_stock_resumes_our_run_at_our_scale(tmp_path: Path) -> None:
    plugin = fp16()
    train(plugin, tmp_path / "ours.ckpt", epochs=1)
    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))
    train(stock, epochs=1, resume=tmp_path / "ours.ckpt")
    assert stock.scaler is not None
    assert stock.scaler.state_dict()["scale"] == plugin.loss_scale


def test_we_resume_a_stock_run_at_its_scale(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    train(MixedPrecision("16-mixed", "cpu", scaler), tmp_path / "stock.ckpt", epochs=1)
    plugin = fp16()
    train(plugin, epochs=1, resume=tmp_path / "stock.ckpt")
    assert plugin.loss_scale == scaler.get_scale()


@pytest.mark.parametrize(("saved", "loaded"), [("fp16", "bf16"), ("bf16", "fp16"), ("fp32", "fp16")])
def test_a_run_may_go_on_in_another_precision(tmp_path: Path, saved: str, loaded: str) -> None:
    train(AdaptivePrecision(saved), tmp_path / "run.ckpt", epochs=1)
    plugin = AdaptivePrecision(loaded)
    train(plugin, epochs=2, resume=tmp_path / "run.ckpt")
    assert plugin.effective_step + plugin.skipped_steps == 16


def test_a_damaged_checkpoint_is_refused_before_training(tmp_path: Path) -> None:
    train(fp16(), tmp_path / "run.ckpt", epochs=1)
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    checkpoint["AdaptivePrecision"]["scale"] = float("nan")
    torch.save(checkpoint, tmp_path / "run.ckpt")
    plugin = fp16()
    with pytest.raises(CheckpointError, match="The loss scaler state has scale=nan; accepted: a finite number above 0"):
        train(plugin, epochs=2, resume=tmp_path / "run.ckpt")
    assert plugin.effective_step == 0
