"""The moving average of the weights, against one computed by hand."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig

from {{cookiecutter.package_name}} import run as run_module
from {{cookiecutter.package_name}}.shard import FSDP2, refuse_unsuited
from {{cookiecutter.package_name}}.training import train

pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENT = "digits" if (CONF / "experiment" / "digits.yaml").exists() else "lm"
EMA = ["callbacks=[default,ema]", "callbacks.progress_bar=null", "callbacks.ema.decay=0.75"]


class ByHand(Callback):
    """Plant an overflow in one step, and keep the average of the weights after every other step.

    Args:
        bad_batch: number of the batch whose gradients overflow, counted over the whole run; None for no such batch.
    """

    def __init__(self, bad_batch: int | None) -> None:
        self.bad_batch, self.average, self.skipped = bad_batch, dict[str, torch.Tensor](), 0
        self.seen = 0
        self.validated: list[torch.Tensor] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Let the gradients overflow while they are computed."""
        parameter = next(pl_module.parameters())
        if self.seen == self.bad_batch and not parameter._backward_hooks:
            parameter.register_hook(lambda gradient: gradient * float("inf"))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Take in the weights of a step that was taken."""
        self.seen += 1
        for parameter in pl_module.parameters():
            (parameter._backward_hooks or {}).clear()
        weights = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
        if trainer.precision_plugin.skipped_steps > self.skipped:
            self.skipped = trainer.precision_plugin.skipped_steps
        elif not self.average:
            self.average = weights
        else:
            for name, value in weights.items():
                self.average[name] = self.average[name] + (value - self.average[name]) * 0.25

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Remember what is validated."""
        self.validated.append(next(pl_module.parameters()).detach().clone())


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], ByHand]:
    """Add the callback to the next run."""
    instantiate = run_module.instantiate_each

    def add(bad_batch: int | None) -> ByHand:
        callback = ByHand(bad_batch)
        # The loggers are made by the same function.
        monkeypatch.setattr(
            run_module,
            "instantiate_each",
            lambda group: instantiate(group) + ([callback] if group is not None and "ema" in group else []),
        )
        return callback

    return add


def test_average_leaves_skipped_steps_out(
    small: Callable[..., DictConfig], by_hand: Callable[[int | None], ByHand], tmp_path: Path
) -> None:
    fp16 = ["precision=fp16", "precision.scaling.retries=0", "precision/telemetry=none"]
    reference = by_hand(5)
    train(small(EXPERIMENT, *EMA, *fp16))
    assert reference.skipped == 1
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["ExponentialMovingAverage"] == {"latest_update_step": 7}
    for name, value in checkpoint["state_dict"].items():
        torch.testing.assert_close(value, reference.average[name], rtol=1e-6, atol=1e-7)
    moved = [not torch.equal(v, checkpoint["current_model_state"][n]) for n, v in checkpoint["state_dict"].items()]
    assert any(moved)
    first = next(iter(checkpoint["state_dict"].values()))
    torch.testing.assert_close(reference.validated[-1], first, rtol=1e-6, atol=1e-7)


def test_average_resumes_and_is_what_is_tested(
    small: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tested: list[dict[str, torch.Tensor]] = []
    every = ["callbacks.model_checkpoint.save_top_k=-1", "callbacks.model_checkpoint.filename='{epoch}'"]
    setup = run_module.KeepSettings

    class Tested(setup):  # type: ignore[misc, valid-type]
        def on_test_start(self, trainer: Any, pl_module: Any) -> None:
            tested.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    monkeypatch.setattr(run_module, "KeepSettings", Tested)
    train(small(EXPERIMENT, *EMA, *every, name="whole"))
    halfway = tmp_path / "whole" / "checkpoints" / "epoch=0.ckpt"
    train(small(EXPERIMENT, *EMA, f"ckpt_path='{halfway}'", name="resumed"))
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "resumed")
    )
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())
    best = torch.load(tmp_path / "resumed" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, tested[-1][name]) for name, value in best.items())


def test_average_of_spread_weights_is_refused() -> None:
    # Imported here, as below Lightning 2.6 there is nothing to import.
    ema = importlib.import_module("{{cookiecutter.package_name}}.ema")
    settings = {"callbacks": [ema.ExponentialMovingAverage()], "accelerator": "cpu", "devices": 2, "logger": False}
    refuse_unsuited(Trainer(strategy="ddp", **settings))
    with pytest.raises(ValueError, match="fsdp2 spread"):
        refuse_unsuited(Trainer(strategy=FSDP2(), **settings))
