import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mp_plugin.errors import ConfigError
from mp_plugin.numerics import grad_stats as operation
from mp_plugin.numerics.grad_stats import Backend, GradStats, backend_of, grad_stats
from tests.helpers.grad_cases import DTYPES, FLUSHED_AT, gradients, truth
from tests.helpers.ranks import run_on_ranks

ROOT = Path(__file__).parents[3]


def assert_true(stats: GradStats, grads: list[Tensor], flushed_at: float = FLUSHED_AT) -> None:
    expected = [truth(grad, flushed_at) for grad in grads]
    assert stats.amax.tolist() == [one.amax for one in expected]
    assert stats.square_sum.tolist() == pytest.approx([one.square_sum for one in expected], rel=1e-5)
    assert stats.num_nan.tolist() == [one.num_nan for one in expected]
    assert stats.num_inf.tolist() == [one.num_inf for one in expected]
    assert stats.num_flushed.tolist() == [one.num_flushed for one in expected]
    assert stats.largest.item() == max((one.amax for one in expected), default=0.0)
    assert stats.total_square_sum.item() == pytest.approx(math.fsum(one.square_sum for one in expected), rel=1e-5)
    assert stats.found_inf.tolist() == [float(any(one.num_nan + one.num_inf for one in expected))]
    assert (stats.found_inf.dtype, stats.num_nan.dtype) == (torch.float32, torch.int64)
    assert stats.total_square_sum.shape == stats.largest.shape == ()


def mixed() -> list[Tensor]:
    grads = [grad for group in zip(*map(gradients, DTYPES), strict=True) for grad in group]
    grads[4:4] = [torch.empty(0), torch.empty(3, 0, dtype=torch.bfloat16)]
    return [*grads, torch.empty(0)]


def test_one_dtype() -> None:
    assert_true(grad_stats(gradients(torch.float32), flushed_at=FLUSHED_AT), gradients(torch.float32))


def test_mixed_dtypes_stay_in_order() -> None:
    stats = grad_stats(mixed(), flushed_at=FLUSHED_AT)
    assert_true(stats, mixed())
    assert stats.amax.dtype is torch.float32


def test_a_float64_gradient_makes_all_float64() -> None:
    grads = [torch.ones(3), torch.tensor([1e100, -1.0], dtype=torch.float64)]
    stats = grad_stats(grads, flushed_at=FLUSHED_AT)
    assert_true(stats, grads)
    assert stats.amax.dtype is stats.total_square_sum.dtype is torch.float64


@pytest.mark.parametrize("grads", [[], [torch.empty(0)], [torch.empty(0), torch.empty(2, 0, dtype=torch.float16)]])
def test_nothing_to_read(grads: list[Tensor]) -> None:
    assert_true(grad_stats(grads), grads)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_formats_of_8_bits(dtype: torch.dtype) -> None:
    grads = [torch.randn(9).to(dtype), torch.randn(5000).to(dtype)]
    assert_true(grad_stats(grads, flushed_at=2.0**-6), grads, 2.0**-6)


def test_sparse_gradients_count_what_they_store() -> None:
    indices = torch.tensor([[0, 2]])
    grad = torch.sparse_coo_tensor(indices, torch.tensor([[8.0, math.inf], [1e-9, 0.0]]), (4, 2), check_invariants=True)
    stats = grad_stats([torch.ones(2), grad.coalesce()], flushed_at=FLUSHED_AT)
    assert_true(stats, [torch.ones(2), torch.tensor([8.0, math.inf, 1e-9, 0.0])])


def test_complex_gradients_count_their_parts() -> None:
    grads = [torch.tensor([3 - 4j, complex(math.nan, 1e-9)]), torch.tensor([1 + 1j]).conj()]
    stats = grad_stats(grads, flushed_at=FLUSHED_AT)
    assert_true(stats, [torch.view_as_real(grad.resolve_conj()).flatten() for grad in grads])


def test_gradients_that_require_a_gradient() -> None:
    grads = [torch.ones(3, requires_grad=True), torch.ones(5000, requires_grad=True)]
    assert not grad_stats(grads, flushed_at=0.5).square_sum.requires_grad


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, True, "1"])
def test_a_limit_that_is_none(value: object) -> None:
    with pytest.raises(ConfigError, match="is a finite number of at least 0"):
        grad_stats([torch.ones(1)], flushed_at=value)  # type: ignore[arg-type]


