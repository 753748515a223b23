"""`precision_map.yaml` of a run: true at any time, and enough to do it again."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, Fallback, LossScaling, Telemetry
from mp_plugin.errors import ConfigError
from mp_plugin.fallback.precision_map import FILE_NAME, NOT_OBSERVED, PrecisionMap
from mp_plugin.telemetry.store import read_incidents
from tests.helpers.faults.fp32 import FP32Fault, Trained, fp32_fault
from tests.helpers.training import Regression, assert_bitwise_equal, fit, quiet_trainer, regression_data, weights

SCALING = LossScaling(init_scale=2.0**8)
FAULT = fp32_fault("mlp: inside a layer")
CULPRIT = "net.hidden.3"


def data(*faulty: int, count: int = 6, fault: FP32Fault = FAULT) -> Any:
    return DataLoader(fault.batches(faulty=faulty, count=count), batch_size=None)  # type: ignore[arg-type]


def plugin_with(precision: str = "fp16", telemetry: Telemetry | None = None, **fallback: Any) -> AdaptivePrecision:
    scaling = SCALING if precision == "fp16" else None
    return AdaptivePrecision(precision, scaling=scaling, fallback=Fallback(**fallback), telemetry=telemetry)


def saved(directory: Path) -> PrecisionMap:
    return PrecisionMap.load(directory / FILE_NAME)


class Reads(Trained):
    """Reads the run's map before each batch, and notes what each linear layer computes in."""

    def __init__(self, net: nn.Module, directory: Path) -> None:
        super().__init__(net)
        self.directory = directory
        self.maps: list[PrecisionMap | None] = []
        self.computed: list[dict[str, torch.dtype]] = []
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda _m, _i, output, name=name: self._note(name, output))

    def _note(self, name: str, output: torch.Tensor) -> None:
        self.computed[-1][f"net.{name}"] = output.dtype

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.trainer.precision_plugin.start.is_rehearsing:  # type: ignore[union-attr]
            self.maps.append(saved(self.directory) if (self.directory / FILE_NAME).exists() else None)
        self.computed.append({})
        return super().training_step(batch, batch_idx)


def test_it_is_there_after_the_first_step_and_true_after_each_change(tmp_path: Path) -> None:
    plugin = plugin_with(auto=True, probation_steps=2)
    model = Reads(FAULT.make().net, tmp_path)
    quiet_trainer(plugins=[plugin], default_root_dir=tmp_path).fit(model, data(2))
    assert model.maps[0] is None
    islands = [None if each is None else list(each.islands) for each in model.maps]
    # Batch 2 is run twice. The step that was cured is the first clean one, the next one the second.
    assert islands == [None, [], [], [], [CULPRIT], [], []]
    for found in filter(None, model.maps):
        assert found.precision == "16-mixed"
        for name, layer in found.layers.items():
            assert layer.format == ("fp32" if name in found.islands else "fp16"), name
            assert layer.bears_parameters
    moved = model.maps[4]
    assert moved is not None
    assert moved.layers[CULPRIT].since_step == 2
    assert moved.layers[CULPRIT].why.startswith("proved: aten.mul.Tensor made inf in net.hidden.3")
    assert {layer.why for name, layer in moved.layers.items() if name != CULPRIT} == {"autocast"}
    # What the hooks saw in the last, healthy pass.
    names = {torch.float16: "fp16", torch.float32: "fp32"}
    seen = {name: names[dtype] for name, dtype in model.computed[-1].items()}
    assert {name: layer.format for name, layer in saved(tmp_path).layers.items()} == seen


@pytest.mark.parametrize(
    ("precision", "half"), [("fp16", "fp16"), ("bf16", "bf16"), ("16-true", "fp16"), ("bf16_true", "bf16")]
)
def test_rules_show_in_it(tmp_path: Path, precision: str, half: str) -> None:
    fit(plugin_with(precision, layers=["net.2"]), default_root_dir=tmp_path)
    found = saved(tmp_path)
    assert {name: (each.format, each.why) for name, each in found.layers.items()} == {
        "net.0": (half, "weights" if "true" in precision else "autocast"),
        "net.2": ("fp32", "rule: net.2"),
    }


