import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin.numerics import reference
from mp_plugin.numerics.reference import fp32_at_most, group_stats
from tests.helpers.grad_cases import DTYPES, EDGES, FLUSHED_AT, SIZES, edge, gradients, nan_payloads, truth

ALL_DTYPES = (*DTYPES, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
READERS = {"on the CPU": reference._rows_on_cpu, "by definition": reference._rows_by_definition}


def assert_true(rows: Tensor, grads: list[Tensor], flushed_at: float) -> None:
    for (amax, square_sum, *counts), grad in zip(rows.tolist(), grads, strict=True):
        expected = truth(grad, flushed_at)
        assert amax == expected.amax
        assert math.copysign(1.0, amax) == 1.0
        assert square_sum == pytest.approx(expected.square_sum, rel=1e-5, abs=1e-38)
        assert counts == [expected.num_nan, expected.num_inf, expected.num_flushed]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("flushed_at", [0.0, FLUSHED_AT, 1.0])
def test_edge_values(reader: str, dtype: torch.dtype, name: str, flushed_at: float) -> None:
    grads = [edge(name, dtype)]
    assert_true(READERS[reader](grads, flushed_at), grads, flushed_at)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flushed_at", [0.0, FLUSHED_AT])
def test_many_sizes_and_layouts(dtype: torch.dtype, flushed_at: float) -> None:
    grads = gradients(dtype)
    floats, counts = group_stats(grads, flushed_at)
    assert floats.dtype is torch.float32
    rows = torch.cat([floats[:2].double(), counts.double()]).T
    assert_true(rows[:-1], grads, flushed_at)
    amax, square_sum, num_nan, num_inf, num_flushed = rows[-1].tolist()
    together = truth(torch.cat([grad.flatten() for grad in grads]), flushed_at)
    assert (amax, num_nan, num_inf) == (together.amax, together.num_nan, together.num_inf)
    assert num_flushed == together.num_flushed
    assert square_sum == pytest.approx(together.square_sum, rel=1e-5)
    assert floats[2].tolist() == [float(bad) for bad in (counts[0] + counts[1]) > 0]


@pytest.mark.parametrize("size", [*SIZES, 300_000])
def test_every_position_is_read(size: int) -> None:
    """300,000 numbers are more than one piece."""
    for position in {0, size // 2, size - 1}:
        for value, row in ((math.nan, 0), (math.inf, 1), (1e-20, 2)):
            grad = torch.zeros(size)
            grad[position] = value
            counts = group_stats([torch.ones(3), grad], 1e-19).counts
            assert counts[:, 1].tolist() == [int(row == i) for i in range(3)]


def test_nan_payloads() -> None:
    counts = group_stats([nan_payloads()], 1e-40).counts
    assert counts[:, 0].tolist() == [5, 2, 1]


@pytest.mark.parametrize("size", [3, 5000])
def test_a_sum_of_squares_beyond_the_range_is_inf_and_its_values_are_finite(size: int) -> None:
    floats, counts = group_stats([torch.full((size,), 1e30), torch.ones(2)], 0.0)
    torch.testing.assert_close(floats, torch.tensor([[1e30, 1.0, 1e30], [math.inf, 2.0, math.inf], [0.0] * 3]))
    assert counts.count_nonzero() == 0


def test_float64_stays_float64() -> None:
    floats, counts = group_stats([torch.tensor([1e-300, 1e100], dtype=torch.float64)], 1e-300)
    assert floats.dtype is torch.float64
    assert floats[:2, 0].tolist() == [1e100, pytest.approx(1e200, rel=1e-15)]
    assert counts[:, 0].tolist() == [0, 0, 1]


def test_the_limit_is_never_rounded_up() -> None:
    """As a number of fp32, the limit would be the value above it."""
    value = torch.tensor(1.0).nextafter(torch.tensor(2.0))
    limit = value.item() - 2.0**-40
    assert torch.tensor(limit) == value
    assert group_stats([value.view(1)], limit).counts[2, 0] == 0
    assert fp32_at_most(limit) == 1.0


@pytest.mark.parametrize("value", [0.0, 2.0**-149, 2.0**-150, 0.1, 1.0, 65504.0, 3.4028234663852886e38, 1e39, 1e300])
def test_fp32_at_most(value: float) -> None:
    below = fp32_at_most(value)
    assert below <= value
    above = torch.tensor(below).nextafter(torch.tensor(math.inf)).item()
    assert above > value or above == math.inf


class Reads(TorchDispatchMode):
    """How many numbers operators were given that lie in these gradients' memory, and how many operators ran."""

    def __init__(self, grads: list[Tensor]) -> None:
        super().__init__()
        self.storages = {grad.untyped_storage().data_ptr() for grad in grads}
        self.numbers_read = self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.operators += 1
        outputs = result if isinstance(result, (list, tuple)) else [result]
        is_view = any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() in self.storages for x in outputs)
        if not is_view:
            inputs = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
            inputs = [x for x in inputs if isinstance(x, Tensor) and x.untyped_storage().data_ptr() in self.storages]
            # A dot product of a tensor with itself reads it once.
            self.numbers_read += sum({x.data_ptr(): x.numel() for x in inputs}.values())
        return result


@pytest.mark.parametrize(("dtype", "num_reads"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 2)], ids=str)
def test_a_healthy_gradient_takes_few_reads_piece_by_piece(dtype: torch.dtype, num_reads: int) -> None:
    """fp32 needs no copy that could be read again: its second read finds the piece in the cache."""
    grad = torch.randn(300_000).to(dtype)
    with Reads([grad]) as reads:
        group_stats([grad], 0.0)
    assert reads.numbers_read == num_reads * 300_000


def test_many_small_gradients_take_few_calls() -> None:
    grads = [torch.randn(4) for _ in range(1000)]
    with Reads(grads) as reads:
        group_stats(grads, FLUSHED_AT)
    # Views aside, which every tensor needs to be read as one dimension.
    assert reads.operators - len(grads) < 200
    assert reads.numbers_read == 4000


def test_the_same_bits_again() -> None:
    grads = gradients(torch.float32)
    first, second = group_stats(grads, FLUSHED_AT), group_stats(grads, FLUSHED_AT)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
