from dataclasses import replace

import pytest

from mp_plugin.formats import FORMATS
from mp_plugin.report import scale_history as module
from mp_plugin.report.exponents import read_exponents
from mp_plugin.report.grid import make_grid
from mp_plugin.report.scale_history import scale_history, summarised_scale
from mp_plugin.scaling.window import scale_window
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import open_run
from mp_plugin.telemetry.tensor_stats import TensorStats
from tests.helpers.recorded_runs import record_run


def history(run, fp32_layers=(), **columns):
    grid = make_grid(run.samples, **columns)
    exponents = read_exponents(run.samples, grid, number_format=FORMATS["fp16"], underflow_tolerance=0.05)
    return scale_history(run, grid, exponents, fp32_layers)


def window_at(run, step, fp32_layers=()):
    """What the plugin's own function says of the gradients of one sample."""
    gradients = {
        (row["kind"], row["layer"]): TensorStats(
            amax=row["amax"],
            exponents={row["lowest_exponent"] + place: count for place, count in enumerate(row["exponent_counts"])},
        )
        for row in run.samples.to_pylist()
        if row["step"] == step and row["kind"] != "activation" and row["layer"] not in fp32_layers
    }
    window = scale_window(
        gradients, number_format=FORMATS["fp16"], underflow_tolerance=0.05, min_scale=1.0, max_scale=2.0**24
    )
    return window.lowest, window.highest


@pytest.fixture
def run(tmp_path):
    return open_run(record_run(tmp_path, num_samples=8, incidents=2))


@pytest.mark.parametrize("fp32_layers", [(), ("blocks.0.attention.out",)])
def test_the_window_of_each_sample_is_that_of_all_its_gradients(run, fp32_layers):
    window = history(run, fp32_layers).window
    assert [step for step, _, _ in window] == list(range(0, 800, 100))
    for step, lowest, highest in window:
        assert (lowest, highest) == window_at(run, step, fp32_layers)


def test_samples_that_share_a_column_have_a_common_window(run):
    ((step, lowest, highest),) = history(run, max_columns=1).window
    windows = [window_at(run, step) for step in range(0, 800, 100)]
    assert (step, lowest, highest) == (0, max(low for low, _ in windows), min(high for _, high in windows))


def test_without_histograms_only_the_upper_end_is_known(tmp_path):
    run = open_run(record_run(tmp_path / "without", histograms=False))
    counted = open_run(record_run(tmp_path / "with"))
    expected = [(step, None, highest) for step, _, highest in history(counted).window]
    assert history(run).window == tuple(expected)


def test_the_scale_is_known_from_samples_incidents_and_the_summary(run):
    assert history(run).points == (
        (0, 2.0**15),
        (266, 2.0**15),
        (300, 2.0**14),
        (400, 2.0**15),
        (533, 2.0**15),
        (600, 2.0**14),
        (701, 2.0**14),
    )
    assert history(run).changes == [(0, 2.0**15), (300, 2.0**14), (400, 2.0**15), (600, 2.0**14)]


def test_there_are_never_too_many_points(run, monkeypatch):
    monkeypatch.setattr(module, "MAX_POINTS", 3)
    points = history(run).points
    assert len(points) <= 4
    assert points[-1] == (701, 2.0**14)


def test_activations_tell_nothing_of_the_loss_scale(tmp_path):
    run = open_run(record_run(tmp_path, kinds=[TensorKind.activation], incidents=0))
    found = history(replace(run, info=None))
    assert (found.points, found.window, found.is_scaled) == ((), (), False)


def test_a_run_that_scales_no_loss(tmp_path):
    assert not history(open_run(record_run(tmp_path, precision="bf16-mixed"))).is_scaled


@pytest.mark.parametrize("scale", [None, 3, {}, {"now": "x", "min": 1, "max": 2}])
def test_a_summary_of_another_shape_tells_no_scale(scale):
    assert summarised_scale({"loss_scale": scale}) is None
