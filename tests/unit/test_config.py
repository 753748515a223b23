import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mp_plugin.config import AtMinScale, Fallback, LossScaling, Policy, Telemetry
from mp_plugin.errors import ConfigError


def test_defaults() -> None:
    assert dataclasses.asdict(LossScaling()) == {
        "policy": Policy.dynamic,
        "init_scale": 2.0**15,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "hysteresis": 1,
        "min_scale": 1.0,
        "max_scale": 2.0**24,
        "at_min_scale": AtMinScale.raise_,
        "patience": 10,
        "retries": 1,
    }


def test_names_become_enum_members_and_whole_numbers_floats() -> None:
    assert LossScaling(at_min_scale="fallback").at_min_scale is AtMinScale.fallback  # type: ignore[arg-type]
    config = LossScaling(policy="static", at_min_scale="skip", init_scale=1024)  # type: ignore[arg-type]
    assert config.policy is Policy.static
    assert config.at_min_scale is AtMinScale.skip
    assert isinstance(config.init_scale, float)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("policy", "automatic", "'dynamic', 'predictive', 'static'"),
        ("at_min_scale", "ignore", "'raise', 'skip', 'fallback'"),
        ("init_scale", float("nan"), "a number, 2**-64 to 2**64"),
        ("init_scale", float("inf"), "a number, 2**-64 to 2**64"),
        ("init_scale", 0, "a number, 2**-64 to 2**64"),
        ("init_scale", -1.0, "a number, 2**-64 to 2**64"),
        ("init_scale", True, "a number, 2**-64 to 2**64"),
        ("init_scale", "65536", "a number, 2**-64 to 2**64"),
        ("init_scale", 2.0**30, "min_scale (1) <= init_scale <= max_scale (16777216)"),
        ("min_scale", 2.0**-127, "a number, 2**-64 to 2**64"),
        ("max_scale", 2.0**65, "a number, 2**-64 to 2**64"),
        ("growth_factor", 1.0, "a number, above 1 and at most 2**64"),
        ("growth_factor", 2.0**65, "a number, above 1 and at most 2**64"),
        ("growth_factor", float("inf"), "a number, above 1 and at most 2**64"),
        ("backoff_factor", 1.0, "a number, between 0 and 1, exclusive"),
        ("backoff_factor", 0.0, "a number, between 0 and 1, exclusive"),
        ("growth_interval", 0, "a whole number, at least 1"),
        ("growth_interval", 2.5, "a whole number, at least 1"),
        ("hysteresis", False, "a whole number, at least 1"),
        ("patience", -3, "a whole number, at least 1"),
        ("retries", -1, "a whole number, at least 0"),
    ],
)
def test_out_of_range_is_refused_by_name(field: str, value: object, accepted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LossScaling(**{field: value})  # type: ignore[arg-type]
    assert f"LossScaling.{field}={value!r}"[:30] in str(caught.value) or "out of order" in str(caught.value)
    assert accepted in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_scales_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"LossScaling.init_scale=4 is out of order; accepted: min_scale \(8\)"):
        LossScaling(init_scale=4, min_scale=8)


def test_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LossScaling().init_scale = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        LossScaling("dynamic")  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Telemetry().max_traced = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Telemetry(5)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Fallback().auto = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        Fallback(["head"])  # type: ignore[misc]


def test_telemetry_defaults() -> None:
    assert dataclasses.asdict(Telemetry()) == {
        "every_n_steps": 100,
        "activations": False,
        "gradients": True,
        "histograms": False,
        "max_overhead": 0.01,
        "layer_metrics": "extremes",
        "drift_every_n_validations": 0,
        "drift_batches": 4,
        "max_traced": 20,
        "directory": None,
        "keep_batches": False,
        "census": False,
    }


def test_fallback_defaults() -> None:
    assert dataclasses.asdict(Fallback()) == {
        "layers": (),
        "types": (),
        "auto": False,
        "patience": 1,
        "max_fraction": 0.2,
        "probation_steps": 1000,
        "underflow_tolerance": 0.05,
        "map": None,
    }
    assert not Fallback().names_layers
    assert not Fallback(auto=True).names_layers


@pytest.mark.parametrize(
    "rule", [{"layers": ["head"]}, {"types": ["LayerNorm"]}, {"map": "precision_map.yaml"}], ids=str
)
def test_a_rule_or_a_map_names_layers(rule: dict[str, Any]) -> None:
    assert Fallback(**rule).names_layers


