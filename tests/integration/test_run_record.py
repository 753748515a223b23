"""A run that is killed while it writes leaves everything up to its last flush."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mp_plugin.telemetry.store import open_run

ROOT = Path(__file__).parents[2]

TRAIN = """
import os, signal, sys
from pathlib import Path
from mp_plugin.telemetry.incident_log import IncidentLog
from mp_plugin.telemetry.write_samples import StatsFiles
from tests.unit.telemetry.test_events import incident
from tests.unit.telemetry.test_run_info import INFO
from tests.unit.telemetry.test_stats_files import sample

directory, how = sys.argv[1:]
files = StatsFiles(directory, run=INFO.run)
INFO.save(directory)
log = IncidentLog(directory, run=INFO.run)
step = 0
while True:
    files.append([sample(step, layer) for layer in ("a", "b", "c")])
    if step % 10 == 9:
        files.flush()
        print(step, flush=True)
        log.append(incident(step=step))
    if how == "in a part" and step == 45:
        from pyarrow import parquet
        write_table = parquet.write_table
        def killed(table, path, **options):
            write_table(table, path, **options)
            Path(path).write_bytes(Path(path).read_bytes()[:-100])
            signal.raise_signal(signal.SIGKILL)
        parquet.write_table = killed
    step += 1
"""


def train(directory: Path, how: str) -> "subprocess.Popen[str]":
    code = [sys.executable, "-c", TRAIN, str(directory), how]
    return subprocess.Popen(code, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def is_read_up_to(directory: Path, newest: int) -> None:
    run = open_run(directory)
    steps = run.samples["step"].to_pylist()
    assert steps == [step for step in range(len(steps) // 3) for _ in "abc"]
    assert run.samples["layer"].to_pylist() == ["a", "b", "c"] * (len(steps) // 3)
    assert steps[-1] >= newest
    assert run.info is not None
    assert run.info.status == "running"
    assert [each.step for each in run.incidents][: newest // 10] == list(range(9, newest, 10))


def test_a_kill_at_any_time_costs_what_was_not_flushed(tmp_path: Path) -> None:
    process = train(tmp_path, "from outside")
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 100:
            break
        if int(line) == 49:
            is_read_up_to(tmp_path, 49)  # while it goes on
    time.sleep(0.037)  # into whatever it is doing
    os.kill(process.pid, signal.SIGKILL)
    newest = max([int(line) for line in process.stdout], default=109)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    is_read_up_to(tmp_path, newest)
    assert open_run(tmp_path).damaged == ()


def test_a_kill_within_a_part_costs_that_part_and_the_next_session_goes_on(tmp_path: Path) -> None:
    process = train(tmp_path, "in a part")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    newest = int(output.split()[-1])
    assert newest == 39
    is_read_up_to(tmp_path, newest)
    run = open_run(tmp_path)
    assert run.samples["step"].to_pylist()[-1] == 39
    assert run.damaged == ()
    left = [path for path in (tmp_path / "telemetry" / "stats").iterdir() if path.suffix == ".partial"]
    assert len(left) == 1
    resumed = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path), "in a part"], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
    )
    assert resumed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "telemetry" / "stats").glob(".*.partial"))) == 2
    assert open_run(tmp_path).samples["step"].unique().to_pylist() == list(range(40))


@pytest.mark.parametrize("cut", [1, 200, -1])
def test_a_part_that_lost_its_end_with_the_power_is_named(tmp_path: Path, cut: int) -> None:
    process = train(tmp_path, "in a part")
    process.communicate(timeout=100)
    parts = sorted((tmp_path / "telemetry" / "stats").glob("*.parquet"))
    parts[-1].write_bytes(parts[-1].read_bytes()[:cut])
    run = open_run(tmp_path)
    assert [path for path, _ in run.damaged] == [parts[-1]]
    assert run.samples["step"].unique().to_pylist() == list(range(30))


REAL_TRAINING = """
import signal, sys
import lightning.pytorch as pl
from mp_plugin import AdaptivePrecision, Telemetry
from tests.helpers.training import Regression, infinite_at, quiet_trainer, regression_data

class Killed(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 30:
            signal.raise_signal(signal.SIGKILL)

directory = sys.argv[1]
telemetry = Telemetry(every_n_steps=1, activations=True, histograms=True, max_overhead=1, directory=directory)
trainer = quiet_trainer(plugins=[AdaptivePrecision("bf16", telemetry=telemetry)], callbacks=[Killed()])
trainer.fit(Regression(fault=infinite_at(3)), regression_data(batches=40))
"""


def test_a_training_that_is_killed_becomes_a_page(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", REAL_TRAINING, str(tmp_path / "run")], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    run = open_run(tmp_path / "run")
    steps = set(run.samples["step"].to_pylist())
    assert run.damaged == ()
    assert steps == set(range(max(steps) + 1))
    assert [each.step for each in run.incidents] == [3]
    page = tmp_path / "report.html"
    command = [
        sys.executable,
        "-c",
        "from mp_plugin.cli import main; main()",
        "report",
        str(tmp_path / "run"),
        "-o",
        page,
    ]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "Still running at step" in told.stdout  # so far nobody can tell a killed run from one that goes on
    assert "Still running at step" in page.read_text(encoding="utf-8")
