import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin.formats import FORMATS, Format
from mp_plugin.telemetry import stats_row as module
from mp_plugin.telemetry.stats_row import gradient_ranges, stats_of, stats_row
from mp_plugin.telemetry.tensor_stats import TensorStats

INF, NAN = math.inf, math.nan
FP16 = FORMATS["fp16"]
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
SCALES = {"none": (1.0, 1.0), "carried": (1024.0, 1024.0), "true": (1.0, 2.0**15), "odd": (3.0, 100.0)}
"""Carried, and loss scale."""
POWERS = [2.0**power for power in range(-149, 128)] + [INF]
EDGES = {
    "empty": [],
    "single": [-0.75],
    "zeros": [0.0, -0.0],
    "powers of two": [2.0**power for power in range(-149, 128)],
    "a bit above powers of two": [math.ldexp(1 + 2**-7, power) for power in range(-120, 127)],
    "a bit below powers of two": [-math.ldexp(1 - 2**-8, power) for power in range(-120, 127)],
    "largest fp32": [3.4028234663852886e38],
    "not finite": [INF, -INF, NAN, 5.0],
    "nothing finite": [NAN, INF, NAN],
    "subnormals of fp32": [3 * 2.0**-149, 2.0**-127],
    "beyond fp32": [1e100, -1e-100, 2e-308],
    "many": [place / 7 for place in range(-100, 90)],
}


def rounded(magnitude: Fraction, number_format: Format) -> Fraction:
    """To the nearest multiple of the spacing there, halfway to even: the definition, without a largest value."""
    exponent = math.floor(math.log2(magnitude))
    exponent += (Fraction(2) ** (exponent + 1) <= magnitude) - (Fraction(2) ** exponent > magnitude)
    spacing = max(Fraction(2) ** (exponent - number_format.mantissa_bits), Fraction(number_format.smallest_subnormal))
    return round(magnitude / spacing) * spacing


def expected(values: Tensor, compute: Format, carried_scale: float = 1.0, loss_scale: float = 1.0) -> TensorStats:
    """The definition, value by value in exact fractions."""
    numbers = [abs(value) for value in values.double().flatten().tolist()]
    finite = [value / carried_scale for value in numbers if math.isfinite(value)]
    computed = [
        (scaled, rounded(scaled, compute))
        for value in numbers
        if value and math.isfinite(value)
        for scaled in [Fraction(value) * Fraction(loss_scale) / Fraction(carried_scale)]
    ]
    exponents = Counter(min(bisect_left(POWERS, value), len(POWERS) - 1) - 149 for value in finite if value)
    return TensorStats(
        numel=len(numbers),
        zeros=numbers.count(0.0),
        nans=sum(map(math.isnan, numbers)),
        infs=numbers.count(INF),
        amax=max(finite, default=0.0),
        smallest=min(filter(None, finite), default=None),
        sum_of_squares=pytest.approx(math.fsum(value**2 for value in finite), rel=1e-12),
        flushed=sum(result == 0 for _, result in computed),
        subnormal=sum(0 < result < compute.smallest_normal for _, result in computed),
        saturated=sum(result > compute.max for _, result in computed),
        exponents=dict(sorted(exponents.items())),
    )


def found(values: Tensor, compute: Format = FP16, **options: Any) -> TensorStats:
    return stats_of(stats_row(values, compute=compute, **{"histogram": True, **options}).tolist())


def neighbours(values: list[float], dtype: torch.dtype) -> Tensor:
    """The values, as well as the dtype has them, each with the two before and after it."""
    near = torch.tensor(values, dtype=torch.float64).clamp(max=torch.finfo(dtype).max).to(dtype)
    bits = near.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[near.itemsize])
    return torch.cat([(bits + offset).clamp(min=0) for offset in range(-2, 3)]).view(dtype)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edge", EDGES)
