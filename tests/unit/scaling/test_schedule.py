import itertools
import random

import pytest
import torch

from mp_plugin.config import LossScaling
from mp_plugin.scaling.schedule import ScaleState, advance, initial_state


def run(config: LossScaling, overflows: list[bool]) -> list[ScaleState]:
    """Every state of a schedule over a trace."""
    return list(
        itertools.accumulate(
            overflows,
            lambda state, overflowed: advance(state, overflowed=overflowed, config=config),
            initial=initial_state(config),
        )
    )


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_grad_scaler_on_a_random_trace(seed: int) -> None:
    rng = random.Random(seed)
    trace = [rng.random() < 0.1 for _ in range(400)]
    config = LossScaling(init_scale=2**15, growth_interval=7, min_scale=2**-64, max_scale=2**64)

    oracle = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=7)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scales = [oracle.get_scale()]
    for overflowed in trace:
        oracle.scale(torch.zeros(1))
        parameter.grad = torch.tensor([float("inf") if overflowed else 1.0])
        oracle.step(optimizer)
        oracle.update()
        scales.append(oracle.get_scale())

    assert [state.scale for state in run(config, trace)] == scales


def test_166_overflows_stop_at_the_floor() -> None:
    """Trap 1: the scale of torch's GradScaler is exactly 0 after as many."""
    final = run(LossScaling(init_scale=2**16), [True] * 166)[-1]
    assert final == ScaleState(scale=1.0, overflows_at_floor=150)


def test_growth_stops_at_the_ceiling() -> None:
    final = run(LossScaling(init_scale=2**10, max_scale=2**12, growth_interval=1), [False] * 50)[-1]
    assert final.scale == 2**12


def test_backing_off_lands_on_the_floor_exactly() -> None:
    scales = [s.scale for s in run(LossScaling(init_scale=10, min_scale=3, backoff_factor=0.5), [True] * 3)]
    assert scales == [10, 5, 3, 3]


def test_hysteresis_rides_out_a_rare_overflow_but_not_two() -> None:
    config = LossScaling(init_scale=64, hysteresis=2, growth_interval=100)
    assert [s.scale for s in run(config, [True, False, True])] == [64, 64, 64, 32]


def test_hysteresis_refills_when_the_scale_changes() -> None:
    config = LossScaling(init_scale=64, hysteresis=2, growth_interval=2)
    trace = [True, False, False, True]
    assert [s.scale for s in run(config, trace)] == [64, 64, 64, 128, 128]


def test_an_overflow_restarts_the_count_to_growth() -> None:
    config = LossScaling(init_scale=64, growth_interval=3)
    assert [s.scale for s in run(config, [False, False, True, False, False, False])][-2:] == [32, 64]


def test_a_clean_step_ends_a_row_of_overflows_at_the_floor() -> None:
    states = run(LossScaling(init_scale=1), [True, True, False, True])
    assert [s.overflows_at_floor for s in states] == [0, 1, 2, 0, 1]


def test_a_static_scale_never_moves_and_counts_overflows_in_a_row() -> None:
    states = run(LossScaling(policy="static", init_scale=512, growth_interval=1), [False, True, True, False])  # type: ignore[arg-type]
    assert {s.scale for s in states} == {512}
    assert [s.overflows_at_floor for s in states] == [0, 0, 1, 2, 0]


def test_an_overflow_at_the_floor_restarts_the_count_to_growth() -> None:
    config = LossScaling(init_scale=1, growth_interval=3)
    assert [s.scale for s in run(config, [False, False, True, False, False, False])][-3:] == [1, 1, 2]


def test_an_overflow_that_hysteresis_rides_out_restarts_the_count_to_growth() -> None:
    config = LossScaling(init_scale=8, growth_interval=3, hysteresis=2)
    assert [s.scale for s in run(config, [False, False, True, False, False, False])][-3:] == [8, 8, 16]


def test_hysteresis_refills_after_backing_off() -> None:
    config = LossScaling(init_scale=64, hysteresis=2)
    assert [s.scale for s in run(config, [True] * 4)] == [64, 64, 32, 32, 16]
