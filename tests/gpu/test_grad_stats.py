"""The statistics of gradients on a GPU: which path runs, what it returns, and what it costs."""

import pytest
import torch
from torch import Tensor

from mp_plugin.numerics import reference
from mp_plugin.numerics.grad_stats import Backend, GradStats, backend_of, grad_stats
from tests.helpers.grad_cases import DTYPES, EDGES, FLUSHED_AT, edge, gradients, nan_payloads

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# On the GPU the layout of a gradient stays as it is; `Tensor.cuda` would make it dense.


def on_gpu(grad: Tensor) -> Tensor:
    numbers = torch.empty(0, dtype=grad.dtype).set_(grad.untyped_storage()).cuda()
    return numbers.as_strided(grad.shape, grad.stride(), grad.storage_offset())


def assert_as_on_the_cpu(stats: GradStats, grads: list[Tensor], flushed_at: float) -> None:
    expected = grad_stats(grads, flushed_at=flushed_at)
    for name in GradStats.__dataclass_fields__:
        ours, theirs = getattr(stats, name), getattr(expected, name)
        assert ours.is_cuda
        if "square_sum" in name:
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-38)
        else:
            assert torch.equal(ours.cpu(), theirs), name


def test_triton_reads_the_gpu() -> None:
    assert backend_of(torch.device("cuda", 0)) is Backend.triton


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flushed_at", [0.0, FLUSHED_AT, 1.0])
def test_edge_values(dtype: torch.dtype, flushed_at: float) -> None:
    grads = [edge(name, dtype) for name in EDGES] + [torch.empty(0, dtype=dtype)]
    if dtype is torch.float32:
        grads.append(nan_payloads())
    assert_as_on_the_cpu(grad_stats([on_gpu(grad) for grad in grads], flushed_at=flushed_at), grads, flushed_at)
    assert backend_of(torch.device("cuda")) is Backend.triton


@pytest.mark.parametrize("flushed_at", [0.0, FLUSHED_AT])
def test_many_sizes_and_layouts(flushed_at: float) -> None:
    grads = [grad for group in zip(*map(gradients, DTYPES), strict=True) for grad in group]
    grads += [torch.randn(3_000_001), torch.randn(1_000_003).bfloat16()[1:]]
    assert_as_on_the_cpu(grad_stats([on_gpu(grad) for grad in grads], flushed_at=flushed_at), grads, flushed_at)
    assert backend_of(torch.device("cuda")) is Backend.triton


def test_ten_thousand_gradients() -> None:
    grads = [torch.randn(64) for _ in range(10_000)]
    assert_as_on_the_cpu(grad_stats([grad.cuda() for grad in grads], flushed_at=FLUSHED_AT), grads, FLUSHED_AT)


def test_more_than_two_to_the_31_numbers() -> None:
    numel = 2**31 + 4097
    if torch.cuda.mem_get_info()[0] < 3 * numel:
        pytest.skip("needs 6.5 GB of free GPU memory")
    grad = torch.zeros(numel, dtype=torch.float16, device="cuda")
    grad[-1], grad[2**31], grad[5] = float("nan"), 3.0, float("inf")
    stats = grad_stats([grad, torch.ones(2, dtype=torch.float16, device="cuda")])
    assert (stats.num_nan.tolist(), stats.num_inf.tolist()) == ([1, 0], [1, 0])
    assert (stats.amax.tolist(), stats.square_sum.tolist()) == ([3.0, 1.0], [9.0, 2.0])


def test_the_same_bits_again() -> None:
    grads = [torch.randn(1_000_003, device="cuda") for _ in range(5)]
    first = grad_stats(grads, flushed_at=1e-4)
    for _ in range(5):
        again = grad_stats(grads, flushed_at=1e-4)
        assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in GradStats.__dataclass_fields__)


@pytest.mark.parametrize("several", [False, True], ids=["one dtype", "several dtypes"])
def test_the_host_never_waits(several: bool) -> None:
    grads = [torch.randn(1000, device="cuda"), torch.randn(50_000, device="cuda"), torch.randn(9, device="cuda")[1:]]
    if several:
        grads[1:1] = [torch.randn(70, device="cuda").bfloat16(), torch.empty(0, device="cuda")]
    grad_stats(grads, flushed_at=FLUSHED_AT)
    torch.cuda.set_sync_debug_mode("error")
    try:
        grad_stats(grads, flushed_at=FLUSHED_AT)
        # New addresses and new lengths are sent without a wait, too.
        grad_stats([grad.clone() for grad in grads[:2]], flushed_at=FLUSHED_AT)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pytorch_alone_never_waits_either() -> None:
    grads = [torch.randn(1000, device="cuda"), torch.randn(50_000, device="cuda")]
    torch.cuda.set_sync_debug_mode("error")
    try:
        stats = reference.group_stats(grads, FLUSHED_AT)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = reference.group_stats([grad.cpu() for grad in grads], FLUSHED_AT)
    assert torch.equal(stats.counts.cpu(), expected.counts)
    torch.testing.assert_close(stats.floats.cpu(), expected.floats, rtol=1e-5, atol=0)


def test_extra_memory_stays_below_a_kilobyte_per_gradient() -> None:
    grads = [torch.randn(100_000, device="cuda") for _ in range(200)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    stats = grad_stats(grads, flushed_at=FLUSHED_AT)
    assert torch.cuda.max_memory_allocated() - before < 1000 * len(grads)
    del stats


@pytest.mark.parametrize("is_known", [True, False], ids=["gradients that stay", "gradients of the graph's own"])
def test_in_a_cuda_graph(is_known: bool) -> None:
    """The kernel reads gradients that were read before the capture, PyTorch others; the numbers are the same."""
    sources = [torch.randn(5000, device="cuda"), torch.randn(33, device="cuda")]
    kept = [source.clone() for source in sources]

    def step() -> GradStats:
        if not is_known:
            return grad_stats(torch._foreach_mul(sources, 1.0), flushed_at=0.5)
        torch._foreach_copy_(kept, sources)
        return grad_stats(kept, flushed_at=0.5)

    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        step()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stats = step()
    for value in (1.0, float("nan"), 0.25):
        sources[0].fill_(value)
        graph.replay()
        assert_as_on_the_cpu(stats, [source.cpu() for source in sources], 0.5)


def test_on_another_stream() -> None:
    grads = [torch.randn(5000, device="cuda")]
    expected = grad_stats(grads)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        stats = grad_stats(grads)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(stats.square_sum, expected.square_sum)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_two_gpus() -> None:
    grads = [torch.randn(5000), torch.randn(33), torch.randn(7)]
    placed = [grads[0].to("cuda:1"), grads[1].to("cuda:0"), grads[2].to("cuda:1")]
    assert_as_on_the_cpu(grad_stats(placed, flushed_at=FLUSHED_AT), grads, FLUSHED_AT)