def test_edge_values(edge, dtype, scales):
    values = torch.tensor(EDGES[edge], dtype=torch.float64).to(DTYPES[dtype])
    carried_scale, loss_scale = SCALES[scales]
    for compute in (FP16, FORMATS["e4m3"]):
        stats = found(values, compute, carried_scale=carried_scale, loss_scale=loss_scale)
        assert stats == expected(values, compute, carried_scale, loss_scale)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("compute", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_either_side_of_where_a_format_ends(dtype, compute, scales):
    carried_scale, loss_scale = SCALES[scales]
    limits = FORMATS[compute]
    half_spacing = limits.max * 2.0**-limits.mantissa_bits / 4
    ends = [
        limits.smallest_subnormal / 2,
        limits.smallest_subnormal,
        limits.smallest_normal - limits.smallest_subnormal / 2,
        limits.smallest_normal,
        limits.max,
        *(limits.max + steps * half_spacing for steps in (0.5, 1, 2)),
        math.ldexp(1, math.frexp(limits.max)[1]),
        448 + 16,  # halfway to the NaN of e4m3
    ]
    values = neighbours([min(end / loss_scale * carried_scale, 1e300) for end in ends], DTYPES[dtype])
    stats = found(values, limits, carried_scale=carried_scale, loss_scale=loss_scale)
    assert stats == expected(values, limits, carried_scale, loss_scale)


def spread(dtype: torch.dtype, *, seed: int) -> Tensor:
    """All magnitudes that a dtype has, alike often, with zeros, NaN and Inf among them: random bits."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.finfo(dtype).bits // 8
    return torch.randint(-128, 128, (20_000 * size,), generator=generator, dtype=torch.int8).view(dtype)


@pytest.mark.parametrize("scale", [1.0, 2.0**12, 2.0**-12])
@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16", "e4m3", "e5m2"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "e4m3", "e5m2"])
def test_against_real_casts(dtype, compute, scale):
    values, limits = spread(DTYPES[dtype], seed=0), FORMATS[compute]
    true = values.double()
    kept = true[torch.isfinite(true) & (true != 0)].abs()
    scaled = kept * scale
    # Casts of fp64 are rounded to fp32 on the way. The 12 added bits below keep away from where that is seen.
    cast = scaled.to(DTYPES[compute]).double()
    stats = found(values, limits, loss_scale=scale)
    assert stats.flushed == (cast == 0).sum()
    assert stats.subnormal == ((cast != 0) & (cast < limits.smallest_normal)).sum()
    # Some versions of torch make 448 of what is larger, others NaN.
    is_beyond = scaled > 464 if compute == "e4m3" else torch.isinf(cast)
    assert stats.saturated == is_beyond.sum()
    assert (stats.numel, stats.zeros) == (len(values), (true == 0).sum())
    assert (stats.nans, stats.infs) == (torch.isnan(true).sum(), torch.isinf(true).sum())
    assert (stats.amax, stats.smallest) == (kept.max(), kept.min())
    assert stats.sum_of_squares == pytest.approx(math.fsum((kept**2).tolist()), rel=1e-12)
    mantissas, exponents = torch.frexp(kept)
    counts = Counter((exponents - (mantissas == 0.5).int()).tolist())
    assert stats.exponents == dict(sorted(counts.items()))


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_huge_and_tiny_values_have_a_root_mean_square(dtype):
    for value in (2.0**127, 2.0**-126):
        assert found(torch.full((1000,), value, dtype=DTYPES[dtype])).rms == value


@pytest.mark.parametrize("compute", ["fp32", "tf32"])
def test_nothing_of_fp32_is_lost_in_formats_of_its_range(compute):
    values = spread(torch.float32, seed=1)
    values = values[(values.abs() > 2.0**-126) & (values.abs() < 2.0**127)]
    stats = found(values, FORMATS[compute])
    assert (stats.flushed, stats.subnormal, stats.saturated) == (0, 0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_together_are_the_whole(dtype, monkeypatch):
    values = spread(DTYPES[dtype], seed=2)[:5000]
    whole = found(values, carried_scale=3.0, loss_scale=8.0)
    halves = [found(half, carried_scale=3.0, loss_scale=8.0) for half in values.split(2000)]
    merged = halves[0].merged(halves[1]).merged(halves[2])
    monkeypatch.setattr(module, "_CPU_CHUNK", 7)
    in_chunks = found(values, carried_scale=3.0, loss_scale=8.0)
    for each in (merged, in_chunks):
        assert each.rms == pytest.approx(whole.rms, rel=1e-12)
        assert _without_squares(each) == _without_squares(whole)


def _without_squares(stats: TensorStats) -> tuple[Any, ...]:
    return tuple(getattr(stats, name) for name in TensorStats.__slots__ if name != "sum_of_squares")


def test_any_layout():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 10, 2, 3, generator=generator)
    rows, values = torch.tensor([[1, 1, 2]]), torch.tensor([1.0, 2.0, 5.0])
    pairs = torch.tensor([3 - 4j, 0j, complex(NAN, 1)])
    cases = [
        (wide.permute(2, 0, 3, 1), wide),
        (wide.to(memory_format=torch.channels_last), wide),
        (wide[:, ::3, :, 1:], wide[:, ::3, :, 1:].clone()),
        (wide[0, 0].expand(4, 2, 3), wide[0, 0].repeat(4, 1, 1)),
        (torch.tensor(-100.0), torch.tensor([-100.0])),
        (wide.bfloat16()[:, 1], wide.bfloat16()[:, 1].clone()),
        (torch.sparse_coo_tensor(rows, values, (4,), check_invariants=True), torch.tensor([3.0, 5.0])),
        (pairs, torch.view_as_real(pairs)),
        (pairs.conj(), torch.view_as_real(pairs)),
        (pairs.conj().imag, pairs.imag.clone()),
        (pairs.to(torch.complex128), torch.view_as_real(pairs).double()),
        (torch.empty(0, 3), torch.empty(0)),
        (torch.sparse_coo_tensor(torch.empty(1, 0), torch.empty(0), (4,), check_invariants=True), torch.empty(0)),
    ]
    for values, plain in cases:
        assert found(values) == expected(plain, FP16)


def test_a_transposed_tensor_is_not_copied():
    values = torch.randn(3, 4, 5).permute(2, 0, 1)
    assert module._flat(values).data_ptr() == values.data_ptr()


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_of_a_distributed_tensor_the_local_part_counts():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    values = torch.tensor([[1.0, -3.0], [0.0, NAN]], requires_grad=True)
    distributed = distribute_tensor(values, init_device_mesh("cpu", (1,)), [Shard(0)])
    row = stats_row(distributed, compute=FP16, histogram=True)
    assert type(row) is Tensor
    assert stats_of(row.tolist()) == expected(values.detach(), FP16)


def test_values_are_left_as_they_are_and_numbers_are_plain():
    values = torch.tensor([1.0, -2.0, 0.0], requires_grad=True)
    row = stats_row(values, compute=FP16, carried_scale=4.0, histogram=True)
    assert not row.requires_grad
    assert values.tolist() == [1.0, -2.0, 0.0]
    stats = stats_of(row.tolist())
    counts = (stats.numel, stats.zeros, stats.nans, stats.infs, stats.flushed, stats.subnormal, stats.saturated)
    assert {type(number) for number in (*counts, *stats.exponents, *stats.exponents.values())} == {int}
    assert {type(stats.amax), type(stats.smallest), type(stats.sum_of_squares)} == {float}


def test_autocast_and_grad_mode_change_nothing():
    values = torch.randn(100, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert found(values) == expected(values.detach(), FP16)


def test_without_histogram_all_else_is_the_same_and_rows_are_short():
    values = spread(torch.float32, seed=3)
    with_it, without = found(values), found(values, histogram=False)
    assert without.exponents == {}
    assert (without.amax, without.sum_of_squares, without.subnormal) == (
        with_it.amax,
        with_it.sum_of_squares,
        with_it.subnormal,
    )
    assert len(stats_row(values, compute=FP16, histogram=False)) < 12


@pytest.mark.parametrize("histogram", [True, False])
def test_rows_have_one_length_dtype_and_bits(histogram, monkeypatch):
    monkeypatch.setattr(module, "_CPU_CHUNK", 1000)
    tensors = [torch.empty(0), torch.tensor(1.0), spread(torch.float16, seed=4), spread(torch.float64, seed=4)]
    first, second = (
        torch.stack([stats_row(each, compute=FP16, histogram=histogram) for each in tensors]) for _ in range(2)
    )
    assert first.dtype is torch.float64
    assert torch.equal(first, second)


class Operators(TorchDispatchMode):
    """Which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_does_not_wait_for_the_device(dtype, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 1000)
    waiting = {"_local_scalar_dense", "item", "nonzero", "equal", "bincount", "masked_select", "unique"}
    with Operators() as seen:
        # A tensor without memory: whatever asked it for a number would fail.
        row = stats_row(
            torch.empty(2500, dtype=DTYPES[dtype], device="meta"), compute=FP16, carried_scale=2.0, histogram=True
        )
        assert row.is_meta
        stats_row(spread(DTYPES[dtype], seed=5), compute=FP16, histogram=False)
    assert "le" in seen.names
    assert not seen.names & waiting


def test_counting_without_waiting_is_counting():
    fields = torch.randint(0, 2048, (10_000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(module._count_without_waiting(fields), torch.bincount(fields, minlength=2048))


def test_gradients_of_one_name_count_together():
    wide, half = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, NAN]).half()
    ranges = gradient_ranges([("a", wide), ("b", half), ("a", torch.tensor(-100.0)), ("none", torch.empty(0, 3))])
    assert ranges == {
        "a": expected(torch.cat([wide.flatten(), torch.tensor([-100.0])]), FP16),
        "b": expected(half, FP16),
        "none": TensorStats(),
    }
    assert gradient_ranges([]) == {}
