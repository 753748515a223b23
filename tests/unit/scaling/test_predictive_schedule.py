"""How a predictive scale moves: `advance` under policy `predictive`."""

import dataclasses
import gzip
import itertools
import math
import random
from pathlib import Path

import pytest

from mp_plugin.config import LossScaling
from mp_plugin.scaling.predictive import AmaxModel, highest_scale
from mp_plugin.scaling.schedule import ScaleState, advance, initial_state

TRACES = Path(__file__).parents[3] / "benchmarks" / "traces"


def predictive(**fields: object) -> LossScaling:
    return LossScaling(policy="predictive", **fields)  # type: ignore[arg-type]


def clean(state: ScaleState, config: LossScaling, *amax: float) -> list[ScaleState]:
    """Every state over clean steps."""
    return list(
        itertools.accumulate(amax, lambda s, a: advance(s, overflowed=False, amax=a, config=config), initial=state)
    )


def train(config: LossScaling, bits: list[float], gap: float = 0.0) -> tuple[list[ScaleState], list[int], list[int]]:
    """Live through gradients of these sizes; return every state, and the steps that were retried and lost."""
    state, states, retried, lost = initial_state(config), [], [], []
    for step, value in enumerate(bits):
        for attempt in range(config.retries + 1):
            if state.scale * 2 ** (value + gap) <= 65504:
                state = advance(state, overflowed=False, amax=2.0**value, config=config)
                retried += [step] if attempt else []
                break
            state = advance(state, overflowed=True, run_again=attempt < config.retries, config=config)
        else:
            lost.append(step)
        states.append(state)
    return states, retried, lost


def dice(count: int, level: float, spread: float = 0.5) -> list[float]:
    rng = random.Random(0)
    return [rng.gauss(level, spread) for _ in range(count)]


def level_of(bits: list[float]) -> float:
    """Log2 of the scale that a spread known exactly would give, before rounding down."""
    mean = sum(bits) / len(bits)
    return math.log2(65504) - mean - 4.7534 * math.sqrt(sum((b - mean) ** 2 for b in bits) / len(bits))


def test_far_too_low_it_finds_its_level_without_an_overflow() -> None:
    bits = dice(2000, -4)
    states, retried, lost = train(predictive(init_scale=1.0), bits)
    assert (retried, lost) == ([], [])
    assert math.log2(states[40].scale) > level_of(bits) - 3
    assert math.log2(states[-1].scale) == pytest.approx(level_of(bits), abs=1.5)


def test_it_rises_after_sixteen_steps_with_room_and_then_one_doubling_a_step() -> None:
    states = clean(initial_state(predictive(init_scale=1.0)), predictive(init_scale=1.0), *[2.0**-4] * 40)
    scales = [state.scale for state in states]
    assert scales[:16] == [1.0] * 16
    assert scales[16:27] == [2.0**n for n in range(1, 12)]
    assert all(after <= 2 * before for before, after in itertools.pairwise(scales))


def test_room_that_goes_away_starts_the_count_anew() -> None:
    config = predictive()
    state = ScaleState(scale=2.0**10, growth_tracker=15, model=AmaxModel(observed=1000, mean=0.0, variance=1.0))
    assert advance(state, overflowed=False, amax=1.0, config=config).scale == 2.0**11
    tight = dataclasses.replace(state, model=dataclasses.replace(state.model, mean=1.5))
    after = advance(tight, overflowed=False, amax=2.0**1.5, config=config)
    assert (after.scale, after.growth_tracker) == (2.0**9, 0)


def test_far_too_high_it_loses_no_batch() -> None:
    """2**24 where 2**11 is the level: torch's GradScaler loses every batch on the way down."""
    bits = dice(500, 2)
    states, retried, lost = train(predictive(init_scale=2.0**24), bits)
    assert (retried, lost) == ([0], [])
    assert math.log2(states[-1].scale) == pytest.approx(level_of(bits), abs=2)


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("level", [4.0, 12.0])
def test_after_a_blind_back_off_it_goes_straight_to_the_level(retries: int, level: float) -> None:
    """Not after sixteen steps and by doublings, whether the batch was run again or lost."""
    config = predictive(init_scale=2.0**15, retries=retries, min_scale=2.0**-30)
    state = advance(initial_state(config), overflowed=True, run_again=retries > 0, config=config)
    assert state.scale == 0.5
    state = advance(state, overflowed=False, amax=2.0**level, config=config)
    assert state.scale == 2.0 ** math.floor(math.log2(65504) - level - 4.7534)
    # Only once: from here on it rises as always.
    smaller = clean(state, config, *[2.0 ** (level - 12)] * 15)
    assert max(later.scale for later in smaller) == state.scale


