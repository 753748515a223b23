import copy
import math
from typing import Any

import pytest
import torch

from mp_plugin.config import LossScaling
from mp_plugin.errors import CheckpointError, ConfigError
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.verdict import Verdict


def train(scaler: Any, *, fused: bool, steps: int = 12, overflow_at: tuple[int, ...] = (3, 4)) -> list[torch.Tensor]:
    """Train a layer under a scaler; the gradients of some steps are spoiled."""
    torch.manual_seed(3)
    layer = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    for step in range(steps):
        optimizer.zero_grad()
        loss = layer(torch.randn(8, 4)).square().mean()
        scaler.scale(loss * float("inf") if step in overflow_at else loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    return [parameter.detach() for parameter in layer.parameters()]


@pytest.mark.parametrize("fused", [False, True])
def test_trains_as_grad_scaler_does_bit_by_bit(fused: bool) -> None:
    ours = LossScaler(LossScaling(init_scale=1000.0, growth_interval=3))
    theirs = torch.amp.GradScaler("cpu", init_scale=1000.0, growth_interval=3)
    torch.testing.assert_close(train(ours, fused=fused), train(theirs, fused=fused), rtol=0, atol=0)
    assert ours.get_scale() == theirs.get_scale()


def test_166_overflows_and_a_healthy_step_leave_finite_weights() -> None:
    """peers' fault 1.2.1: with torch's GradScaler the first healthy step makes every weight NaN."""
    overflows = tuple(range(166))
    theirs = train(torch.amp.GradScaler("cpu"), fused=False, steps=167, overflow_at=overflows)
    assert all(weight.isnan().all() for weight in theirs)
    ours = train(LossScaler(), fused=False, steps=167, overflow_at=overflows)
    assert all(weight.isfinite().all() for weight in ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_loss_is_scaled_in_fp32(dtype: torch.dtype) -> None:
    """Trap 4: in fp16 a loss of 3 at this scale is infinite."""
    scaled = LossScaler().scale(torch.tensor([3.0], dtype=dtype))
    assert scaled.dtype is torch.float32
    assert scaled.item() == 3.0 * 2**15


def test_unscaling_twice_is_refused() -> None:
    """Trap 9: unscale once per optimizer and step."""
    scaler, optimizer = LossScaler(), sgd_with_gradient(1.0)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already called on this optimizer since its last step"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.unscale_(optimizer)


def test_step_unscales_when_nobody_has() -> None:
    scaler, optimizer = LossScaler(LossScaling(init_scale=8)), sgd_with_gradient(16.0)
    scaler.step(optimizer)
    assert optimizer.param_groups[0]["params"][0].item() == -2.0


def test_fp16_gradients_are_refused() -> None:
    with pytest.raises(ConfigError, match="this optimizer has fp16 ones; accepted: fp32 parameters"):
        LossScaler().unscale_(sgd_with_gradient(1.0, dtype=torch.float16))


def test_the_scale_waits_for_update() -> None:
    """Trap 12: several optimizers, one update after all of them."""
    scaler, bad, good = LossScaler(LossScaling(init_scale=8)), sgd_with_gradient(math.inf), sgd_with_gradient(8.0)
    scaler.step(bad)
    scaler.step(good)
    assert good.param_groups[0]["params"][0].item() == -1.0
    scaler.update()
    assert scaler.get_scale() == 4


def test_a_step_without_gradients_does_not_count() -> None:
    scaler = LossScaler(LossScaling(growth_interval=1))
    scaler.step(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    scaler.update()
    assert scaler.get_scale() == 2**15


def test_state_goes_both_ways_between_us_and_torch() -> None:
    """Trap 37: a user can go back to stock."""
    ours = LossScaler(LossScaling(init_scale=1000.0, growth_interval=100))
    train(ours, fused=False)
    theirs = torch.amp.GradScaler("cpu")
    theirs.load_state_dict(ours.state_dict())
    # A GradScaler hands out its state only once it has scaled something.
    theirs.scale(torch.zeros(1))
    assert theirs.get_scale() == ours.get_scale()
    back = LossScaler()
    back.load_state_dict(theirs.state_dict())
    assert back.state == ours.state


def test_state_is_plain_numbers() -> None:
    """Trap 38: `torch.load(weights_only=True)` reads them."""
    assert {type(value) for value in LossScaler().state_dict().values()} == {int, float}


def test_a_loaded_scale_stays_inside_the_bounds_of_now() -> None:
    state = LossScaler(LossScaling(init_scale=2**20)).state_dict()
    bounded = LossScaler(LossScaling(init_scale=4, max_scale=2**10))
    bounded.load_state_dict(state)
    assert bounded.get_scale() == 2**10
    strict = LossScaler(LossScaling(init_scale=4, hysteresis=1))
    strict.load_state_dict(LossScaler(LossScaling(hysteresis=5)).state_dict())
    assert strict.state.hysteresis_tracker == 1
    static = LossScaler(LossScaling(policy="static", init_scale=4))  # type: ignore[arg-type]
    static.load_state_dict(state)
    assert static.get_scale() == 4


@pytest.mark.parametrize(
    "damage",
    [{"scale": 0.0}, {"scale": math.nan}, {"scale": "big"}, {"scale": None}, {"_growth_tracker": -1}]
    + [{"_growth_tracker": 1.5}, {"hysteresis_tracker": "one"}, {"overflows_at_floor": True}],
    ids=str,
)
def test_damaged_state_is_refused_and_nothing_loaded(damage: dict[str, Any]) -> None:
    scaler = LossScaler()
    before = copy.copy(scaler.state)
    (key,) = damage
    with pytest.raises(CheckpointError, match=f"The loss scaler state has {key}=.*; accepted: "):
        scaler.load_state_dict({**LossScaler(LossScaling(init_scale=2)).state_dict(), **damage})
    assert scaler.state == before


def test_only_steps_count_at_the_end_of_a_fit() -> None:
    config = LossScaling(init_scale=8)
    scaler, optimizer = LossScaler(config), sgd_with_gradient(math.inf)
    scaler.unscale_(optimizer)
    scaler.finish()
    assert not scaler.is_unscaled(optimizer)
    assert scaler.get_scale() == 8
    scaler.step(optimizer)
    scaler.finish()
    assert scaler.get_scale() == 4


def test_update_closes_open_steps() -> None:
    scaler, optimizer = LossScaler(), sgd_with_gradient(1.0)
    scaler.unscale_(optimizer)
    scaler.update()
    assert not scaler.is_unscaled(optimizer)


@pytest.mark.parametrize("state", [None, "junk", [1]])
def test_a_state_that_is_no_dict_is_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="The loss scaler state is .*; accepted: a dict"):
        LossScaler().load_state_dict(state)


def sgd_with_gradient(gradient: float, dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=dtype))
    parameter.grad = torch.tensor([gradient], dtype=dtype)
    return torch.optim.SGD([parameter], lr=1.0)


OVERFLOW, CLEAN = (Verdict(overflowed=each, has_gradients=True) for each in (True, False))


@pytest.mark.parametrize(
    ("late", "late_scale", "known", "options", "expected"),
    [
        (OVERFLOW, 1024.0, None, {}, 512.0),
        (OVERFLOW, 1024.0, OVERFLOW, {}, 512.0),  # one scale was too high for both
        (OVERFLOW, 2048.0, None, {}, 1024.0),  # it has been lowered since
        (OVERFLOW, 1024.0, OVERFLOW, {"hysteresis": 2}, 512.0),  # two overflows at one scale
        (OVERFLOW, 1024.0, CLEAN, {}, 512.0),
        (CLEAN, 1024.0, None, {"growth_interval": 1}, 2048.0),
        (CLEAN, 1024.0, OVERFLOW, {"growth_interval": 1}, 512.0),  # there was no room for a higher scale
        (CLEAN, 1024.0, CLEAN, {"growth_interval": 2}, 2048.0),
    ],
)
def test_a_late_verdict_and_one_that_is_known_move_the_scale_together(
    late: Verdict, late_scale: float, known: Verdict | None, options: dict[str, Any], expected: float
) -> None:
    scaler = LossScaler(LossScaling(init_scale=1024.0, **options))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    if known is not None:
        scaler.take(optimizer, known)
    scaler.learn_late(late, scale=late_scale)
    assert scaler.state_dict()["scale"] == expected
    assert scaler.get_scale() == 1024.0
    scaler.update()
    assert scaler.get_scale() == expected
    scaler.update()
    assert scaler.get_scale() == expected


def gradient_of(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["params"][0].grad)


def weight_of(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["params"][0].detach())


def test_a_verdict_that_is_taken_over_leaves_the_gradients_alone() -> None:
    scaler, optimizer = LossScaler(LossScaling(init_scale=8.0)), sgd_with_gradient(16.0)
    scaler.take(optimizer, CLEAN)
    assert scaler.is_unscaled(optimizer)
    assert scaler.verdict(optimizer) is CLEAN
    assert gradient_of(optimizer) == 16.0
    scaler.step(optimizer)
    assert not scaler.is_unscaled(optimizer)


@pytest.mark.parametrize(("verdict", "scale"), [(OVERFLOW, 4.0), (CLEAN, 16.0)])
def test_a_verdict_that_is_taken_over_moves_the_scale(verdict: Verdict, scale: float) -> None:
    scaler, optimizer = LossScaler(LossScaling(init_scale=8.0, growth_interval=1)), sgd_with_gradient(16.0)
    before = weight_of(optimizer)
    scaler.take(optimizer, verdict)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == scale
    assert (weight_of(optimizer) == before) is verdict.overflowed


@pytest.mark.parametrize("growth_interval", [1, 2, 3])
@pytest.mark.parametrize("found", [(), (0,), (2, 4), (1, 5, 7)], ids=str)
def test_late_verdicts_move_the_scale_as_grad_scaler_does_one_step_later(
    found: tuple[int, ...], growth_interval: int
) -> None:
    scaler = LossScaler(LossScaling(init_scale=1024.0, growth_interval=growth_interval))
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=growth_interval)
    ours, oracle = [], []
    for step in range(8):
        optimizer = sgd_with_gradient(math.inf if step in found else 1.0)
        theirs.scale(torch.ones(()))
        theirs.step(optimizer)
        theirs.update()
        oracle.append(theirs.get_scale())
        scale = scaler.get_scale()
        scaler.update()
        scaler.learn_late(OVERFLOW if step in found else CLEAN, scale=scale)
        ours.append(scaler.get_scale())
    scaler.finish()
    assert [*ours[1:], scaler.get_scale()] == oracle


