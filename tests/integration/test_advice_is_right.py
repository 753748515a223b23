"""What the advisor says against what happens: real casts, and real runs that follow its advice."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from torch import Tensor, nn

from benchmarks.helpers.real_casts import DTYPES, lost
from benchmarks.helpers.recorded_tensors import random_tensors, recorded_tensors
from benchmarks.helpers.trainings import Training
from mp_plugin import AdaptivePrecision, LossScaling, Telemetry
from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.formats import FORMATS
from mp_plugin.report.advice_files import write_advice
from mp_plugin.telemetry.advise import Advice, advise
from mp_plugin.telemetry.format_fit import best_scale, format_fit
from mp_plugin.telemetry.stats_row import gradient_ranges
from mp_plugin.telemetry.store import open_run
from tests.helpers.training import Regression, fit, regression_data
from tests.integration.test_config_groups import APP_CONF, VERSION_BASE

ROOT = Path(__file__).parents[2]

SOURCES = ["normal", "heavy-tailed", "log-normal", "digits activations", "digits gradients", "text gradients"]


def tensors_of(source: str) -> list[Tensor]:
    if " " not in source:
        return random_tensors(source, size=2000)
    name, kind = source.split()
    return recorded_tensors(Training(name, steps=100))[kind]


@pytest.mark.parametrize("source", SOURCES)
def test_real_casts_lose_what_was_predicted(source: str) -> None:
    num_lost = dict.fromkeys(("overflow", "flushed", "subnormal"), 0)
    for values in tensors_of(source):
        found = gradient_ranges([("x", values)])["x"]
        for name in DTYPES:
            for scale in {1.0, 2.0**10, best_scale(found.exponents, found.amax, FORMATS[name])}:
                predicted = format_fit(found.exponents, found.amax, FORMATS[name], scale=scale)
                observed = lost(values, name, scale)
                for field in num_lost:
                    low, high = getattr(predicted, field)
                    assert low - 1e-12 <= getattr(observed, field) <= high + 1e-12, (name, scale, field)
                    num_lost[field] += getattr(observed, field) > 0
                assert predicted.flushed.is_exact
    # The tensors are such that there was something to predict.
    assert num_lost["flushed"] > 5
    assert num_lost["subnormal"] > 5
    assert num_lost["overflow"] > 5 or "gradients" in source or "activations" in source


def model(after: type[nn.Module] = nn.LayerNorm) -> Regression:
    """With a layer whose output is far beyond fp16, and one that undoes it."""
    made = Regression(lr=1e-20)
    undo = nn.LayerNorm(16) if after is nn.LayerNorm else nn.Linear(16, 16)
    made.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), undo, nn.Linear(16, 1))
    with torch.no_grad():
        made.net[2].weight.mul_(2.0**20)
        if isinstance(undo, nn.Linear):
            undo.weight.mul_(2.0**-20)
    return made


def advice_on(directory: Path, trained: Regression) -> tuple[Any, Advice]:
    telemetry = Telemetry(
        every_n_steps=1, activations=True, histograms=True, max_overhead=1.0, directory=str(directory)
    )
    fit(AdaptivePrecision("bf16", telemetry=telemetry), trained)
    run = open_run(directory)
    return run, advise(run)


@pytest.mark.parametrize("after", [nn.LayerNorm, nn.Linear])
def test_a_run_in_bf16_tells_what_fp16_cannot_hold_and_the_next_run_is_right(
    tmp_path: Path, after: type[nn.Module]
) -> None:
    # As it stands, the model cannot be trained in fp16.
    plain = AdaptivePrecision("fp16")
    fit(plain, model(after))
    assert plain.skipped_steps == 8

    run, advice = advice_on(tmp_path / "run", model(after))
    assert "net.2" in advice.fp32_layers
    map_path, _ = write_advice(run, advice, tmp_path / "advised")
    with hydra.initialize_config_dir(config_dir=str(APP_CONF), **VERSION_BASE):
        search_path = f"hydra.searchpath=[file://{tmp_path / 'advised'}]"
        config = hydra.compose("config", overrides=[search_path, "+precision=advised"])
    plugin = hydra.utils.instantiate(config.precision)
    assert (plugin.mode.name, plugin.fallback.map) == ("16-mixed", str(map_path))
    assert advice.loss_scales is not None
    assert plugin.loss_scale == max(advice.loss_scales.highest / 4, advice.loss_scales.lowest)
    fit(plugin, model(after))
    assert plugin.fp32_layers == list(PrecisionMap.load(map_path).islands)
    assert {"net.2", "net.3"} <= {*plugin.fp32_layers}
    assert (plugin.skipped_steps, plugin.retried_steps, plugin.effective_step) == (0, 0, 8)


def test_the_map_is_one_of_the_model_with_the_runs_own_map_and_without_it(tmp_path: Path) -> None:
    run, advice = advice_on(tmp_path / "run", model())
    assert run.precision_map is None
    map_path, _ = write_advice(run, advice, tmp_path / "advised")
    found = PrecisionMap.load(map_path)
    assert found.check_fits(model()).islands == found.islands
    again = replace(run, precision_map=replace(found, layers={**found.layers}))
    write_advice(again, advice, tmp_path / "advised", overwrite=True)
    assert PrecisionMap.load(map_path).check_fits(model()).islands == found.islands


@pytest.mark.parametrize("factor", [1.0, 2.0**4, 2.0**7])
def test_inside_the_window_no_step_overflows_and_above_it_one_does(tmp_path: Path, factor: float) -> None:
    """Judged by the run itself: the scale of a static run, beside the window of a run in fp32."""
    telemetry = Telemetry(every_n_steps=1, activations=True, histograms=True, max_overhead=1.0, directory=str(tmp_path))

    def made() -> Regression:
        found = Regression(lr=1e-6)
        with torch.no_grad():
            found.net[2].weight.mul_(factor)
        return found

    fit(AdaptivePrecision("fp32", telemetry=telemetry), made())
    advice = advise(open_run(tmp_path))
    scales = advice.loss_scales
    assert not advice.fp32_layers
    assert scales is not None
    assert scales.highest < 2.0**24
    skipped = {}
    for scale in (scales.highest / 2, scales.highest * 4):
        plugin = AdaptivePrecision("fp16", scaling=_static(scale))
        fit(plugin, made(), regression_data())
        skipped[scale] = plugin.skipped_steps
    assert [bool(each) for each in skipped.values()] == [False, True]


def _static(scale: float) -> Any:
    return LossScaling(policy="static", init_scale=scale, retries=0, at_min_scale="skip", max_scale=2.0**40)


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


MP_PLUGIN = ("-c", "from mp_plugin.cli import main; main()")


def test_the_command_line_from_a_run_of_somebody_elses_app_to_the_next(tmp_path: Path) -> None:
    app = ROOT / "tests" / "integration" / "foreign_app" / "app.py"
    sampled = ["precision.telemetry.every_n_steps=1", "precision.telemetry.max_overhead=1.0"]
    directory = f"precision.telemetry.directory={tmp_path / 'run'}"
    trained = command(app, "+precision=bf16", "precision/telemetry=full", *sampled, directory, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    told = command(*MP_PLUGIN, "advise", tmp_path / "run", "--emit", "advised", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "fp16 is safe with a loss scale of" in told.stdout
    assert max(map(len, told.stdout.splitlines()[:-3])) <= 80
    assert f"python train.py --config-dir {tmp_path}/advised precision=advised" in told.stdout
    again = command(app, "--config-dir", tmp_path / "advised", "+precision=advised", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "AdaptivePrecision torch.float16" in again.stdout
    refused = command(*MP_PLUGIN, "advise", tmp_path / "run", "--emit", "advised", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"mp-plugin: {tmp_path}/advised/precision_map.yaml is there already; accepted: ")


def test_a_run_without_histograms_is_refused_in_one_sentence(tmp_path: Path) -> None:
    telemetry = Telemetry(every_n_steps=1, max_overhead=1.0, directory=str(tmp_path))
    fit(AdaptivePrecision("bf16", telemetry=telemetry))
    told = command(*MP_PLUGIN, "advise", tmp_path, cwd=tmp_path)
    assert told.returncode == 1
    assert told.stdout == ""
    (line,) = told.stderr.splitlines()
    assert "samples without histograms" in line
    assert "precision/telemetry=full" in line
