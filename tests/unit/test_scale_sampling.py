"""Samples of gradients against bounds worked out by hand. With other ranks: tests/integration/test_scale_window.py."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from mp_plugin.config import LossScaling
from mp_plugin.scale_sampling import ScaleSampler
from mp_plugin.scaling.scaler import LossScaler
from tests.helpers.training import quiet_trainer


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.tower, self.own = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.Parameter(torch.ones(2))
        self.frozen = nn.Linear(2, 2)

    def give(self, **gradients: float) -> "Model":
        """Fill the gradients of these parameters."""
        for name, parameter in self.named_parameters():
            value = gradients.get(name.replace(".", "_"))
            parameter.grad = None if value is None else torch.full_like(parameter, value)
        return self


def scaler(**options: Any) -> LossScaler:
    return LossScaler(LossScaling(**{"init_scale": 2.0**10, "min_scale": 2.0**-10, "max_scale": 2.0**30, **options}))


def sample(
    tried: ScaleSampler, module: Model, *, step: int = 0, fp32_layers: tuple[str, ...] = (), **scaling: Any
) -> None:
    """Sample gradients that an optimizer has unscaled, those of a second one still being scaled."""
    module.trainer = quiet_trainer()
    first, second = (
        torch.optim.SGD([each for name, each in module.named_parameters() if name.startswith("frozen") is is_second])
        for is_second in (False, True)
    )
    module.trainer.strategy.optimizers = [first, second]
    scales = scaler(**scaling)
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad *= scales.get_scale()
    module.frozen.weight.grad = torch.full((2, 2), 2.0**100)
    scales.verdict(first)
    tried.sample(module, scales, step=step, fp32_layers=fp32_layers)


def sampler(**options: Any) -> ScaleSampler:
    return ScaleSampler(**{"every_n_steps": 10, "underflow_tolerance": 0.05, **options})


def bounds(amax: float, amin: float) -> tuple[float, float]:
    """By hand: the product with the largest is at most 65504, that with the smallest above half of 2**-24."""
    scales = [2.0**power for power in range(-10, 31)]
    fitting = [scale for scale in scales if amax * scale <= 65504 and amin * scale > 2.0**-25]
    return min(fitting), max(fitting)


def test_each_layer_has_its_bounds_and_all_have_a_common_window() -> None:
    module = Model().give(first_weight=2.0**-3, first_bias=2.0**-3, tower_0_weight=2.0**-30, own=5.0)
    tried = sampler()
    assert tried.window is None
    sample(tried, module)
    window = tried.window
    assert window is not None
    expected = {"": bounds(5, 5), "first": bounds(2.0**-3, 2.0**-3), "tower.0": bounds(2.0**-30, 2.0**-30)}
    assert window.by_layer == expected
    assert (window.lowest, window.highest) == (expected["tower.0"][0], expected[""][1])
    assert window.emptied_by == ()


@pytest.mark.parametrize("fp32_layers", [("tower",), ("tower.0",)])
def test_layers_in_fp32_need_no_scale(fp32_layers: tuple[str, ...]) -> None:
    module = Model().give(first_weight=1.0, tower_0_weight=2.0**-60)
    tried = sampler()
    sample(tried, module)
    assert tried.window is not None
    assert set(tried.window.emptied_by) < {"first", "tower.0"}
    assert tried.window.is_empty
    other = sampler()
    sample(other, module.give(first_weight=1.0, tower_0_weight=2.0**-60), fp32_layers=fp32_layers)
    assert other.window is not None
    assert not other.window.is_empty
    assert list(other.window.by_layer) == ["first"]


def test_a_sample_is_taken_every_so_many_steps() -> None:
    tried, module = sampler(every_n_steps=10), Model()
    seen = {}
    for step in (0, 1, 9, 10, 11, 25, 30, 35):
        module.give(first_weight=2.0 ** -(step % 32))
        sample(tried, module, step=step)
        assert tried.window is not None
        seen[step] = tried.window.highest
    # As of steps 0, 10, 25 and 35: a sample that was missed is taken as soon as there is a step, and counts from there.
    expected = {
        of: bounds(2.0 ** -(taken % 32), 2.0 ** -(taken % 32))[1]
        for of, taken in {0: 0, 1: 0, 9: 0, 10: 10, 11: 10, 25: 25, 30: 25, 35: 35}.items()
    }
    assert seen == expected


def test_a_sample_is_taken_at_once_when_other_layers_are_in_fp32() -> None:
    tried, module = sampler(every_n_steps=100), Model()
    for step, fp32_layers in enumerate([(), ("tower",), ("tower",), ()]):
        sample(tried, module.give(first_weight=1.0, tower_0_weight=2.0**-60), step=step, fp32_layers=fp32_layers)
        assert tried.window is not None
        assert tried.window.is_empty is not bool(fp32_layers)


def test_without_samples_or_without_a_scale_there_is_no_window() -> None:
    module = Model().give(first_weight=1.0)
    never, unscaled = sampler(every_n_steps=0), sampler()
    sample(never, module)
    unscaled.sample(module, None, step=0, fp32_layers=())
    assert never.window is None
    assert unscaled.window is None


def test_the_window_keeps_the_limits_of_the_scale() -> None:
    tried = sampler()
    sample(tried, Model().give(first_weight=1.0), min_scale=2.0, max_scale=2.0**12)
    assert tried.window is not None
    assert (tried.window.lowest, tried.window.highest) == (2.0, 2.0**12)


def test_another_fit_starts_without_samples() -> None:
    tried = sampler()
    sample(tried, Model().give(first_weight=1.0), step=5)
    tried.start_afresh()
    assert tried.window is None
    sample(tried, Model().give(first_weight=1.0))
    assert tried.window is not None