def test_fallback_takes_any_list_and_keeps_it_as_it_was() -> None:
    names = ["head ", "blocks.*.attn"]
    config = Fallback(layers=names, types=OmegaConf.create(["LayerNorm"]))  # type: ignore[arg-type]
    names.clear()
    assert config.layers == ("head", "blocks.*.attn")
    assert config.types == ("LayerNorm",)
    assert type(config.types) is tuple


def test_fallback_fractions_include_their_ends() -> None:
    assert Fallback(max_fraction=0, underflow_tolerance=1) == Fallback(max_fraction=0.0, underflow_tolerance=1.0)


def test_an_unknown_choice_of_layer_metrics_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Telemetry(layer_metrics="some")  # type: ignore[arg-type]
    accepted = "accepted: 'none', 'extremes', 'all'."
    assert str(caught.value) == f"Telemetry.layer_metrics='some' is unknown; {accepted}"


def test_a_path_becomes_a_string(tmp_path: Path) -> None:
    assert Telemetry(directory=tmp_path).directory == str(tmp_path)  # type: ignore[arg-type]
    assert Telemetry(directory="runs").directory == "runs"
    assert Fallback(map=tmp_path / "map.yaml").map == str(tmp_path / "map.yaml")  # type: ignore[arg-type]
    assert Fallback(map="~/map.yaml").map == str(Path.home() / "map.yaml")


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("every_n_steps", -1, "a whole number, at least 0"),
        ("activations", "yes", "True or False"),
        ("gradients", 1, "True or False"),
        ("histograms", None, "True or False"),
        ("max_overhead", 0, "a number, above 0 and at most 1"),
        ("max_overhead", 1.5, "a number, above 0 and at most 1"),
        ("max_overhead", float("nan"), "a number, above 0 and at most 1"),
        ("max_overhead", "1%", "a number, above 0 and at most 1"),
        ("drift_every_n_validations", -1, "a whole number, at least 0"),
        ("drift_batches", 0, "a whole number, at least 1"),
        ("max_traced", -1, "a whole number, at least 0"),
        ("max_traced", 2.0, "a whole number, at least 0"),
        ("max_traced", True, "a whole number, at least 0"),
        ("max_traced", None, "a whole number, at least 0"),
        ("directory", 3, "a path that is not empty, or None"),
        ("directory", "", "a path that is not empty, or None"),
        ("directory", b"runs", "a path that is not empty, or None"),
        ("keep_batches", 1, "True or False"),
        ("keep_batches", "yes", "True or False"),
        ("census", 1, "True or False"),
        ("census", None, "True or False"),
    ],
)
def test_telemetry_out_of_range_is_refused_by_name(field: str, value: object, accepted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Telemetry(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"Telemetry.{field}={value!r} is not accepted; accepted: {accepted}."


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("layers", "head", "a list of strings that are not empty"),
        ("layers", ["head", ""], "a list of strings that are not empty"),
        ("layers", [" "], "a list of strings that are not empty"),
        ("layers", [0], "a list of strings that are not empty"),
        ("layers", {"head"}, "a list of strings that are not empty"),
        ("layers", None, "a list of strings that are not empty"),
        ("types", "LayerNorm", "a list of strings that are not empty"),
        ("types", [int], "a list of strings that are not empty"),
        ("types", b"LayerNorm", "a list of strings that are not empty"),
        ("auto", "true", "True or False"),
        ("auto", 1, "True or False"),
        ("auto", None, "True or False"),
        ("patience", 0, "a whole number, at least 1"),
        ("patience", 1.5, "a whole number, at least 1"),
        ("patience", True, "a whole number, at least 1"),
        ("max_fraction", -0.1, "a number, 0 to 1"),
        ("max_fraction", 1.01, "a number, 0 to 1"),
        ("max_fraction", float("nan"), "a number, 0 to 1"),
        ("max_fraction", "0.2", "a number, 0 to 1"),
        ("max_fraction", True, "a number, 0 to 1"),
        ("probation_steps", 0, "a whole number, at least 1"),
        ("probation_steps", None, "a whole number, at least 1"),
        ("underflow_tolerance", -1, "a number, 0 to 1"),
        ("underflow_tolerance", float("inf"), "a number, 0 to 1"),
        ("map", "", "a path that is not empty, or None"),
        ("map", 3, "a path that is not empty, or None"),
        ("map", b"map.yaml", "a path that is not empty, or None"),
    ],
)
def test_fallback_out_of_range_is_refused_by_name(field: str, value: object, accepted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Fallback(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"Fallback.{field}={value!r} is not accepted; accepted: {accepted}."
