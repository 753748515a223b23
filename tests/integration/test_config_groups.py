"""Every shipped config, composed over an app that knows nothing of them."""

import inspect
import json
from dataclasses import MISSING, fields
from pathlib import Path

import hydra
import jsonschema
import pytest
import referencing
import yaml
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from mp_plugin import AdaptivePrecision, Fallback, LossScaling, Telemetry
from mp_plugin.errors import ConfigError
from mp_plugin.modes import ALIASES, MODES

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
APP_CONF = ROOT / "tests" / "integration" / "foreign_app" / "conf"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (CONF / "schemas").glob("*.json")}
MODE_OF_OPTION = {
    "fp32": "32-true",
    "tf32": "tf32",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "bf16_true": "bf16-true",
    "fp16_true": "16-true",
}
OPTIONS = sorted(path.stem for path in (CONF / "precision").glob("*.yaml"))
# TF32 is no format of a layer, but of all matrix products: there is nothing to fall back from layer by layer.
WITH_FALLBACK = sorted({*OPTIONS} - {"tf32"})
FALLBACK_OF_OPTION = {
    "none": Fallback(),
    "rules": Fallback(),
    "auto": Fallback(auto=True),
    "norms": Fallback(types=["*Norm*"]),
    "transformer": Fallback(types=["*Norm*|*Softmax*|*Router*"]),
    "cnn": Fallback(types=["*Norm*|*AvgPool*|*SqueezeExcit*"]),
}
# Hydra 1.3 wants version_base; 1.4 calls it deprecated.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}

# Hydra 1.4 warns about every `instantiate` without a whitelist, a parameter that 1.3 does not have.
pytestmark = pytest.mark.filterwarnings("ignore:(?s).*_execution_whitelist_:UserWarning")


@pytest.fixture
def compose():
    with hydra.initialize_config_dir(config_dir=str(APP_CONF), **VERSION_BASE):
        yield lambda *overrides: hydra.compose("config", overrides=list(overrides))


def validator(name):
    registry = referencing.Registry().with_resources(
        (f"{key}.json", referencing.Resource.from_contents(schema)) for key, schema in SCHEMAS.items()
    )
    return jsonschema.Draft202012Validator(SCHEMAS[name], registry=registry)


def test_the_options_are_the_agreed_ones():
    assert set(OPTIONS) == set(MODE_OF_OPTION)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_and_instantiates(compose, option):
    config = compose(f"+precision={option}")
    assert config.trainer.precision is None
    assert config.trainer.max_steps == 2  # the app's own settings stay
    (plugin,) = hydra.utils.instantiate(config.trainer.plugins)
    assert isinstance(plugin, AdaptivePrecision)
    assert plugin.mode.name == MODE_OF_OPTION[option]
    assert (plugin.scaler is not None) == (option == "fp16")
    assert plugin.telemetry == Telemetry()


def test_a_field_of_the_scaling_can_be_overridden(compose):
    config = compose("+precision=fp16", "precision.scaling.init_scale=1024")
    assert hydra.utils.instantiate(config.precision).loss_scale == 1024.0


def test_the_scaling_can_be_switched(compose):
    config = compose("+precision=fp16", "precision/scaling=static")
    plugin = hydra.utils.instantiate(config.precision)
    assert plugin.loss_scale == config.precision.scaling.init_scale
    assert hydra.utils.instantiate(config.precision.scaling) == LossScaling(policy="static", init_scale=1024)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_telemetry_can_be_switched_and_overridden(compose, option):
    config = compose(f"+precision={option}", "precision/telemetry=none")
    assert hydra.utils.instantiate(config.precision).telemetry == Telemetry(
        every_n_steps=0, gradients=False, max_traced=0
    )
    config = compose(f"+precision={option}", "precision.telemetry.keep_batches=true")
    assert hydra.utils.instantiate(config.precision).telemetry == Telemetry(keep_batches=True)
    config = compose(f"+precision={option}", "precision/telemetry=full")
    assert hydra.utils.instantiate(config.precision).telemetry == Telemetry(
        activations=True, histograms=True, census=True
    )


def test_the_fallbacks_are_the_agreed_ones():
    assert {path.stem for path in (CONF / "precision" / "fallback").glob("*.yaml")} == set(FALLBACK_OF_OPTION)


@pytest.mark.parametrize("option", WITH_FALLBACK)
@pytest.mark.parametrize("choice", sorted(FALLBACK_OF_OPTION))
def test_the_fallback_can_be_switched(compose, option, choice):
    config = compose(f"+precision={option}", f"precision/fallback={choice}")
    assert hydra.utils.instantiate(config.precision.fallback) == FALLBACK_OF_OPTION[choice]
    if choice != "auto":  # which only the mixed precisions take
        (plugin,) = hydra.utils.instantiate(config.trainer.plugins)
        assert plugin.fallback == FALLBACK_OF_OPTION[choice]


