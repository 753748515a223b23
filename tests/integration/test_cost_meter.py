"""What a training costs, measured in real trainings whose cost the test decides."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mp_plugin import CostMeter
from mp_plugin.batch_size import batch_size
from mp_plugin.cost import Spent
from mp_plugin.step_times import WARM_UP_STEPS
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import Regression, quiet_trainer, regression_data

KEYS = {
    *("version", "steps", "step_ms", "samples_per_second", "train_seconds", "waiting_share", "peak_memory_bytes"),
    *("peak_memory_of", "energy_joules", "energy_source", "device", "ranks", "seed"),
    *("fit_seconds", "accumulate_grad_batches", "sessions"),
}


class Slow(Regression):
    """A step that takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(self.seconds)
        return super().training_step(batch, batch_idx)


class SlowToValidate(Regression):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(0.05)


class SlowData(Dataset):
    def __init__(self, seconds: float, batches: int = 12) -> None:
        self.seconds, self.batches = seconds, batches

    def __len__(self) -> int:
        return 4 * self.batches

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.seconds / 4)
        return torch.ones(8), torch.ones(1)


def cost_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "telemetry" / "cost.json").read_text(encoding="utf-8"))


def fit(directory: Path, model: Any = None, data: Any = None, callbacks: tuple[Any, ...] = (), **options: Any) -> Any:
    trainer = quiet_trainer(callbacks=[CostMeter(str(directory)), *callbacks], **options)
    trainer.fit(model or Regression(), regression_data() if data is None else data)
    return cost_of(directory)


def test_the_record_has_the_agreed_keys(tmp_path):
    cost = fit(tmp_path, max_epochs=2)
    assert cost.keys() == KEYS
    assert (cost["version"], cost["steps"], cost["ranks"], cost["sessions"]) == (1, 16, 1, 1)
    assert cost["device"].startswith("cpu, ")
    assert cost["peak_memory_of"].startswith("process, resident")
    assert cost["peak_memory_bytes"] > 50 * 1024**2
    assert cost["energy_joules"] is None or cost["energy_source"] == "rapl"
    assert cost["energy_joules"] is not None or cost["energy_source"].startswith("not measured: ")
    assert 0 < cost["step_ms"]["p10"] <= cost["step_ms"]["median"] <= cost["step_ms"]["p90"]
    assert cost["train_seconds"] <= cost["fit_seconds"]


def test_waiting_and_computing_are_told_apart(tmp_path):
    busy = fit(tmp_path / "busy", Slow(0.02), DataLoader(SlowData(0.0), batch_size=4))
    idle = fit(tmp_path / "idle", None, DataLoader(SlowData(0.02), batch_size=4))
    assert busy["waiting_share"] < 0.5 < idle["waiting_share"]
    for cost in (busy, idle):
        assert cost["step_ms"]["p10"] >= 20
        assert cost["samples_per_second"] <= 4 / 0.02


def test_a_batch_that_is_asked_for_ahead_counts_as_waited_for(tmp_path):
    class Drip(IterableDataset):
        def __iter__(self) -> Any:
            for _ in range(32):
                time.sleep(0.005)
                yield torch.ones(8), torch.ones(1)

    cost = fit(tmp_path, data=DataLoader(Drip(), batch_size=4), max_epochs=2)
    assert cost["steps"] == 16
    assert cost["waiting_share"] > 0.5


def test_validation_and_checkpoints_are_not_training(tmp_path):
    class SlowFile(ModelCheckpoint):
        def on_save_checkpoint(self, *_: Any) -> None:
            time.sleep(0.1)

    saving = SlowFile(tmp_path, every_n_train_steps=2, save_top_k=-1)
    trainer = quiet_trainer(
        callbacks=[CostMeter(str(tmp_path)), saving], enable_checkpointing=True, val_check_interval=2, max_epochs=2
    )
    trainer.fit(SlowToValidate(), regression_data(), regression_data(batches=1))
    cost = cost_of(tmp_path)
    slept = 8 * 0.05 + 8 * 0.1
    assert cost["fit_seconds"] > slept
    assert cost["train_seconds"] < cost["fit_seconds"] - slept


def test_accumulated_batches_are_one_step(tmp_path):
    cost = fit(tmp_path, Slow(0.005), accumulate_grad_batches=2, max_epochs=2)
    assert (cost["steps"], cost["accumulate_grad_batches"]) == (8, 2)
    assert cost["step_ms"]["p10"] >= 10
    assert cost["samples_per_second"] <= 8 / 0.01


def test_steps_of_manual_optimization_count(tmp_path):
    class Manual(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            if batch_idx % 4 == 3:
                self.optimizers().step()
                self.optimizers().zero_grad()

    assert fit(tmp_path, Manual(), max_epochs=3)["steps"] == 6


def test_a_fit_of_the_warm_up_alone_has_no_figures_of_speed(tmp_path):
    cost = fit(tmp_path, data=regression_data(batches=WARM_UP_STEPS))
    assert cost["steps"] == WARM_UP_STEPS
    assert cost["step_ms"] == {"median": None, "p10": None, "p90": None}
    assert cost["samples_per_second"] is None
    assert cost["waiting_share"] is None
    assert cost["train_seconds"] > 0


def test_a_batch_of_which_nobody_can_tell_the_samples(tmp_path):
    class Odd(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step([batch[0], batch[1][:4]], batch_idx)

    data = DataLoader([[torch.ones(4, 8), torch.ones(5, 1)]] * 8, batch_size=None)
    cost = fit(tmp_path, Odd(), data)
    assert cost["samples_per_second"] is None
    assert cost["step_ms"]["median"] > 0


@dataclass
class Pair:
    left: torch.Tensor
    right: Any


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.ones(3, 2), 3),
        (Pair(torch.ones(3), {"a": [torch.ones(3, 1), "text"]}), 3),
        ((torch.ones(3), torch.tensor(1.0)), 3),
        ([torch.ones(3), torch.ones(4)], None),
        ("text", None),
        (None, None),
        ({}, None),
    ],
)
def test_samples_of_a_batch(batch, expected):
    assert batch_size(batch) == expected


