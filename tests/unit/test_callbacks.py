"""What a run shows, read from real loggers and a real progress bar."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import Regression, overflowing_at, quiet_trainer, regression_data


class ShownMetrics(ProgressBar):
    """What a progress bar would show after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.shown.append(self.get_metrics(trainer, pl_module))

    def disable(self) -> None:
        pass


def test_metrics_reach_the_logger_and_the_callback_metrics(tmp_path: Path) -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=1024, retries=0))
    trainer = quiet_trainer(plugins=[plugin], logger=CSVLogger(tmp_path), log_every_n_steps=2, max_epochs=2)
    trainer.fit(Regression(fault=overflowing_at(2)), regression_data())
    (path,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [float(row["precision/loss_scale"]) for row in rows] == [1024, 512, 512, 512, 512, 256, 256, 256]
    assert [float(row["precision/skipped_steps"]) for row in rows] == [0, 1, 1, 1, 1, 2, 2, 2]
    assert [float(row["precision/effective_step"]) for row in rows] == [2, 3, 5, 7, 9, 10, 12, 14]
    assert [float(row["precision/incidents"]) for row in rows] == [0, 1, 1, 1, 1, 2, 2, 2]
    assert trainer.callback_metrics["precision/loss_scale"] == 256
    assert trainer.callback_metrics["precision/fp32_layers"] == len(plugin.fp32_layers) == 0
    assert not {"skipped", "loss_scale"} & set(rows[0])  # names of the progress bar alone


def test_metrics_are_there_at_the_end_of_a_short_epoch() -> None:
    trainer = quiet_trainer(plugins=[AdaptivePrecision("bf16")], log_every_n_steps=1000)
    trainer.fit(Regression(fault=overflowing_at(3)), regression_data())
    assert trainer.callback_metrics["precision/skipped_steps"] == 1


def test_the_table_comes_once_when_the_end_of_a_fit_fails(capsys: pytest.CaptureFixture[str]) -> None:
    class FailsAtTheEnd(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            raise KeyError("planted")

    trainer = quiet_trainer(plugins=[AdaptivePrecision("bf16")], callbacks=[FailsAtTheEnd()])
    with pytest.raises(KeyError, match="planted"):
        trainer.fit(Regression(), regression_data())
    assert capsys.readouterr().out.count("Precision summary") == 1


@pytest.mark.parametrize(("precision", "scales"), [("fp16", [1024, 512]), ("bf16", [None, None])])
def test_the_progress_bar_shows_scale_and_skips(precision: str, scales: list[float | None]) -> None:
    scaling = LossScaling(init_scale=1024, retries=0) if precision == "fp16" else None
    bar = ShownMetrics()
    plugin = AdaptivePrecision(precision, scaling=scaling)
    trainer = quiet_trainer(plugins=[plugin], callbacks=[bar], enable_progress_bar=True, max_epochs=2)
    trainer.fit(Regression(fault=overflowing_at(3)), regression_data())
    assert [bar.shown[index].get("loss_scale") for index in (2, 7)] == scales
    nothing_yet = 0 if precision == "fp16" else None
    assert [bar.shown[index].get("skipped") for index in (2, 7, 8, 15)] == [nothing_yet, 1, 1, 2]


def test_the_table_comes_at_the_end_of_a_fit(capsys: pytest.CaptureFixture[str]) -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=1024, retries=0))
    quiet_trainer(plugins=[plugin]).fit(Regression(fault=overflowing_at(3)), regression_data())
    output = capsys.readouterr().out
    for expected in ("Precision summary", "16-mixed", "512 (min 512, max 1,024)", "net.0.weight"):
        assert expected in output


def test_the_table_goes_through_the_console_of_a_live_progress_bar() -> None:
    """Two consoles would overwrite each other's lines on a terminal."""
    bar = RichProgressBar(console_kwargs={"record": True, "file": io.StringIO()})
    trainer = quiet_trainer(plugins=[AdaptivePrecision("bf16")], callbacks=[bar], enable_progress_bar=True)
    trainer.fit(Regression(), regression_data())
    assert "Precision summary" in bar._console.export_text()


def test_the_table_comes_after_an_exception_too(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(loss: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 4:
            raise RuntimeError("planted")
        return loss

    with pytest.raises(RuntimeError, match="planted"):
        quiet_trainer(plugins=[AdaptivePrecision("bf16")]).fit(Regression(fault=interrupt), regression_data())
    assert "Precision summary" in capsys.readouterr().out


def test_a_fit_without_a_step_has_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_trainer(plugins=[AdaptivePrecision("bf16")], max_epochs=0).fit(Regression(), regression_data())
    assert "Precision summary" not in capsys.readouterr().out


def test_a_barebones_trainer_is_not_bothered_with_logging() -> None:
    plugin = AdaptivePrecision("bf16")
    pl.Trainer(barebones=True, accelerator="cpu", max_epochs=1, plugins=[plugin]).fit(Regression(), regression_data())
    assert plugin.effective_step == 8


def test_true_fp16_survives_adam_with_its_default_eps() -> None:
    plugin = AdaptivePrecision("fp16_true")
    model = Regression(optimizer=torch.optim.AdamW, lr=1e-3)
    with torch.no_grad():
        model.net[0].weight.zero_()  # as in many heads: the first gradients behind it are exactly zero
    quiet_trainer(plugins=[plugin]).fit(model, regression_data())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert plugin.effective_step == 8


def test_the_eps_of_fp32_weights_is_left_alone() -> None:
    model = Regression(optimizer=torch.optim.AdamW, lr=1e-3)
    trainer = quiet_trainer(plugins=[AdaptivePrecision("fp16")])
    trainer.fit(model, regression_data())
    assert trainer.optimizers[0].param_groups[0]["eps"] == 1e-8