@pytest.mark.parametrize("option", WITH_FALLBACK)
def test_layers_are_named_without_choosing_an_option(compose, option):
    config = compose(f"+precision={option}", "precision.fallback.layers=[head,blocks.*.attn]")
    assert hydra.utils.instantiate(config.precision.fallback) == Fallback(layers=["head", "blocks.*.attn"])


@pytest.mark.parametrize("option", ["fp16", "bf16"])
def test_a_mixed_precision_takes_the_automatic_fallback(compose, option):
    config = compose(f"+precision={option}", "precision/fallback=auto", "precision.fallback.patience=2")
    assert hydra.utils.instantiate(config.precision).fallback == Fallback(auto=True, patience=2)


def test_tf32_has_no_fallback(compose):
    assert "fallback" not in compose("+precision=tf32").precision


@pytest.mark.parametrize(
    ("override", "choices"),
    [
        ("+precision=fp8", OPTIONS),
        ("precision/scaling=off", ["dynamic", "predictive", "static"]),
        ("precision/telemetry=off", ["none", "light", "full"]),
        ("precision/fallback=off", sorted(FALLBACK_OF_OPTION)),
    ],
)
def test_an_unknown_name_is_answered_with_the_choices(compose, override, choices):
    with pytest.raises(MissingConfigException) as error:
        compose(*([] if override.startswith("+") else ["+precision=fp16"]), override)
    assert override.partition("=")[2] in str(error.value)
    for choice in choices:
        assert choice in str(error.value).split()


def test_a_field_out_of_range_is_refused_when_the_app_instantiates(compose):
    config = compose("+precision=fp16", "precision.scaling.growth_factor=0.5")
    # Hydra 1.3 wraps what a constructor raises, 1.4 does not.
    either = (hydra.errors.InstantiationException, ConfigError)
    with pytest.raises(either, match=r"growth_factor=0\.5 is not accepted; accepted: "):
        hydra.utils.instantiate(config.trainer)


# The schemas, which editors use, against the files and the classes that they describe.


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_shipped_file_fits_its_schema(path):
    validator(path.parent.name).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_schemas_are_valid_schemas(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": {"precision": "fp8"}}, "'fp8' is not valid"),
        ({"precision": {"dtype": "bf16"}}, "'dtype' was unexpected"),
        ({"precision": {"scaling": {"_target_": "mp_plugin.LossScaling", "patience": 0}}}, "is not valid"),
        ({"precision": {"fallback": {"_target_": "mp_plugin.Fallback", "max_fraction": 2}}}, "is not valid"),
        ({"precision": {"telemetry": {"_target_": "mp_plugin.Telemetry", "max_traced": -1}}}, "is not valid"),
        ({"trainer": {"precision": "bf16-mixed"}}, "is not of type 'null'"),
        ({"trainer": {"plugins": []}}, "does not contain items"),
    ],
    ids=str,
)
def test_a_wrong_precision_file_is_refused(change, message):
    content = yaml.safe_load((CONF / "precision" / "bf16.yaml").read_text())
    for key, value in change.items():
        content[key].update(value)
    with pytest.raises(jsonschema.ValidationError, match=message):
        validator("precision").validate(content)


def test_schema_has_the_plugins_parameters_and_names():
    node = SCHEMAS["precision"]["properties"]["precision"]["properties"]
    assert node.keys() - {"_target_"} == inspect.signature(AdaptivePrecision).parameters.keys()
    names = {str(name) for name in node["precision"]["anyOf"][0]["enum"]}
    assert names == {*MODES, *ALIASES}


@pytest.mark.parametrize(
    ("name", "described"), [("scaling", LossScaling), ("fallback", Fallback), ("telemetry", Telemetry)]
)
def test_schema_has_the_fields_and_defaults_of_its_class(name, described):
    properties = SCHEMAS[name]["properties"]
    assert properties.keys() - {"_target_", "defaults"} == {field.name for field in fields(described)}
    for field in fields(described):
        assert field.default is not MISSING
        default = list(field.default) if isinstance(field.default, tuple) else field.default  # JSON has lists alone
        assert properties[field.name]["default"] == getattr(default, "value", default)