def test_a_run_that_is_stopped_by_an_exception_leaves_its_cost(tmp_path):
    class Failing(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 6:
                raise ValueError("enough")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="enough"):
        fit(tmp_path, Failing())
    cost = cost_of(tmp_path)
    assert cost["steps"] == 6
    assert cost["samples_per_second"] > 0


def test_a_resumed_run_adds_to_the_former(tmp_path):
    file = tmp_path / "newest.ckpt"

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(file)

    def run(epochs: int, name: str, **options: Any) -> Any:
        trainer = quiet_trainer(callbacks=[CostMeter(str(tmp_path / name)), Save()], max_epochs=epochs)
        trainer.fit(Slow(0.01), regression_data(), **options)
        return cost_of(tmp_path / name)

    first = run(2, "first")
    torch.load(file, weights_only=True)
    second = run(3, "second", ckpt_path=file)
    assert (first["steps"], second["steps"]) == (16, 24)
    assert (first["sessions"], second["sessions"]) == (1, 2)
    assert second["train_seconds"] > 24 * 0.01
    assert first["train_seconds"] < second["train_seconds"]
    assert second["energy_joules"] is None or second["energy_joules"] > first["energy_joules"]
    # Speed is that of the newest session, whose warm-up is not in it.
    assert second["step_ms"]["p10"] >= 10


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_that_goes_on_in_the_middle_of_an_epoch_counts_from_there(tmp_path):
    file = tmp_path / "newest.ckpt"

    class Die(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                trainer.save_checkpoint(file)
                raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        fit(tmp_path / "first", callbacks=(Die(),))
    trainer = quiet_trainer(callbacks=[CostMeter(str(tmp_path / "second"))])
    trainer.fit(Slow(0.01), regression_data(), ckpt_path=file)
    cost = cost_of(tmp_path / "second")
    assert (cost["steps"], cost["sessions"]) == (8, 2)
    assert cost["train_seconds"] > 6 * 0.01
    assert cost["step_ms"]["p10"] >= 10


def test_one_meter_in_two_runs_and_in_one_that_goes_on(tmp_path):
    meter = CostMeter(str(tmp_path))
    trainer = quiet_trainer(callbacks=[meter])
    trainer.fit(Regression(), regression_data())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Regression(), regression_data())
    assert (cost_of(tmp_path)["steps"], cost_of(tmp_path)["sessions"]) == (16, 2)
    quiet_trainer(callbacks=[meter]).fit(Regression(), regression_data())
    assert (cost_of(tmp_path)["steps"], cost_of(tmp_path)["sessions"]) == (8, 1)


def test_joules_that_a_former_session_did_not_count_are_not_made_up(tmp_path):
    class Before(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            meter.load_state_dict({"steps": 3, "train_seconds": 1.0, "energy_joules": None, "sessions": 1})

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            assert meter._former == Spent(steps=3, train_seconds=1.0, energy_joules=None, sessions=1)

    meter = CostMeter(str(tmp_path))
    trainer = quiet_trainer(callbacks=[meter])
    trainer.fit(Regression(), regression_data())
    trainer.fit_loop.max_epochs = 2
    trainer.callbacks.append(Before())
    trainer.fit(Regression(), regression_data())
    cost = cost_of(tmp_path)
    assert (cost["steps"], cost["energy_joules"]) == (11, None)
    assert cost["energy_source"].startswith("not measured: ")


def test_trouble_is_told_and_training_goes_on(tmp_path, caplog):
    (tmp_path / "telemetry").write_text("in the way")
    trainer = quiet_trainer(callbacks=[CostMeter(str(tmp_path))])
    with caplog.at_level(logging.WARNING):
        trainer.fit(Regression(), regression_data())
    assert trainer.global_step == 8
    assert "telemetry/cost.json cannot be written" in caplog.text


def test_nothing_stays_behind(tmp_path):
    trainer = quiet_trainer(callbacks=[CostMeter(str(tmp_path))], fast_dev_run=True)
    trainer.fit(Regression(), regression_data())
    assert not list(tmp_path.iterdir())
    assert "save_checkpoint" not in vars(trainer)
    assert "_on_before_fetch" not in vars(trainer.fit_loop.epoch_loop)


def train_on_ranks(directory: str, fails: bool) -> None:
    class Failing(Slow):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if fails and batch_idx == 5:
                raise ValueError("enough")
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer(callbacks=[CostMeter(directory)], devices=2, strategy="ddp", max_epochs=2)
    try:
        trainer.fit(Failing(0.01), regression_data(batches=16))
    except ValueError:
        assert fails


def test_two_ranks_are_one_run(tmp_path):
    run_on_ranks(train_on_ranks, str(tmp_path), False)
    cost = cost_of(tmp_path)
    assert (cost["ranks"], cost["steps"]) == (2, 16)
    assert 0 < cost["samples_per_second"] <= 8 / 0.01
    assert cost["energy_source"] == "rapl" or "powercap" in cost["energy_source"]


def test_a_rank_that_fails_does_not_wait_for_the_other(tmp_path):
    run_on_ranks(train_on_ranks, str(tmp_path), True)
    cost = cost_of(tmp_path)
    assert (cost["ranks"], cost["steps"]) == (2, 5)
    assert cost["samples_per_second"] is None
    assert cost["energy_joules"] is None
    assert cost["energy_source"].startswith("not measured: ")
    assert cost["step_ms"]["median"] >= 10
