"""What the statistics of gradients are, in plain PyTorch, and how a CPU gets them at one read of its memory.

Every path counts the same numbers and finds the same largest one. Each adds up squares in an order of its own: the sums
agree to a part in 10^5, and are Inf where they pass the range of fp32 (of fp64, for fp64 gradients).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mp_plugin.numerics.flat_values import flat_values

_PIECE_NUMEL = 1 << 17  # per thread, 512 KiB in fp32: what one pass reads, the next finds in the cache
_MAX_THREADS = 64  # keeps a piece below 2**24, up to which fp32 counts
_SMALL_NUMEL = 1 << 12  # below it, calling torch for one tensor costs more than reading it
_BATCH_LEN = 256  # so many small tensors are read together
_UNCACHED_NUMEL = 1 << 24  # bounds the memory of the definition's intermediate results


class GroupStats(NamedTuple):
    """Statistics of `n` dense tensors of one device and dtype, one column each, and a last column over all."""

    floats: Tensor
    """Shape `[3, n + 1]`, fp32 (fp64 for fp64 tensors): largest finite magnitude, sum of the squares of finite values,
    and 1.0 where there is a NaN or an Inf, else 0.0."""
    counts: Tensor
    """Shape `[3, n + 1]`, int64: NaN, Inf, and flushed values."""


def group_stats(group: Sequence[Tensor], flushed_at: float) -> GroupStats:
    r"""Read dense tensors of one device and dtype.

    Per tensor $x$, over its finite values: $\max_j |x_j|$ and $\sum_j x_j^2$; and how many are NaN, $\pm\infty$, and
    $0 < |x_j| \le$ `flushed_at`. No sync, beyond those of a CPU that waits for itself.

    Example:
        >>> group_stats([torch.tensor([3.0, -4.0]), torch.tensor([float("nan"), 1e-9])], 1e-8).counts.tolist()
        [[0, 1, 1], [0, 0, 0], [0, 1, 1]]
    """
    is_double = group[0].dtype is torch.float64
    limit = flushed_at if is_double else fp32_at_most(flushed_at)
    read = _rows_on_cpu if group[0].device.type == "cpu" else _rows_by_definition
    rows = read([flat_values(values) for values in group], limit)
    dtype = torch.float64 if is_double else torch.float32
    floats, counts = rows[:, :2].to(dtype).T, rows[:, 2:].long().T
    # The total of rounded sums: where one passes the range, so does the total.
    totals = torch.stack([floats[0].amax(), floats[1].sum(dtype=torch.float64).to(dtype)])
    floats = torch.cat([floats, totals[:, None]], dim=1)
    counts = torch.cat([counts, counts.sum(dim=1, keepdim=True)], dim=1)
    return GroupStats(torch.cat([floats, (counts[:2].sum(dim=0) > 0).to(dtype)[None]]), counts)


def fp32_at_most(value: float) -> float:
    """Return the largest fp32 number that is not above a number of at least 0.

    Example:
        >>> fp32_at_most(2.0**-24), fp32_at_most(2.0**-150), fp32_at_most(1e300) == torch.finfo(torch.float32).max
        (5.960464477539063e-08, 0.0, True)
    """
    if value >= torch.finfo(torch.float32).max:
        return torch.finfo(torch.float32).max
    nearest = torch.tensor(value, dtype=torch.float32, device="cpu")
    return (nearest if nearest.item() <= value else nearest.nextafter(torch.zeros_like(nearest))).item()


def definition(values: Tensor, limit: float) -> Tensor:
    """Return amax, sum of squares and the counts of NaN, Inf and flushed values of one tensor, as five fp64 numbers."""
    magnitude = values.to(_sum_dtype(values)).abs()
    is_nan, is_inf = magnitude.isnan(), magnitude == math.inf
    finite = magnitude.masked_fill(is_nan | is_inf, 0.0)
    is_flushed = (magnitude > 0) & (magnitude <= limit)
    numbers = [finite.amax(), finite.square().sum(), is_nan.sum(), is_inf.sum(), is_flushed.sum()]
    return torch.stack([number.double() for number in numbers])


def _rows_by_definition(group: Sequence[Tensor], limit: float) -> Tensor:
    pieces = ([definition(piece, limit) for piece in torch.split(values, _UNCACHED_NUMEL)] for values in group)
    return torch.stack([_merged(torch.stack(rows)) for rows in pieces])


def _merged(rows: Tensor) -> Tensor:
    return torch.cat([rows[:, :1].amax(dim=0), rows[:, 1:].sum(dim=0)])


def _rows_on_cpu(group: Sequence[Tensor], limit: float) -> Tensor:
    rows = torch.empty(len(group), 5, dtype=torch.float64, device="cpu")
    piece_numel = _PIECE_NUMEL * min(torch.get_num_threads(), _MAX_THREADS)
    small = []
    for index, values in enumerate(group):
        if values.numel() < _SMALL_NUMEL:
            small.append(index)
        else:
            pieces = [_piece_row(piece, limit) for piece in torch.split(values, piece_numel)]
            rows[index] = _merged(torch.tensor(pieces, dtype=torch.float64, device="cpu"))
    for start in range(0, len(small), _BATCH_LEN):
        indices = small[start : start + _BATCH_LEN]
        rows[indices] = _small_rows([group[i] for i in indices], limit)
    return rows


def _piece_row(values: Tensor, limit: float) -> list[float]:
    """Return the definition's row of one piece; only the first pass over it reads memory outside of the cache."""
    values = values.to(_sum_dtype(values))
    square_sum = values.dot(values).item()
    # NaN and Inf spoil the sum. So does a sum beyond the range, which the definition tells apart.
    if not math.isfinite(square_sum):
        return definition(values, limit).tolist()
    smallest, largest = values.aminmax()
    num_flushed = 0.0
    if limit > 0.0:
        magnitude = values.abs()
        num_flushed = (_at_most(magnitude, limit).sum() - _at_most(magnitude, 0.0).sum()).item()
    return [max(abs(smallest.item()), abs(largest.item())), square_sum, 0.0, 0.0, num_flushed]


def _small_rows(group: Sequence[Tensor], limit: float) -> Tensor:
    """Return the definition's rows of many small tensors, in a few calls for all of them."""
    magnitude = torch.cat(list(group)).to(_sum_dtype(group[0])).abs()
    lengths = torch.tensor([values.numel() for values in group], device="cpu")

    def reduced(kind: str, numbers: Tensor) -> Tensor:
        return torch.segment_reduce(numbers, kind, lengths=lengths, unsafe=True).double()

    rows = torch.zeros(len(group), 5, dtype=torch.float64, device="cpu")
    rows[:, 0], rows[:, 1] = reduced("max", magnitude), reduced("sum", magnitude.square())
    if limit > 0.0:
        rows[:, 4] = reduced("sum", _at_most(magnitude, limit)) - reduced("sum", _at_most(magnitude, 0.0))
    for index in (~rows[:, 1].isfinite()).nonzero().flatten().tolist():
        rows[index] = definition(group[index], limit)
    return rows


def _at_most(magnitude: Tensor, limit: float) -> Tensor:
    # 1.0 or 0.0: torch takes six times as long to count booleans. A sum of fewer than 2**24 of them is exact.
    return torch.le(magnitude, limit, out=torch.empty_like(magnitude))


def _sum_dtype(values: Tensor) -> torch.dtype:
    # Formats of 8 bits promote to nothing.
    return torch.float32 if values.itemsize == 1 else torch.promote_types(values.dtype, torch.float32)
