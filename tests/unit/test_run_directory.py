import logging
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from mp_plugin.config import Telemetry
from mp_plugin.run_directory import run_directory
from tests.helpers.training import quiet_trainer


def test_it_is_the_one_asked_for_then_the_logger_s_then_the_trainer_s(tmp_path: Path) -> None:
    plain = quiet_trainer(default_root_dir=tmp_path)
    assert run_directory(plain, Telemetry()) == str(tmp_path)
    logging_one = quiet_trainer(default_root_dir=tmp_path, logger=CSVLogger(tmp_path / "logs", name="run", version=7))
    assert run_directory(logging_one, Telemetry()) == str(tmp_path / "logs" / "run" / "version_7")
    assert run_directory(logging_one, Telemetry(directory=str(tmp_path / "own"))) == str(tmp_path / "own")


def test_a_trial_run_has_none(tmp_path: Path) -> None:
    trial = quiet_trainer(default_root_dir=tmp_path, fast_dev_run=True)
    assert run_directory(trial, Telemetry(directory=str(tmp_path))) is None


def test_far_from_this_machine_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    trainer = quiet_trainer()
    with caplog.at_level(logging.WARNING):
        assert run_directory(trainer, Telemetry(directory="s3://bucket/run")) is None
    assert "Telemetry cannot be written to s3://bucket/run; Telemetry.directory takes a local path." in caplog.text
