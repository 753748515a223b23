import math

import pytest
import torch

from mp_plugin.numerics.grad_totals import all_finite
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
