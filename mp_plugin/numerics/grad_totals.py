"""The least that a healthy step has to know of its gradients, in as few reads as there can be."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mp_plugin.numerics.finite_grads import SMALL, grad_amax
from mp_plugin.numerics.grad_values import device_of, grouped, local_values


class GradTotals(NamedTuple):
    """What all gradients of a step have in common, on the device of the first."""

    found_inf: Tensor
    """fp32, `[1]`: 1.0 if a NaN or an Inf was seen, else 0.0."""
    norm: Tensor | None = None
    """0-d, fp32 or fp64: the square root of the sum of all squares, if it was asked for; not finite if `found_inf`."""
    amax: Tensor | None = None
    """0-d, fp32 or fp64: the largest magnitude, if it was asked for; means nothing if `found_inf`."""
    marks: Tensor | None = None
    """`[len(grads)]`: a number that is not finite for each gradient that is not; None where reading it costs more."""


def grad_totals(grads: Sequence[Tensor], *, norm: bool = False, amax: bool = False) -> GradTotals:
    r"""Tell whether all gradients are finite, and if asked their norm and their largest magnitude together.

    $\lVert g \rVert = (\sum_i \lVert g_i \rVert^2)^{1/2}$, computed as `torch.nn.utils.clip_grad_norm_` does and equal
    to it bit by bit for fp32 gradients on a CPU; gradients in half precision are added up in fp32. One read on the
    CPU unless both are asked for. No host sync on an accelerator.

    Args:
        grads: as for `grad_amax`; of sparse gradients the norm counts coalesced ones right, of distributed ones
            the local part.
        norm: whether to add up the squares.
        amax: whether to find the largest magnitude.

    Example:
        >>> grad_totals([torch.tensor([3.0]), torch.tensor([0.0, -4.0])], norm=True, amax=True)[:3]
        (tensor([0.]), tensor(5.), tensor(4.))
    """
    values = [local_values(grad) for grad in grads]
    device = device_of(values)
    if not any(value.numel() for value in values):
        zero = torch.zeros((), device=device)
        return GradTotals(zero.reshape(1), zero if norm else None, zero if amax else None)
    total = _norm(values) if norm else None
    if device.type != "cpu" or amax:
        marks = grad_amax(values)
        largest = marks.max()
        found_inf = (~largest.isfinite()).float().reshape(1)
        return GradTotals(found_inf, total, largest if amax else None, marks)
    # A NaN or an Inf spoils every sum that it is part of. Only a sum that is not finite, which huge numbers can also
    # bring about, asks for a closer look. Reading a number costs nothing on a CPU.
    if math.isfinite((_sum(values) if total is None else total).numpy()):
        return GradTotals(torch.zeros(1), total)
    marks = grad_amax(values)
    return GradTotals((~marks.isfinite().all()).float().reshape(1), total, None, marks)


def _norm(values: Sequence[Tensor]) -> Tensor:
    norms: list[Tensor] = []
    for indices in grouped(values):
        group = [values[i] for i in indices]
        # A half format would overflow, or vanish, in the square.
        dtype = torch.promote_types(group[0].dtype, torch.float32)
        norms += torch._foreach_norm(group, 2, dtype=dtype)
    device = device_of(values)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([each.to(device) for each in norms]), 2)
    return norm


def _sum(values: Sequence[Tensor]) -> Tensor:
    """Add up everything, in fp32 at least; on the CPU the cheapest of all reads."""
    sums: list[Tensor] = []
    for indices in grouped(values):
        group = [values[i] for i in indices]
        small = [value.reshape(-1) for value in group if value.numel() < SMALL]
        large = [value for value in group if value.numel() >= SMALL]
        together = [torch.cat(small)] if small else []
        dtype = torch.promote_types(group[0].dtype, torch.float32)
        sums += [value.sum(dtype=dtype) for value in (*large, *together)]
    return torch.stack(sums).sum()
