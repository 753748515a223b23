import math

import pytest
import torch
from torch import Tensor

from mp_plugin.numerics.finite_grads import all_finite, grad_amax, largest_magnitude
from mp_plugin.numerics.grad_values import local_values
from mp_plugin.numerics.unscale import unscale_

INF, NAN = math.inf, math.nan

EDGES = {
    "zero": [0.0],
    "negative zero": [-0.0],
    "subnormal of fp32": [2.0**-149],
    "largest fp32": [3.4028234663852886e38, -1.0],
    "inf": [1.0, INF],
    "negative inf": [-INF, 1.0],
    "nan": [NAN, 1.0],
    "nan beside inf": [INF, NAN, 0.0],
    "empty": [],
    "many": [float(i) for i in range(-500, 400)],
}


def float64_amax(grad: Tensor) -> float:
    """The definition, in float64 and plain Python: NaN wins over Inf, Inf over any number."""
    magnitudes = [abs(value) for value in grad.double().flatten().tolist()]
    return NAN if any(map(math.isnan, magnitudes)) else max(magnitudes, default=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("edge", EDGES)
def test_amax_of_edge_values(edge: str, dtype: torch.dtype) -> None:
    grad = torch.tensor(EDGES[edge], dtype=torch.float64).to(dtype)
    (amax,) = grad_amax([grad]).tolist()
    assert amax == pytest.approx(float64_amax(grad), rel=0, abs=0, nan_ok=True)


def test_amax_keeps_the_order_of_mixed_gradients() -> None:
    grads = [
        torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        torch.tensor([]),
        torch.randn(3, 5).t(),
        torch.tensor([INF], dtype=torch.float16),
        torch.tensor(-7.0),
        torch.tensor([NAN], dtype=torch.bfloat16),
    ]
    expected = torch.tensor([float64_amax(grad) for grad in grads])
    torch.testing.assert_close(grad_amax(grads), expected, rtol=0, atol=0, equal_nan=True)


def test_amax_of_no_gradients_is_empty() -> None:
    assert grad_amax([]).shape == (0,)


@pytest.mark.parametrize("edge", EDGES)
def test_largest_magnitude(edge: str) -> None:
    others = [torch.ones(3), torch.tensor([-2.0], dtype=torch.bfloat16), torch.tensor([]), torch.eye(2).to_sparse()]
    everything = torch.tensor([*EDGES[edge], -2.0])
    assert largest_magnitude([*others, torch.tensor(EDGES[edge])]).item() == pytest.approx(
        float64_amax(everything), rel=0, abs=0, nan_ok=True
    )


def test_the_largest_of_no_gradients_is_zero() -> None:
    assert largest_magnitude([]).item() == 0


@pytest.mark.parametrize("edge", EDGES)
def test_all_finite(edge: str) -> None:
    grad = torch.tensor(EDGES[edge])
    healthy = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16)]
    assert all_finite([*healthy, grad]).item() is all(map(math.isfinite, EDGES[edge]))


@pytest.mark.parametrize("scale", [1.0, 2.0**15, 3.0, 2.0**-10])
@pytest.mark.parametrize("edge", EDGES)
def test_unscale_agrees_with_float64(edge: str, scale: float) -> None:
    grad = torch.tensor(EDGES[edge])
    expected = (grad.double() * torch.tensor(1 / scale).double()).float()
    found_inf = unscale_([grad], scale)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0, equal_nan=True)
    assert found_inf.item() == (0.0 if all(map(math.isfinite, expected.tolist())) else 1.0)


def test_unscale_agrees_with_torch_bit_by_bit() -> None:
    ours = [torch.randn(17), torch.randn(3, 3).bfloat16()]
    theirs = [grad.clone() for grad in ours]
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    scaler.scale(torch.zeros(1))
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in theirs]
    for parameter, grad in zip(parameters, theirs, strict=True):
        parameter.grad = grad
    scaler.unscale_(torch.optim.SGD(parameters, lr=1.0))
    unscale_(ours, 1000.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_division_that_overflows_is_found() -> None:
    """Trap 1: finite before, infinite after; `GradScaler` checks only before."""
    grad = torch.tensor([2.0**120])
    assert unscale_([grad], 2.0**-20).item() == 1.0


def test_sparse_values_are_read_and_written_in_place() -> None:
    grad = torch.sparse_coo_tensor(
        torch.tensor([[0, 2]]), torch.tensor([8.0, INF]), (4,), check_invariants=True
    ).coalesce()
    assert local_values(grad).data_ptr() == grad._values().data_ptr()
    assert unscale_([grad], 4.0).item() == 1.0
    assert grad.to_dense().tolist() == [2.0, 0.0, INF, 0.0]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("is_conjugate", [False, True])
def test_complex_gradients_are_unscaled_in_place(dtype: torch.dtype, is_conjugate: bool) -> None:
    """torch's own operator refuses them; a conjugate is what the backward pass of one leaves behind."""
    parts = torch.tensor([3 - 4j, 8 + 1j], dtype=dtype)
    grad = parts.conj() if is_conjugate else parts
    expected = grad.clone().resolve_conj() / 4
    assert grad_amax([grad]).tolist() == [8.0]
    assert unscale_([grad], 4.0).item() == 0.0
    torch.testing.assert_close(grad.resolve_conj(), expected, rtol=0, atol=0)
    parts[1] = complex(1.0, NAN)
    assert not all_finite([grad])
    assert unscale_([grad], 4.0).item() == 1.0


def test_one_launch_for_many_parameters() -> None:
    """No operation per parameter, and none that waits for the device."""
    grads = [torch.randn(4) for _ in range(200)]
    names = _operators(lambda: unscale_(grads, 2.0))
    assert len(names) < 12
    assert "aten._local_scalar_dense.default" not in names
    for read in (all_finite, largest_magnitude):
        names = _operators(lambda read=read: read(grads))
        assert len(names) < 12
        assert "aten._local_scalar_dense.default" not in names


def _operators(function: object) -> list[str]:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Record():
        function()  # type: ignore[operator]
    return seen


@pytest.mark.parametrize("position", range(3))
def test_a_fault_in_any_group_is_found(position: int) -> None:
    grads = [torch.ones(2), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float64)]
    grads[position][1] = INF
    assert not all_finite(grads)
    assert unscale_(grads, 2.0).item() == 1.0


def test_a_float64_gradient_beyond_fp32_is_finite() -> None:
    assert grad_amax([torch.tensor([1e100], dtype=torch.float64), torch.ones(1)]).tolist() == [1e100, 1.0]
