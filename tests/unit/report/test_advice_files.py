from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from mp_plugin import AdaptivePrecision, Fallback, LossScaling
from mp_plugin.errors import ConfigError
from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.report.advice_files import config_text, how_to_use_in_python, write_advice
from mp_plugin.telemetry.advise import Advice, advise
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run
from tests.helpers.samples import sample, table

ACTIVATION, GRADIENT, WEIGHTS = TensorKind


def recorded(gradient: torch.Tensor | None = None) -> tuple[Run, Advice]:
    gradient = torch.full((9,), 1.0) if gradient is None else gradient
    rows = [sample("stem", ACTIVATION, torch.ones(9)), sample("stem", WEIGHTS, gradient)]
    rows += [sample("head", ACTIVATION, torch.full((9,), 1e6)), sample("head", WEIGHTS, gradient)]
    run = Run(directory=Path("runs/7"), samples=table(rows))
    return run, advise(run)


def test_a_map_and_a_config_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    map_path, config_path = write_advice(*recorded(), "out")
    assert (map_path, config_path) == (tmp_path / "out/precision_map.yaml", tmp_path / "out/precision/advised.yaml")
    assert list(PrecisionMap.load(map_path).islands) == ["head"]
    text = config_path.read_text()
    assert text.startswith("# @package _global_\n")
    assert f"python train.py --config-dir {tmp_path}/out precision=advised" in text
    assert yaml.safe_load(text) == {
        "defaults": ["fp16", "_self_"],
        # Gradients of 1 fit up to 2^15.
        "precision": {"fallback": {"map": str(map_path), "auto": True}, "scaling": {"init_scale": 2.0**13}},
    }


def test_the_same_in_python(tmp_path: Path) -> None:
    run, advice = recorded()
    map_path, config_path = write_advice(run, advice, tmp_path / "a b's")
    code = how_to_use_in_python(advice, map_path)
    plugin = eval(code, {each.__name__: each for each in (AdaptivePrecision, Fallback, LossScaling)})
    settings = yaml.safe_load(config_path.read_text())["precision"]
    assert plugin.summary()["loss_scale"]["now"] == settings["scaling"]["init_scale"]
    assert (plugin.fallback.map, plugin.fallback.auto) == (str(map_path), True)
    without = replace(advice, loss_scales=None)
    assert "LossScaling" not in how_to_use_in_python(without, map_path)


def test_the_first_loss_scale_is_never_below_those_that_fit() -> None:
    wide = torch.tensor([2.0**-23] * 9 + [2.0**5] * 9)
    _, advice = recorded(wide)
    assert advice.loss_scales is not None
    lowest, highest = advice.loss_scales.lowest, advice.loss_scales.highest
    assert lowest == highest == 2.0**10
    assert yaml.safe_load(config_text(advice, Path("/m")))["precision"]["scaling"] == {"init_scale": 2.0**10}


def test_nothing_is_replaced_unless_wanted(tmp_path: Path) -> None:
    write_advice(*recorded(), tmp_path)
    (tmp_path / "precision_map.yaml").unlink()
    (tmp_path / "precision/advised.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"advised\.yaml is there already; accepted: another directory, or --force"):
        write_advice(*recorded(), tmp_path)
    # Nor is the other one written.
    assert [path.name for path in tmp_path.rglob("*.yaml")] == ["advised.yaml"]
    assert (tmp_path / "precision/advised.yaml").read_text() == "mine"
    write_advice(*recorded(), tmp_path, overwrite=True)
    assert (tmp_path / "precision/advised.yaml").read_text() != "mine"


def test_where_nothing_can_be_written_one_sentence_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/.* cannot be written to \(.*\); accepted: a directory that can\."):
        write_advice(*recorded(), tmp_path / "file" / "out")


def test_a_path_is_a_path_whatever_is_in_it() -> None:
    _, advice = recorded()
    path = Path("/runs/${oc.env:HOME}/a: b # 'c'/é")
    config = OmegaConf.create(yaml.safe_load(config_text(advice, path)))
    assert config.precision.fallback.map == str(path)
