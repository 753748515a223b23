"""Which optimizers hold gradients that they have not stepped with; and what a loss scaler does about it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mp_plugin.config import LossScaling
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.waiting import WaitingGradients


def sgd(gradient: float | None) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.zeros(2))
    if gradient is not None:
        parameter.grad = torch.full((2,), gradient)
    return torch.optim.SGD([parameter], lr=1.0)


def gradient_of(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    gradient = optimizer.param_groups[0]["params"][0].grad
    assert gradient is not None
    return gradient  # type: ignore[no-any-return]


@contextmanager
def forbidden_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise AssertionError("the gradients were read")

    with monkeypatch.context() as patch:
        patch.setattr("mp_plugin.scaling.waiting.grad_totals", fail)
        yield


def test_an_optimizer_waits_from_its_backward_pass_to_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, first, second = WaitingGradients(), sgd(1.0), sgd(1.0)
    with forbidden_reads(monkeypatch):
        assert waiting.among([first, second]) == []
        waiting.note(second)
        assert waiting.among([first, second]) == [second]
        waiting.forget(second)
        assert waiting.among([first, second]) == []


def test_gradients_set_to_none_or_zero_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, optimizer = WaitingGradients(), sgd(1.0)
    waiting.note(optimizer)
    gradient_of(optimizer).mul_(2)  # an edit: still there
    assert waiting.among([optimizer]) == [optimizer]
    optimizer.zero_grad(set_to_none=False)
    assert waiting.among([optimizer]) == []
    optimizer.zero_grad()
    with forbidden_reads(monkeypatch):
        assert waiting.among([optimizer]) == []


def test_nan_is_something() -> None:
    waiting, optimizer = WaitingGradients(), sgd(1.0)
    waiting.note(optimizer)
    gradient_of(optimizer).fill_(math.nan)
    assert waiting.among([optimizer]) == [optimizer]


def overflowing(scaler: LossScaler) -> torch.optim.Optimizer:
    optimizer = sgd(math.inf)
    scaler.step(optimizer)
    return optimizer


def make_by_backward(scaler: LossScaler, optimizer: torch.optim.Optimizer, gradient: float) -> None:
    with scaler.watch([optimizer]):
        optimizer.param_groups[0]["params"][0].grad = torch.full((2,), gradient)


def test_what_is_held_when_others_overflow_is_rescaled_and_goes_on_waiting() -> None:
    scaler = LossScaler(LossScaling(init_scale=8, growth_interval=1))
    slow = sgd(None)
    make_by_backward(scaler, slow, 8.0)
    for expected in (4, 2):
        fast = overflowing(scaler)
        scaler.update_unless_waiting([fast, slow])
        assert scaler.get_scale() == expected
    assert gradient_of(slow).tolist() == [2.0, 2.0]
    fast = sgd(2.0)
    scaler.step(fast)
    assert not scaler.update_unless_waiting([fast, slow])
    assert scaler.get_scale() == 2
    scaler.step(slow)
    assert slow.param_groups[0]["params"][0].tolist() == [-1.0, -1.0]


def test_what_is_unscaled_already_is_not_rescaled() -> None:
    scaler = LossScaler(LossScaling(init_scale=8))
    clipped = sgd(None)
    make_by_backward(scaler, clipped, 8.0)
    scaler.unscale_(clipped)
    fast = overflowing(scaler)
    scaler.update_unless_waiting([fast, clipped])
    assert (scaler.get_scale(), gradient_of(clipped).tolist()) == (8, [1.0, 1.0])
    scaler.step(clipped)
    scaler.update_unless_waiting([fast, clipped])
    assert (scaler.get_scale(), clipped.param_groups[0]["params"][0].tolist()) == (4, [-1.0, -1.0])


def test_after_an_update_nobody_waits() -> None:
    """As in a loop of the user's own, where `update` says that all have stepped."""
    scaler = LossScaler(LossScaling(init_scale=8, growth_interval=1))
    left = sgd(None)
    make_by_backward(scaler, left, 8.0)
    scaler.unscale_(left)
    scaler.update()
    other = sgd(8.0)
    scaler.step(other)
    scaler.update_unless_waiting([left, other])
    assert scaler.get_scale() == 32


def test_a_checkpoint_of_a_waiting_moment_knows_of_the_steps_before() -> None:
    scaler = LossScaler(LossScaling(init_scale=8, growth_interval=1))
    slow, fast = sgd(None), sgd(8.0)
    make_by_backward(scaler, slow, 8.0)
    scaler.step(fast)
    assert not scaler.update_unless_waiting([fast, slow])
    saved = scaler.state_dict()
    assert (scaler.get_scale(), saved["scale"]) == (8, 16)
    scaler.step(slow)
    assert scaler.update_unless_waiting([slow])
    assert scaler.state_dict() == saved


def test_a_shared_gradient_that_is_unscaled_already_is_not_rescaled() -> None:
    scaler = LossScaler(LossScaling(init_scale=8))
    first, second = sgd(None), sgd(None)
    second.param_groups[0]["params"] = first.param_groups[0]["params"]
    with scaler.watch([first, second]):
        first.param_groups[0]["params"][0].grad = torch.full((2,), 8.0)
    scaler.step(first)
    fast = overflowing(scaler)
    assert not scaler.update_unless_waiting([first, fast, second])
    assert (scaler.get_scale(), gradient_of(second).tolist()) == (8, [1.0, 1.0])
    scaler.step(second)
    assert second.param_groups[0]["params"][0].tolist() == [-2.0, -2.0]
    assert scaler.update_unless_waiting([first, fast, second])
    assert scaler.get_scale() == 4
