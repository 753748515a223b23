import pytest
import torch
from torch import nn

from mp_plugin import live_trace
from mp_plugin.live_trace import LiveTrace


def overflow(net: nn.Module) -> torch.Tensor:
    return net(torch.full((1, 2), 1e38)).square().sum()  # type: ignore[no-any-return]


def armed(net: nn.Module) -> LiveTrace:
    return LiveTrace(net)  # type: ignore[arg-type]


def is_watched(net: nn.Module) -> bool:
    hooks = bool(net._forward_hooks)
    assert hooks == (torch._C._len_torch_dispatch_stack() > 0)
    assert hooks == (torch._dynamo.eval_frame._stance.stance == "force_eager")
    return hooks


def test_it_watches_both_passes_and_nothing_between() -> None:
    net = nn.Linear(2, 1)
    live = armed(net)
    assert live.is_empty
    with live.forward():
        assert is_watched(net)
        loss = overflow(net)
    assert not live.is_empty
    assert not is_watched(net)
    with live.backward():
        assert is_watched(net)
        loss.backward()
    assert not is_watched(net)
    origin = live.trace.find_origin([loss])
    assert origin is not None
    assert live.trace.steps[origin.step].operator == "aten.pow.Tensor_Scalar"


def test_a_backward_pass_inside_a_training_step_is_watched_once() -> None:
    net = nn.Linear(2, 1)
    live = armed(net)
    with live.forward():
        loss = overflow(net)
        with live.backward():
            assert torch._C._len_torch_dispatch_stack() == 1
            loss.backward()
        assert is_watched(net)
    assert not is_watched(net)


def test_gradients_that_are_collected_are_watched_from_the_first_step_on() -> None:
    live = armed(nn.Linear(2, 1))
    first = live.trace
    for _ in range(3):
        with live.forward():
            pass
    assert live.trace is first
    live.used()
    assert live.trace is first, "what led to this step is still asked for"
    with live.forward():
        assert live.trace is not first


def test_it_ends_after_some_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_trace, "ARMED_STEPS", 2)
    net = nn.Linear(2, 1)
    live = armed(net)
    watched = []
    for _ in range(3):
        assert not live.is_over
        with live.forward():
            watched.append(is_watched(net))
    assert watched == [True, True, False]
    assert live.is_over


def test_an_error_ends_the_watch() -> None:
    net = nn.Linear(2, 1)
    live = armed(net)
    with pytest.raises(ZeroDivisionError), live.forward():
        raise ZeroDivisionError
    assert not is_watched(net)
    with live.forward():
        assert is_watched(net)
