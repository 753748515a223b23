"""Exact statistics of tensors, gathered on their device without waiting for it.

The magnitudes of an IEEE format are in the order of their bits. So what is counted is counted by comparing integers:
without a rounding, for subnormals as for all others. Only where a process flushes subnormals to zero
(`torch.set_flush_denormal`, CPU) do those of fp32 count as zero in the sum of squares, extremes and exponents.
"""

import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from mp_plugin.formats import FORMATS, Format
from mp_plugin.numerics.grad_values import local_values, settled
from mp_plugin.telemetry.tensor_stats import HIGHEST_EXPONENT, LOWEST_EXPONENT, TensorStats

_CHUNK = 2**22
"""Values that are looked at together, which bounds the memory: 50 bytes a value."""
_CPU_CHUNK = 2**17
"""As many as a core's cache holds, which is faster by half."""

# A row: all values, those up to each threshold, the sum of squares, the extremes, and the counts by exponent.
_NUM_THRESHOLDS = 6
_SUM_OF_SQUARES, _AMAX, _SMALLEST, _EXPONENTS = range(1 + _NUM_THRESHOLDS, 5 + _NUM_THRESHOLDS)
_FIRST_FIELD = LOWEST_EXPONENT + 1022
"""Exponent field, in fp64, of the values just below $2^e$, for the lowest exponent."""
_NUM_FIELDS = 2048
"""Of fp64. The last one, of Inf and NaN, stands for values that are not counted."""
_NUM_PLACES = 64
"""In which each field is counted on an accelerator."""


def stats_row(
    values: Tensor, *, compute: Format, carried_scale: float = 1.0, loss_scale: float = 1.0, histogram: bool
) -> Tensor:
    """Return the statistics of a tensor as a row of numbers, which `stats_of` understands; no host sync.

    Rows of one `histogram` setting have one length, so that those of many tensors can be read back as one.

    Args:
        values: floating-point or complex, of which real and imaginary parts count. Of a sparse tensor the values that
            are stored count, of a distributed one the local part.
        compute: format of which flushed, subnormal and saturated values are told.
        carried_scale: what the values are divided by first, finite and above 0, such as the loss scale for gradients
            that still carry it.
        loss_scale: what the true values are multiplied by in the compute format.
        histogram: whether values are also counted by exponent.

    Returns:
        A 1-d fp64 tensor on the device of the values. Sums of squares are taken in fp64, so values of fp64 beyond
        1e154 make them Inf.

    Example:
        >>> row = stats_row(torch.tensor([0.5, -3.0, 0.0]), compute=FORMATS["fp16"], histogram=True)
        >>> stats_of(row.tolist()).exponents
        {-1: 1, 2: 1}
    """
    flat = _flat(values.detach())
    thresholds = _thresholds(flat.dtype, compute, loss_scale, carried_scale)
    chunks = torch.split(flat, _CPU_CHUNK if flat.device.type == "cpu" else _CHUNK) if flat.numel() else ()
    rows = [_row(chunk, thresholds, carried_scale, histogram) for chunk in chunks]
    if len(rows) == 1:
        return rows[0]
    if not rows:
        row = torch.zeros(_length(histogram), dtype=torch.float64, device=flat.device)
        row[_SMALLEST] = math.inf
        return row
    stacked = torch.stack(rows)
    row = stacked.sum(0)
    row[_AMAX] = stacked[:, _AMAX].amax()
    row[_SMALLEST] = stacked[:, _SMALLEST].amin()
    return row


def stats_of(row: Sequence[float]) -> TensorStats:
    """Return what a row says, once it is on the host."""
    numel, zeros, flushed, subnormal, kept, finite, numbers = (int(each) for each in row[:_SUM_OF_SQUARES])
    return TensorStats(
        numel=numel,
        zeros=zeros,
        nans=numel - numbers,
        infs=numbers - finite,
        amax=row[_AMAX],
        smallest=None if math.isinf(row[_SMALLEST]) else row[_SMALLEST],
        sum_of_squares=row[_SUM_OF_SQUARES],
        flushed=flushed - zeros,
        subnormal=subnormal - flushed,
        saturated=finite - kept,
        exponents=_exponents_of(row),
    )


