import json
import logging
import math
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.events import Action, Cause, Direction, Incident
from mp_plugin.telemetry.incident_log import IncidentLog, read_incidents
from tests.unit.telemetry.test_events import incident


def full() -> Incident:
    """An incident with something in every field."""
    return incident(
        action=Action.retry,
        cause=Cause.backward,
        direction=Direction.backward,
        layer="net.0",
        operator="aten.mul.Tensor",
        location="model.py:7 in forward",
        amax_in=2.0,
        amax_out=math.nan,
        reason="0/0",
        traced=True,
        cured=True,
        evidence={"loss": math.inf, "weights": ["net.0.weight"], "batch_finite": True},
    )


def test_every_incident_is_a_line_of_its_own_at_once(tmp_path: Path) -> None:
    log = IncidentLog(tmp_path)
    assert not list(tmp_path.iterdir())
    before = datetime.now(timezone.utc)
    for step in range(3):
        log.append(incident(step=step), batch_file=f"batches/{step}.pt")
        lines = log.path.read_text().splitlines()
        assert len(lines) == step + 1
        line = json.loads(lines[-1], parse_constant=pytest.fail)
        assert (line["version"], line["step"], line["batch_file"]) == (1, step, f"batches/{step}.pt")
        written = datetime.fromisoformat(line["time"])
        assert written.utcoffset() == timedelta(0)
        assert before - timedelta(milliseconds=1) <= written <= datetime.now(timezone.utc)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    log = IncidentLog(tmp_path)
    log.append(full(), batch_file=None)
    IncidentLog(tmp_path).append(incident())  # of a run that was resumed
    first, second = read_incidents(log.path)
    # A NaN equals nothing, and evidence stays JSON.
    assert first.as_dict() == full().as_dict()
    assert first.action is Action.retry
    assert first.direction is Direction.backward
    assert second == incident()


def test_evidence_that_is_no_json_is_described(tmp_path: Path) -> None:
    log = IncidentLog(tmp_path)
    log.append(incident(evidence={"device": {1, 2}}))
    assert json.loads(log.path.read_text())["evidence"] == {"device": "{1, 2}"}


@pytest.mark.parametrize("cut", [1, 20, -2, -1])
def test_a_torn_line_costs_itself_only(tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int) -> None:
    log = IncidentLog(tmp_path)
    log.append(incident(step=1))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[:cut])
    # Cut off behind its last brace, a line is complete.
    survivors = [1, 1] if cut == -1 else [1]
    assert [each.step for each in read_incidents(log.path)] == survivors
    log.append(incident(step=2))
    caplog.clear()
    assert [each.step for each in read_incidents(log.path)] == [*survivors, 2]
    warnings = [f"{log.path}, line 2 is not complete and is left out; the process that wrote it was killed."]
    assert caplog.messages == (warnings if cut != -1 else [])


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from mp_plugin.telemetry.incident_log import IncidentLog\n"
        "from tests.unit.telemetry.test_events import incident\n"
        "IncidentLog(sys.argv[1]).append(incident(step=7))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=root, capture_output=True, check=False)
    assert result.returncode == -9, result.stderr
    assert [each.step for each in read_incidents(IncidentLog(tmp_path).path)] == [7]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"version": 2, "step": 1}', r"line 1 has version=2; accepted: 1\."),
        ('{"step": 1}', r"line 1 has version=None; accepted: 1\."),
        ("[1, 2]", r"line 1 has version=None; accepted: 1\."),
        ('{"version": 1, "step": 1}', r"line 1 is not an incident \(KeyError\('parameters'\)\)"),
    ],
)
def test_what_is_no_incident_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "incidents.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TelemetryError, match=message):
        read_incidents(path)


def test_trouble_with_the_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "telemetry").write_text("a file where the folder should be")
    log = IncidentLog(tmp_path)
    for _ in range(3):
        log.append(incident())
    (message,) = caplog.messages
    assert "cannot be written (FileExistsError: " in message
    assert caplog.records[0].levelno == logging.WARNING
    (tmp_path / "telemetry").unlink()
    log.append(incident())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = IncidentLog(tmp_path)
    log.path.parent.mkdir()
    log.path.symlink_to("/dev/full")
    log.append(incident())
    log.append(incident())
    (message,) = caplog.messages
    assert "No space left on device" in message
