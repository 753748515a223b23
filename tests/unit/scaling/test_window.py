import json
import math
import random
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from mp_plugin.formats import FORMATS
from mp_plugin.scaling.window import scale_window
from mp_plugin.telemetry.stats_row import gradient_ranges
from mp_plugin.telemetry.tensor_stats import TensorStats

FP16 = FORMATS["fp16"]
LIMITS: dict[str, Any] = {"underflow_tolerance": 0.05, "min_scale": 1.0, "max_scale": 2.0**24}
FREE: dict[str, Any] = {"min_scale": 2.0**-64, "max_scale": 2.0**64}
POWERS = [2.0**power for power in range(-64, 65)]


def window(gradients: dict[str, list[float]], **options: Any) -> Any:
    tensors = {name: torch.tensor(values) for name, values in gradients.items()}
    return scale_window(gradient_ranges(tensors.items()), number_format=FP16, **{**LIMITS, **options})


def fits(gradient: Tensor, scale: float, tolerance: float) -> bool:
    """The definition: float64, and a real cast to fp16."""
    scaled = gradient.double() * scale
    not_zero = scaled[gradient != 0]
    if not not_zero.numel():
        return True
    num_vanished = int((not_zero.to(torch.float16) == 0).sum())
    return bool(scaled.abs().max() <= 65504) and num_vanished <= tolerance * len(not_zero)


def random_gradient(chance: random.Random) -> Tensor:
    """Of any size and spread; often exact powers of two, where rounding has its edges."""
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    center, spread = chance.uniform(-40, 15), chance.choice([0.0, 1.0, 5.0, 15.0])
    powers = center + spread * torch.randn(chance.choice([1, 20, 200]), generator=generator, dtype=torch.float64)
    powers = powers.round() if chance.random() < 0.5 else powers
    gradient = (2**powers).float() * torch.randint(-1, 2, powers.shape, generator=generator)
    return gradient * (1 + 2**-23) if chance.random() < 0.2 else gradient


@pytest.mark.parametrize("seed", range(200))
def test_bounds_of_a_layer_against_real_casts_at_every_power_of_two(seed):
    chance = random.Random(seed)
    gradient, tolerance = random_gradient(chance), chance.choice([0.0, 0.01, 0.05, 0.3, 1.0])
    found = scale_window(
        gradient_ranges([("layer", gradient)]), number_format=FP16, underflow_tolerance=tolerance, **FREE
    )
    assert (found.lowest, found.highest) == found.by_layer["layer"]
    assert [scale for scale in POWERS if found.lowest <= scale <= found.highest] == [
        scale for scale in POWERS if fits(gradient, scale, tolerance)
    ]
    assert found.is_empty == (not any(fits(gradient, scale, tolerance) for scale in POWERS))
    assert found.emptied_by == (("layer",) if found.is_empty else ())


@pytest.mark.parametrize("seed", range(100))
def test_the_layers_that_empty_the_window_are_a_smallest_set(seed):
    chance = random.Random(seed)
    gradients = {f"{place}": random_gradient(chance) for place in range(chance.randint(1, 6))}
    found = scale_window(gradient_ranges(gradients.items()), number_format=FP16, **LIMITS)
    scales = [scale for scale in POWERS if 1 <= scale <= 2**24]

    def one_fits_all_but(removed: tuple[str, ...]) -> bool:
        kept = [gradient for name, gradient in gradients.items() if name not in removed]
        return any(all(fits(gradient, scale, 0.05) for gradient in kept) for scale in scales)

    num_needed = next(
        size
        for size in range(len(gradients) + 1)
        if any(one_fits_all_but(removed) for removed in combinations(gradients, size))
    )
    assert one_fits_all_but(found.emptied_by)
    assert len(found.emptied_by) == num_needed
    assert found.is_empty == (num_needed > 0)


def test_two_layers_that_no_scale_fits_together():
    found = window({"stem": [2.0**10, 1.0], "block": [2.0**-10], "head": [2.0**-33] * 9})
    assert found.by_layer == {"stem": (1.0, 32.0), "block": (1.0, 2.0**24), "head": (2.0**9, 2.0**24)}
    assert (found.lowest, found.highest, found.is_empty) == (2.0**9, 32.0, True)
    # Without either of them the window is open; without the stem it is wider.
    assert found.emptied_by == ("stem",)


def test_the_largest_gradient_may_come_out_at_the_largest_value_and_not_above():
    assert window({"layer": [65504.0]}).highest == 1.0
    assert window({"layer": [65504.0 + 2**-7]}).highest == 0.5
    assert window({"layer": [65504.0 * 2**-24]}, max_scale=2.0**30).highest == 2.0**24


def test_half_of_the_smallest_value_vanishes_and_a_bit_more_does_not():
    assert window({"layer": [2.0**-25]}).lowest == 2.0
    assert window({"layer": [2.0**-25 * (1 + 2**-23)]}).lowest == 1.0


def test_the_limits_of_the_loss_scale_bound_every_window():
    found = window({"layer": [1e-3], "frozen": [0.0, 0.0], "unused": []}, min_scale=3.0, max_scale=1000.0)
    assert found.by_layer == dict.fromkeys(("layer", "frozen", "unused"), (3.0, 1000.0))
    assert (found.lowest, found.highest, found.emptied_by) == (3.0, 1000.0, ())


def test_a_layer_that_is_not_finite_fits_no_scale():
    found = window({"good": [1e-3], "bad": [1.0, math.nan], "worse": [math.inf]})
    assert found.by_layer["bad"] == (1.0, 0.0)
    assert found.is_empty
    assert found.emptied_by == ("bad", "worse")


def test_no_layers_leave_the_limits():
    found = window({})
    assert (found.lowest, found.highest, found.emptied_by) == (1.0, 2.0**24, ())


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_a_format_with_the_range_of_fp32_fits_what_fp16_does_not(name):
    layers = {"stem": TensorStats(amax=2.0**60, exponents={60: 9}), "head": TensorStats(exponents={-99: 9})}
    assert not scale_window(layers, number_format=FORMATS[name], **LIMITS).is_empty
    assert scale_window(layers, number_format=FP16, **LIMITS).is_empty


def test_it_is_written_as_json():
    found = window({"stem": [2.0**10], "head": [2.0**-33]})
    assert json.loads(json.dumps(found.as_dict())) == {
        "lowest": 512.0,
        "highest": 32.0,
        "by_layer": {"stem": [1.0, 32.0], "head": [512.0, 2.0**24]},
        "emptied_by": ["stem"],
    }
