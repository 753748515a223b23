import math

import pytest
import torch
from torch import Tensor

from mp_plugin.casting import default_dtype
from mp_plugin.numerics.grad_totals import all_finite, grad_totals
from tests.unit.numerics.test_unscale import EDGES

INF, NAN = math.inf, math.nan


def float64_amax(grad: Tensor) -> float:
    """The definition, in float64 and plain Python: NaN wins over Inf, Inf over any number."""
    magnitudes = [abs(value) for value in grad.double().flatten().tolist()]
    return NAN if any(map(math.isnan, magnitudes)) else max(magnitudes, default=0.0)


def marks(grads: list[Tensor]) -> Tensor:
    found = grad_totals(grads, amax=True).marks
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("edge", EDGES)
def test_amax_of_edge_values(edge: str, dtype: torch.dtype) -> None:
    grad = torch.tensor(EDGES[edge], dtype=torch.float64).to(dtype)
    (amax,) = marks([grad]).tolist()
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
    torch.testing.assert_close(marks(grads), expected, rtol=0, atol=0, equal_nan=True)


def test_amax_of_no_gradients_is_empty() -> None:
    assert marks([]).shape == (0,)


@pytest.mark.parametrize("edge", EDGES)
def test_largest_magnitude(edge: str) -> None:
    others = [torch.ones(3), torch.tensor([-2.0], dtype=torch.bfloat16), torch.tensor([]), torch.eye(2).to_sparse()]
    everything = torch.tensor([*EDGES[edge], -2.0])
    assert marks([*others, torch.tensor(EDGES[edge])]).max().item() == pytest.approx(
        float64_amax(everything), rel=0, abs=0, nan_ok=True
    )


def test_the_largest_of_no_gradients_is_zero() -> None:
    assert grad_totals([], amax=True).amax == 0


@pytest.mark.parametrize("edge", EDGES)
def test_all_finite(edge: str) -> None:
    grad = torch.tensor(EDGES[edge])
    healthy = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16)]
    assert all_finite([*healthy, grad]).item() is all(map(math.isfinite, EDGES[edge]))


def test_a_float64_gradient_beyond_fp32_is_finite() -> None:
    assert marks([torch.tensor([1e100], dtype=torch.float64), torch.ones(1)]).tolist() == [1e100, 1.0]


@pytest.mark.parametrize("grads", [[torch.ones(3)], [torch.tensor([1.0, INF])], [], [torch.ones(5000), torch.ones(2)]])
@pytest.mark.parametrize("wanted", [{}, {"norm": True}, {"norm": True, "amax": True}], ids=str)
def test_the_defaults_of_the_process_change_nothing(grads: list[Tensor], wanted: dict[str, bool]) -> None:
    """A training step with half weights has another default dtype; a user may have set another default device."""
    expected = grad_totals(grads, **wanted)
    with default_dtype(torch.bfloat16), torch.device("meta"):
        found = grad_totals(grads, **wanted)
    for name in ("found_inf", "norm", "amax"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_norm_whose_square_is_beyond_fp32_is_a_number() -> None:
    """On a CPU; a scaled gradient may be that large while the true one is not."""
    totals = grad_totals([torch.tensor([3e25]), torch.tensor([4e25, 0.0])], norm=True)
    assert totals.found_inf.item() == 0.0
    assert totals.norm is not None
    assert totals.norm.item() == pytest.approx(5e25)
    assert grad_totals([torch.tensor([3e25, INF])], norm=True).found_inf.item() == 1.0