def test_it_stays_below_what_overflowed_even_if_the_next_batch_has_small_gradients() -> None:
    """Another batch may have had the larger ones, so they tell no gap."""
    config = predictive(init_scale=2.0**15, retries=0)
    state = advance(initial_state(config), overflowed=True, config=config)
    state = advance(state, overflowed=False, amax=2.0**-30, config=config)
    assert (state.scale, state.model.gap) == (2.0**14, 0)


def test_also_if_that_needs_several_and_zeros_come_first() -> None:
    """Batch 0 is bad at every scale, batch 1 has no gradient but zeros."""
    config = predictive(init_scale=2.0**15)
    state = initial_state(config)
    for run_again in (True, False):
        state = advance(state, overflowed=True, run_again=run_again, config=config)
    assert state.scale == config.min_scale
    states = clean(state, config, 0.0, 2.0**2)
    assert [s.scale for s in states] == [1.0, 1.0, 2.0**9]


def test_a_scale_that_is_low_for_another_reason_still_rises_by_doublings() -> None:
    config = predictive()
    low = ScaleState(scale=2.0**6)  # taken over from a dynamic scale
    assert [s.scale for s in clean(low, config, *[1.0] * 17)] == [2.0**6] * 16 + [2.0**7, 2.0**8]


def test_the_first_gradients_after_a_blind_back_off_tell_a_gap() -> None:
    """They do not explain the overflow at the first scale, so half of it is the most that may have fitted."""
    config = predictive(init_scale=2.0**15)
    state = advance(initial_state(config), overflowed=True, run_again=True, config=config)
    state = advance(state, overflowed=False, amax=2.0**-6, config=config)
    assert state.model.gap == pytest.approx(math.log2(65504) + 6 - 15 + 1, abs=1e-3)
    assert state.overflowed_at == 0


def test_it_falls_at_once_as_far_as_the_forecast_says() -> None:
    config = predictive()
    state = ScaleState(scale=2.0**17, model=AmaxModel(observed=1000, mean=-3.0, variance=0.1))
    after = advance(state, overflowed=False, amax=2.0**13, config=config)
    assert after.scale == highest_scale(after.model) == 2.0**14


def test_it_is_a_power_of_two_from_the_first_move_on() -> None:
    states, _, _ = train(predictive(init_scale=1000.0, backoff_factor=0.3), dice(300, 8))
    moved = {state.scale for state in states} - {1000.0}
    assert len(moved) > 3
    assert {math.frexp(scale)[0] for scale in moved} == {0.5}


@pytest.mark.parametrize(("mean", "bound"), [(-40.0, 2.0**24), (30.0, 1.0)])
def test_it_stays_inside_the_bounds(mean: float, bound: float) -> None:
    config = predictive()
    state = clean(initial_state(config), config, *[2.0**mean] * 60)[-1]
    assert state.scale == bound


@pytest.mark.parametrize("amax", [0.0, math.inf])
def test_a_step_that_has_nothing_to_teach_changes_nothing(amax: float) -> None:
    """Trap 8: log2 of 0 is minus infinity. Nor does such a step count as one with room for a higher scale."""
    config = predictive(init_scale=4.0)
    before = clean(initial_state(config), config, *[2.0**n for n in dice(10, -3)])[-1]
    assert (before.growth_tracker, before.model.observed) == (10, 10)
    assert advance(before, overflowed=False, amax=amax, config=config) == before


