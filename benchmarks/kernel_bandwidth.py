"""How near does `grad_stats` come to what the memory can do? As a share of a measured copy, on the same machine.

The gradients have the shapes of four networks (helpers/shapes.py), and of two extremes. A kernel's bandwidth is the
bytes that it cannot avoid, divided by its time: `grad_stats` and a norm read every value once, torch's check and
unscale reads and writes it, and so does the copy, of as many bytes, but `LARGEST_COPY` at most. Shares are taken within
a round, in which all take turns; between two calls a large write drives the gradients out of the caches. On a GPU the
clock is the device's own, which starts when the host has launched everything: what the launches cost the host is a
figure by itself. `grad_stats` runs as it does in a healthy step, and once more counting what fp16 would flush, as a
sample does. On one thread, where a CPU does the work.

    python benchmarks/kernel_bandwidth.py [--device cuda] [--rounds 15] [--quick]
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from helpers.devices import check_device, parser_of
from helpers.free_memory import free_bytes
from helpers.harness import circumstances, spread, turns, write
from helpers.ratios import ratios
from helpers.shapes import NETWORKS, Shape, many_tiny, network, num_values, one_huge
from helpers.tables import kernel_bandwidth_table
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mp_plugin.numerics.grad_stats import backend_of, grad_stats

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_COPY = 2**30
FLUSHED_AT = 2.0**-25
"""The largest magnitude that fp16 rounds to zero."""
OURS, COPY = "grad_stats", "copy"
COUNTING = "grad_stats, counting flushed"

Call = Callable[[], object]


def cases(*, is_quick: bool, is_cuda: bool) -> dict[str, list[Shape]]:
    """Return the lists of shapes to measure, by name; on a CPU without the largest, which would take minutes there."""
    names = ["ResNet-50"] if is_quick else [name for name in NETWORKS if is_cuda or name != "GPT-2 XL"]
    huge = 2**22 if is_quick else 2**30 if is_cuda else 2**26
    return {**{name: network(name) for name in names}, "many tiny": many_tiny(), "one huge": one_huge(huge)}


def make_gradients(shapes: list[Shape], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return small random values in tensors of their own."""
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul(1e-3).to(device, dtype)
    gradients = []
    for shape in shapes:
        gradient = torch.empty(shape, dtype=dtype, device=device)
        for chunk in gradient.view(-1).split(len(noise)):
            chunk.copy_(noise[: len(chunk)])
        gradients.append(gradient)
    return gradients


def calls_on(gradients: list[Tensor]) -> dict[str, tuple[Call, int]]:
    """Return what to call, and the bytes that it has to move."""
    device = gradients[0].device
    num_bytes = sum(gradient.nbytes for gradient in gradients)
    source = torch.zeros(min(num_bytes, LARGEST_COPY), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    found_inf, one = torch.zeros(1, device=device), torch.ones(1, device=device)
    return {
        COPY: (lambda: target.copy_(source), 2 * source.nbytes),
        OURS: (lambda: grad_stats(gradients), num_bytes),
        COUNTING: (lambda: grad_stats(gradients, flushed_at=FLUSHED_AT), num_bytes),
        "check and unscale": (
            lambda: torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, one),
            2 * num_bytes,
        ),
        "norm 2": (lambda: torch._foreach_norm(gradients, 2), num_bytes),
        "norm inf": (lambda: torch._foreach_norm(gradients, float("inf")), num_bytes),
    }


class Stopwatch:
    """Time single calls that start with cold caches."""

    CACHE = 2**28
    """Bytes that are written between two calls: more than any cache of today holds."""
    CYCLES_PER_SECOND = 2e9
    """Of a GPU's clock, about."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self._cache = torch.zeros(self.CACHE, dtype=torch.uint8, device=device)

    def host_seconds(self, call: Call) -> float:
        """Return how long a call takes to return, be its work done or not."""
        if self.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def seconds(self, call: Call, host_seconds: float) -> float:
        """Return how long the work of a call takes; `host_seconds` is about what its launches take."""
        self._cache.fill_(1)
        if not self.is_cuda:
            return self.host_seconds(call)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device waits until the host is done: else this would time the host.
        torch.cuda._sleep(int((2 * host_seconds + 1e-3) * self.CYCLES_PER_SECOND))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000


def count_launches(call: Call) -> dict[str, int]:
    """Return how many kernels and how many copies a call launches on a GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    num_copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return {"kernels": len(names) - num_copies, "copies": num_copies}


def extra_bytes(call: Call) -> int:
    """Return how much more GPU memory is allocated at the peak of a call than before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(gradients: list[Tensor], stopwatch: Stopwatch, rounds: int) -> dict[str, Any]:
    """Let all take turns on the same gradients."""
    calls = calls_on(gradients)
    host: dict[str, list[float]] = {name: [] for name in calls}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for index, order in turns(list(calls), rounds + 1):
        for name in order:
            call, _ = calls[name]
            host_seconds = stopwatch.host_seconds(call) if stopwatch.is_cuda or index == 0 else 0.0
            seconds = stopwatch.seconds(call, host_seconds)
            if index:  # the first round compiles and warms up
                samples[name].append(seconds)
                host[name].append(host_seconds)
    speeds = {name: [moved / seconds for seconds in samples[name]] for name, (_, moved) in calls.items()}
    found: dict[str, Any] = {
        "bytes_moved": {name: moved for name, (_, moved) in calls.items()},
        "seconds": samples,
        "copy_bytes_per_second": spread(speeds[COPY]),
        "share_of_copy": {name: ratios(speeds[name], speeds[COPY]) for name in calls if name != COPY},
        "time_beside_grad_stats": {name: ratios(samples[name], samples[OURS]) for name in calls if name != OURS},
    }
    if stopwatch.is_cuda:
        found["host_seconds"] = host
        found["launches"] = {name: count_launches(call) for name, (call, _) in calls.items()}
        found["extra_bytes"] = {name: extra_bytes(call) for name, (call, _) in calls.items()}
    return found


def main() -> None:
    """Measure, print and write down."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int)
    chosen = parser.parse_args()
    check_device(chosen.device)
    device = torch.device(chosen.device)
    found = circumstances(chosen.device)
    torch.set_num_threads(1)
    stopwatch = Stopwatch(device)
    rounds = chosen.rounds or (3 if chosen.quick else 15 if stopwatch.is_cuda else 5)
    rows, left_out = [], []
    for name, shapes in cases(is_quick=chosen.quick, is_cuda=stopwatch.is_cuda).items():
        for dtype_name, dtype in DTYPES.items():
            num_bytes = num_values(shapes) * dtype.itemsize
            what = {"shapes": name, "dtype": dtype_name, "bytes": num_bytes, "tensors": len(shapes)}
            if num_bytes + 2 * min(num_bytes, LARGEST_COPY) > 0.7 * free_bytes(chosen.device):
                left_out.append({**what, "reason": "not enough memory"})
                continue
            rows.append({**what, **measure(make_gradients(shapes, dtype, device), stopwatch, rounds)})
    result = {
        **found,
        "backend": backend_of(device).value,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "left_out": left_out,
    }
    print(kernel_bandwidth_table(result))
    if not chosen.quick:
        write("kernel_bandwidth", result, chosen.device)


if __name__ == "__main__":
    main()
