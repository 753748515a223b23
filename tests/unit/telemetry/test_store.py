import json
import random
from pathlib import Path

import pyarrow.compute as pc
import pytest

from mp_plugin.errors import TelemetryError
from mp_plugin.fallback.precision_map import FILE_NAME
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.run_info import path_of
from mp_plugin.telemetry.stats_files import SCHEMA
from mp_plugin.telemetry.store import IncidentLog, open_run, read_incidents
from mp_plugin.telemetry.tensor_stats import HIGHEST_EXPONENT, LOWEST_EXPONENT
from tests.helpers.recorded_runs import HOSTILE_NAMES, RUN, layer_names, record_run
from tests.unit.telemetry.test_events import incident


def test_a_whole_run_is_read(tmp_path: Path) -> None:
    run = open_run(record_run(tmp_path, num_layers=6, num_samples=5, incidents=2))
    assert run.directory == tmp_path
    assert run.damaged == ()
    assert run.samples.schema.equals(SCHEMA)
    columns = (run.samples[name].to_pylist() for name in ("step", "layer", "kind"))
    kinds = [kind.value for kind in TensorKind]
    assert list(zip(*columns, strict=True)) == [
        (step, layer, kind) for step in range(0, 500, 100) for layer in layer_names(6) for kind in kinds
    ]
    assert list(run.incidents) == read_incidents(tmp_path / "telemetry" / "incidents.jsonl")
    assert [each.step for each in run.incidents] == [166, 333]
    assert [(event["event"], event["run"]) for event in run.events] == [("given back", RUN)]
    assert run.info is not None
    assert (run.info.run, run.info.status) == (RUN, "finished")
    assert run.precision_map is not None
    assert list(run.precision_map.layers) == layer_names(6)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_recorded_numbers_agree_with_each_other(tmp_path: Path, precision: str) -> None:
    samples = open_run(record_run(tmp_path, num_samples=20, precision=precision)).samples
    for row in samples.to_pylist():
        counts = row["exponent_counts"]
        highest = row["lowest_exponent"] + len(counts) - 1
        assert LOWEST_EXPONENT <= row["lowest_exponent"] <= highest <= HIGHEST_EXPONENT
        assert sum(counts) == row["numel"] - row["zeros"]
        assert 2.0 ** (highest - 1) < row["amax"] <= 2.0**highest
        assert 2.0 ** (row["lowest_exponent"] - 1) < row["smallest"] <= 2.0 ** row["lowest_exponent"]
        assert row["smallest"] < row["rms"] < row["amax"]
        assert 0 <= row["flushed"] + row["subnormal"] + row["saturated"] <= sum(counts)
    newest = samples.filter(pc.equal(samples["step"], 1900))
    by_layer = newest.group_by("layer", use_threads=False).aggregate([("headroom_bits", "min"), ("flushed", "sum")])
    headroom = by_layer["headroom_bits_min"].to_pylist()
    assert headroom.index(min(headroom)) == 1
    assert (headroom[1] < 3) == (precision == "16-mixed")
    assert (by_layer["flushed_sum"].to_pylist()[2] > 10_000) == (precision == "16-mixed")


def test_hostile_names_come_back_as_they_were(tmp_path: Path) -> None:
    run = open_run(record_run(tmp_path, num_layers=8, hostile=True))
    assert run.samples["layer"].unique().to_pylist() == [*HOSTILE_NAMES, "blocks.0.norm", "blocks.0.attention.query"]
    assert run.precision_map is not None
    assert list(run.precision_map.layers)[: len(HOSTILE_NAMES)] == list(HOSTILE_NAMES)
    assert len(run.incidents) == 2


def test_a_run_that_left_only_one_thing_is_a_run(tmp_path: Path) -> None:
    IncidentLog(tmp_path / "a").append(incident())
    run = open_run(tmp_path / "a")
    assert (run.samples.num_rows, len(run.incidents), run.info, run.precision_map) == (0, 1, None, None)
    assert run.samples.schema.equals(SCHEMA)
    record_run(tmp_path / "b", num_samples=0, incidents=0, with_map=False)
    run = open_run(tmp_path / "b")
    assert (run.samples.num_rows, run.incidents, run.events, run.damaged) == (0, (), (), ())
    assert run.info is not None


def test_sessions_of_a_resumed_run_become_one(tmp_path: Path) -> None:
    record_run(tmp_path, num_samples=10, status="running", seed=1)
    resumed = "2026-02-04T00:00:00.000+00:00"
    record_run(tmp_path, num_samples=10, first_step=600, run=resumed, seed=2)
    run = open_run(tmp_path)
    sessions = run.samples.group_by("step", use_threads=False).aggregate([("run", "count_distinct"), ("run", "first")])
    assert sessions["step"].to_pylist() == list(range(0, 1600, 100))
    assert set(sessions["run_count_distinct"].to_pylist()) == {1}
    assert sessions["run_first"].to_pylist() == [RUN] * 6 + [resumed] * 10
    assert len(run.incidents) == 4
    assert run.info is not None
    assert run.info.run == resumed


def test_damaged_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    record_run(tmp_path)
    path_of(tmp_path).write_text('{"version": 7}')
    (tmp_path / FILE_NAME).write_text("version: 9\nlayers: {}\nprecision: 16-mixed\n")
    (part,) = (tmp_path / "telemetry" / "stats").glob("part-00001*")
    part.write_bytes(part.read_bytes()[:-20])
    lines = tmp_path / "telemetry" / "incidents.jsonl"
    lines.write_bytes(b"\xff\x00garbage\n" + lines.read_bytes() + b'{"version": 1, "st')
    run = open_run(tmp_path)
    assert run.info is run.precision_map is None
    assert run.samples["step"].unique().to_pylist() == [0]
    assert len(run.incidents) == 2
    reasons = [(path.name, why) for path, why in run.damaged]
    assert reasons[0][0] == "part-00001.parquet"
    assert reasons[1:] == [
        ("incidents.jsonl", "line 1 is not complete"),
        ("incidents.jsonl", "line 5 is not complete"),
        ("run.json", "has version=7; accepted: 1"),
        (FILE_NAME, "has version=9; accepted: 1"),
    ]


def test_lines_of_a_later_release_are_named(tmp_path: Path) -> None:
    log = IncidentLog(tmp_path)
    log.append(incident(step=1))
    newer = {"version": 2, "run": log.run, "step": 2}
    with log.path.open("a") as file:
        for line in (newer, {**newer, "event": "drift"}, ["a list"], {"version": 1, "step": 3}):
            file.write(json.dumps(line) + "\n")
    run = open_run(tmp_path)
    assert [each.step for each in run.incidents] == [1]
    assert run.events == ()
    assert [why for _, why in run.damaged] == [
        "line 2 has version=2; accepted: 1",
        "line 3 has version=2; accepted: 1",
        "line 4 has version=None; accepted: 1",
        "line 5 is not an incident (KeyError('parameters'))",
    ]


def test_a_file_of_garbage_is_told_in_a_few_lines(tmp_path: Path) -> None:
    record_run(tmp_path)
    path = tmp_path / "telemetry" / "incidents.jsonl"
    path.write_bytes(b"[" * 100_000 + b"\n" + random.Random(0).randbytes(20_000))
    run = open_run(tmp_path)
    assert (run.incidents, run.events) == ((), ())
    assert len(run.damaged) == 6
    assert run.damaged[-1][1].endswith(" more lines cannot be read")
    path.unlink()
    path.mkdir()
    assert open_run(tmp_path).damaged == ((path, "cannot be read (Is a directory)"),)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match="holds no run"):
        open_run(tmp_path)