def test_gradients_that_are_all_zero_from_the_start_are_taken_for_underflow() -> None:
    config = predictive(init_scale=4.0)
    states = clean(initial_state(config), config, *[0.0] * 20)
    assert [state.scale for state in states[15:]] == [4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    assert {state.model for state in states} == {AmaxModel()}


def test_a_gap_costs_one_retry_and_is_then_respected() -> None:
    """Gradients inside the backward pass are six bits larger than those of parameters."""
    bits = dice(5000, -6)
    states, retried, lost = train(predictive(init_scale=2.0**8), bits, gap=6.0)
    assert lost == []
    assert len(retried) == 1
    assert math.log2(states[-1].scale) == pytest.approx(level_of(bits) - 6, abs=1.5)


def test_without_a_retry_a_gap_is_learned_bit_by_bit() -> None:
    config = predictive(init_scale=2.0**8, retries=0)
    _, retried, lost = train(config, dice(5000, -6), gap=6.0)
    assert retried == []
    assert 1 < len(lost) < 10


def test_spikes_are_retried_and_not_lost_and_leave_no_gap() -> None:
    rng = random.Random(3)
    bits = [bit + (4 if rng.random() < 0.002 else 0) for bit in dice(10_000, -3)]
    states, retried, lost = train(predictive(), bits)
    assert lost == []
    assert 1 <= len(retried) <= 25
    assert states[-1].model.gap == 0


def test_an_overflow_backs_off_by_the_margin_and_at_least_by_the_factor() -> None:
    wide = ScaleState(scale=2.0**14, model=AmaxModel(observed=1000, mean=-3.0, variance=1.0))
    narrow = dataclasses.replace(wide, model=dataclasses.replace(wide.model, variance=0.0))
    for state, bits in ((wide, 5), (narrow, 1)):
        after = advance(state, overflowed=True, run_again=True, config=predictive())
        assert after.scale == 2.0 ** (14 - bits)
        assert (after.overflowed_at, after.model) == (2.0**14, state.model)
    assert advance(narrow, overflowed=True, run_again=True, config=predictive(backoff_factor=0.25)).scale == 2.0**12


def test_a_batch_that_overflows_twice_says_the_gap_once() -> None:
    config = predictive(retries=2)
    start = ScaleState(scale=2.0**18, model=AmaxModel(observed=1000, mean=-6.0, variance=0.01))
    once = advance(start, overflowed=True, run_again=True, config=config)
    twice = advance(once, overflowed=True, run_again=True, config=config)
    after = advance(twice, overflowed=False, amax=2.0**-6, config=config)
    # The lower of both scales is the tighter bound: 2**16 may just have fitted.
    assert after.model.gap == pytest.approx(math.log2(65504) + 6 - 16, abs=1e-3)
    assert after.overflowed_at == 0


def test_the_next_batch_is_not_mistaken_for_one_that_was_lost() -> None:
    config = predictive()
    start = ScaleState(scale=2.0**16, model=AmaxModel(observed=1000, mean=-6.0, variance=0.01))
    state = advance(start, overflowed=True, run_again=True, config=config)
    state = advance(state, overflowed=True, run_again=False, config=config)
    gap = state.model.gap
    assert state.overflowed_at == 0
    assert advance(state, overflowed=False, amax=2.0**-6, config=config).model.gap <= gap


def test_nor_at_the_floor() -> None:
    config = predictive(min_scale=2.0**6)
    start = ScaleState(scale=2.0**7, model=AmaxModel(observed=1000, mean=-6.0, variance=0.01))
    state = advance(start, overflowed=True, run_again=True, config=config)
    assert (state.scale, state.overflowed_at) == (2.0**6, 2.0**7)
    state = advance(state, overflowed=True, run_again=False, config=config)
    assert advance(state, overflowed=False, amax=2.0**-6, config=config).model.gap == 0


def test_the_floor_counts_overflows_in_a_row() -> None:
    config = predictive(init_scale=8.0)
    states = [initial_state(config)]
    for overflowed in (True, True, True, False, True):
        states.append(advance(states[-1], overflowed=overflowed, amax=2.0**12, config=config))
    assert [state.scale for state in states] == [8.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [state.overflows_at_floor for state in states] == [0, 0, 1, 2, 0, 1]


def test_the_growth_settings_of_a_dynamic_scale_do_not_matter() -> None:
    bits = dice(300, -3)
    one, _, _ = train(predictive(growth_interval=1, growth_factor=16.0, hysteresis=3, init_scale=2.0**20), bits)
    other, _, _ = train(predictive(init_scale=2.0**20), bits)
    assert [state.scale for state in one] == [state.scale for state in other]


@pytest.mark.parametrize("name", ["digits", "text", "diabetes"])
def test_on_recorded_trainings_nothing_is_lost(name: str) -> None:
    """Log2 of the largest gradient and of the highest scale that fits, from benchmarks/helpers/record_traces.py."""
    lines = gzip.decompress((TRACES / f"{name}.csv.gz").read_bytes()).decode().split()
    trace = [(float(bits), int(exponent)) for bits, exponent in (line.split(",") for line in lines)]
    config, state = predictive(), initial_state(predictive())
    overflows, below = [], []
    for step, (bits, exponent) in enumerate(trace):
        if state.scale > 2.0**exponent:
            overflows.append(step)
            state = advance(state, overflowed=True, run_again=True, config=config)
        assert state.scale <= 2.0**exponent
        below.append(exponent - math.log2(state.scale))
        state = advance(state, overflowed=False, amax=2.0**bits, config=config)
    assert len(trace) == 10_000
    # The first scale of 2**15 is nine powers of two too high for one of them.
    assert overflows == ([0] if name == "diabetes" else [])
    assert sum(below) / len(below) < 4