LOW, HIGH = 2.0**-64, 2.0**64


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("policy", ["dynamic", "predictive", "static"], ["off", None]),
        ("init_scale", [LOW, 1.5, HIGH], [LOW / 2, HIGH * 2, 0, -1, "many"]),
        ("growth_factor", [1.0001, HIGH], [1, 0.5, HIGH * 2, "2"]),
        ("backoff_factor", [1e-9, 0.999], [0, 1, 2, -0.5]),
        ("growth_interval", [1, 2000], [0, -1, 1.5, "often"]),
        ("hysteresis", [1, 5], [0, 1.5]),
        ("min_scale", [LOW, HIGH], [LOW / 2, HIGH * 2]),
        ("max_scale", [LOW, HIGH], [LOW / 2, HIGH * 2]),
        ("at_min_scale", ["raise", "skip", "fallback"], ["raise_", "stop"]),
        ("patience", [1, 10], [0, 2.5]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schema_and_class_draw_the_same_lines(name, accepted, refused):
    scale = {"min_scale": LOW, "max_scale": HIGH}
    for value in accepted:
        # min_scale <= init_scale <= max_scale is beyond a schema; the class is given room for the value.
        room = {**scale, "init_scale": value} if name in ("min_scale", "max_scale") else scale
        LossScaling(**{**room, name: value})
        validator("scaling").validate({"_target_": "mp_plugin.LossScaling", name: value})
    for value in refused:
        with pytest.raises(ConfigError, match=f"LossScaling.{name}="):
            LossScaling(**{name: value})
        with pytest.raises(jsonschema.ValidationError):
            validator("scaling").validate({"_target_": "mp_plugin.LossScaling", name: value})


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("every_n_steps", [0, 100], [-1, 1.5, "all", None]),
        ("activations", [True, False], [0, "yes", None]),
        ("gradients", [True, False], [0, "yes", None]),
        ("histograms", [True, False], [0, "yes", None]),
        ("max_overhead", [1e-3, 0.01, 1], [0, -0.1, 1.1, "all", None]),
        ("layer_metrics", ["none", "extremes", "all"], ["some", "", 1, None]),
        ("drift_every_n_validations", [0, 5], [-1, 1.5, "all", None]),
        ("drift_batches", [1, 4], [0, 1.5, "all", None]),
        ("max_traced", [0, 20], [-1, 1.5, "all", None]),
        ("directory", [None, "runs/7"], ["", 7, True]),
        ("keep_batches", [True, False], [0, "yes", None]),
        ("census", [True, False], [0, "yes", None]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schema_and_telemetry_draw_the_same_lines(name, accepted, refused):
    for value in accepted:
        Telemetry(**{name: value})
        validator("telemetry").validate({"_target_": "mp_plugin.Telemetry", name: value})
    for value in refused:
        with pytest.raises(ConfigError, match=f"Telemetry.{name}="):
            Telemetry(**{name: value})
        with pytest.raises(jsonschema.ValidationError):
            validator("telemetry").validate({"_target_": "mp_plugin.Telemetry", name: value})


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("layers", [[], ["head"], ["blocks.*.attn", "a|b"]], ["head", [""], [" "], [1], None]),
        ("types", [[], ["*Norm*"]], ["*Norm*", [""], [1], None]),
        ("auto", [True, False], [0, "yes", None]),
        ("patience", [1, 10], [0, 2.5, None]),
        ("max_fraction", [0, 0.2, 1], [-0.1, 1.1, "all", None]),
        ("probation_steps", [1, 1000], [0, 2.5, None]),
        ("underflow_tolerance", [0, 0.05, 1], [-0.1, 1.1, None]),
        ("map", [None, "runs/7/precision_map.yaml"], ["", 7, True]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schema_and_fallback_draw_the_same_lines(name, accepted, refused):
    for value in accepted:
        Fallback(**{name: value})
        validator("fallback").validate({"_target_": "mp_plugin.Fallback", name: value})
    for value in refused:
        with pytest.raises(ConfigError, match=f"Fallback.{name}="):
            Fallback(**{name: value})
        with pytest.raises(jsonschema.ValidationError):
            validator("fallback").validate({"_target_": "mp_plugin.Fallback", name: value})


def test_schema_lets_a_value_come_from_elsewhere():
    validator("fallback").validate({"_target_": "mp_plugin.Fallback", "map": "${paths.map}", "layers": "${model.fp32}"})
    validator("telemetry").validate({"_target_": "mp_plugin.Telemetry", "directory": "${paths.output_dir}"})
    validator("scaling").validate({"_target_": "mp_plugin.LossScaling", "init_scale": "${model.init_scale}"})
    with pytest.raises(jsonschema.ValidationError):
        validator("scaling").validate({"_target_": "mp_plugin.LossScaling", "init_scale": "model.init_scale"})


@pytest.mark.parametrize("policy", ["dynamic", "predictive"])
def test_scaling_files_say_what_the_class_says(policy):
    node = OmegaConf.load(CONF / "precision" / "scaling" / f"{policy}.yaml")
    assert hydra.utils.instantiate(node) == LossScaling(policy=policy)


def test_the_light_telemetry_says_what_the_class_says():
    node = OmegaConf.load(CONF / "precision" / "telemetry" / "light.yaml")
    assert hydra.utils.instantiate(node) == Telemetry()


@pytest.mark.parametrize("choice", sorted(FALLBACK_OF_OPTION))
def test_fallback_files_write_out_every_field(choice):
    node = OmegaConf.load(CONF / "precision" / "fallback" / f"{choice}.yaml")
    assert list(node) == ["_target_", *(field.name for field in fields(Fallback))]
