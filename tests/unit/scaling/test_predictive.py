"""The model against arithmetic that shares no code with it: closed forms, explicit weights, `math.erfc`, and dice."""

import dataclasses
import math
import random
from typing import Any

import pytest
import torch

from mp_plugin.errors import CheckpointError
from mp_plugin.scaling.predictive import (
    GAP_STEPS,
    LOG2_MAX,
    MEAN_RATE,
    OVERFLOW_CHANCE,
    SPREAD_RATE,
    AmaxModel,
    Z,
    highest_scale,
    learn_gap,
    load_model,
    margin,
    observe,
    save_model,
)


def model_of(bits: list[float]) -> AmaxModel:
    """A model that has seen these steps."""
    model = AmaxModel()
    for value in bits:
        model = observe(model, value)
    return model


def dice(count: int, *, mean: float = 0.0, spread: float = 1.0, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(mean, spread) for _ in range(count)]


def chance(distance: float) -> float:
    """Chance that a standard normal lies above."""
    return 0.5 * math.erfc(distance / math.sqrt(2))


def test_the_margin_is_that_of_the_stated_chance() -> None:
    assert OVERFLOW_CHANCE == 1e-6
    assert chance(Z) == pytest.approx(1e-6, rel=1e-9)
    assert margin(AmaxModel(variance=4.0)) == pytest.approx(2 * 4.7534, rel=1e-4)


def test_the_largest_number_is_that_of_fp16() -> None:
    assert torch.finfo(torch.float16).max == 2**LOG2_MAX


def test_the_first_steps_weigh_the_same() -> None:
    """A plain mean of up to 32 steps; a plain mean square of errors that 16 steps of one bit count in."""
    bits = dice(32, mean=-5)
    model = model_of(bits)
    assert model.mean == pytest.approx(sum(bits) / 32, rel=1e-12)
    errors = [value - sum(bits[:count]) / count for count, value in enumerate(bits) if count]
    squares = sum(error**2 for error in errors)
    assert model.variance == pytest.approx((16 * 1.0 + squares) / (16 + 31), rel=1e-12)


def test_later_steps_weigh_less_the_older_they_are() -> None:
    """Against explicit weights in fp64: what a step counts for is its own weight times what all later ones left it."""
    bits = torch.tensor(dice(3000, mean=7, spread=0.5), dtype=torch.float64)
    steps = torch.arange(3000, dtype=torch.float64)
    means = torch.stack([bits[: n + 1] @ _left(torch.clamp(1 / (steps[: n + 1] + 1), min=1 / 32)) for n in range(3000)])
    errors = bits[1:] - means[:-1]
    rates = torch.clamp(1 / (steps[1:] + 16), min=1 / 512)
    variance = errors.square() @ _left(rates) + torch.prod(1 - rates) * 1.0
    model = model_of(bits.tolist())
    assert (MEAN_RATE, SPREAD_RATE) == (1 / 32, 1 / 512)
    assert model.observed == 3000
    assert model.mean == pytest.approx(means[-1].item(), rel=1e-10)
    assert model.variance == pytest.approx(variance.item(), rel=1e-10)


def _left(rates: torch.Tensor) -> torch.Tensor:
    later = torch.cat([torch.cumprod((1 - rates).flip(0), 0).flip(0)[1:], torch.ones(1, dtype=torch.float64)])
    return rates * later


def test_the_scale_is_the_highest_power_of_two_below_the_margin() -> None:
    model = AmaxModel(observed=9, mean=-3.0, variance=0.25, gap=1.5)
    scale = highest_scale(model)
    expected = 2.0 ** (-3.0 + 0.5 * 4.753424308822899 + 1.5)
    assert math.frexp(scale)[0] == 0.5
    assert scale * expected <= 65504 < 2 * scale * expected
    assert highest_scale(AmaxModel()) == math.inf


@pytest.mark.parametrize(("mean", "spread"), [(-3.0, 0.5), (4.0, 2.0), (-20.0, 3.0)])
def test_overflows_stay_as_rare_as_stated(mean: float, spread: float) -> None:
    """The exact chance at every step of a run whose law is known, and a million dice."""
    model, chances, unrounded = AmaxModel(), [], []
    for step, bits in enumerate(dice(6000, mean=mean, spread=spread)):
        model = observe(model, bits)
        if step >= 1000:
            chances.append(chance((LOG2_MAX - math.log2(highest_scale(model)) - mean) / spread))
            unrounded.append(chance((model.mean + margin(model) - mean) / spread))
    assert sum(chances) / len(chances) <= OVERFLOW_CHANCE
    # Not safer than asked for either: without rounding to a power of two it is the stated chance, give or take what the
    # mean and the spread are not known by.
    assert OVERFLOW_CHANCE / 5 < sum(unrounded) / len(unrounded) < OVERFLOW_CHANCE * 5
    dice_bits = mean + spread * torch.randn(1_000_000, dtype=torch.float64)
    assert (dice_bits + math.log2(highest_scale(model)) > LOG2_MAX).sum() <= 5


