import math

import numpy as np
import pytest

from mp_plugin.report.grid import MEASURES, MIN_COLUMNS, Grid, make_grid
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.stats_files import rows_of
from mp_plugin.telemetry.store import open_run
from mp_plugin.telemetry.tensor_stats import TensorStats
from tests.helpers.recorded_runs import record_run

WORSE = {measure: min if measure == "headroom" else max for measure in MEASURES}


def measures_of(row):
    """The definition of each measure, of one row."""
    nonzero = row["numel"] - row["zeros"] - row["nans"] - row["infs"]
    return {
        "headroom": row["headroom_bits"],
        "underflow": (row["flushed"] + row["subnormal"]) / nonzero if nonzero else None,
        "flushed": row["flushed"] / nonzero if nonzero else None,
        "saturation": row["saturated"] / nonzero if nonzero else None,
        "non_finite": (row["nans"] + row["infs"]) / row["numel"] if row["numel"] else None,
        "amax": row["amax"] or None,
    }


def expected_cell(rows, measure):
    known = [value for row in rows if (value := measures_of(row)[measure]) is not None]
    return WORSE[measure](known) if known else math.nan


def sample(step, layer="net", **stats):
    return LayerSample(
        step=step,
        layer=layer,
        kind=TensorKind.activation,
        dtype="fp16",
        compute_dtype="fp16",
        loss_scale=1.0,
        stats=TensorStats(**stats),
    )


@pytest.mark.parametrize("max_columns", [250, 7, 1])
def test_each_cell_holds_the_worst_of_its_samples(tmp_path, max_columns):
    samples = open_run(record_run(tmp_path, num_layers=4, num_samples=23)).samples
    grid = make_grid(samples, max_columns=max_columns)
    assert grid.layers == ("blocks.0.norm", "blocks.0.attention.query", "blocks.0.attention.out", "blocks.0.mlp.up")
    assert len(grid.columns) == min(23, max_columns)
    rows = samples.to_pylist()
    for place, (kind, layer, column) in enumerate(np.ndindex(3, 4, len(grid.columns))):
        first, last, _ = grid.columns[column]
        there = [
            row
            for row in rows
            if row["kind"] == grid.kinds[kind] and row["layer"] == grid.layers[layer] and first <= row["step"] <= last
        ]
        assert there
        for measure in MEASURES:
            assert grid.cells[measure].reshape(-1)[place] == pytest.approx(expected_cell(there, measure), nan_ok=True)


def test_columns_cover_every_sample_once(tmp_path):
    samples = open_run(record_run(tmp_path, num_layers=1, num_samples=23, kinds=[TensorKind.activation])).samples
    columns = make_grid(samples, max_columns=7).columns
    assert sum(count for _, _, count in columns) == 23
    assert (columns[0][0], columns[-1][1]) == (0, 2200)
    assert all(before[1] < after[0] for before, after in zip(columns[:-1], columns[1:], strict=True))


def test_a_large_model_gets_fewer_columns_but_not_too_few(tmp_path):
    samples = open_run(record_run(tmp_path, num_layers=10, num_samples=20, kinds=[TensorKind.activation])).samples
    assert len(make_grid(samples, max_cells=150).columns) == 15
    assert len(make_grid(samples, max_cells=1).columns) == MIN_COLUMNS


def test_what_was_not_sampled_or_has_no_value_is_not_known():
    zeros, spoiled = sample(0, numel=4, zeros=4), sample(1, numel=4, nans=1, infs=3)
    elsewhere = sample(1, "other", numel=4, amax=2.0)
    cells = make_grid(rows_of([zeros, spoiled, elsewhere], "run")).cells
    assert np.isnan(cells["headroom"][0, 0]).all()
    assert np.isnan(cells["amax"][0, 0]).all()
    assert np.isnan(cells["flushed"][0, 0]).all()
    assert cells["non_finite"][0].tolist() == [[0.0, 1.0], [pytest.approx(math.nan, nan_ok=True), 0.0]]


def test_a_known_sample_beside_an_unknown_one_counts():
    rows = rows_of([sample(0, numel=4, zeros=4), sample(1, numel=4, amax=65504 / 8)], "run")
    assert make_grid(rows, max_columns=1).cells["headroom"].tolist() == [[[3.0]]]


def test_no_samples_make_an_empty_grid():
    assert make_grid(rows_of([], "run")).columns == Grid().columns == ()
