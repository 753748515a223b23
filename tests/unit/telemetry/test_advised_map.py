from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mp_plugin.errors import TelemetryError
from mp_plugin.fallback.layer_format import LayerFormat
from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.telemetry.advise import advise
from mp_plugin.telemetry.advised_map import advised_map
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.store import Run
from tests.helpers.samples import sample, table

ACTIVATION, GRADIENT, WEIGHTS = TensorKind
FITS, TOO_LARGE = torch.ones(10), torch.full((10,), 1e6)


def run_of(rows: list[LayerSample], precision_map: PrecisionMap | None = None) -> Run:
    return Run(directory=Path("runs/7"), samples=table(rows), precision_map=precision_map)


def layers(**activations: torch.Tensor) -> list[LayerSample]:
    """With gradients that fit; a name's underscores are dots."""
    rows = []
    for name, x in activations.items():
        name = name.replace("_", ".")
        rows += [sample(name, ACTIVATION, x), sample(name, WEIGHTS, FITS)]
    return rows


def found_map(run: Run) -> PrecisionMap:
    return advised_map(run, advise(run))


def observed(name: str, *, is_island: bool = False) -> dict[str, LayerFormat]:
    why = "proved: overflow of fp16" if is_island else "autocast"
    return {name: LayerFormat(format="fp16", why=why, since_step=0, is_island=is_island, bears_parameters=True)}


def test_what_does_not_fit_fp16_is_an_island_of_the_model_it_came_from() -> None:
    found = found_map(run_of(layers(**{"0": FITS, "1": TOO_LARGE})))
    assert found.precision == "16-mixed"
    assert found.islands == {"1": "advised: its activations reach 1e+06, fp16 65504"}
    assert found.check_fits(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))).islands == found.islands


@pytest.mark.parametrize("kind", [ACTIVATION, GRADIENT])
def test_the_next_layer_would_cast_what_it_is_given_and_is_in_fp32_too(kind: TensorKind) -> None:
    rows = [sample("a", kind, FITS), sample("b", kind, TOO_LARGE), sample("c", kind, FITS), sample("d", kind, FITS)]
    found = found_map(run_of([*rows, *(sample(name, WEIGHTS, FITS) for name in "abcd")]))
    assert list(found.islands) == ["b", "c"]
    assert found.islands["c"] == "advised: takes in what b puts out"


def test_what_cannot_be_judged_is_left_to_the_run_that_takes_the_map_over() -> None:
    spoiled = sample("b", GRADIENT, torch.tensor([torch.nan]))
    found = found_map(run_of([*layers(a=FITS, b=FITS, c=FITS), spoiled]))
    assert not found.islands
    assert found.layers["b"].why == "advised: not judged, NaN or Inf in every sample"
    assert found.layers["a"].why == "advised: fits fp16"


def test_gradients_of_parameters_stay_in_their_layer() -> None:
    rows = [sample("a", WEIGHTS, FITS), sample("b", WEIGHTS, TOO_LARGE), sample("c", WEIGHTS, FITS)]
    assert list(found_map(run_of(rows)).islands) == ["b"]


def test_what_a_run_had_in_fp32_stays_there() -> None:
    its_map = PrecisionMap(precision="bf16-mixed", layers={**observed("stem", is_island=True), **observed("frozen")})
    found = found_map(run_of(layers(stem=FITS), its_map))
    assert found.islands == {"stem": "proved: overflow of fp16"}
    # A layer without samples is still one of the model's.
    assert list(found.layers) == ["stem", "frozen"]


def test_of_nested_layers_the_outer_one_is_the_island() -> None:
    found = found_map(run_of(layers(block=TOO_LARGE, block_1=TOO_LARGE, block_2=FITS, head=FITS)))
    assert list(found.islands) == ["block"]
    assert found.layers["block.1"].why.startswith("in block: advised: ")
    assert {name: layer.format for name, layer in found.layers.items()} == {
        "block": "fp32",
        "block.1": "fp32",
        "block.2": "fp32",
        "head": "not observed",
    }


def test_a_layer_without_parameters_can_be_an_island() -> None:
    rows = [*layers(head=FITS), sample("act", ACTIVATION, TOO_LARGE)]
    found = found_map(run_of(rows))
    assert list(found.islands) == ["act"]
    assert [found.layers[name].bears_parameters for name in ("head", "act")] == [True, False]


def test_the_root_goes_by_no_name() -> None:
    rows = layers(head=FITS)
    rows += [sample("", kind, TOO_LARGE) for kind in TensorKind]
    found = found_map(run_of(rows))
    assert list(found.layers) == ["head"]


def test_where_nothing_fits_fp16_there_is_no_map() -> None:
    with pytest.raises(TelemetryError, match="fp16 fits no layer of this run"):
        found_map(run_of(layers(head=TOO_LARGE)))


def test_a_run_that_does_not_know_its_layers_has_none_either() -> None:
    run = run_of([sample("head", ACTIVATION, FITS)])
    with pytest.raises(TelemetryError, match="runs/7 has no precision_map.yaml and no samples of"):
        found_map(run)
    known = replace(run, precision_map=PrecisionMap(precision="16-mixed", layers=observed("head")))
    assert list(found_map(known).layers) == ["head"]
