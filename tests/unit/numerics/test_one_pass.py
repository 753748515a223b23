import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mp_plugin.casting import default_dtype
from mp_plugin.numerics.grad_totals import grad_totals
from mp_plugin.numerics.one_pass import clip_coefficient, grad_scale, unscale_and_clip_
from mp_plugin.numerics.unscale import unscale_

SCALES = [1.0, 2.0**15, 2.0**-3, 1000.1]
MAX_NORMS = [1e-3, 1.0, 1e3]


def true_gradients(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(3, 4), (1,), (5000,), (0,), ()]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def scaled_by(scale: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(grad.double() * scale).to(dtype) for grad in true_gradients(dtype)]


def norm_of(grads: list[Tensor]) -> Tensor:
    norm = grad_totals(grads, norm=True).norm
    assert norm is not None
    return norm


def in_float64(grads: list[Tensor], scale: float, max_norm: float) -> list[Tensor]:
    true = [grad.double() / scale for grad in grads]
    norm = torch.cat([grad.flatten() for grad in true]).norm()
    return [grad * min(1.0, max_norm / (norm.item() + 1e-6)) for grad in true]


@pytest.mark.parametrize("max_norm", MAX_NORMS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)])
def test_near_float64(dtype: torch.dtype, rtol: float, scale: float, max_norm: float) -> None:
    grads = scaled_by(scale, dtype)
    expected = in_float64(grads, scale, max_norm)
    unscale_and_clip_(grads, scale, norm_of(grads), max_norm)
    torch.testing.assert_close([grad.double() for grad in grads], expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("max_norm", MAX_NORMS)
@pytest.mark.parametrize("scale", [scale for scale in SCALES if math.log2(scale).is_integer()])
def test_what_torch_does_in_two_passes_bit_by_bit(scale: float, max_norm: float) -> None:
    grads, two = scaled_by(scale), scaled_by(scale)
    unscale_and_clip_(grads, scale, norm_of(grads), max_norm)
    unscale_(two, scale)
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in two]
    for parameter, grad in zip(parameters, two, strict=True):
        parameter.grad = grad
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    torch.testing.assert_close(grads, two, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("max_norm", [*MAX_NORMS, None])
@pytest.mark.parametrize("scale", SCALES)
def test_a_fused_optimizer_divides_to_the_same(scale: float, max_norm: float | None, optimizer: Any) -> None:
    grads, oracle = scaled_by(scale), scaled_by(scale)
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads if grad.numel()]
    for parameter, grad in zip(parameters, [grad for grad in grads if grad.numel()], strict=True):
        parameter.grad = grad
    fused = optimizer(parameters, lr=1.0, fused=True)
    fused.grad_scale, fused.found_inf = grad_scale(scale, norm_of(grads), max_norm), None
    fused.step()
    unscale_and_clip_(oracle, scale, norm_of(oracle), math.inf if max_norm is None else max_norm)
    # Its gradients are the true ones afterwards, and what it stepped with.
    torch.testing.assert_close(grads, oracle, rtol=1e-6, atol=0)
    if optimizer is torch.optim.SGD:
        used = [-grad for grad in oracle if grad.numel()]
        torch.testing.assert_close([parameter.detach() for parameter in parameters], used, rtol=1e-6, atol=0)


def test_a_scale_on_the_device_is_a_number_like_another() -> None:
    norm = torch.tensor(10.0)
    assert grad_scale(torch.tensor(8.0), norm, 0.5) == grad_scale(8.0, norm, 0.5) == pytest.approx(20.0, rel=1e-5)
    assert grad_scale(8.0, norm, None).dtype is torch.float32


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0, 3.0, 1e30, math.inf])
def test_the_coefficient_is_torch_s(norm: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameter.grad = torch.tensor([1.0], dtype=torch.float64)
    torch.nn.utils.clip_grads_with_norm_(parameter, 1.0, torch.tensor(norm, dtype=torch.float64))
    assert clip_coefficient(torch.tensor(norm, dtype=torch.float64), 1.0).item() == parameter.grad.item()


def test_gradients_of_several_dtypes() -> None:
    grads = [torch.tensor([6.0]), torch.tensor([8.0], dtype=torch.bfloat16), torch.tensor([0.0], dtype=torch.float64)]
    unscale_and_clip_(grads, 2.0, norm_of(grads), max_norm=1.0)
    assert [grad.item() for grad in grads] == pytest.approx([0.6, 0.8, 0.0], rel=2.0**-8)
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16, torch.float64]


def test_a_fused_optimizer_is_given_fp32_whatever_the_default_is() -> None:
    with default_dtype(torch.float64):
        assert grad_scale(1000.1, torch.tensor(3.0), max_norm=None).dtype is torch.float32
