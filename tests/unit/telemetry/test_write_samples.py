import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from mp_plugin.telemetry.write_samples import ROWS_AT_RISK, StatsFiles
from tests.helpers.clock import Clock
from tests.unit.telemetry.test_stats_files import RUN, sample

ROOT = Path(__file__).parents[3]


def parts(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "telemetry" / "stats").iterdir())


def steps_on_disk(run: Path) -> list[int]:
    return [
        step
        for path in sorted((run / "telemetry" / "stats").glob("*.parquet"))
        for step in pq.ParquetFile(path).read()["step"].to_pylist()
    ]


def sampled_every(seconds: Callable[[float], float], *, until: float, run: Path) -> tuple[list[float], list[float]]:
    """Return how long a sample of a run waited at most, beside how old the run was then; and when parts appeared."""
    clock = Clock()
    files = StatsFiles(run, run=RUN, clock=clock)
    written: list[float] = []
    waiting: list[float] = []
    lost: list[float] = []

    def write(samples: object) -> None:
        written.append(clock.now - 1000)
        waiting.clear()

    files._write = write  # type: ignore[method-assign]
    while clock.now - 1000 < until:
        waiting.append(clock.now - 1000)
        files.append([sample()])
        clock.now += seconds(clock.now - 1000)
        # A kill here, before the next samples, loses what waits.
        lost.append((clock.now - 1000 - waiting[0]) / max(60, 0.01 * (clock.now - 1000)) if waiting else 0.0)
    return lost, written


def test_a_part_appears_at_once_then_with_half_of_the_run_and_then_with_a_minute_of_samples(tmp_path: Path) -> None:
    clock = Clock()
    files = StatsFiles(tmp_path, run=RUN, clock=clock)
    assert not list(tmp_path.iterdir())
    files.append([])
    assert not list(tmp_path.iterdir())
    newest = []
    for step in range(0, 240, 10):  # seconds, too
        clock.now = 1000.0 + step
        files.append([sample(step, layer) for layer in "ab"])
        on_disk = steps_on_disk(tmp_path)
        assert on_disk == [each for each in range(0, on_disk[-1] + 1, 10) for _ in "ab"]
        newest.append(on_disk[-1])
    assert list(dict.fromkeys(newest)) == [0, 10, 20, 30, 40, 60, 100, 150, 200]
    assert len(parts(tmp_path)) == 9
    files.flush()
    files.flush()
    assert steps_on_disk(tmp_path)[-2:] == [230, 230]
    assert len(parts(tmp_path)) == 10


def test_a_kill_in_the_first_two_minutes_loses_half_of_the_run(tmp_path: Path) -> None:
    clock = Clock()
    files = StatsFiles(tmp_path, run=RUN, clock=clock)
    for step in range(120):
        clock.now = 1000.0 + step
        files.append([sample(step)])
        assert step - steps_on_disk(tmp_path)[-1] <= max(2, (step + 1) / 2)
    assert len(parts(tmp_path)) <= 10


@pytest.mark.parametrize("seconds", [0.5, 7.0, 59.0, 61.0, 100.0, 1000.0])
def test_a_kill_loses_a_minute_or_a_hundredth_of_the_run(tmp_path: Path, seconds: float) -> None:
    lost, _ = sampled_every(lambda _: seconds, until=30_000, run=tmp_path)
    assert max(lost) <= 1.01


def test_samples_at_random_times_wait_a_little_longer_at_most(tmp_path: Path) -> None:
    rng = random.Random(0)
    lost, written = sampled_every(lambda _: rng.uniform(1, 30), until=30_000, run=tmp_path)
    assert max(lost) <= 1.5
    assert len(written) < 400


def test_the_number_of_parts_grows_with_the_logarithm_of_the_run(tmp_path: Path) -> None:
    _, written = sampled_every(lambda age: max(5, age / 2000), until=30 * 86_400, run=tmp_path)
    by_age = [sum(each <= age for each in written) for age in (6_000, 60_000, 600_000)]
    assert by_age[0] <= 115
    # ln(10) / ln(1.01), and a little as samples do not come when they are due.
    assert max(by_age[1] - by_age[0], by_age[2] - by_age[1]) <= 260


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    clock = Clock()
    files = StatsFiles(tmp_path, run=RUN, clock=clock)
    many = [sample()] * (ROWS_AT_RISK // 2)
    for _ in range(4):
        files.append(many)
    assert [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "telemetry" / "stats").iterdir())] == [
        ROWS_AT_RISK // 2,
        ROWS_AT_RISK,
    ]


def test_sessions_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = (StatsFiles(tmp_path, run=f"2026-01-0{day}T00:00:00.000+00:00") for day in (1, 2))
    for step in range(4):
        writer = (first, second)[step % 2]
        writer.append([sample(step)])
        writer.flush()
    resumed = StatsFiles(tmp_path, run="2026-01-03T00:00:00.000+00:00")
    resumed.append([sample(4)])
    assert steps_on_disk(tmp_path) == [0, 1, 2, 3, 4]
    assert len(parts(tmp_path)) == 5


