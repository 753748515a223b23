import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.layer_sample import LayerSample
from mp_plugin.telemetry.read_samples import read_samples
from mp_plugin.telemetry.stats_files import SCHEMA, VERSION_KEY, rows_of
from mp_plugin.telemetry.write_samples import StatsFiles
from tests.unit.telemetry.test_stats_files import RUN, sample

USUAL_POOL = pa.default_memory_pool().backend_name


def write(run: Path, samples: list[LayerSample], session: str = RUN) -> Path:
    """Write a part; returns its path."""
    files = StatsFiles(run, run=session)
    before = set(files.directory.glob("*")) if files.directory.exists() else set()
    files.append(samples)
    (part,) = set(files.directory.glob("*")) - before
    return part


def rewritten(part: Path, **metadata: str) -> pa.Table:
    table = pq.ParquetFile(part).read()
    return table.replace_schema_metadata({**table.schema.metadata, **{VERSION_KEY: metadata["version"]}})


def stats(run: Path) -> Path:
    return run / "telemetry" / "stats"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    samples = [sample(step, layer, exponents=bins) for step in (0, 5) for layer, bins in (("b", {3: 1}), ("a", {}))]
    write(tmp_path, samples[:2])
    write(tmp_path, samples[2:])
    table, damaged = read_samples(stats(tmp_path))
    assert damaged == []
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == rows_of(samples, RUN).to_pylist()


def test_no_samples_make_an_empty_table(tmp_path: Path) -> None:
    for missing in (tmp_path / "missing", tmp_path):
        table, damaged = read_samples(missing)
        assert (table.num_rows, damaged) == (0, [])
        assert table.schema.equals(SCHEMA)
    (tmp_path / "file").write_text("")
    assert read_samples(tmp_path / "file")[1] == []


def test_the_newest_session_wins_a_step(tmp_path: Path) -> None:
    """The first session samples steps 0 to 40 and is killed, the second resumes from 20, the third from 30."""
    days = [f"2026-01-0{day}T00:00:00.000+00:00" for day in (1, 2, 3)]
    write(tmp_path, [sample(step, layer) for step in (0, 10, 20, 30, 40) for layer in "zyx"], days[0])
    write(tmp_path, [sample(step, layer) for step in (30, 35) for layer in "zyx"], days[2])
    write(tmp_path, [sample(step, layer) for step in (20, 30) for layer in "zy"], days[1])
    table, _ = read_samples(stats(tmp_path))
    seen = [(row["step"], row["layer"], row["run"][9]) for row in table.to_pylist()]
    expected = {0: "1", 10: "1", 20: "2", 30: "3", 35: "3", 40: "1"}
    layers = {20: "zy"}
    assert seen == [(step, layer, day) for step, day in expected.items() for layer in layers.get(step, "zyx")]


def test_rows_of_a_step_keep_the_order_of_the_model(tmp_path: Path) -> None:
    """Two writers at the same time: the parts alternate, and steps with them."""
    rng = random.Random(0)
    layers = [f"layer {rng.random()}" for _ in range(50)]
    write(tmp_path, [sample(9, layer) for layer in layers])
    write(tmp_path, [sample(3, layer) for layer in layers])
    table, _ = read_samples(stats(tmp_path))
    assert table["step"].to_pylist() == [3] * 50 + [9] * 50
    assert table["layer"].to_pylist() == layers * 2


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 8, 100, -9, -8, -4, -1])
def test_a_truncated_part_is_named_and_the_others_are_read(tmp_path: Path, keep: int) -> None:
    whole = write(tmp_path, [sample(0)])
    part = write(tmp_path, [sample(1)])
    part.write_bytes(part.read_bytes()[:keep])
    table, ((path, why),) = read_samples(stats(tmp_path))
    assert table["step"].to_pylist() == [0]
    assert path == part
    assert why.startswith("cannot be read (")
    assert "\n" not in why
    part.rename(whole)
    assert read_samples(stats(tmp_path))[0].num_rows == 0


