"""The statistics of many gradients in one read: a Triton kernel and its launcher.

The gradients are cut into chunks, one program each; a program writes one row of partial results, and a second, small
launch adds up the rows of each gradient. No atomics: the same gradients give the same bits. A program reads its chunk
for the largest magnitude and the sum of squares alone. NaN and Inf spoil that sum, and only then it reads the chunk
once more, to count them and to leave them out. The host waits for nothing.
"""

# ruff: noqa: ANN001, ANN202  # what a kernel is called with has no types in Python
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import struct
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from mp_plugin.numerics.flat_values import flat_values
from mp_plugin.numerics.launch_tables import tables_of
from mp_plugin.numerics.reference import GroupStats, fp32_at_most

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""What the kernel reads."""

_BLOCK = 4096
_MASKED_BLOCK = 1024
_REDUCE_BLOCK = 1024
_MIN_CHUNK_NUMEL = 4 * _BLOCK


@triton.jit
def _magnitude_bits(x):
    # As integers, the bits of magnitudes have the order of the magnitudes, subnormals included, whatever the compiler
    # takes for granted about floats. Inf is 0x7F800000; NaN lies above.
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _widened(x):
    # A bfloat16 is the upper half of a float32. Triton's interpreter, asked to convert, drops subnormal numbers.
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:  # noqa: RET505  # Triton compiles the branch that is taken, and only with an `else`
        return x.to(tl.float32)


@triton.jit(do_not_specialize=["chunk_numel", "num_rows", "limit_bits"])
def _read_chunks(
    addresses,  # int64 [tensors]
    numels,  # int64 [tensors]
    segments,  # int32 [tensors + 1, 2]: first row of each tensor, and the end of its rows
    tensor_of_row,  # int32 [rows]
    row_floats,  # fp32 [2, rows]: amax, sum of squares
    row_counts,  # int32 [3, rows]: NaN, Inf, flushed
    chunk_numel,
    num_rows,
    limit_bits,
    DTYPE: tl.constexpr,
    ITEMSIZE: tl.constexpr,
    COUNT_FLUSHED: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED_BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    tensor = tl.load(tensor_of_row + row)
    start = (row - tl.load(segments + 2 * tensor)).to(tl.int64) * chunk_numel
    numel = tl.minimum(tl.load(numels + tensor) - start, chunk_numel).to(tl.int32)
    address = tl.load(addresses + tensor) + start * ITEMSIZE
    # Loads of 16 bytes want addresses that are multiples of 16: whole blocks from the first such one on, without a
    # mask, and what lies before and behind them with one.
    aligned = (address + 15) // 16 * 16
    head = tl.minimum(((aligned - address) // ITEMSIZE).to(tl.int32), numel)
    body_numel = (numel - head) // BLOCK * BLOCK
    rest_numel = numel - body_numel
    values = address.to(tl.pointer_type(DTYPE))
    body = tl.multiple_of(aligned.to(tl.pointer_type(DTYPE)), 16)

    lanes = tl.arange(0, BLOCK)
    # One accumulator for the 16 bytes that a thread loads at once: registers are what bounds the bytes under way.
    FOLD: tl.constexpr = 16 // ITEMSIZE
    amax = tl.zeros([BLOCK // FOLD], tl.float32)
    square_sum = tl.zeros([BLOCK // FOLD], tl.float32)
    flushed = tl.zeros([BLOCK // FOLD], tl.int32)
    for offset in range(0, body_numel, BLOCK):
        x = _widened(tl.reshape(tl.load(body + offset + lanes), [BLOCK // FOLD, FOLD]))
        amax = tl.maximum(amax, tl.max(tl.abs(x), axis=1))
        square_sum += tl.sum(x * x, axis=1)
        if COUNT_FLUSHED:
            bits = _magnitude_bits(x)
            flushed += tl.sum(((bits > 0) & (bits <= limit_bits)).to(tl.int32), axis=1)

    # Smaller blocks for what is rare: masks and indices take registers, which all of the program would have to spare.
    masked_lanes = tl.arange(0, MASKED_BLOCK)
    rest_amax = tl.zeros([MASKED_BLOCK], tl.float32)
    rest_square_sum = tl.zeros([MASKED_BLOCK], tl.float32)
    rest_flushed = tl.zeros([MASKED_BLOCK], tl.int32)
    for offset in range(0, rest_numel, MASKED_BLOCK):
        index = offset + masked_lanes
        index_in_chunk = tl.where(index < head, index, index + body_numel)
        x = _widened(tl.load(values + index_in_chunk, mask=index < rest_numel, other=0.0))
        rest_amax = tl.maximum(rest_amax, tl.abs(x))
        rest_square_sum += x * x
        if COUNT_FLUSHED:
            bits = _magnitude_bits(x)
            rest_flushed += ((bits > 0) & (bits <= limit_bits)).to(tl.int32)
    if COUNT_FLUSHED:
        tl.store(row_counts + 2 * num_rows + row, tl.sum(flushed, axis=0) + tl.sum(rest_flushed, axis=0))

    total = tl.sum(square_sum, axis=0) + tl.sum(rest_square_sum, axis=0)
    if _magnitude_bits(total) < 0x7F800000:
        tl.store(row_floats + row, tl.maximum(tl.max(amax, axis=0), tl.max(rest_amax, axis=0)))
        tl.store(row_floats + num_rows + row, total)
        tl.store(row_counts + row, 0)
        tl.store(row_counts + num_rows + row, 0)
    else:
        amax_bits = tl.zeros([MASKED_BLOCK], tl.int32)
        finite_square_sum = tl.zeros([MASKED_BLOCK], tl.float32)
        num_nan = tl.zeros([MASKED_BLOCK], tl.int32)
        num_inf = tl.zeros([MASKED_BLOCK], tl.int32)
        for offset in range(0, numel, MASKED_BLOCK):
            index = offset + masked_lanes
            x = _widened(tl.load(values + index, mask=index < numel, other=0.0))
            bits = _magnitude_bits(x)
            is_finite = bits < 0x7F800000
            finite = tl.where(is_finite, x, 0.0)
            amax_bits = tl.maximum(amax_bits, tl.where(is_finite, bits, 0))
            finite_square_sum += finite * finite
            num_nan += (bits > 0x7F800000).to(tl.int32)
            num_inf += (bits == 0x7F800000).to(tl.int32)
        tl.store(row_floats + row, tl.max(amax_bits, axis=0).to(tl.float32, bitcast=True))
        tl.store(row_floats + num_rows + row, tl.sum(finite_square_sum, axis=0))
        tl.store(row_counts + row, tl.sum(num_nan, axis=0))
        tl.store(row_counts + num_rows + row, tl.sum(num_inf, axis=0))


@triton.jit(do_not_specialize=["num_rows", "num_columns"])
def _reduce_rows(
    segments,
    row_floats,
    row_counts,
    floats,  # fp32 [3, columns]
    counts,  # int64 [3, columns]
    num_rows,
    num_columns,
    COUNT_FLUSHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(0)
    end = tl.load(segments + 2 * column + 1)
    lanes = tl.arange(0, BLOCK)
    amax = tl.zeros([BLOCK], tl.float32)
    # In fp64, as this is the sum that may have one addend that outweighs all others.
    square_sum = tl.zeros([BLOCK], tl.float64)
    num_nan = tl.zeros([BLOCK], tl.int64)
    num_inf = tl.zeros([BLOCK], tl.int64)
    num_flushed = tl.zeros([BLOCK], tl.int64)
    for first in range(tl.load(segments + 2 * column), end, BLOCK):
        row = first + lanes
        mask = row < end
        amax = tl.maximum(amax, tl.load(row_floats + row, mask=mask, other=0.0))
        square_sum += tl.load(row_floats + num_rows + row, mask=mask, other=0.0).to(tl.float64)
        num_nan += tl.load(row_counts + row, mask=mask, other=0).to(tl.int64)
        num_inf += tl.load(row_counts + num_rows + row, mask=mask, other=0).to(tl.int64)
        if COUNT_FLUSHED:
            num_flushed += tl.load(row_counts + 2 * num_rows + row, mask=mask, other=0).to(tl.int64)
    nan_total = tl.sum(num_nan, axis=0)
    inf_total = tl.sum(num_inf, axis=0)
    tl.store(floats + column, tl.max(amax, axis=0))
    tl.store(floats + num_columns + column, tl.sum(square_sum, axis=0).to(tl.float32))
    tl.store(floats + 2 * num_columns + column, (nan_total + inf_total > 0).to(tl.float32))
    tl.store(counts + column, nan_total)
    tl.store(counts + num_columns + column, inf_total)
    tl.store(counts + 2 * num_columns + column, tl.sum(num_flushed, axis=0))


INTERPRETED = not isinstance(_read_chunks, triton.JITFunction)
"""Whether Triton was imported with TRITON_INTERPRET=1: the kernel then reads the memory of the CPU, and no other."""


def read_group(group: Sequence[Tensor], flushed_at: float) -> GroupStats | None:
    """Read dense tensors of one device and dtype in two launches; otherwise as `reference.group_stats`.

    Args:
        group: at least one tensor, none of them empty, of one of `DTYPES`.
        flushed_at: largest magnitude that counts as flushed; 0 skips the count.

    Returns:
        The statistics; None within the capture of a CUDA graph, unless tensors at these addresses were read before
        it. No host sync.
    """
    device, dtype = group[0].device, group[0].dtype
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        # Copies, where there are any, live until the launch; the allocator keeps the order of the stream.
        flat = [values if values.is_contiguous() else flat_values(values) for values in group]
        tables = tables_of(flat, _BLOCK, _MIN_CHUNK_NUMEL)
        if tables is None:
            return None
        addresses, layout = tables
        num_rows, num_columns = layout.tensor_of_row.numel(), len(flat) + 1
        # By name: in a manual step of a half precision run, the default is that precision.
        row_floats = torch.empty(2, num_rows, device=device, dtype=torch.float32)
        row_counts = torch.empty(3, num_rows, device=device, dtype=torch.int32)
        stats = GroupStats(
            torch.empty(3, num_columns, device=device, dtype=torch.float32),
            torch.empty(3, num_columns, device=device, dtype=torch.int64),
        )
        limit_bits = _bits(flushed_at)
        _read_chunks[(num_rows,)](
            *(addresses, layout.numels, layout.segments, layout.tensor_of_row, row_floats, row_counts),
            *(layout.chunk_numel, num_rows, limit_bits),
            DTYPE=DTYPES[dtype],
            ITEMSIZE=dtype.itemsize,
            COUNT_FLUSHED=limit_bits > 0,
            BLOCK=_BLOCK,
            MASKED_BLOCK=_MASKED_BLOCK,
            num_warps=8,
        )
        _reduce_rows[(num_columns,)](
            *(layout.segments, row_floats, row_counts, *stats, num_rows, num_columns),
            COUNT_FLUSHED=limit_bits > 0,
            BLOCK=_REDUCE_BLOCK,
            num_warps=4,
        )
        return stats


@lru_cache(maxsize=16)
def _bits(flushed_at: float) -> int:
    (bits,) = struct.unpack("<i", struct.pack("<f", fp32_at_most(flushed_at)))
    return int(bits)
