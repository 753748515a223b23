"""Bad input is refused with one sentence that names the field and what is accepted: when the plugin is built, or before
the first batch where it comes with a checkpoint or a model."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import CheckpointError, ConfigError
from tests.helpers.training import Regression, quiet_trainer, regression_data

SCALES = ("init_scale", "min_scale", "max_scale")
FACTORS = ("growth_factor", "backoff_factor")
COUNTS = ("growth_interval", "hysteresis", "patience", "retries")

NOT_A_NUMBER: dict[str, Any] = {
    "nan": math.nan,
    "inf": math.inf,
    "minus inf": -math.inf,
    "negative": -1,
    "true": True,
    "false": False,
    "numpy boolean": np.True_,
    "string": "2",
    "none": None,
    "list": [2.0],
    "complex": 2 + 0j,
    "tensor": torch.tensor(2.0),
    "tensor of three": torch.ones(3),
    "array": np.array([2.0]),
    "numpy nan": np.float32("nan"),
    "huge": 10**400,
}


def plugin_with(**options: Any) -> AdaptivePrecision:
    return AdaptivePrecision("fp16", scaling=LossScaling(**options))


@pytest.mark.parametrize("kind", NOT_A_NUMBER)
@pytest.mark.parametrize("field", SCALES + FACTORS)
def test_a_scale_or_factor_that_is_no_number_in_range(field: str, kind: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^LossScaling\.{field}=.* is not accepted; accepted: a number, .*\.$"
    ) as caught:
        plugin_with(**{field: NOT_A_NUMBER[kind]})
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("kind", [*(kind for kind in NOT_A_NUMBER if kind != "huge"), "fraction", "whole float"])
@pytest.mark.parametrize("field", COUNTS)
def test_a_count_that_is_no_whole_number(field: str, kind: str) -> None:
    value = {**NOT_A_NUMBER, "fraction": 1.5, "whole float": 2.0}[kind]
    message = rf"^LossScaling\.{field}=.* is not accepted; accepted: a whole number, at least [01]\.$"
    with pytest.raises(ValueError, match=message):
        plugin_with(**{field: value})


@pytest.mark.parametrize("value", [0, -0.0, 2.0**-65, 2.0**65, 5e-324])
@pytest.mark.parametrize("field", SCALES)
def test_a_scale_beyond_the_limits(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"LossScaling\.{field}=.*; accepted: a number, 2\*\*-64 to 2\*\*64"):
        plugin_with(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("growth_factor", v) for v in (1, 1.0, 0.5, 0)] + [("backoff_factor", 0)])
def test_a_factor_of_the_wrong_side(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"LossScaling\.{field}=.*; accepted: a number, (above 1|between 0 and 1)"):
        plugin_with(**{field: value})


@pytest.mark.parametrize(
    "scales",
    [
        {"min_scale": 8, "init_scale": 4},
        {"init_scale": 8, "max_scale": 4},
        {"min_scale": 16, "init_scale": 8, "max_scale": 4},
        {"min_scale": 2.0**20},
        {"max_scale": 2},
    ],
    ids=str,
)
def test_scales_out_of_order(scales: dict[str, float]) -> None:
    message = (
        r"LossScaling\.init_scale=.* is out of order; accepted: min_scale \(.*\) <= init_scale <= max_scale \(.*\)"
    )
    with pytest.raises(ValueError, match=message):
        plugin_with(**scales)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, np.float16, Fraction, int, float])
def test_numbers_of_every_make_become_python_s_own(number: Any) -> None:
    config = LossScaling(init_scale=number(64), growth_factor=number(4))
    assert (config.init_scale, config.growth_factor) == (64.0, 4.0)
    assert type(config.init_scale) is type(config.growth_factor) is float


@pytest.mark.parametrize("whole", [np.int64, np.uint8, int])
def test_counts_of_every_make_become_python_s_own(whole: Any) -> None:
    """A NumPy integer in a checkpoint would not load with `weights_only=True`."""
    config = LossScaling(growth_interval=whole(3), retries=whole(0))
    assert (config.growth_interval, config.retries) == (3, 0)
    assert type(config.growth_interval) is type(config.retries) is int


@pytest.mark.parametrize("precision", ["bf16", "bf16_true", "fp16_true", "fp32", "tf32"])
def test_a_loss_scale_where_none_is_needed(precision: str) -> None:
    with pytest.raises(ValueError, match=r"^precision='.*' has no loss scale to configure; accepted: scaling=None\.$"):
        AdaptivePrecision(precision, scaling=LossScaling())


@pytest.mark.parametrize("part", ["everything", "one layer", "one parameter"])
def test_half_precision_weights_under_a_loss_scale(part: str) -> None:
    model = Regression()
    if part == "everything":
        model.half()
    elif part == "one layer":
        model.net[2].half()
    else:
        model.net[0].bias = torch.nn.Parameter(torch.zeros(16, dtype=torch.float16))
    message = "scales the gradients of fp32 weights, and . trained parameters are fp16 already, 'net.*' among them"
    with pytest.raises(ValueError, match=message):
        quiet_trainer(plugins=[AdaptivePrecision("fp16")]).fit(model, regression_data())
    assert model.losses == []


DAMAGE: dict[str, dict[str, Any]] = {
    "scale of shape [3]": {"scale": torch.ones(3)},
    "0-d tensor": {"scale": torch.tensor(8.0)},
    "string": {"scale": "8"},
    "list": {"scale": [8.0]},
    "nested": {"scale": {"scale": 8.0}},
    "zero": {"scale": 0.0},
    "negative": {"scale": -8.0},
    "nan": {"scale": math.nan},
    "huge": {"scale": 10**400},
    "missing": {"scale": None},
    "negative tracker": {"_growth_tracker": -1},
    "tracker is a tensor": {"_growth_tracker": torch.tensor(1)},
    "tracker is a boolean": {"_growth_tracker": True},
    "hysteresis is a fraction": {"hysteresis_tracker": 0.5},
    "no record": {"record": None},
    "record of another kind": {"record": [1, 2]},
    "negative counter": {"record": {"effective_step": -1}},
    "version": {"version": "1"},
    "version is a tensor": {"version": torch.ones(3)},
    "precision": {"precision": "banana"},
    "interval": {"growth_interval": "x"},
    "unknown key": {"growth_tracker": 3},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    trainer = quiet_trainer(plugins=[AdaptivePrecision("fp16")])
    trainer.fit(Regression(), regression_data())
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_stops_the_run_before_its_first_batch(saved: Path, tmp_path: Path, damage: str) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    checkpoint["AdaptivePrecision"] |= DAMAGE[damage]
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    model, plugin = Regression(), AdaptivePrecision("fp16")
    trainer = quiet_trainer(plugins=[plugin], max_epochs=2)
    with pytest.raises(CheckpointError, match=r"^The (loss scaler|precision) state .*; accepted: ") as caught:
        trainer.fit(model, regression_data(), ckpt_path=tmp_path / "damaged.ckpt", weights_only=True)
    assert isinstance(caught.value, ValueError)
    (field,) = DAMAGE[damage]
    assert f"{field}=" in str(caught.value) or f"unknown ['{field}']" in str(caught.value) or field == "record"
    assert model.losses == []
    assert plugin.loss_scale == 2.0**15


def test_a_damaged_state_of_stock_is_refused_too(saved: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    del checkpoint["AdaptivePrecision"]
    checkpoint["MixedPrecision"]["scale"] = torch.ones(3)
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    model = Regression()
    with pytest.raises(CheckpointError, match=r"state has scale=tensor\(.*; accepted: a finite number above 0"):
        quiet_trainer(plugins=[AdaptivePrecision("fp16")], max_epochs=2).fit(
            model, regression_data(), ckpt_path=tmp_path / "damaged.ckpt", weights_only=True
        )
    assert model.losses == []