def test_without_a_fallback_there_is_none(tmp_path: Path) -> None:
    fit(AdaptivePrecision("fp16"), default_root_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_run_leaves_no_file(tmp_path: Path) -> None:
    plugin = plugin_with(layers=["net.2"], telemetry=Telemetry(census=True))
    fit(plugin, default_root_dir=tmp_path, fast_dev_run=2)
    assert plugin.census is not None
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_where_telemetry_goes(tmp_path: Path) -> None:
    fit(plugin_with(layers=["net.2"], telemetry=Telemetry(directory=str(tmp_path / "own"))))
    assert saved(tmp_path / "own").islands == {"net.2": "rule: net.2"}


def test_a_directory_that_takes_no_file_is_only_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    telemetry = Telemetry(directory=str(tmp_path / "file"), census=True)
    model = fit(plugin_with(layers=["net.2"], telemetry=telemetry))
    assert len(model.losses) == 8
    assert f"{FILE_NAME} cannot be written to {tmp_path / 'file'}" in caplog.text
    assert "census.json cannot be written" in caplog.text


def test_looking_changes_nothing() -> None:
    seen, unseen = plugin_with(auto=True), AdaptivePrecision("fp16", scaling=SCALING)
    torch.manual_seed(3)
    watched = fit(seen, WithDropout())
    torch.manual_seed(3)
    plain = fit(unseen, WithDropout())
    assert seen.census is not None
    assert_bitwise_equal(weights(watched), weights(plain))
    assert_bitwise_equal(list(watched.buffers()), list(plain.buffers()))


class WithDropout(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))
        self.net.insert(2, nn.Dropout(0.5))


class Takes(Trained):
    """Takes something out of its batch, as is common with dicts."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch.pop("batch"), batch_idx)


def test_a_step_that_takes_its_batch_apart_is_looked_at_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left: list[Any] = []

    class Watches(Takes):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            left.append(dict(batch))

    batches = [{"batch": each} for each in FAULT.batches(faulty=(), count=2)]
    plugin = plugin_with(layers=[CULPRIT])
    trainer = quiet_trainer(plugins=[plugin], default_root_dir=tmp_path)
    trainer.fit(Watches(FAULT.make().net), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert saved(tmp_path).layers[CULPRIT].format == "fp32"
    assert "could not be observed" not in caplog.text
    assert left == [{}, {}]  # as the step had left it


class Manual(Trained):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False


def test_in_manual_optimization_it_says_that_nobody_has_looked(tmp_path: Path) -> None:
    plugin = plugin_with(layers=[CULPRIT])
    trainer = quiet_trainer(plugins=[plugin], default_root_dir=tmp_path)
    trainer.fit(Manual(FAULT.make().net), data(2))
    assert {layer.format for layer in saved(tmp_path).layers.values()} == {NOT_OBSERVED}
    assert list(saved(tmp_path).islands) == [CULPRIT]
    assert plugin.census is None
    assert plugin.skipped_steps == 0  # the rule cures it


def test_auto_without_a_closure_proves_nothing_and_skips_as_without(tmp_path: Path) -> None:
    plugin, plain = plugin_with(auto=True), AdaptivePrecision("fp16", scaling=SCALING)
    models = Manual(FAULT.make().net), Manual(FAULT.make().net)
    for each, model in zip((plugin, plain), models, strict=True):
        quiet_trainer(plugins=[each], default_root_dir=tmp_path).fit(model, data(2))
        assert (each.skipped_steps, each.effective_step) == (1, 5)
    assert plugin.fp32_layers == []
    assert_bitwise_equal(weights(models[0]), weights(models[1]))


def test_trouble_with_looking_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Counts(Regression):
        """Can be run once only."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.precision_plugin.start.is_rehearsing:  # type: ignore[union-attr]
                raise RuntimeError("once only")
            return super().training_step(batch, batch_idx)

    model = fit(plugin_with(layers=["net.2"]), Counts(), default_root_dir=tmp_path)
    assert len(model.losses) == 8
    (record,) = [each for each in caplog.records if each.name == "mp_plugin.all_ranks"]
    assert record.getMessage() == "What each layer runs in could not be observed; training goes on without it."
    assert {name: each.format for name, each in saved(tmp_path).layers.items()} == {
        "net.0": NOT_OBSERVED,
        "net.2": NOT_OBSERVED,
    }


