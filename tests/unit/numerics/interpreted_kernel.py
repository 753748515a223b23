"""The kernel, run by Triton's interpreter: the tests of a process that starts with TRITON_INTERPRET=1.

`test_triton_grad_stats.py` starts it. Alone: TRITON_INTERPRET=1 python -m pytest, and the name of this file.
"""

import math

import pytest
import torch
from torch import Tensor

from mp_plugin.casting import default_dtype
from mp_plugin.numerics import grad_stats as operation
from mp_plugin.numerics import launch_tables, reference
from mp_plugin.numerics import triton_grad_stats as kernel
from mp_plugin.numerics.grad_stats import Backend, GradStats, grad_stats
from tests.helpers.grad_cases import DTYPES, EDGES, FLUSHED_AT, SIZES, edge, gradients, nan_payloads, truth

# numpy, which does the arithmetic here, says so when a square passes the range of fp32, and when it meets a NaN.
pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)


def assert_same(group: list[Tensor], flushed_at: float) -> None:
    """The kernel's statistics are the definition's: bit by bit, but for the sums of squares."""
    floats, counts = read(group, flushed_at)
    expected = reference.group_stats(group, flushed_at)
    assert torch.equal(counts, expected.counts)
    assert torch.equal(floats[0], expected.floats[0])
    torch.testing.assert_close(floats[1], expected.floats[1], rtol=1e-5, atol=1e-38)
    assert torch.equal(floats[2], expected.floats[2])


def read(group: list[Tensor], flushed_at: float) -> reference.GroupStats:
    stats = kernel.read_group(group, flushed_at)
    assert stats is not None
    return stats


def test_triton_interprets_here() -> None:
    assert kernel.INTERPRETED


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flushed_at", [0.0, FLUSHED_AT, 1.0])
def test_edge_values(dtype: torch.dtype, flushed_at: float) -> None:
    group = [edge(name, dtype) for name in EDGES]
    assert_same(group, flushed_at)
    counts = read(group, flushed_at).counts.T.tolist()
    for grad, row in zip(group, counts[:-1], strict=True):
        expected = truth(grad, flushed_at)
        assert row == [expected.num_nan, expected.num_inf, expected.num_flushed if flushed_at else 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flushed_at", [0.0, FLUSHED_AT])
def test_many_sizes_and_layouts(dtype: torch.dtype, flushed_at: float) -> None:
    assert_same(gradients(dtype), flushed_at)


def test_nan_payloads() -> None:
    assert_same([nan_payloads(), torch.ones(3)], 1e-40)
    assert read([nan_payloads()], 1e-40).counts[:, 0].tolist() == [5, 2, 1]


@pytest.mark.parametrize("size", SIZES[:-2])
def test_every_position_is_read(size: int) -> None:
    group, expected = [], []
    for position in sorted({0, 1 % size, 7 % size, size // 2, size - 1}):
        for column, value in enumerate((math.nan, math.inf, 1e-20)):
            base = torch.zeros(size + 3)
            base[3 + position] = value
            group.append(base[3:])
            expected.append([int(column == i) for i in range(3)])
    assert read(group, 1e-19).counts.T.tolist()[:-1] == expected


def test_a_sum_of_squares_beyond_the_range_is_inf_and_its_values_are_finite() -> None:
    assert_same([torch.full((5000,), 1e30), torch.ones(2)], 0.0)


def test_several_chunks_to_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """And more rows than one block of the second launch."""
    monkeypatch.setattr(kernel, "_REDUCE_BLOCK", 4)
    grads = [torch.randn(200_001), torch.randn(3), torch.randn(70_000)[1:]]
    grads[0][16384 * 5 + 3] = math.nan
    grads[2][-1] = math.inf
    assert_same(grads, 1e-4)
    tables = launch_tables.tables_of(grads, kernel._BLOCK, kernel._MIN_CHUNK_NUMEL)
    assert tables is not None
    assert tables.layout.tensor_of_row.bincount().tolist() == [13, 1, 5]


def test_the_defaults_of_the_process_change_nothing() -> None:
    """A training step with half weights has another default dtype; a user may have set another default device."""
    group = [torch.full((300,), 1000.3), torch.full((20_000,), -0.1)]
    expected = read(group, FLUSHED_AT)
    launch_tables._layouts.clear()
    launch_tables._addresses.clear()
    with default_dtype(torch.float16), torch.device("meta"):
        found = read(group, FLUSHED_AT)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_same_bits_again() -> None:
    grads = gradients(torch.float32)
    first, second = read(grads, FLUSHED_AT), read(grads, FLUSHED_AT)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gradient_that_moved_is_read_where_it_is() -> None:
    grads = [torch.ones(10), torch.ones(20)]
    read(grads, 0.0)
    moved = [torch.full((10,), 2.0), grads[1]]
    assert read(moved, 0.0).floats[1].tolist() == [40.0, 20.0, 60.0]


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the operation take the kernel on the CPU, and tell which path ran."""
    ran: list[str] = []
    monkeypatch.setattr(operation, "backend_of", lambda device: Backend.triton)
    monkeypatch.setattr(operation, "_kernel", lambda: kernel)
    launch, define = kernel.read_group, reference.group_stats
    monkeypatch.setattr(kernel, "read_group", lambda *args: ran.append("triton") or launch(*args))
    monkeypatch.setattr(reference, "group_stats", lambda *args: ran.append("pytorch") or define(*args))
    return ran


def test_the_operation_over_several_dtypes(backends: list[str]) -> None:
    operation._tell_who_reads.cache_clear()
    grads = [grad for group in zip(*map(gradients, DTYPES), strict=True) for grad in group]
    grads[4:4] = [torch.empty(0), torch.randn(30, dtype=torch.float64), torch.empty(3, 0)]
    stats = grad_stats(grads, flushed_at=FLUSHED_AT)
    assert sorted(backends) == ["pytorch", "triton", "triton", "triton"]
    assert_true(stats, grads)


def test_the_operation_on_one_group_makes_no_copy(backends: list[str]) -> None:
    grads = [torch.ones(3), torch.full((2,), math.inf)]
    stats = grad_stats(grads)
    assert backends == ["triton"]
    assert stats.amax.untyped_storage().data_ptr() == stats.largest.untyped_storage().data_ptr()
    assert stats.found_inf.tolist() == [1.0]
    assert_true(stats, grads)


def assert_true(stats: GradStats, grads: list[Tensor]) -> None:
    expected = [truth(grad, FLUSHED_AT) for grad in grads]
    assert stats.amax.tolist() == [one.amax for one in expected]
    assert stats.square_sum.tolist() == pytest.approx([one.square_sum for one in expected], rel=1e-5)
    assert stats.num_nan.tolist() == [one.num_nan for one in expected]
    assert stats.num_inf.tolist() == [one.num_inf for one in expected]
    assert stats.num_flushed.tolist() == [one.num_flushed for one in expected]
    assert stats.largest.item() == max(one.amax for one in expected)
    assert stats.total_square_sum.item() == pytest.approx(math.fsum(one.square_sum for one in expected), rel=1e-5)
    assert stats.found_inf.item() == float(any(one.num_nan + one.num_inf for one in expected))
