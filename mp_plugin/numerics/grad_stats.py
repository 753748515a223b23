"""What many gradients hold, in one read: how large they are, and what of them is NaN, Inf or flushed."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from mp_plugin.checks import is_number
from mp_plugin.errors import ConfigError
from mp_plugin.numerics import reference
from mp_plugin.numerics.grad_values import device_of, grouped, local_values
from mp_plugin.numerics.reference import GroupStats

log = logging.getLogger(__name__)


class Backend(str, Enum):
    """Who reads the gradients."""

    triton = "triton"
    pytorch = "pytorch"


@dataclass(frozen=True, kw_only=True)
class GradStats:
    """Statistics of `n` gradients in their order, on the device of the first; fp32, or fp64 if one of them is."""

    amax: Tensor
    """Shape `[n]`: the largest finite magnitude; 0 where there is none."""
    square_sum: Tensor
    """Shape `[n]`: the sum of the squares of the finite values; Inf beyond the range of fp32 (of fp64)."""
    num_nan: Tensor
    """Shape `[n]`, int64."""
    num_inf: Tensor
    """Shape `[n]`, int64; of either sign."""
    num_flushed: Tensor
    """Shape `[n]`, int64: values that are not 0, of a magnitude of `flushed_at` at most."""
    found_inf: Tensor
    """Shape `[1]`, fp32: 1.0 if any gradient holds a NaN or an Inf, else 0.0."""
    total_square_sum: Tensor
    """0-d: the sum of all square sums; its root is the norm, if all values are finite."""
    largest: Tensor
    """0-d: the largest of `amax`; 0 without gradients."""

    @property
    def marks(self) -> Tensor:
        """Shape `[n]`: `amax`, but NaN for a gradient that holds a NaN, else Inf for one that holds an Inf."""
        return self.amax.masked_fill(self.num_inf > 0, math.inf).masked_fill(self.num_nan > 0, math.nan)


@torch.no_grad()
def grad_stats(grads: Sequence[Tensor], *, flushed_at: float = 0.0) -> GradStats:
    r"""Read all gradients once.

    Per gradient $x$, over its finite values: $\max_j |x_j|$ and $\sum_j x_j^2$; and how many are NaN, $\pm\infty$ and
    $0 < |x_j| \le$ `flushed_at`. Triton reads them on a GPU, in two launches per device and dtype, however many they
    are; PyTorch where there is no Triton, and on the CPU. Counts and `amax` do not depend on who read, square sums by a
    part in $10^5$ at most. The same gradients give the same bits. No host sync, unless they lie on several devices.

    Args:
        grads: floating-point gradients; dense, sparse (their stored values count; coalesce them first), complex (real
            and imaginary parts count each) or distributed (the local part counts).
        flushed_at: largest magnitude that counts as flushed, in units of the gradients as given; 0 skips the count.

    Raises:
        ConfigError: if `flushed_at` is negative or not finite.

    Example:
        >>> stats = grad_stats([torch.tensor([3.0, -4.0]), torch.tensor([float("nan"), 1e-9])], flushed_at=1e-8)
        >>> stats.amax.tolist()[0], stats.square_sum.tolist()[0], stats.found_inf.item()
        (4.0, 25.0, 1.0)
        >>> stats.num_nan.tolist(), stats.num_flushed.tolist()
        ([0, 1], [0, 1])
    """
    if not is_number(flushed_at, lowest=0.0):
        raise ConfigError(f"flushed_at={flushed_at!r}; it is a finite number of at least 0.")
    values = [local_values(grad) for grad in grads]
    groups = grouped(values)
    parts = [_group_stats([values[i] for i in indices], flushed_at) for indices in groups]
    if len(groups) != 1 or len(groups[0]) != len(values):
        parts = [_merged(parts, groups, len(values), device_of(values))]
    floats, counts = parts[0]
    (amax, square_sum, _), (num_nan, num_inf, num_flushed) = floats[:, :-1], counts[:, :-1]
    return GradStats(
        amax=amax,
        square_sum=square_sum,
        num_nan=num_nan,
        num_inf=num_inf,
        num_flushed=num_flushed,
        found_inf=floats[2, -1:].float(),
        total_square_sum=floats[1, -1],
        largest=floats[0, -1],
    )


def backend_of(device: torch.device) -> Backend:
    """Who reads gradients on this device: Triton on a GPU where it works, else PyTorch. The first call imports Triton.

    Example:
        >>> backend_of(torch.device("cpu")).value
        'pytorch'
    """
    return Backend.triton if device.type == "cuda" and _kernel() is not None else Backend.pytorch


_launch_failed = False


@cache
def _import_kernel() -> ModuleType | None:
    try:
        from mp_plugin.numerics import triton_grad_stats
    # A Triton that does not fit its torch, its driver or its compiler may raise anything.
    except Exception as error:
        _tell_who_reads(f"Triton cannot be imported ({type(error).__name__}: {error})")
        return None
    if triton_grad_stats.INTERPRETED:
        _tell_who_reads("Triton interprets its kernels (TRITON_INTERPRET=1) and cannot read the memory of a GPU")
        return None
    return triton_grad_stats


def _kernel() -> ModuleType | None:
    return None if _launch_failed else _import_kernel()


@cache
def _tell_who_reads(reason: str) -> None:
    log.warning("%s: PyTorch reads the gradients. The results are the same; a step takes longer.", reason)


def _group_stats(group: Sequence[Tensor], flushed_at: float) -> GroupStats:
    global _launch_failed
    if backend_of(group[0].device) is Backend.triton and (kernel := _kernel()) is not None:
        if group[0].dtype in kernel.DTYPES:
            try:
                stats: GroupStats | None = kernel.read_group(group, flushed_at)
            except torch.OutOfMemoryError:
                raise
            # No compiler, a driver too old, a GPU too new: whatever it is, the next step would meet it again.
            except Exception as error:
                _tell_who_reads(f"Triton cannot run its kernel ({type(error).__name__}: {error})")
                _launch_failed = True
            else:
                if stats is not None:
                    return stats
        else:
            _tell_who_reads(f"Triton's kernel does not know {group[0].dtype}")
    return reference.group_stats(group, flushed_at)


def _merged(
    parts: Sequence[GroupStats], groups: Sequence[Sequence[int]], num_grads: int, device: torch.device
) -> GroupStats:
    """Put the columns of all groups in the order of the gradients, zeros for empty ones, and their totals behind."""
    dtype = torch.float64 if any(part.floats.dtype is torch.float64 for part in parts) else torch.float32
    # A row more of zeros, of which there is always one column: the totals of nothing.
    none = GroupStats(
        torch.zeros(3, num_grads + 1, device=device, dtype=dtype),
        torch.zeros(3, num_grads + 1, device=device, dtype=torch.int64),
    )
    parts = [GroupStats(floats.to(device, dtype), counts.to(device)) for floats, counts in parts] + [none]
    runs = list(_runs(groups, num_grads))
    totals = torch.stack([floats[:, -1] for floats, _ in parts])
    total = torch.stack([totals[:, 0].amax(), totals[:, 1].sum(), totals[:, 2].amax()])
    floats = torch.cat([*(parts[part].floats[:, start:stop] for part, start, stop in runs), total[:, None]], dim=1)
    count = torch.stack([counts[:, -1] for _, counts in parts]).sum(dim=0)
    counts = torch.cat([*(parts[part].counts[:, start:stop] for part, start, stop in runs), count[:, None]], dim=1)
    return GroupStats(floats, counts)


def _runs(groups: Sequence[Sequence[int]], num_grads: int) -> Iterator[tuple[int, int, int]]:
    """Which columns of which group follow each other in the order of the gradients: (group, first, end).

    Slices, as a list of indices would have to be sent to the device. What is in no group is in one behind the last.
    """
    place = [(len(groups), index) for index in range(num_grads)]
    for number, indices in enumerate(groups):
        for column, index in enumerate(indices):
            place[index] = (number, column)
    start = 0
    for end in range(1, num_grads + 1):
        group, column = place[end - 1]
        if end == num_grads or place[end] != (group, column + 1):
            yield group, place[start][1], column + 1
            start = end
