import types

import pytest
import torch
from torch._functorch import config

from mp_plugin.autocast import autocast, compile_backward_without_autocast


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.01), (torch.float16, 0.002)])
def test_the_gradient_of_a_weight_used_many_times_is_summed_in_fp32(dtype: torch.dtype, bound: float) -> None:
    inputs = torch.rand(256, 1, 16)

    def gradient(layer: torch.nn.Linear) -> torch.Tensor:
        layer.zero_grad()
        torch.stack([layer(part) for part in inputs]).float().sum().backward()
        return layer.weight.grad.double().clone()  # type: ignore[union-attr]

    layer = torch.nn.Linear(16, 16)
    truth = gradient(layer)
    with autocast("cpu", dtype):
        ours = gradient(layer)
    with torch.autocast("cpu", dtype=dtype):
        cached = gradient(layer)
    error, error_of_cache = ((grad - truth).norm() / truth.norm() for grad in (ours, cached))
    assert error < bound < error_of_cache


def test_a_forward_pass_sees_an_edit_in_place() -> None:
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    with autocast("cpu", torch.bfloat16):
        before = torch.nn.functional.linear(torch.ones(1, 1), weight).item()
        with torch.no_grad():
            weight.add_(1.0)
        after = torch.nn.functional.linear(torch.ones(1, 1), weight).item()
    assert (before, after) == (0.0, 1.0)


def test_a_cast_made_without_gradients_does_not_lose_them_later() -> None:
    """pytorch issues 65766 and 112583."""
    layer = torch.nn.Linear(2, 2)
    with autocast("cpu", torch.float16):
        with torch.no_grad():
            layer(torch.ones(1, 2))
        output = layer(torch.ones(1, 2))
    assert output.requires_grad
    assert output.dtype is torch.float16


def test_a_backward_pass_is_compiled_as_it_runs_and_the_setting_is_given_back() -> None:
    before = config.backward_pass_autocast
    undo = compile_backward_without_autocast()
    assert config.backward_pass_autocast == "off"
    undo()
    assert config.backward_pass_autocast == before


def test_a_user_who_set_it_keeps_it_and_torch_without_the_setting_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with config.patch(backward_pass_autocast="off"):
        compile_backward_without_autocast()()
        assert config.backward_pass_autocast == "off"
    without = types.SimpleNamespace()
    monkeypatch.setattr(torch._functorch, "config", without)
    compile_backward_without_autocast()()
    assert vars(without) == {}