def test_a_part_of_another_session_that_appears_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is listed; before the next name is taken, somebody else completes a part of that name."""
    StatsFiles(tmp_path, run=RUN).append([sample(0)])
    (first,) = (tmp_path / "telemetry" / "stats").iterdir()
    in_the_making = first.with_name(".part-00001.partial")
    in_the_making.write_bytes(b"PAR1")
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", lambda path: [])
        StatsFiles(tmp_path, run=RUN).append([sample(1)])
    assert pq.ParquetFile(first).read()["step"].to_pylist() == [0]
    assert in_the_making.read_bytes() == b"PAR1"
    assert parts(tmp_path) == [".part-00001.partial", "part-00000.parquet", "part-00002.parquet"]


def test_what_a_killed_process_left_does_not_disturb(tmp_path: Path) -> None:
    files = StatsFiles(tmp_path, run=RUN)
    files.directory.mkdir(parents=True)
    (files.directory / ".part-00006.partial").write_bytes(b"PAR1 and no more")
    (files.directory / "part-x.parquet").write_bytes(b"somebody's")
    files.append([sample(7)])
    assert parts(tmp_path) == [".part-00006.partial", "part-00007.parquet", "part-x.parquet"]
    (files.directory / "part-x.parquet").unlink()
    assert pd.read_parquet(files.directory)["step"].tolist() == [7]


def test_a_directory_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "telemetry").write_text("a file where the folder should be")
    files = StatsFiles(tmp_path, run=RUN)
    for step in range(3):
        files.append([sample(step)])
        files.flush()
    (message,) = caplog.messages
    assert message.startswith(f"{files.directory} cannot be written (")
    assert caplog.records[0].levelno == logging.WARNING
    assert files._waiting == []


def test_what_cannot_be_encoded_is_told_and_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = StatsFiles(tmp_path, run=RUN)
    files.append([sample(layer="half a \ud83d")])
    files.append([sample()])
    (message,) = caplog.messages
    assert "UnicodeEncodeError" in message
    assert parts(tmp_path) == []


def test_without_pyarrow_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    files = StatsFiles(tmp_path, run=RUN)
    for step in range(3):
        files.append([sample(step)])
    (message,) = caplog.messages
    assert "ModuleNotFoundError" in message
    assert "pyarrow" in message
    assert (files._waiting, list(tmp_path.iterdir())) == ([], [])


def test_a_disk_that_fills_up_keeps_the_parts_before(tmp_path: Path) -> None:
    """A limit on the size of files is the nearest thing to a full disk that needs no mount."""
    code = (
        "import logging, resource, sys\n"
        "from mp_plugin.telemetry.write_samples import StatsFiles\n"
        "from tests.unit.telemetry.test_stats_files import sample\n"
        "logging.basicConfig(level=logging.WARNING, format='%(message)s')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "files = StatsFiles(sys.argv[1], run='2026-01-01T00:00:00.000+00:00')\n"
        "files.append([sample(0)])\n"
        "files.append([sample(1, f'layer {each ** 7}', amax=float(each ** 3)) for each in range(5000)])\n"
        "files.flush()\n"
        "files.append([sample(2)])\n"
        "files.flush()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    (message,) = result.stderr.splitlines()
    assert "File too large" in message
    assert steps_on_disk(tmp_path) == [0]
    assert parts(tmp_path) == ["part-00000.parquet"]


def test_it_is_imported_without_pyarrow() -> None:
    code = "import sys, mp_plugin.telemetry.write_samples; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=100, check=True)


@pytest.mark.parametrize(("histograms", "limit"), [(False, 60), (True, 110)])
def test_a_row_takes_few_bytes(tmp_path: Path, histograms: bool, limit: int) -> None:
    """Of real tensors, none like the other, in a part of an ordinary size."""
    generator = torch.Generator().manual_seed(0)
    files = StatsFiles(tmp_path, run=RUN)
    for number in range(3000):
        scale = torch.exp(4 * torch.randn((), generator=generator))
        values = (torch.randn(2000 + 7 * number % 999, generator=generator) * scale).relu()
        sizes = values[values > 0].double()
        bins, counts = torch.ceil(sizes.log2()).long().unique(return_counts=True)
        files._waiting.append(
            sample(
                step=number // 100,
                layer=f"blocks.{number % 100}.mlp",
                numel=values.numel(),
                zeros=values.numel() - sizes.numel(),
                amax=sizes.max().item(),
                smallest=sizes.min().item(),
                sum_of_squares=sizes.square().sum().item(),
                flushed=int((sizes < 2.0**-9).sum()),
                subnormal=int((sizes < 2.0**-5).sum()),
                exponents=dict(zip(bins.tolist(), counts.tolist(), strict=True)) if histograms else {},
            )
        )
    files.flush()
    (part,) = files.directory.iterdir()
    assert limit / 2 < part.stat().st_size / 3000 < limit