def test_a_drift_widens_the_spread() -> None:
    """A thousandth of a bit per step is nothing; a quarter of one lags by eight bits, and the margin covers it."""
    rng = random.Random(1)
    for drift in (0.001, 0.25):
        overflows, model = 0, AmaxModel()
        for step in range(4000):
            bits = drift * step + rng.gauss(0, 0.5)
            overflows += step > 1000 and bits + math.log2(highest_scale(model)) > LOG2_MAX
            model = observe(model, bits)
        assert overflows == 0


def test_after_a_step_change_the_forecast_is_there_within_a_hundred_steps() -> None:
    model = model_of([*dice(2000, mean=-4, spread=0.3), *dice(100, mean=2, spread=0.3)])
    assert model.mean == pytest.approx(2, abs=0.5)


def test_a_spike_moves_the_mean_by_a_thirty_second_of_itself() -> None:
    before = model_of(dice(2000, spread=0.3))
    after = observe(before, before.mean + 8)
    assert after.mean - before.mean == pytest.approx(8 / 32)
    assert after.variance - before.variance == pytest.approx((64 - before.variance) / 512)


def test_a_gap_is_what_the_gradients_of_parameters_do_not_explain() -> None:
    model = AmaxModel(observed=100, mean=-3.0, variance=0.01)
    learned = learn_gap(model, overflowed_at=2.0**18, log2_amax=-6.0)
    # 2**17 may just fit: then the largest gradient of all is 6 bits larger than that of a parameter, less 1.
    assert learned.gap == pytest.approx(math.log2(65504 / 2**17) + 6)
    assert highest_scale(learned) < 2.0**18
    # A spike explains itself, and a smaller gap than the known one is no news.
    assert learn_gap(model, overflowed_at=2.0**18, log2_amax=-1.0) == model
    assert learn_gap(learned, overflowed_at=2.0**18, log2_amax=-5.0) == learned


def test_an_overflow_whose_batch_is_gone_lowers_the_scale_by_one_bit() -> None:
    model = AmaxModel(observed=100, mean=-3.0, variance=0.01)
    at = highest_scale(model)
    for overflows in range(1, 4):
        model = learn_gap(model, overflowed_at=highest_scale(model), log2_amax=None)
        assert highest_scale(model) == at * 0.5**overflows
    # At a scale far below, the batch was bad, not the scale.
    assert learn_gap(model, overflowed_at=1.0, log2_amax=None).gap == model.gap + 1


def test_a_gap_is_given_back_bit_by_bit() -> None:
    model = dataclasses.replace(model_of(dice(10)), gap=1.5)
    for bits in dice(GAP_STEPS, seed=1):
        model = observe(model, bits)
    assert (GAP_STEPS, model.gap) == (10_000, pytest.approx(0.5))
    for bits in dice(GAP_STEPS, seed=2):
        model = observe(model, bits)
    assert model.gap == 0


def test_a_scale_that_overflowed_before_the_first_step_is_kept_until_then() -> None:
    blind = AmaxModel(too_high_scale=2.0**15)
    assert load_model(save_model(blind)) == blind
    assert observe(blind, -3.0) == observe(AmaxModel(), -3.0)
    earlier = save_model(AmaxModel())
    del earlier["amax_too_high_scale"]
    assert load_model(earlier) == AmaxModel()


@pytest.mark.parametrize("damaged", [-1.0, math.nan, math.inf, True, "x", None])
def test_such_a_scale_that_is_none_is_refused(damaged: Any) -> None:
    message = f"amax_too_high_scale={damaged!r}; accepted: a finite number, at least 0"
    with pytest.raises(CheckpointError, match=message):
        load_model({**save_model(AmaxModel()), "amax_too_high_scale": damaged})


def test_round_trip() -> None:
    model = dataclasses.replace(model_of(dice(100, mean=-30)), gap=1.25)
    assert load_model({"scale": 2.0, **save_model(model)}) == model
    assert {type(value) for value in save_model(model).values()} == {int, float}
    assert load_model({"scale": 2.0}) == AmaxModel()


@pytest.mark.parametrize(
    ("damage", "accepted"),
    [
        ({"amax_observed": -1}, "a whole number, at least 0"),
        ({"amax_observed": 1.5}, "a whole number, at least 0"),
        ({"amax_mean": math.nan}, "a number, -65536 to 65536"),
        ({"amax_mean": -math.inf}, "a number, -65536 to 65536"),
        ({"amax_mean": 2.0**17}, "a number, -65536 to 65536"),
        ({"amax_variance": -0.1}, "a number, 0 to 65536"),
        ({"amax_variance": "wide"}, "a number, 0 to 65536"),
        ({"amax_gap": True}, "a number, 0 to 65536"),
    ],
    ids=str,
)
def test_damage_is_refused(damage: dict[str, Any], accepted: str) -> None:
    (key,) = damage
    with pytest.raises(CheckpointError, match=f"The loss scaler state has {key}=.*; accepted: {accepted}"):
        load_model({**save_model(AmaxModel()), **damage})
    incomplete = save_model(AmaxModel())
    del incomplete[key]
    with pytest.raises(CheckpointError, match=f"The loss scaler state has {key}=None; accepted: {accepted}"):
        load_model(incomplete)
