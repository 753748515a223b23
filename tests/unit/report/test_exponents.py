import math
from collections import Counter

import pytest

from mp_plugin.formats import FORMATS
from mp_plugin.report import exponents as module
from mp_plugin.report.exponents import read_exponents
from mp_plugin.report.grid import make_grid
from mp_plugin.scaling.window import scale_window
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.stats_files import rows_of
from mp_plugin.telemetry.store import open_run
from mp_plugin.telemetry.tensor_stats import TensorStats
from tests.helpers.recorded_runs import record_run

FP16 = FORMATS["fp16"]


def read(samples, tolerance=0.05):
    return read_exponents(samples, make_grid(samples), number_format=FP16, underflow_tolerance=tolerance)


def histogram_of(row):
    counts = row["exponent_counts"] or []
    return {row["lowest_exponent"] + place: count for place, count in enumerate(counts)}


def sample(step=0, **stats):
    return LayerSample(
        step=step,
        layer="net",
        kind=TensorKind.parameter_gradient,
        dtype="fp32",
        compute_dtype="fp16",
        loss_scale=2.0**step,
        stats=TensorStats(**stats),
    )


@pytest.fixture
def samples(tmp_path, monkeypatch):
    # So that a run of few rows is read in several parts.
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 50)
    return open_run(record_run(tmp_path, num_layers=5, num_samples=17)).samples


def test_all_samples_of_a_layer_are_added_up(samples):
    found = read(samples)
    grid = make_grid(samples)
    assert len(found.histograms) == 15
    for histogram in found.histograms:
        kind, layer = grid.kinds[histogram["kind"]], grid.layers[histogram["layer"]]
        rows = [row for row in samples.to_pylist() if (row["kind"], row["layer"]) == (kind, layer)]
        expected = sum((Counter(histogram_of(row)) for row in rows), Counter())
        shown = {histogram["all"]["lowest"] + place: count for place, count in enumerate(histogram["all"]["counts"])}
        assert +Counter(shown) == +expected
        assert histogram["samples"] == 17


def test_the_newest_and_the_tightest_sample_are_kept(samples):
    found = read(samples)
    grid = make_grid(samples)
    for histogram in found.histograms:
        kind, layer = grid.kinds[histogram["kind"]], grid.layers[histogram["layer"]]
        rows = [row for row in samples.to_pylist() if (row["kind"], row["layer"]) == (kind, layer)]
        for name, row in (("newest", rows[-1]), ("tightest", min(rows, key=lambda each: each["headroom_bits"]))):
            assert histogram[name] == {
                "step": row["step"],
                "scale": row["loss_scale"],
                "lowest": row["lowest_exponent"],
                "counts": row["exponent_counts"],
            }


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.5])
def test_bounds_of_the_loss_scale_are_those_of_scale_window(samples, tolerance):
    found = read(samples, tolerance)
    for place, row in enumerate(samples.to_pylist()):
        stats = TensorStats(amax=row["amax"], exponents=histogram_of(row))
        window = scale_window(
            {"layer": stats}, number_format=FP16, underflow_tolerance=tolerance, min_scale=2.0**-200, max_scale=2.0**200
        )
        assert (2 ** found.lowest[place], 2 ** found.highest[place]) == window.by_layer["layer"]


@pytest.mark.parametrize(
    ("stats", "lowest", "highest"),
    [
        ({"numel": 3, "zeros": 3}, math.nan, math.inf),
        ({"numel": 3, "nans": 1, "amax": 1.0, "exponents": {0: 2}}, -24.0, -math.inf),
        ({"numel": 3, "infs": 1, "amax": 1.0, "exponents": {0: 2}}, -24.0, -math.inf),
        ({"numel": 3, "amax": 65504.0, "exponents": {16: 3}}, -40.0, 0.0),
        ({"numel": 3, "amax": math.nextafter(65504.0, math.inf), "exponents": {16: 3}}, -40.0, -1.0),
        ({"numel": 3, "amax": 2.0**-149, "exponents": {-149: 3}}, 125.0, 164.0),
        ({"numel": 3, "amax": 1.0}, math.nan, 15.0),
    ],
    ids=["zeros", "nan", "inf", "largest", "beyond", "smallest", "uncounted"],
)
def test_bounds_at_the_edges(stats, lowest, highest):
    found = read(rows_of([sample(**stats)], "run"))
    assert found.lowest.tolist() == [pytest.approx(lowest, nan_ok=True)]
    assert found.highest.tolist() == [highest]


def test_samples_without_histograms_are_passed_over():
    rows = rows_of([sample(0, numel=2, amax=1.0, exponents={0: 2}), sample(1, numel=2, amax=4.0)], "run")
    (histogram,) = read(rows).histograms
    assert histogram["samples"] == 1
    assert histogram["newest"]["step"] == histogram["tightest"]["step"] == 0


def test_no_samples_have_no_exponents():
    found = read(rows_of([], "run"))
    assert found.histograms == []
    assert len(found.lowest) == len(found.highest) == 0