# To do it again.


@pytest.mark.parametrize("name", ["mlp: inside a layer", "cnn: two that interact", "transformer: shared"])
def test_a_run_with_the_map_is_the_run_with_these_layers_from_the_start(tmp_path: Path, name: str) -> None:
    fault = fp32_fault(name)
    first = plugin_with(auto=True)
    original = fault.make()
    # From the first batch on the layers are in FP32, so that nothing else is different.
    quiet_trainer(plugins=[first], default_root_dir=tmp_path).fit(original, data(0, 2, fault=fault))
    again, copy = plugin_with(map=str(tmp_path / FILE_NAME)), fault.make()
    quiet_trainer(plugins=[again], default_root_dir=tmp_path / "again").fit(copy, data(0, 2, fault=fault))
    assert again.incidents == []
    assert tuple(again.fp32_layers) == tuple(first.fp32_layers) == fault.culprits
    assert_bitwise_equal(weights(copy), weights(original))
    # A map of the second run is as good as that of the first.
    assert saved(tmp_path / "again").islands == {name: f"map: {why}" for name, why in saved(tmp_path).islands.items()}
    formats = [{name: each.format for name, each in saved(d).layers.items()} for d in (tmp_path, tmp_path / "again")]
    assert formats[0] == formats[1]


@pytest.mark.parametrize("precision", ["bf16_true", "16-true"])
def test_half_weights_too(tmp_path: Path, precision: str) -> None:
    original = fit(plugin_with(precision, types=["Linear"]), default_root_dir=tmp_path)
    copy = fit(plugin_with(precision, map=str(tmp_path / FILE_NAME)), default_root_dir=tmp_path / "again")
    assert {weight.dtype for weight in copy.parameters()} == {torch.float32}
    assert_bitwise_equal(weights(copy), weights(original))


def test_evaluation_takes_the_map_as_well(tmp_path: Path) -> None:
    class Tested(Trained):
        outputs: torch.Tensor | None = None

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.outputs = self(batch.inputs, batch.knob)

    model = Tested(FAULT.make().net)
    quiet_trainer(plugins=[plugin_with(auto=True)], default_root_dir=tmp_path).fit(model, data(2))
    for plugin, is_finite in ((plugin_with(map=str(tmp_path / FILE_NAME)), True), (plugin_with(), False)):
        quiet_trainer(plugins=[plugin]).test(model, data(0, count=1), verbose=False)
        assert model.outputs is not None
        assert bool(model.outputs.isfinite().all()) is is_finite


def test_a_map_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(plugin_with(layers=["net.2"]), default_root_dir=tmp_path)
    other = plugin_with(map=str(tmp_path / FILE_NAME))
    with pytest.raises(ConfigError, match=r"of another model: net.0 is not in the model, net.2 is not in the model"):
        quiet_trainer(plugins=[other]).fit(FAULT.make(), data())


def test_a_rule_that_contradicts_the_map_is_refused(tmp_path: Path) -> None:
    fit(plugin_with(layers=["net.2"]), default_root_dir=tmp_path)
    path = str(tmp_path / FILE_NAME)
    with pytest.raises(ConfigError, match=r"rules for FP32 and a map that says otherwise, of net.0 in fp16"):
        fit(plugin_with(map=path, layers=["net.0"]))
    plugin = plugin_with(map=path, layers=["net.2"])
    fit(plugin)
    assert plugin.fp32_layers == ["net.2"]


