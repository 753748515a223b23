import math
import random

import pytest
import torch
from torch import Tensor

from benchmarks.helpers.real_casts import DTYPES, lost
from mp_plugin.errors import ConfigError
from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.format_fit import HIGHEST_SCALE, FormatFit, Share, best_scale, format_fit, overflows
from mp_plugin.telemetry.stats_row import gradient_ranges

POWERS = [2.0**power for power in range(-126, 127)]


def fit_of(values: Tensor, name: str, scale: float = 1.0) -> FormatFit:
    found = gradient_ranges([("x", values)])["x"]
    return format_fit(found.exponents, found.amax, FORMATS[name], scale=scale)


def random_values(chance: random.Random) -> Tensor:
    """Of any size and spread; often exact powers of two or their neighbours, where rounding has its edges."""
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    center, spread = chance.uniform(-30, 25), chance.choice([0.0, 1.0, 5.0, 15.0])
    powers = center + spread * torch.randn(chance.choice([1, 2, 20, 500]), generator=generator, dtype=torch.float64)
    powers = powers.round() if chance.random() < 0.5 else powers
    values = (2**powers).float() * torch.randint(-1, 2, powers.shape, generator=generator)
    return values * chance.choice([1, 1, 1 + 2**-23, 1 - 2**-24, 1.75, 1.875])


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("seed", range(60))
def test_bounds_hold_what_a_real_cast_loses(name: str, seed: int) -> None:
    chance = random.Random(seed)
    values, scale = random_values(chance), 2.0 ** chance.randint(-20, 20)
    found, truth = fit_of(values, name, scale), lost(values, name, scale)
    assert found.flushed == (truth.flushed, truth.flushed)
    assert found.overflow.low <= truth.overflow <= found.overflow.high
    assert found.subnormal.low <= truth.subnormal <= found.subnormal.high


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("seed", range(20))
def test_no_power_of_two_is_better_than_the_best(name: str, seed: int) -> None:
    values = random_values(random.Random(seed))
    found = gradient_ranges([("x", values)])["x"]
    best = best_scale(found.exponents, found.amax, FORMATS[name])

    def cost(scale: float) -> tuple[float, float]:
        truth = lost(values, name, scale)
        return truth.overflow, truth.flushed

    assert cost(best) == min(cost(scale) for scale in POWERS)
    assert cost(best)[0] == 0


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3", "e5m2"])
def test_every_edge_and_its_neighbours(name: str) -> None:
    """One value: where the bounds differ, the truth may lie on either side; elsewhere it is told exactly."""
    number_format = FORMATS[name]
    edges = [number_format.max, number_format.smallest_normal, number_format.smallest_subnormal]
    step = math.ldexp(1.0, math.frexp(number_format.max)[1] - 1 - number_format.mantissa_bits)
    edges += [number_format.max + step / 2, number_format.smallest_subnormal / 2]
    edges += [number_format.smallest_normal - number_format.smallest_subnormal / 2]
    for edge in edges:
        at = torch.tensor(edge, dtype=torch.float32)
        for value in (at.nextafter(torch.tensor(0.0)), at, at.nextafter(torch.tensor(math.inf))):
            found, truth = fit_of(value, name), lost(value, name)
            # With a single value, amax is the value: nothing is left open.
            assert (found.overflow, found.flushed, found.subnormal) == (
                (truth.overflow,) * 2,
                (truth.flushed,) * 2,
                (truth.subnormal,) * 2,
            )


def test_where_amax_overflows_inside_a_bin_the_others_of_the_bin_may() -> None:
    found = fit_of(torch.tensor([40000.0, 50000.0, 65520.0, 1.0]), "fp16")
    assert found.overflow == Share(0.25, 0.75)
    assert not found.overflow.is_exact
    assert fit_of(torch.tensor([40000.0, 50000.0, 65519.0, 1.0]), "fp16").overflow == (0, 0)
    # Beyond the bin of the largest value nothing is known of those in it.
    assert fit_of(torch.tensor([40000.0, 70000.0, 1.0, 1.0]), "fp16").overflow == (0.25, 0.5)


def test_just_below_the_smallest_normal_value_a_value_may_be_rounded_up_to_it() -> None:
    below = 2.0**-7 * 1.5
    assert fit_of(torch.tensor([below, below, 2.0**-6, 1.0]), "e4m3").subnormal == (0, 0.75)
    assert fit_of(torch.tensor([below, below, 2.0**-6, 2.0**-6]), "e4m3").subnormal == (0, 0.75)
    assert fit_of(torch.tensor([below, below, below]), "e4m3").subnormal == (1, 1)


def test_zeros_count_for_nothing_and_nothing_loses_nothing() -> None:
    assert fit_of(torch.tensor([0.0, -0.0, 2.0**-30, 1.0]), "fp16").flushed == (0.5, 0.5)
    for values in (torch.zeros(3), torch.empty(0)):
        assert fit_of(values, "e4m3") == FormatFit(
            scale=1.0, overflow=Share(0, 0), flushed=Share(0, 0), subnormal=Share(0, 0)
        )
        assert best_scale({}, 0.0, FORMATS["e4m3"]) == 1.0


def test_what_fits_as_it_is_is_not_scaled() -> None:
    assert best_scale({0: 5, -3: 5}, 1.0, FORMATS["fp16"]) == 1.0
    assert best_scale({0: 5, -20: 5}, 1.0, FORMATS["fp16"]) == 2.0**15


@pytest.mark.parametrize(("amax", "exponent"), [(2.0**-149, -149), (3.4e38, 128)])
def test_scales_stay_those_of_fp32(amax: float, exponent: int) -> None:
    scale = best_scale({exponent: 1}, amax, FORMATS["e4m3"])
    assert 1 / HIGHEST_SCALE <= scale <= HIGHEST_SCALE
    assert not overflows(amax * scale, FORMATS["e4m3"])


@pytest.mark.parametrize("scale", [3.0, 0.0, -2.0, math.inf, math.nan])
def test_a_scale_that_is_no_power_of_two_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"scale=.* is not accepted; accepted: a power of two\."):
        format_fit({0: 1}, 1.0, FORMATS["fp16"], scale=scale)