def _exponents_of(row: Sequence[float]) -> dict[int, int]:
    if len(row) == _EXPONENTS or math.isinf(row[_SMALLEST]):
        return {}
    # Between the extremes alone, as most of the 278 exponents have no value.
    lowest = max(math.frexp(row[_SMALLEST])[1] - 1, LOWEST_EXPONENT)
    highest = max(math.frexp(row[_AMAX])[1], LOWEST_EXPONENT)
    first, end = (_EXPONENTS + min(each, HIGHEST_EXPONENT) - LOWEST_EXPONENT for each in (lowest, highest + 1))
    counts = enumerate(row[first : end + 1], start=first - _EXPONENTS + LOWEST_EXPONENT)
    return {exponent: int(count) for exponent, count in counts if count}


def gradient_ranges(named_grads: Iterable[tuple[str, Tensor]], *, carried_scale: float = 1.0) -> dict[str, TensorStats]:
    """Return the statistics of the true gradients under each name, such as that of a layer; several may share one.

    With a histogram, and as of fp16. One host sync for all of them.

    Args:
        named_grads: gradients in any mix of devices, dtypes and layouts, as `stats_row` takes them.
        carried_scale: what they are divided by first.

    Example:
        >>> gradient_ranges([("head", torch.tensor([0.5, -3.0, 0.0]))])["head"].amax
        3.0
    """
    rows = [
        (name, stats_row(grad, compute=FORMATS["fp16"], carried_scale=carried_scale, histogram=True))
        for name, grad in named_grads
    ]
    if not rows:
        return {}
    device = rows[0][1].device
    ranges: dict[str, TensorStats] = {}
    for (name, _), numbers in zip(rows, torch.stack([row.to(device) for _, row in rows]).tolist(), strict=True):
        ranges[name] = ranges.get(name, TensorStats()).merged(stats_of(numbers))
    return ranges


def _length(histogram: bool) -> int:
    return _EXPONENTS + (HIGHEST_EXPONENT - LOWEST_EXPONENT + 1 if histogram else 0)


def _flat(values: Tensor) -> Tensor:
    # Values of a sparse row that appears twice are summed; the parts of a distributed one stay where they are.
    values = local_values(settled(values) if values.is_sparse else values).resolve_neg()
    if values.device.type == "mps":  # which has no fp64: the host computes, and waits
        values = values.cpu()
    # In the order of memory, as the order does not matter: no copy of a tensor that is transposed, or channels last.
    return values.permute(sorted(range(values.dim()), key=values.stride, reverse=True)).reshape(-1)


def _row(values: Tensor, thresholds: Sequence[int], carried_scale: float, histogram: bool) -> Tensor:
    # Every narrower format fits into fp32.
    values = values if values.dtype is torch.float64 else values.float()
    as_integer = torch.int64 if values.dtype is torch.float64 else torch.int32
    highest = torch.iinfo(as_integer).max
    bits = values.view(as_integer) & highest
    # Of the type of the bits: comparing into bool takes four times as long on a CPU.
    is_below = torch.empty_like(bits)
    counts = bits.new_empty(len(thresholds))
    for place, threshold in enumerate(thresholds):
        torch.sum(torch.le(bits, threshold, out=is_below), 0, dtype=as_integer, out=counts[place])
    finite = bits.mul_(torch.le(bits, thresholds[-2], out=is_below))
    # One less each, so that zeros, of which there may be many, become the largest number.
    below = torch.sub(finite, 1, out=is_below).bitwise_and_(highest)
    extremes = torch.stack([finite.amax(), below.amin().clamp(max=thresholds[-1] - 1) + 1])
    true = finite.view(values.dtype).double()
    if carried_scale != 1:
        true.div_(carried_scale)
    row = true.new_full((_length(histogram),), len(values))
    row[1:_SUM_OF_SQUARES] = counts
    row[_SUM_OF_SQUARES] = true.dot(true)
    row[_AMAX:_EXPONENTS] = extremes.view(values.dtype).double() / carried_scale
    if histogram:
        row[_EXPONENTS:] = _exponents(true)
    return row