def test_a_verdict_that_nobody_has_taken_over_can_be_saved_too() -> None:
    scaler = LossScaler(LossScaling(init_scale=8.0))
    assert scaler.state_dict(late=OVERFLOW, late_scale=8.0)["scale"] == 4.0
    assert scaler.state_dict(late=OVERFLOW, late_scale=16.0)["scale"] == 8.0
    scaler.update()
    assert scaler.get_scale() == 8.0


def test_a_predictive_scale_learns_from_late_magnitudes() -> None:
    late, in_time = (LossScaler(LossScaling(policy="predictive")) for _ in range(2))  # type: ignore[arg-type]
    for step in range(40):
        optimizer = sgd_with_gradient(in_time.get_scale() * 2.0 ** (step % 5))
        in_time.step(optimizer)
        in_time.update()
        late.learn_late(Verdict(overflowed=False, has_gradients=True, amax=2.0 ** (step % 5)), scale=late.get_scale())
        late.update()
        assert late.state == in_time.state
    assert late.get_scale() != LossScaling().init_scale


@pytest.mark.parametrize("forget", ["restart", "load"])
def test_a_late_verdict_of_another_run_is_forgotten(forget: str) -> None:
    scaler = LossScaler(LossScaling(init_scale=8.0))
    saved = scaler.state_dict()
    scaler.learn_late(OVERFLOW, scale=8.0)
    if forget == "restart":
        scaler.restart()
    else:
        scaler.load_state_dict(saved)
    scaler.update()
    assert scaler.get_scale() == 8.0