def test_a_map_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.yaml cannot be read \(No such file or directory\)"):
        plugin_with(map=str(tmp_path / "missing.yaml"))
    (tmp_path / "broken.yaml").write_text("{")
    with pytest.raises(ConfigError, match="is not YAML"):
        plugin_with(map=str(tmp_path / "broken.yaml"))


def test_layers_of_a_map_are_not_given_back(tmp_path: Path) -> None:
    quiet_trainer(plugins=[plugin_with(auto=True)], default_root_dir=tmp_path).fit(FAULT.make(), data(2))
    plugin = plugin_with(map=str(tmp_path / FILE_NAME), auto=True, probation_steps=1)
    quiet_trainer(plugins=[plugin]).fit(FAULT.make(), data())
    assert plugin.fp32_layers == [CULPRIT]


# The census.


def test_a_census_is_written_on_request(tmp_path: Path) -> None:
    plugin = AdaptivePrecision("bf16", telemetry=Telemetry(census=True))
    fit(plugin, default_root_dir=tmp_path)
    census = json.loads((tmp_path / "telemetry" / "census.json").read_text())
    assert plugin.census is not None
    assert census == json.loads(json.dumps(plugin.census.as_dict()))
    assert census["layers"]["net.0"] == {
        "format": "bf16",
        "operators": {"aten._to_copy.default": {"bf16": 3}, "aten.addmm.default": {"bf16": 1}},
    }


def test_the_census_is_that_of_the_layers_as_they_are_now(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugin = plugin_with(auto=True, telemetry=Telemetry(census=True))
    with caplog.at_level(logging.WARNING, logger="mp_plugin.all_ranks"):
        quiet_trainer(plugins=[plugin], default_root_dir=tmp_path).fit(FAULT.make(), data(2))
    census = json.loads((tmp_path / "telemetry" / "census.json").read_text())
    assert census["layers"][CULPRIT]["format"] == "fp32"
    assert plugin.census is not None
    assert plugin.census.format_of(CULPRIT) == "fp32"
    assert plugin.census.format_of("net.hidden.2") == "fp16"


def test_without_a_request_there_is_a_census_but_no_file(tmp_path: Path) -> None:
    plugin = plugin_with(layers=["net.2"])
    fit(plugin, data=regression_data(), default_root_dir=tmp_path)
    assert plugin.census is not None
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]


def test_a_layer_that_never_runs_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Lends(Regression):
        """Its last layer is never called, another one uses its weights."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets = batch
            outputs = nn.functional.linear(self.net[:2](inputs), self.net[2].weight, self.net[2].bias)
            return nn.functional.mse_loss(outputs.float(), targets)

    fit(plugin_with(layers=["net.2"]), Lends(), default_root_dir=str(tmp_path))
    told = [each.getMessage() for each in caplog.records if "did not run" in each.getMessage()]
    assert [each.partition(" did")[0] for each in told] == ["net.2"]


def test_the_map_that_was_given_is_not_overwritten(tmp_path: Path) -> None:
    fit(plugin_with(layers=["net.2"]), default_root_dir=str(tmp_path))
    given = tmp_path / FILE_NAME
    given.write_text(given.read_text() + "# a note of the user's\n")
    before = given.read_text()
    plugin = plugin_with(map=str(given))
    fit(plugin, default_root_dir=str(tmp_path))
    assert plugin.fp32_layers == ["net.2"]
    assert given.read_text() == before


def test_a_layer_that_is_given_back_is_told_and_written_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(
        plugin_with(auto=True, probation_steps=2, max_fraction=1.0),
        FAULT.make(0),
        data(0),
        default_root_dir=str(tmp_path),
    )
    assert f"Step 2: {CULPRIT} given back, and watched." in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "telemetry" / "incidents.jsonl").read_text().splitlines()]
    (event,) = [line for line in lines if "event" in line]
    assert (event["event"], event["layers"], event["step"]) == ("given back", [CULPRIT], 2)
    assert len(read_incidents(tmp_path / "telemetry" / "incidents.jsonl")) == 1