def test_the_same_bits_again() -> None:
    first, second = grad_stats(mixed(), flushed_at=1.0), grad_stats(mixed(), flushed_at=1.0)
    for name in GradStats.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(second, name))


@pytest.mark.xdist_group("ranks")
def test_of_a_distributed_gradient_the_local_part_counts() -> None:
    run_on_ranks(_on_each_rank)


def _on_each_rank() -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo")
    mesh = dist.init_device_mesh("cpu", (2,))
    whole = torch.tensor([[1.0, -2.0], [1e-9, 0.0], [math.nan, 5.0], [math.inf, 1.0]])
    grads = [distribute_tensor(whole, mesh, [Shard(0)]), distribute_tensor(whole, mesh, [Shard(1)])]
    rank = dist.get_rank()
    expected = [whole.chunk(2, dim=0)[rank], whole.chunk(2, dim=1)[rank]]
    assert_true(grad_stats(grads, flushed_at=FLUSHED_AT), expected)


# Where the kernel cannot run.


def test_the_cpu_is_read_by_pytorch() -> None:
    assert backend_of(torch.device("cpu")) is Backend.pytorch


def test_a_triton_that_cannot_be_imported(tmp_path: Path) -> None:
    """In a process of its own, in which nobody has imported the one that is installed."""
    (tmp_path / "triton.py").write_text("raise OSError('libtriton.so: cannot open shared object file')")
    program = (
        "import logging, torch; logging.basicConfig()\n"
        "from mp_plugin.numerics.grad_stats import backend_of, grad_stats\n"
        "print([backend_of(torch.device('cuda')).value for _ in range(3)])\n"
        "print(grad_stats([torch.tensor([3.0, 4.0])]).square_sum.tolist())\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["['pytorch', 'pytorch', 'pytorch']", "[25.0]"], done.stderr
    assert done.stderr.count("WARNING:mp_plugin") == 1, done.stderr
    assert "Triton cannot be imported (OSError: libtriton.so: cannot open shared object file)" in done.stderr


def test_an_interpreted_triton_reads_no_gpu() -> None:
    pytest.importorskip("triton")
    program = (
        "import torch; from mp_plugin.numerics.grad_stats import backend_of; print(backend_of(torch.device('cuda')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "pytorch" in done.stdout, done.stderr
    assert "TRITON_INTERPRET=1" in done.stderr


@pytest.fixture
def _triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the kernel gradients on the CPU, which it cannot read."""
    pytest.importorskip("triton")
    kernel = operation._import_kernel()
    if kernel is None:
        pytest.skip("Triton cannot be imported here.")
    operation._tell_who_reads.cache_clear()
    monkeypatch.setattr(operation, "_launch_failed", False)
    monkeypatch.setattr(
        operation, "backend_of", lambda device: Backend.pytorch if operation._kernel() is None else Backend.triton
    )


@pytest.mark.usefixtures("_triton_everywhere")
def test_a_kernel_that_does_not_run(caplog: pytest.LogCaptureFixture) -> None:
    """Not even started a second time; the results are PyTorch's."""
    for _ in range(3):
        assert_true(grad_stats(mixed(), flushed_at=FLUSHED_AT), mixed())
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    (message,) = [record.getMessage() for record in warnings]
    assert message.startswith("Triton cannot run its kernel (")
    assert "PyTorch reads the gradients. The results are the same" in message
    assert operation._kernel() is None


@pytest.mark.usefixtures("_triton_everywhere")
def test_memory_that_is_short_is_no_reason_to_give_up_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_group(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(operation._import_kernel(), "read_group", read_group)
    with pytest.raises(torch.OutOfMemoryError):
        grad_stats([torch.ones(2)])
    assert operation._kernel() is not None


@pytest.mark.usefixtures("_triton_everywhere")
def test_a_dtype_that_the_kernel_does_not_know(caplog: pytest.LogCaptureFixture) -> None:
    grads = [torch.randn(5, dtype=torch.float64)]
    for _ in range(3):
        assert_true(grad_stats(grads, flushed_at=FLUSHED_AT), grads)
    (record,) = caplog.records
    assert record.getMessage().startswith("Triton's kernel does not know torch.float64: PyTorch reads")
    assert operation._kernel() is not None


@pytest.mark.usefixtures("_triton_everywhere")
def test_a_capture_that_the_kernel_leaves_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation._import_kernel(), "read_group", lambda *args: None)
    assert_true(grad_stats(mixed(), flushed_at=FLUSHED_AT), mixed())
    assert operation._kernel() is not None
