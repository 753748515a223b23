"""A run that was killed at any step and resumed equals the one that was not."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import Regression, assert_bitwise_equal, overflowing_at, quiet_trainer, regression_data

BATCHES = 6
EPOCHS = 2

# Each resumed run saves into a folder of its own, which ModelCheckpoint remarks upon.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")


class ResumableLoader:
    """Batches in fixed order; goes on in the middle of an epoch, as torchdata's StatefulDataLoader does."""

    def __init__(self) -> None:
        self.batches = list(regression_data(batches=BATCHES))
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.position %= len(self.batches)
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Troubled(Regression):
    """Overflows at every scale in one batch, at high scales in another, and meets an infinite loss in a third."""

    def __init__(self) -> None:
        super().__init__(optimizer=torch.optim.AdamW, lr=0.01)
        self.net.insert(1, torch.nn.BatchNorm1d(16))
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        plugin: Any = self.trainer.precision_plugin
        if batch_idx == 1 or (batch_idx == 4 and plugin.loss_scale > 2**9):
            return overflowing_at(batch_idx)(loss, batch_idx)
        return loss * float("inf") if batch_idx == 3 else loss

    def configure_optimizers(self) -> Any:
        optimizer: Any = super().configure_optimizers()
        schedulers = [
            {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 50), "interval": "step", "frequency": f}
            for f in (1, 3)
        ]
        return [optimizer], schedulers

    def on_train_batch_end(self, *_: Any) -> None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])


class StopsAfter(pl.Callback):
    """Kills its own process after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.steps:
            signal.raise_signal(signal.SIGKILL)


def run(
    folder: Path, *, resume: Path | None = None, accumulate: int = 1, callbacks: Any = (), **scaling: Any
) -> dict[str, Any]:
    """Train to the end, saving after every step; returns all that must be equal."""
    scaling = {"init_scale": 2**12, "growth_interval": 3, "min_scale": 2.0**-20, **scaling}
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(**scaling))
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(
        plugins=[plugin],
        callbacks=[saving, *callbacks],
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        accumulate_grad_batches=accumulate,
    )
    model = Troubled()
    trainer.fit(model, ResumableLoader(), ckpt_path=resume, weights_only=True if resume else None)
    assert plugin.scaler is not None
    return {
        "tensors": [tensor.clone() for tensor in model.state_dict().values()],
        "optimizer": trainer.optimizers[0].state_dict(),
        "rates": model.rates,
        "scale": plugin.scaler.state_dict(),
        "record": plugin.guard.record.state_dict(),
    }


def assert_same(resumed: dict[str, Any], whole: dict[str, Any]) -> None:
    assert_bitwise_equal(resumed["tensors"], whole["tensors"])
    torch.testing.assert_close(resumed["optimizer"], whole["optimizer"], rtol=0, atol=0)
    assert resumed["rates"] == whole["rates"][-len(resumed["rates"]) :]
    assert (resumed["scale"], resumed["record"]) == (whole["scale"], whole["record"])


@pytest.mark.parametrize(
    ("how", "lost", "retried"),
    [
        ({"hysteresis": 1}, 4, 1),
        # The first overflow leaves the scale alone, so that running the batch again would not help.
        ({"hysteresis": 2}, 5, 1),
        # No batch of a window can be run again without the others.
        ({"accumulate": 2}, 5, 0),
        ({"policy": "predictive"}, 4, 0),
    ],
    ids=str,
)
def test_a_run_resumed_after_any_step_equals_the_whole_run(
    tmp_path: Path, how: dict[str, Any], lost: int, retried: int
) -> None:
    whole = run(tmp_path / "whole", **how)
    assert (whole["record"]["skipped_steps"], whole["record"]["retried_steps"]) == (lost, retried)
    for step in range(1, BATCHES * EPOCHS // how.get("accumulate", 1)):
        saved = tmp_path / "whole" / f"step={step}.ckpt"
        assert_same(run(tmp_path / f"from-{step}", resume=saved, **how), whole)


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from tests.integration.test_killed_runs import *;"
        f"run(Path({str(tmp_path)!r}), callbacks=[StopsAfter(7)])"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    (*_, last) = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert last.stem in ("step=6", "step=7")
    assert_same(run(tmp_path / "resumed", resume=last), run(tmp_path / "whole"))
