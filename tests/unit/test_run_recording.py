import json
from pathlib import Path

import lightning.pytorch as pl
import pytest

from mp_plugin import AdaptivePrecision, Telemetry
from mp_plugin.run_recording import RunRecording
from mp_plugin.telemetry.store import open_run
from tests.helpers.training import Regression, quiet_trainer, regression_data


def test_a_run_tells_of_itself_from_its_start_to_its_end(tmp_path: Path) -> None:
    seen = []

    class Looks(pl.Callback):
        def on_train_batch_end(self, *_) -> None:
            seen.append(json.loads((tmp_path / "telemetry" / "run.json").read_text())["status"])

    plugin = AdaptivePrecision("bf16", telemetry=Telemetry(directory=tmp_path))
    quiet_trainer(plugins=[plugin], callbacks=[Looks()]).fit(Regression(), regression_data())
    assert set(seen) == {"running"}
    info = open_run(tmp_path).info
    assert (info.status, info.precision, info.compute_dtype) == ("finished", "bf16-mixed", "bf16")
    assert info.summary == json.loads(json.dumps(plugin.summary()))
    assert info.telemetry["every_n_steps"] == 100
    assert info.environment["strategy"] == "SingleDeviceStrategy"
    assert set(open_run(tmp_path).samples["run"].to_pylist()) == {info.run}


@pytest.mark.parametrize(
    ("telemetry", "logger", "wanted"),
    [
        (None, False, False),
        (None, True, True),
        (Telemetry(max_traced=3, census=True), False, False),
        (Telemetry(max_traced=3), True, True),
        (Telemetry(activations=True), False, True),
        (Telemetry(every_n_steps=10), False, True),
        (Telemetry(directory="runs"), False, True),
    ],
)
def test_a_record_is_wanted_by_who_logs_or_asks_for_samples(
    tmp_path: Path, telemetry: Telemetry | None, logger: bool, wanted: bool
) -> None:
    loggers = [pl.loggers.CSVLogger(tmp_path)] if logger else False
    plugin = AdaptivePrecision("bf16", telemetry=telemetry)
    trainer = quiet_trainer(plugins=[plugin], logger=loggers)
    assert RunRecording(trainer, plugin).is_wanted is wanted


def test_a_directory_that_cannot_be_written_is_told_once_and_training_goes_on(tmp_path: Path, caplog) -> None:
    (tmp_path / "telemetry").write_text("in the way")
    plugin = AdaptivePrecision("bf16", telemetry=Telemetry(directory=tmp_path, every_n_steps=1, max_overhead=1))
    quiet_trainer(plugins=[plugin]).fit(Regression(), regression_data())
    assert plugin.effective_step == 8
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(told) == 2
    assert "run.json cannot be written" in told[0]
    assert "samples are no longer recorded" in told[1]


def test_a_quick_try_leaves_nothing(tmp_path: Path) -> None:
    plugin = AdaptivePrecision("bf16", telemetry=Telemetry(directory=tmp_path))
    quiet_trainer(plugins=[plugin], fast_dev_run=2, default_root_dir=tmp_path).fit(Regression(), regression_data())
    assert list(tmp_path.iterdir()) == []
