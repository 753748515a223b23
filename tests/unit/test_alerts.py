import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from mp_plugin.alerts import Alerts
from mp_plugin.telemetry.advice import advice
from tests.helpers.training import quiet_trainer
from tests.unit.telemetry.test_events import incident
from tests.unit.telemetry.test_panel import traced


@pytest.fixture
def wandb_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbLogger]:
    """A real one, which writes to disk what it would send."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield WandbLogger(save_dir=tmp_path, project="incidents")
    wandb.teardown()


def trainer_with(*loggers: Any) -> pl.Trainer:
    return quiet_trainer(logger=list(loggers))


def test_an_incident_reaches_wandb(wandb_logger: WandbLogger, tmp_path: Path) -> None:
    trainer = trainer_with(CSVLogger(tmp_path), wandb_logger)
    alerts = Alerts()
    alerts.send(trainer, traced(operator="aten." + "x" * 100))
    alerts.send(trainer, incident())
    wandb_logger.experiment.finish()
    pytest.importorskip("wandb").teardown()  # which waits until everything is on disk
    (file,) = tmp_path.rglob("*.wandb")
    sent = file.read_bytes()
    for text in ("unknown: inf gradients", str(incident()), str(traced().reason), advice(traced()), "WARN"):
        assert text.encode() in sent
    # A field of 63 bytes: W&B wants no longer titles.
    assert b"\n\x3fforward: aten.xxx" in sent


def test_other_loggers_and_none_are_left_alone(tmp_path: Path) -> None:
    Alerts().send(trainer_with(), incident())
    Alerts().send(trainer_with(CSVLogger(tmp_path)), incident())
    assert not list(tmp_path.iterdir())


class Unreachable(WandbLogger):
    """A tracker that cannot be reached."""

    calls = 0

    def __init__(self) -> None:
        pass

    @property
    def experiment(self) -> Any:
        self.calls += 1
        raise ConnectionError("no route to host")


def test_a_tracker_that_fails_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = Unreachable()
    trainer, alerts = trainer_with(logger), Alerts()
    caplog.clear()
    for _ in range(3):
        alerts.send(trainer, incident())
    assert logger.calls == 1
    (message,) = (record.getMessage() for record in caplog.records if record.name == "mp_plugin.alerts")
    assert message.startswith("W&B cannot be alerted (ConnectionError: no route to host); ")


def test_wandb_is_not_imported_for_those_who_have_none() -> None:
    code = "import sys; sys.modules['wandb'] = None; import mp_plugin.alerts"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
