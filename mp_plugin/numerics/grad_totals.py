"""The least that a healthy step has to know of its gradients, in as few reads as there can be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mp_plugin.numerics.grad_stats import Backend, GradStats, backend_of, grad_stats
from mp_plugin.numerics.grad_values import device_of, grouped, local_values

SMALL = 4096
"""Values of a gradient below which a launch of its own costs more, on a CPU, than what is done with them."""


@dataclass(frozen=True, slots=True)
class GradTotals:
    """What all gradients of a step have in common, on the device of the first."""

    found_inf: Tensor
    """fp32, `[1]`: 1.0 if a NaN or an Inf was seen, else 0.0."""
    norm: Tensor | None = None
    """0-d, fp32 or fp64: the root of the sum of all squares, if it was asked for; means nothing if `found_inf`."""
    amax: Tensor | None = None
    """0-d, fp32 or fp64: the largest magnitude, if it was asked for; means nothing if `found_inf`."""
    by_gradient: GradStats | Tensor | None = None
    """What is known of each: statistics, or the largest magnitude, or nothing where reading it costs more."""

    @property
    def marks(self) -> Tensor | None:
        """`[len(grads)]`: the largest magnitude of each gradient, where NaN wins over Inf and Inf over any number.

        None where only the totals are known. No sync.
        """
        return self.by_gradient.marks if isinstance(self.by_gradient, GradStats) else self.by_gradient


@torch.no_grad()
def grad_totals(grads: Sequence[Tensor], *, norm: bool = False, amax: bool = False) -> GradTotals:
    r"""Tell whether all gradients are finite, and if asked their norm and their largest magnitude together.

    $\lVert g \rVert = (\sum_i \lVert g_i \rVert^2)^{1/2}$, on a CPU computed as `torch.nn.utils.clip_grad_norm_` does
    and equal to it bit by bit for fp32 gradients; gradients in half precision are added up in fp32. One read; without
    Triton one more for the norm, unless it is all that is asked for on a CPU. No host sync on a GPU.

    Args:
        grads: as for `grad_stats`; of distributed ones the norm is that of the local part.
        norm: whether to add up the squares.
        amax: whether to find the largest magnitude.

    Example:
        >>> totals = grad_totals([torch.tensor([3.0]), torch.tensor([0.0, -4.0])], norm=True, amax=True)
        >>> totals.found_inf, totals.norm, totals.amax, totals.marks
        (tensor([0.]), tensor(5.), tensor(4.), tensor([3., 4.]))
    """
    values = [local_values(grad) for grad in grads]
    device = device_of(values)
    if not any(value.numel() for value in values):
        zeros = torch.zeros(1 + len(values), device=device, dtype=torch.float32)
        return GradTotals(zeros[:1], zeros[0], zeros[0], zeros[1:])
    if backend_of(device) is Backend.triton:
        stats = grad_stats(values)
        return GradTotals(stats.found_inf, stats.total_square_sum.sqrt() if norm else None, stats.largest, stats)
    total = _norm(values) if norm else None
    # A NaN or an Inf spoils every sum that it is part of. Only a sum that is not finite, which huge numbers can also
    # bring about, asks for a closer look. Reading a number costs nothing on a CPU.
    if device.type == "cpu" and not amax and math.isfinite((_sum(values) if total is None else total).numpy()):
        return GradTotals(torch.zeros(1, device=device, dtype=torch.float32), total)
    marks = _marks(values)
    largest = marks.max()
    found_inf = (~largest.isfinite()).float().reshape(1)
    if device.type == "cpu" and total is not None and not (found_inf.numpy() or math.isfinite(total.numpy())):
        total = _norm(values, torch.float64)  # their squares are beyond fp32
    return GradTotals(found_inf, total, largest, marks)


def all_finite(grads: Sequence[Tensor]) -> Tensor:
    """Whether no gradient holds a NaN or an Inf: one read, a 0-d bool tensor, no host sync on a GPU.

    Example:
        >>> all_finite([torch.ones(2), torch.tensor([float("nan")])])
        tensor(False)
    """
    return grad_totals(grads).found_inf[0] == 0


def _norm(values: Sequence[Tensor], least: torch.dtype = torch.float32) -> Tensor:
    norms: list[Tensor] = []
    for indices in grouped(values):
        group = [values[i] for i in indices]
        # A half format would overflow, or vanish, in the square.
        dtype = torch.promote_types(group[0].dtype, least)
        norms += torch._foreach_norm(group, 2, dtype=dtype)
    device = device_of(values)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([each.to(device) for each in norms]), 2)
    return norm


def _marks(values: Sequence[Tensor]) -> Tensor:
    dtype = torch.float64 if any(value.dtype is torch.float64 for value in values) else torch.float32
    device = device_of(values)
    # One by one, as a list of places would have to be sent to the device.
    marks = [torch.zeros((), device=device, dtype=dtype)] * len(values)
    for indices in grouped(values):
        is_slow = values[indices[0]].device.type == "cpu"
        # On a CPU the infinity norm is not vectorised: smallest and largest together take a sixth of its time.
        large = [place for place in indices if is_slow and values[place].numel() >= SMALL]
        for place in large:
            marks[place] = torch.stack(values[place].aminmax()).abs().amax().to(device, dtype)
        others = [place for place in indices if not (is_slow and values[place].numel() >= SMALL)]
        if others:
            norms = torch.stack(torch._foreach_norm([values[place] for place in others], math.inf)).to(device, dtype)
            for place, norm in zip(others, norms.unbind(), strict=True):
                marks[place] = norm
    return torch.stack(marks)


def _sum(values: Sequence[Tensor]) -> Tensor:
    """Add up everything, in fp32 at least; on the CPU the cheapest of all reads."""
    device, sums = device_of(values), list[Tensor]()
    for indices in grouped(values):
        group = [values[i] for i in indices]
        small = [value for value in group if value.numel() < SMALL]
        large = [value for value in group if value.numel() >= SMALL]
        # What DDP puts gradients together with: no Python for each.
        together = [torch._utils._flatten_dense_tensors(small)] if small else []  # type: ignore[no-untyped-call]
        # Formats of 8 bits promote to nothing.
        dtype = torch.float32 if group[0].itemsize == 1 else torch.promote_types(group[0].dtype, torch.float32)
        sums += [value.sum(dtype=dtype).to(device) for value in (*large, *together)]
    return torch.stack(sums).sum()
