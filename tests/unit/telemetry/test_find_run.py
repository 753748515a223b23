import os
import re
from pathlib import Path

import pytest

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry import find_run as module
from mp_plugin.telemetry.find_run import find_run


def leave(run: Path, trace: str = "run.json") -> Path:
    """Leave what a run leaves; returns the run's directory."""
    path = run / "telemetry" / trace
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return run


@pytest.mark.parametrize("trace", ["run.json", "incidents.jsonl", "census.json", "stats/part-00000.parquet"])
def test_the_run_itself_its_telemetry_and_what_is_above_lead_to_it(tmp_path: Path, trace: str) -> None:
    run = leave(tmp_path / "2026-02-03" / "04-05-06" / "logs" / "csv" / "version_0", trace)
    for path in (run, run / "telemetry", run.parent, run.parents[1], run.parents[2], tmp_path):
        assert find_run(path) == run
        assert find_run(f"{path}/") == run


def test_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = leave(tmp_path / "runs" / "7")
    for place in (run, run / "telemetry", tmp_path):
        monkeypatch.chdir(place)
        assert find_run(".").resolve() == run
    monkeypatch.chdir(run)
    assert find_run("telemetry") == Path()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_run("~/runs") == run


def test_links_are_followed_where_they_are_given_but_not_searched(tmp_path: Path) -> None:
    run = leave(tmp_path / "7")
    (tmp_path / "latest").symlink_to(run)
    (tmp_path / "its telemetry").symlink_to(run / "telemetry")
    (tmp_path / "round").symlink_to(tmp_path)
    assert find_run(tmp_path / "latest") == tmp_path / "latest"
    assert find_run(tmp_path / "its telemetry").resolve() == run
    assert find_run(tmp_path) == run


def test_a_run_hides_those_below_it(tmp_path: Path) -> None:
    leave(tmp_path / "checkpoints" / "old")
    assert find_run(leave(tmp_path)) == tmp_path


def test_a_run_may_be_called_telemetry(tmp_path: Path) -> None:
    run = leave(tmp_path / "telemetry")
    assert find_run(run) == run
    assert find_run(run / "telemetry") == run


def test_several_runs_are_listed_newest_first(tmp_path: Path) -> None:
    runs = [leave(tmp_path / f"run {number}") for number in range(7)]
    for age, run in enumerate(runs):
        os.utime(run / "telemetry", (1e9 + age, 1e9 + age))
    listed = ", ".join(map(str, runs[:1:-1]))
    message = f"{tmp_path} holds 7 runs; accepted: one of them, newest first {listed} and 2 more."
    with pytest.raises(TelemetryError, match=f"^{re.escape(message)}$"):
        find_run(tmp_path)


def test_what_is_no_run_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "telemetry" / "stats").mkdir(parents=True)
    (tmp_path / "model.ckpt").write_text("")
    leave(tmp_path / ".hidden")
    leave(tmp_path / "1" / "2" / "3" / "4" / "5" / "6" / "too deep")
    for place in (tmp_path, tmp_path / "telemetry", tmp_path / "telemetry" / "stats"):
        with pytest.raises(TelemetryError, match=r"holds no run: none of telemetry/run\.json, telemetry/st"):
            find_run(place)
    assert find_run(tmp_path / "1").name == "too deep"


def test_what_is_no_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, problem in (("missing", "does not exist"), ("file", "is a file"), ("nul\0", "does not exist")):
        with pytest.raises(TelemetryError, match=f"{problem}; accepted: the directory of a run"):
            find_run(tmp_path / name)
    with pytest.raises(TelemetryError, match="does not exist"):
        find_run(tmp_path / ("x" * 5000))


def test_a_large_tree_is_not_searched_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DIRECTORIES", 20)
    for number in range(30):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(TelemetryError, match="holds more than 20 directories, too many to search"):
        find_run(tmp_path)