def test_no_damage_at_all_is_taken_for_numbers(tmp_path: Path) -> None:
    """Bytes are changed at random: what is read is what was written, or nothing."""
    samples = [sample(0, f"layer {each}", amax=each + 0.5) for each in range(40)]
    part = write(tmp_path, samples)
    good = part.read_bytes()
    expected = rows_of(samples, RUN).to_pylist()
    rng = random.Random(0)
    outcomes = {"damaged": 0, "unharmed": 0}
    for _ in range(300):
        bad = bytearray(good)
        start = rng.randrange(len(good) - 300, len(good)) if rng.random() < 0.3 else rng.randrange(len(good))
        for place in range(start, min(start + rng.choice((1, 1, 20)), len(good))):
            bad[place] = rng.randrange(256)
        part.write_bytes(bad)
        table, damaged = read_samples(stats(tmp_path))
        if damaged:
            assert table.num_rows == 0
            outcomes["damaged"] += 1
        else:
            assert table.to_pylist() == expected
            outcomes["unharmed"] += 1
    assert outcomes["damaged"] > 100


def test_what_is_no_part_is_named(tmp_path: Path) -> None:
    good = write(tmp_path, [sample(0)])
    folder = good.parent
    (folder / "part-00010.parquet").write_bytes(b"PAR1" + os.urandom(500) + b"PAR1")
    (folder / "part-00011.parquet").mkdir()
    os.mkfifo(folder / "part-00012.parquet")
    (folder / "part-00013.parquet").symlink_to("nowhere")
    pq.write_table(pa.table({"step": [1]}), folder / "part-00014.parquet")
    pq.write_table(rows_of([sample(1)], RUN).drop_columns(["amax", "rms"]), folder / "part-00015.parquet")
    text = rows_of([sample(1)], RUN)
    text = text.set_column(text.schema.get_field_index("amax"), "amax", pa.array(["much"]))
    pq.write_table(text, folder / "part-00016.parquet")
    nameless = rows_of([sample(1)], RUN)
    nameless = nameless.set_column(nameless.schema.get_field_index("layer"), "layer", pa.nulls(1, pa.string()))
    pq.write_table(nameless, folder / "part-00017.parquet")
    (folder / ".part-00018.partial").write_bytes(b"PAR1")
    (folder / "notes.txt").write_text("not looked at")
    table, damaged = read_samples(folder)
    assert table["step"].to_pylist() == [0]
    reasons = {path.name: why for path, why in damaged}
    assert list(reasons) == [f"part-000{number}.parquet" for number in range(10, 18)]
    assert reasons["part-00011.parquet"] == reasons["part-00012.parquet"] == "is not a file"
    assert reasons["part-00014.parquet"] == "has schema version none; accepted: 1"
    assert reasons["part-00015.parquet"] == "lacks the columns amax, rms"
    assert "much" in reasons["part-00016.parquet"]
    assert reasons["part-00017.parquet"] == "has rows without layer"


def test_further_columns_are_left_out_and_the_order_is_ours(tmp_path: Path) -> None:
    part = write(tmp_path, [sample(0)])
    table = pq.ParquetFile(part).read()
    more = table.append_column("of a later minor release", pa.array([1])).select([*reversed(table.column_names)])
    pq.write_table(more, part)
    read, damaged = read_samples(stats(tmp_path))
    assert damaged == []
    assert read.to_pylist() == table.to_pylist()


def test_a_part_of_a_later_release_is_named_beside_readable_ones(tmp_path: Path) -> None:
    write(tmp_path, [sample(0)])
    part = write(tmp_path, [sample(1)])
    pq.write_table(rewritten(part, version="2"), part)
    table, damaged = read_samples(stats(tmp_path))
    assert table["step"].to_pylist() == [0]
    assert damaged == [(part, "is of a later release of mp_plugin: it has schema version 2; accepted: 1")]


def test_parts_of_a_later_release_alone_are_refused(tmp_path: Path) -> None:
    part = write(tmp_path, [sample(1)])
    pq.write_table(rewritten(part, version="12"), part)
    with pytest.raises(TelemetryError, match=rf"{part} is of a later release of mp_plugin: .* 12; accepted: 1\."):
        read_samples(stats(tmp_path))


@pytest.mark.parametrize("version", ["0", "x", "", "1.0"])
def test_a_version_that_never_was_is_damage(tmp_path: Path, version: str) -> None:
    part = write(tmp_path, [sample(1)])
    pq.write_table(rewritten(part, version=version), part)
    _, ((path, why),) = read_samples(stats(tmp_path))
    assert (path, why) == (part, f"has schema version {version}; accepted: 1")


def test_reading_leaves_the_memory_pool_alone(tmp_path: Path) -> None:
    part = write(tmp_path, [sample(1)])
    pq.write_table(rewritten(part, version="2"), part)
    with pytest.raises(TelemetryError):
        read_samples(stats(tmp_path))
    assert pa.default_memory_pool().backend_name == USUAL_POOL