def _exponents(magnitudes: Tensor) -> Tensor:
    """Count fp64 magnitudes that are not zero by exponent, overwriting them."""
    # One less, as exponents are closed at the upper end; zeros come out in the last field.
    fields = magnitudes.view(torch.int64).sub_(1).bitwise_and_(torch.iinfo(torch.int64).max).bitwise_right_shift_(52)
    if fields.device.type == "cpu":
        counts = torch.bincount(fields.int(), minlength=_NUM_FIELDS)
    else:
        counts = _count_without_waiting(fields)
    last_field = _FIRST_FIELD + HIGHEST_EXPONENT - LOWEST_EXPONENT
    inside = counts[_FIRST_FIELD : last_field + 1]
    inside[0] += counts[:_FIRST_FIELD].sum()
    inside[-1] += counts[last_field + 1 : -1].sum()
    return inside


def _count_without_waiting(fields: Tensor) -> Tensor:
    """Do what bincount does, which waits for a device other than the CPU."""
    # Most values have one of a few exponents. Counted in one place each, all would queue up for these few.
    places = fields * _NUM_PLACES + torch.arange(len(fields), device=fields.device) % _NUM_PLACES
    counts = fields.new_zeros(_NUM_FIELDS * _NUM_PLACES)
    counts.scatter_add_(0, places, fields.new_ones(1).expand_as(fields))
    return counts.view(_NUM_FIELDS, _NUM_PLACES).sum(1)


@lru_cache(maxsize=256)
def _thresholds(dtype: torch.dtype, compute: Format, loss_scale: float, carried_scale: float) -> tuple[int, ...]:
    """Return the bits of the largest magnitude that is zero, flushed, subnormal, kept, finite, and a number.

    Args:
        dtype: of the values.
        compute: format in which they are looked at.
        loss_scale: what true values are multiplied by there.
        carried_scale: what these are multiplied by already.
    """
    scale = Fraction(loss_scale) / Fraction(carried_scale)
    read, as_integer, width = ("<d", "<q", 63) if dtype is torch.float64 else ("<f", "<i", 31)

    def bits_of(magnitude: float) -> int:
        return int(struct.unpack(as_integer, struct.pack(read, magnitude))[0])

    def magnitude_of(bits: int) -> Fraction:
        return Fraction(struct.unpack(read, bits.to_bytes((width + 1) // 8, "little"))[0])

    largest = bits_of(torch.finfo(dtype).max)
    magnitudes = range(largest + 1)
    unit = Fraction(math.ldexp(1, math.frexp(compute.max)[1] - 1 - compute.mantissa_bits))
    # Rounding is to nearest, and halfway to the even neighbour: to zero, to the smallest normal value, and up from a
    # largest value that is odd. That of e4m3 is even, as the one above it is NaN.
    ties_stay = Fraction(compute.max) / unit % 2 == 0
    half_of_tiny = Fraction(compute.smallest_subnormal) / 2
    overflow = bisect_right if ties_stay else bisect_left
    return (
        0,
        bisect_right(magnitudes, half_of_tiny / scale, key=magnitude_of) - 1,
        bisect_left(magnitudes, (Fraction(compute.smallest_normal) - half_of_tiny) / scale, key=magnitude_of) - 1,
        overflow(magnitudes, (Fraction(compute.max) + unit / 2) / scale, key=magnitude_of) - 1,
        largest,
        bits_of(math.inf),
    )
